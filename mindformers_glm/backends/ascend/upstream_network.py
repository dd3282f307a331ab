"""The network for MindSpore Transformers' own callers: its Trainer, its pipeline, its servers.

They find it by the name that a checkpoint's config.json has, and use what any network of upstream's
has: `construct` with its flat arguments, a KV cache of their own, `set_dynamic_inputs`, flags and
phases, `model.output_layer`, `generate`. All of it is upstream's. What is ours: every dialect is
built, and `load_weights` fills each Parameter exactly once or says why it cannot.
Read: mindformers 1.7.0, trainer/base_trainer.py, generation/text_generator.py, model_runner.py,
pipeline; vLLM-MindSpore 0.5.1, mf_models/mindformers.py.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

from mindformers.core.context.build_context import MFContextOperator
from mindformers.generation import GenerationConfig
from mindformers.models.glm4.configuration_glm4 import Glm4Config
from mindformers.parallel_core.inference import parallel_state
from mindformers.tools.register import MindFormerConfig

from mindformers_glm.backends.ascend.context import processor_name
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM, make_upstream_config
from mindformers_glm.backends.ascend.parameters import fill_network, list_rules
from mindformers_glm.backends.ascend.quantization import StoredQuantization, read_quantization
from mindformers_glm.backends.ascend.support import check_supported
from mindformers_glm.config.environment import refuse_quantized_folder
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.runner_settings import SETTING_NAMES, RunnerSettings
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.system.files import read_json_if_present
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import (
    WeightRule,
    find_stored_schemes,
    resolve_attention_bias,
)
from mindformers_glm.weights.shards import WEIGHT_FORMATS

# What a run's configuration says to upstream's own code, beside the sizes and types of the network.
_RUN_KEYS = (
    *("batch_size", "seq_length", "num_blocks", "block_size", "is_dynamic", "use_past"),
    *("layernorm_compute_dtype", "softmax_compute_dtype"),
    *("parallel_config", "parallel_decoding_params", "is_sample_acceleration"),
    *("max_length", "max_new_tokens", "max_decode_length", "repetition_penalty"),
    *("do_sample", "top_k", "top_p", "temperature"),
    *("architectures", "tokenizer_class", "_name_or_path", "pretrained_model_dir"),
    "checkpoint_name_or_path",
)
_ARCHITECTURE_KEYS = frozenset(signature(Glm4Config.__init__).parameters)


class UpstreamGlmForCausalLM(AscendGlmForCausalLM):
    """A GLM of any dialect with the surface of upstream's own inference classes.

    `construct` gives logits: of a prefill those of each sequence's last row, else of every row.

    Attributes:
        config: upstream's Glm4Config.
        glm_config: what is built.
    """

    def __init__(self, config: GlmConfig, given: Mapping[str, Any]) -> None:
        """Build the network in the context and for the groups of ranks that there are.

        Args:
            given: all that the caller's configuration says; keys that upstream's class does not
                know either are not read.
        Raises:
            UnsupportedError: the network would run wrongly, or not at all.
        """
        folder = given.get("pretrained_model_dir")
        with ExitStack() as stack:
            weights = _open_weights(folder, stack)
            if weights is not None:
                config = resolve_attention_bias(config, weights)
            settings, quantization = _read_run(config, given, weights)
        super().__init__(_make_config(config, given, settings), quantization)
        self.model.return_hidden_states = False
        self.glm_config = config
        if folder:  # as upstream's build_network does, whose result has the file's keys alone
            of_config = GenerationConfig.from_model_config(self.config).to_dict()
            of_file = read_json_if_present(Path(folder) / "generation_config.json", ConfigError)
            self.generation_config = GenerationConfig.from_dict(of_config | of_file)

    def load_weights(
        self, weights_path: str | Path | Checkpoint | None = None, weights: Any = None
    ) -> None:
        """Fill every Parameter from a Hugging Face folder; all names and shapes are checked first.

        Raises:
            CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
            UnsupportedError: tensors are handed over one by one, or are quantized otherwise than
                those in the configuration's pretrained_model_dir.
        """
        if weights_path is None or weights is not None:
            raise UnsupportedError(
                "load_weights takes the path of a Hugging Face folder, where all tensors can be "
                "checked before one is read; it does not take `weights`."
            )
        with ExitStack() as stack:
            if not isinstance(weights_path, Checkpoint):
                refuse_quantized_folder()
                folder = locate_folder(weights_path)
                weights_path = stack.enter_context(
                    Checkpoint.open(folder, _find_rank(), find_format)
                )
            fill_network(self, self.glm_config, _find_rank(), weights_path)

    def _incremental_infer_mcore(self, *args: Any, **kwargs: Any) -> Any:
        """A step of upstream's `generate`, whose flags are set once: graphs are compiled with them.

        Without graphs the second prompt would be taken for a decode (mindformers 1.7.0).
        """
        if self.is_pynative:
            self._exec_add_flags = True
        return super()._incremental_infer_mcore(*args, **kwargs)


def has_context() -> bool:
    """Whether the caller has made upstream's context, and its groups where it needs any."""
    return MFContextOperator.get_mf_ctx_instance() is not None


