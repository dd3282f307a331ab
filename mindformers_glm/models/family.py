"""What the registered classes of every dialect share."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from mindformers.core.context.build_context import MFContextOperator
from mindformers.generation.utils import GenerateOutput
from mindformers.models.configuration_utils import PretrainedConfig
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from mindformers_glm.backends import Backend, select_backend
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import launched_rank, refuse_quantized_folder
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.runner_settings import SETTING_NAMES, RunnerSettings
from mindformers_glm.core.errors import ConfigError, GlmError, UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.agreement import check_model_is_shared
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.input_processor import check_token_ids
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.open_model import OpenRunner, open_runner
from mindformers_glm.models.generate import create_engine, generate
from mindformers_glm.models.step_inputs import read_step
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.system.log import note
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import (
    build_rules,
    find_stored_schemes,
    resolve_attention_bias,
)

_NO_WEIGHTS = (
    "The network has no weights yet: call load_weights(folder), or get it from "
    "from_pretrained(folder)."
)
# How upstream's AutoModel and pipeline say which files of a hub they mean; a folder has one kind.
_HUB_KEYS = ("token", "trust_remote_code", "_commit_hash", "_from_pipeline")
_DEVICE_KEYS = ("device_target", "device_options")


class GlmFamilyConfig(PretrainedConfig):
    """The keys of a config.json, plus the run's types and sizes; one subclass for each dialect.

    Every architecture key must come from the checkpoint: unlike upstream's classes these have no
    defaults, which would be those of another model. `to_glm_config` checks the keys.

    Args:
        kwargs: keys of config.json as the dialect calls them; and optionally the run settings that
            concern a network (config/runner_settings.py), `device_target` and `device_options`.
    Raises:
        ConfigError: `model_type` is that of another dialect.
    """

    # Upstream compares with an instance made without arguments otherwise; there is none.
    is_composition = True

    def __init__(self, **kwargs: Any) -> None:
        model_type = kwargs.pop("model_type", self.model_type)
        if model_type != self.model_type:
            raise ConfigError(
                f"{type(self).__name__} is for model_type {self.model_type!r}, the config says "
                f"{model_type!r}: use AutoConfig, which chooses by it."
            )
        # Some callers, such as vLLM-MindSpore, name types by MindSpore's own objects.
        self.dict_ms_dtype_to_str(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def from_glm_config(
        cls, config: GlmConfig, settings: RunnerSettings, device: Mapping[str, Any], folder: str
    ) -> "GlmFamilyConfig":
        """Put an architecture, the run's settings, the device's and the checkpoint together."""
        run = {key: getattr(settings, key) for key in SETTING_NAMES}
        return cls(**config.to_dict(), **run, **device, pretrained_model_dir=folder)

    def to_glm_config(self) -> GlmConfig:
        """The checked architecture; raises ConfigError where a key is missing or wrong."""
        run = (*SETTING_NAMES, *_DEVICE_KEYS)
        return GlmConfig.from_dict(
            {key: value for key, value in self.to_dict().items() if key not in run},
            source=self.name_or_path or type(self).__name__,
        )

    def to_runner_settings(self) -> RunnerSettings:
        """The run's types and sizes, on this process's rank.

        Weights whose type neither the run nor config.json names are float32 in memory.
        """
        given = {key: self.__dict__.get(key) for key in SETTING_NAMES}
        given["model_parallel_rank"] = launched_rank(given["model_parallel"] or 1)
        return RunnerSettings.for_config(self.to_glm_config(), "float32", **given)

    def chosen_device(self) -> str | None:
        """What this config says, else the context that upstream's launcher has built; or None."""
        context = MFContextOperator.get_mf_ctx_instance()
        of_context = context.config.get("context", {}) if context is not None else {}
        return self.__dict__.get("device_target") or of_context.get("device_target")


class GlmFamilyPreTrainedModel(PreTrainedModel):
    """`from_pretrained`; a subclass names its configuration class."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_dir: str, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Build the network that the folder's config.json names and load its weights.

        Args:
            pretrained_model_name_or_dir: a Hugging Face folder.
            kwargs: `device_target` ("CPU", "Ascend"; None: Ascend where it can be used),
                `device_options` as `LLM` takes them, and run settings, the fields of
                RunnerSettings without `float_layers`, which is config.json's; others are refused.
        Raises:
            GlmError: the folder is not a usable GLM checkpoint, a setting is unknown or wrong, or
                the memory does not allow it.
        """
        kwargs.pop("config", None)  # AutoModel passes the one it read from the same folder
        for name in _HUB_KEYS:
            kwargs.pop(name, None)
        if kwargs.pop("revision", None) is not None:
            raise ConfigError("revision is a hub's, and the weights are a folder's: leave it out.")
        device = {name: kwargs.pop(name, None) for name in _DEVICE_KEYS}
        if "model_parallel_rank" in kwargs:
            raise ConfigError("model_parallel_rank is the launcher's to choose: leave it out.")
        size = kwargs.get("model_parallel", 1)
        rank = launched_rank(size)
        folder = locate_folder(pretrained_model_name_or_dir)
        refuse_quantized_folder()
        with Checkpoint.open(folder, TensorParallel(size, rank), find_format) as opened:
            config = resolve_attention_bias(GlmConfig.from_hf(folder), opened)
            settings = RunnerSettings.for_config(
                config, opened.dtype, **(kwargs | {"model_parallel_rank": rank})
            )
            network_class = MindFormerRegister.get_cls(
                MindFormerModuleType.MODELS, config.architecture
            )
            with no_init_parameters():  # every one is loaded below
                network = network_class(
                    network_class.config_class.from_glm_config(
                        config, settings, device, str(folder)
                    )
                )
            network.name_or_path = str(folder)
            network.load_weights(opened)
        return network

    # AutoModel calls this name for a folder that has a config.json and no YAML.
    from_pretrained_experimental_mode = from_pretrained