def make_context() -> None:
    """Tell upstream's `generate` what its run_mindformer.py tells it: this is an Mcore network."""
    MFContextOperator(MindFormerConfig(use_legacy=False, run_mode="predict"))


def _find_rank() -> TensorParallel:
    """Which part of the network is this process's, by the groups that the network is built for."""
    return TensorParallel(
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )


def _open_weights(folder: str | None, stack: ExitStack) -> Checkpoint | None:
    """The checkpoint that the network is for; None where it is not told, or has no weights yet."""
    if not folder or not any(
        found for kind in WEIGHT_FORMATS for found in Path(folder).glob(kind.pattern)
    ):
        return None
    return stack.enter_context(Checkpoint.open(folder, _find_rank(), find_format))


def _read_run(
    config: GlmConfig, given: Mapping[str, Any], weights: Checkpoint | None
) -> tuple[RunnerSettings, StoredQuantization | None]:
    """The run's types and sizes, checked, and how the layers of the checkpoint are quantized."""
    rank = _find_rank()
    if (stages := parallel_state.get_pipeline_model_parallel_world_size()) > 1:
        raise UnsupportedError(
            f"pipeline_stage {stages} cannot be loaded here: split the network by model_parallel."
        )
    # Tables for all positions that the caller will use. vLLM-MindSpore says how many by upstream's
    # key, also where the dialect has another one for what the checkpoint can.
    length = given.get("max_model_len") or given.get("max_position_embeddings")
    run = {key: given.get(key) for key in SETTING_NAMES} | {
        "max_model_len": length or config.max_position_embeddings,
        "model_parallel": rank.size,
        "model_parallel_rank": rank.rank,
    }
    rules: tuple[WeightRule, ...] = ()
    stored = StoredSchemes()
    if weights is not None and weights.quantized is not None:
        rules = list_rules(config, rank, weights)
        check_rules(rules, weights)
        stored = find_stored_schemes(rules, weights)
    settings = RunnerSettings.for_config(config, "bfloat16", stored, **run)
    check_supported(config, settings, processor_name())
    if weights is None:
        return settings, None
    return settings, read_quantization(rules, weights, settings.compute_dtype)


def _make_config(
    config: GlmConfig, given: Mapping[str, Any], settings: RunnerSettings
) -> Glm4Config:
    """Upstream's configuration: the architecture, the run's types, and the run's other keys."""
    made = make_upstream_config(config, settings)
    _refuse_other_networks(made, given)
    of_the_file = config.to_dict()
    for key in _RUN_KEYS:
        if given.get(key) is not None and key not in of_the_file:
            setattr(made, key, given[key])
    if "seq_length" in of_the_file:  # a dialect's word for max_position_embeddings
        made.seq_length = min(config.max_position_embeddings, made.num_blocks * made.block_size)
    return made


def _refuse_other_networks(made: Glm4Config, given: Mapping[str, Any]) -> None:
    """Refuse what upstream knows, would build or run otherwise, and this network does not have."""
    known = made.to_dict()
    others = sorted(
        f"{key} {given[key]!r}"
        for key in known.keys() - _ARCHITECTURE_KEYS - set(_RUN_KEYS) - set(SETTING_NAMES)
        if key in given and given[key] not in (None, known[key])
    )
    if others:
        raise UnsupportedError(
            f"GLM's network on Ascend cannot take {', '.join(others)}: leave it out."
        )