class GlmInferenceModel(GlmFamilyPreTrainedModel):
    """A GLM for inference on the chosen device, behind MindSpore Transformers' own calls.

    Where the device's network is MindSpore Transformers' own, calling the class gives that (see
    `Backend.create_network`), and all below is upstream's. Elsewhere this class is a door to the
    backend's network, which stands behind the engine's runner. It is built and filled by
    `load_weights`, which also makes the KV cache; from then on the Cell has its Parameters.

    Attributes:
        glm_config, settings: what is run, and how.
        name_or_path: the folder it came from, or None.
        opened: the runner; None before `load_weights`.
    """

    backend: Backend

    def __new__(cls, config: GlmFamilyConfig) -> Any:
        """Choose the device, now and not when the class is found; see the class for what it gives.

        Raises:
            GlmError: the config is not one of this dialect's, or the device cannot be used or
                cannot run it.
        """
        if not isinstance(config, cls.config_class):
            raise ConfigError(
                f"{cls.__name__} takes a {cls.config_class.__name__} of mindformers_glm, got a "
                f"{type(config).__name__} of {type(config).__module__}: use AutoConfig, which "
                "gives it."
            )
        glm_config = config.to_glm_config()
        backend = select_backend(config.chosen_device())
        network = backend.create_network(glm_config, vars(config))
        if network is not None:
            return network
        door = super().__new__(cls)
        object.__setattr__(door, "backend", backend)  # a Cell takes no attribute before __init__
        return door

    def __init__(self, config: GlmFamilyConfig) -> None:
        super().__init__(config, auto_prefix=False)
        self.glm_config = config.to_glm_config()
        self.settings = config.to_runner_settings()
        self.device = DeviceSettings.from_options(config.__dict__.get("device_options"), None)
        self.opened: OpenRunner | None = None
        self.engine: LLMEngine | None = None  # made by the first `generate`

    def load_weights(self, weights: str | Path | Checkpoint) -> None:
        """Fill the network from a Hugging Face folder; all names and shapes are checked first.

        A network that has weights keeps them where the check fails.

        Raises:
            CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
            MemoryBudgetError: weights, workspace and one sequence's KV cache do not fit.
            ConfigError: ranks of a split model were given other checkpoints or settings, or
                `quantization` is set for weights that are quantized already.
            UnsupportedError: the network has weights that are quantized otherwise.
        """
        rank = self.settings.tensor_parallel
        with ExitStack() as stack:
            if not isinstance(weights, Checkpoint):
                refuse_quantized_folder()
                folder = locate_folder(weights)
                weights = stack.enter_context(Checkpoint.open(folder, rank, find_format))
            group = self.backend.connect(rank, self.device)
            if self.opened is None:
                self.glm_config = resolve_attention_bias(self.glm_config, weights)
            config, defaults = self.glm_config, GenerationDefaults()
            settings = self._settings_for(weights)
            check_model_is_shared(group, weights, config, defaults, settings, {})
            if self.opened is None:
                self.opened = open_runner(
                    self.backend, group, config, weights, settings, self.device
                )
                self.network, self.settings = self.opened.runner.network, settings
            else:
                self.opened.runner.load_weights(weights)

    def _settings_for(self, weights: Checkpoint) -> RunnerSettings:
        """The run's settings with what the checkpoint says of quantization.

        Raises:
            ConfigError: weights that are quantized already are to be quantized.
            UnsupportedError: the network has weights that are quantized otherwise.
        """
        rank = self.settings.tensor_parallel
        cuts = weights.cuts(self.glm_config, rank)
        rules = build_rules(self.glm_config, cuts, weights.quantized)
        check_rules(rules, weights)
        stored = find_stored_schemes(rules, weights)
        settings = self.settings.with_stored(stored)
        if self.opened is not None and settings != self.settings:
            raise UnsupportedError(
                f"{weights.folder} is quantized otherwise than the weights that the network has: "
                "load it into a network of its own."
            )
        if widened := stored.describe_float(rank.size):
            note(widened)
        return settings

    def num_weight_bytes(self) -> int:
        """Bytes of all weights in memory, or what they will be."""
        if self.opened is not None:
            return self.opened.runner.weights_bytes
        return self.backend.memory_need(self.glm_config, self.settings).weights_bytes

    def construct(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run one step on the KV cache; takes what upstream's `construct` takes (step_inputs.py).

        The cache is the one that `generate` uses, so what lies in it lasts until the next call.

        Returns:
            float32 [num_seqs, vocab_size], the logits of each sequence's last token.
        Raises:
            GlmError: there are no weights, or an input cannot be used.
        """
        if self.opened is None:
            raise GlmError(_NO_WEIGHTS)
        batch = read_step(self.settings, self.opened.num_blocks, *args, **kwargs)
        check_token_ids(batch.token_ids.tolist(), self.glm_config.vocab_size)
        return Tensor(self.opened.runner.execute(batch))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run `construct` as it is; the runner has the compiled graphs."""
        return self.construct(*args, **kwargs)

    def generate(
        self,
        input_ids: list[int] | list[list[int]] | np.ndarray | Tensor,
        generation_config: Any = None,
        seed: int | None = None,
        attention_mask: list[int] | list[list[int]] | np.ndarray | Tensor | None = None,
        streamer: Any = None,
        return_dict_in_generate: bool = False,
        **kwargs: Any,
    ) -> list[np.ndarray] | GenerateOutput:
        """Generate as upstream's `generate` does, through this project's engine.

        Args:
            input_ids: one prompt [S] or several, int32 or int64 [B, S] or lists of any lengths.
            generation_config: a GenerationConfig of transformers or MindSpore Transformers, or a
                dict, read as a generation_config.json is: what would change the answer and is not
                supported is refused. None: the generation_config.json of the folder given to
                `from_pretrained`.
            attention_mask: of the shape of `input_ids`, bool, int or float: 1 for a token, 0 for
                padding before or behind the tokens. Padding is dropped, and every prompt runs at
                its own length. None: of several prompts of one length, tokens `pad_token_id` of
                config.json at both ends are padding.
            streamer: a TextStreamer of MindSpore Transformers or transformers, or what has their
                `put` and `end`; it is given the prompt, which must be one, and then each token.
            return_dict_in_generate: wrap the result as upstream's pipeline wants it.
            kwargs: single settings (do_sample, top_k, max_new_tokens, ...), which win.
        Returns:
            For each prompt its token ids, without padding, followed by the generated ones: int32,
            each of its own length. With return_dict_in_generate a GenerateOutput of these
            `sequences`.
        Raises:
            GlmError: there are no weights, or a setting or a prompt is wrong; in one sentence.
        """
        if self.opened is None:
            raise GlmError(_NO_WEIGHTS)
        if self.engine is None:
            self.engine = create_engine(
                self.opened, self.glm_config, self.settings, self.name_or_path
            )
        kwargs.setdefault("pad_token_id", self.glm_config.pad_token_id)
        sequences = generate(
            self.engine, input_ids, generation_config, seed, attention_mask, streamer, **kwargs
        )
        return GenerateOutput(sequences=sequences) if return_dict_in_generate else sequences
