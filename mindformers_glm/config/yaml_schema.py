"""Every run setting: its name in upstream's YAML schema, its type, and what becomes of it here.

Names and nesting are those of MindSpore Transformers 1.7.0 (tools/register/template.py,
configs/glm4/predict_glm4.yaml, run_mindformer.py); the last group of SETTINGS is ours. A setting
takes effect, or `only` its neutral values are accepted and `because` says why, or it is accepted
and `without_effect` says why nothing changes. `refused_settings.py` lists what is never accepted.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mindformers_glm.config.refused_settings import (
    DENSE,
    NO_CKPT,
    NO_PROFILE,
    TRAINING,
)
from mindformers_glm.config.value_types import (
    BOOLEAN,
    DTYPE,
    GRAPH_LEVEL,
    INTEGER,
    NUMBER,
    ON_OFF_AUTO,
    SIZE,
    TEXT,
    TEXT_OR_INTEGER,
    TEXTS,
    TRUE_FALSE_AUTO,
    ValueType,
)
from mindformers_glm.core.quantization_scheme import GROUP_SIZES, SCHEMES


@dataclass(frozen=True)
class Setting:
    """One run setting.

    path: dotted name in the YAML file; `--path value` sets it on the command line.
    default: the value where neither YAML nor command line gives one.
    only, because: the accepted values, and why others are refused (completes "...: ").
    minimum: the least accepted number.
    without_effect: why an accepted value changes nothing.
    aliases: other dotted names with the same meaning, in YAML and on the command line.
    options: further names on the command line alone.
    help: shown by --help; settings without it are accepted but not advertised.
    """

    path: str
    type: ValueType
    default: Any = None
    only: tuple[Any, ...] = ()
    because: str = ""
    minimum: float | None = None
    without_effect: str = ""
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    help: str = ""


_ASCEND_ONLY = "it takes effect on Ascend only"
_ONE_WAY = "inference is split over model_parallel only, this must stay at its neutral value"
_FLOAT32_ONLY = "the CPU operators take norms and softmax in float32, which is the most exact"


def _generation_names(name: str) -> tuple[str, ...]:
    """Where else upstream reads a generation setting from."""
    return (f"generation_config.{name}", f"model.model_config.{name}")


SETTINGS: tuple[Setting, ...] = (
    # What to run.
    Setting(
        "run_mode",
        TEXT,
        "predict",
        only=("predict",),
        because=TRAINING,
        help="predict is the only mode",
    ),
    Setting(
        "pretrained_model_dir",
        TEXT,
        "",
        help="Hugging Face folder: config.json, tokenizer and weights "
        "(default: the small checkpoint shipped with this project)",
    ),
    Setting("load_checkpoint", TEXT, "", help="same as --pretrained_model_dir"),
    Setting(
        "predict_data",
        TEXTS,
        aliases=("input_data",),
        help="one or more prompts, or a .txt file with one prompt a line",
    ),
    Setting(
        "predict_batch_size",
        INTEGER,
        1,
        minimum=1,
        help="number of prompts that run together (default 1)",
    ),
    Setting(
        "save_file",
        TEXT,
        "text_generation_result.txt",
        help="where the answers go (default text_generation_result.txt)",
    ),
    Setting(
        "output_dir",
        TEXT,
        "./output",
        help="where MindSpore Transformers may log; predict itself writes nothing there",
    ),
    Setting("seed", INTEGER, 0, minimum=0, help="seed of sampling (default 0)"),
    # Generation. What is left out is read from generation_config.json.
    Setting(
        "do_sample",
        BOOLEAN,
        aliases=_generation_names("do_sample"),
        help="False: always the likeliest token",
    ),
    Setting(
        "temperature",
        NUMBER,
        minimum=0,
        aliases=_generation_names("temperature"),
        help="of sampling",
    ),
    Setting(
        "top_k",
        INTEGER,
        minimum=-1,
        aliases=_generation_names("top_k"),
        help="sample from the k likeliest tokens; 0: from all",
    ),
    Setting(
        "top_p",
        NUMBER,
        minimum=0,
        aliases=_generation_names("top_p"),
        help="sample from the likeliest tokens whose probabilities reach p",
    ),
    Setting(
        "repetition_penalty",
        NUMBER,
        minimum=0,
        aliases=_generation_names("repetition_penalty"),
        help="above 1: tokens seen before become less likely",
    ),
    Setting(
        "max_new_tokens",
        INTEGER,
        minimum=1,
        aliases=_generation_names("max_new_tokens"),
        help="longest answer, in tokens",
    ),
    Setting(
        "max_length",
        INTEGER,
        minimum=1,
        aliases=_generation_names("max_length"),
        help="longest prompt and answer together, in tokens",
    ),
    Setting(
        "min_new_tokens",
        INTEGER,
        minimum=0,
        aliases=_generation_names("min_new_tokens"),
        help="shortest answer, in tokens",
    ),
    Setting("stop", TEXTS, (), help="texts that end an answer"),
    Setting(
        "prompt_lookup_num_tokens",
        INTEGER,
        minimum=0,
        aliases=_generation_names("prompt_lookup_num_tokens"),
        help="most tokens guessed ahead from prompt and answer; 0: none. Changes the speed only",
    ),
    Setting(
        "apply_chat_template",
        TRUE_FALSE_AUTO,
        "auto",
        help="auto (default): when the checkpoint has one",
    ),
    # Precision and memory.
    Setting(
        "model.model_config.params_dtype",
        DTYPE,
        help="type of the weights in memory (default: as in the checkpoint)",
    ),
    Setting(
        "model.model_config.compute_dtype",
        DTYPE,
        help="type products are taken in (default: params_dtype)",
    ),
    Setting("model.model_config.rotary_dtype", DTYPE, help="type of the rotary tables"),
    Setting(
        "quantization",
        TEXT,
        only=tuple(SCHEMES),
        because="these are the schemes that float weights can be quantized to",
        help="quantize the weights of all linear layers while they are loaded: w8a16 (int8), "
        "w8a8_dynamic (int8, products in int8 too), w4a16 (int4) or w4a8_dynamic (int4, products "
        "in int8)",
    ),
    Setting(
        "quantization_group_size",
        INTEGER,
        only=GROUP_SIZES,
        because="the int4 operators know no other group size",
        help="columns of a weight row that share a scale in w4a16 and w4a8_dynamic (default 128)",
    ),
    Setting(
        "model.model_config.layernorm_compute_dtype",
        DTYPE,
        "float32",
        only=("float32",),
        because=_FLOAT32_ONLY,
    ),
    Setting(
        "model.model_config.softmax_compute_dtype",
        DTYPE,
        "float32",
        only=("float32",),
        because=_FLOAT32_ONLY,
    ),
    Setting(
        "context.max_device_memory",
        SIZE,
        help='most memory for weights, KV cache and workspace, e.g. "59GB"',
    ),
    Setting(
        "max_model_len",
        INTEGER,
        minimum=1,
        aliases=("model.model_config.seq_length",),
        help="longest prompt and answer the KV cache is sized for (default: the model's limit, "
        "at most 8192)",
    ),
    Setting(
        "packed_cache",
        ON_OFF_AUTO,
        "auto",
        help="keep the loaded weights in a file for the next start: on, off, or auto (default) "
        "where that saves much reading",
    ),
    Setting("model.model_config.block_size", INTEGER, 32, minimum=1),
    Setting(
        "enable_prefix_caching",
        BOOLEAN,
        True,
        help="prompts that begin alike compute the beginning once (default True)",
    ),
    Setting(
        "model.model_config.num_blocks",
        INTEGER,
        minimum=1,
        without_effect="the number of KV cache blocks follows from max_device_memory, "
        "predict_batch_size and max_model_len",
    ),
    # Device and graph.
    Setting(
        "num_threads",
        INTEGER,
        minimum=1,
        help="threads of the operators (default: OMP_NUM_THREADS, else the physical cores)",
    ),
    Setting(
        "context.device_target",
        TEXT,
        only=("CPU", "Ascend"),
        because="there is no other backend",
        options=("device_target",),
        help="CPU or Ascend (default: Ascend where there is one)",
    ),
    Setting(
        "context.mode",
        TEXT_OR_INTEGER,
        0,
        only=(0, "GRAPH_MODE"),
        because="the network is one graph of fused operators, it runs in GRAPH_MODE (0) only",
        options=("mode",),
    ),
    Setting("context.save_graphs", GRAPH_LEVEL, False, help="save MindSpore's graphs (0 to 3)"),
    Setting("context.save_graphs_path", TEXT, "./graph", help="where (default ./graph)"),
    Setting(
        "context.device_id",
        INTEGER,
        0,
        minimum=0,
        without_effect=_ASCEND_ONLY,
        options=("device_id",),
    ),
    Setting(
        "context.ascend_config.precision_mode",
        TEXT,
        "must_keep_origin_dtype",
        only=(
            "must_keep_origin_dtype",
            "force_fp16",
            "allow_fp32_to_fp16",
            "allow_mix_precision",
        ),
        because="MindSpore knows no other mode",
        without_effect=_ASCEND_ONLY,
    ),
    Setting(
        "context.enable_graph_kernel",
        BOOLEAN,
        False,
        without_effect="the network is made of operators that are fused already",
    ),
    Setting("context.max_call_depth", INTEGER, 10000, minimum=1, without_effect=_ASCEND_ONLY),
    Setting(
        "context.jit_level",
        TEXT,
        "O0",
        only=("O0",),
        because="the network is made of operators that are fused already, so only O0 is used",
        aliases=("context.jit_config.jit_level",),
    ),
    Setting(
        "context.infer_boost",
        TEXT,
        "on",
        only=("on", "off"),
        because="it is a switch",
        without_effect=_ASCEND_ONLY,
        aliases=("context.jit_config.infer_boost",),
    ),
    Setting(
        "context.deterministic",
        TEXT,
        "OFF",
        only=("ON", "OFF"),
        because="it is a switch",
        without_effect="the CPU operators are deterministic in either case",
    ),
    Setting(
        "context.postprocess_use_numpy",
        BOOLEAN,
        True,
        without_effect="sampling is always done in NumPy",
        aliases=("postprocess_use_numpy",),
    ),
    # Splitting over processes.
    Setting(
        "use_parallel",
        BOOLEAN,
        False,
        help="True when started by a launcher on several ranks",
    ),
    Setting(
        "parallel_config.data_parallel",
        INTEGER,
        1,
        only=(1,),
        because="upstream's inference has no data parallelism either; "
        "start one process per copy of the model",
    ),
    Setting(
        "parallel_config.model_parallel",
        INTEGER,
        1,
        minimum=1,
        help="number of ranks the weights are split over (default 1)",
    ),
    Setting("parallel_config.pipeline_stage", INTEGER, 1, only=(1,), because=_ONE_WAY),
    Setting("parallel_config.context_parallel", INTEGER, 1, only=(1,), because=_ONE_WAY),
    Setting("parallel_config.expert_parallel", INTEGER, 1, only=(1,), because=DENSE),
    Setting("parallel_config.micro_batch_num", INTEGER, 1, only=(1,), because=_ONE_WAY),
    Setting("parallel_config.seq_split_num", INTEGER, 1, only=(1,), because=_ONE_WAY),
    Setting("parallel_config.use_seq_parallel", BOOLEAN, False, only=(False,), because=_ONE_WAY),
    Setting(
        "parallel_config.vocab_emb_dp",
        BOOLEAN,
        True,
        without_effect="there is no data parallelism in inference",
    ),
    Setting("parallel_config.gradient_aggregation_group", INTEGER, 4, without_effect=TRAINING),
    Setting(
        "parallel.parallel_mode",
        TEXT_OR_INTEGER,
        "MANUAL_PARALLEL",
        only=("MANUAL_PARALLEL", "STAND_ALONE"),
        because="inference splits its layers itself, MindSpore's automatic parallelism is off",
    ),
    Setting("parallel.enable_alltoall", BOOLEAN, False, without_effect=DENSE),
    Setting("parallel.full_batch", BOOLEAN, True, without_effect=TRAINING),
    Setting("parallel.gradients_mean", BOOLEAN, False, without_effect=TRAINING),
    Setting("parallel.enable_parallel_optimizer", BOOLEAN, False, without_effect=TRAINING),
    # Checkpoint.
    Setting(
        "use_legacy",
        BOOLEAN,
        False,
        only=(False,),
        because="only the Mcore models are here, not the legacy ones",
    ),
    Setting("load_ckpt_format", TEXT, "safetensors", only=("safetensors",), because=NO_CKPT),
    Setting(
        "auto_trans_ckpt",
        BOOLEAN,
        False,
        help="True: each rank reads its share of the folder as downloaded; False: of one that "
        "scripts/process_weights.py wrote (one rank alone reads either)",
    ),
    Setting("transform_process_num", INTEGER, 1, minimum=1, without_effect=NO_CKPT),
    Setting("src_strategy_path_or_dir", TEXT, "", only=("",), because=NO_CKPT),
    Setting("only_save_strategy", BOOLEAN, False, only=(False,), because=NO_CKPT),
    Setting("load_ckpt_async", BOOLEAN, False, only=(False,), because=NO_CKPT),
    Setting("balanced_load", BOOLEAN, False, only=(False,), because=NO_CKPT),
    Setting("ckpt_use_legacy_format", BOOLEAN, True, without_effect=NO_CKPT),
    Setting(
        "trust_remote_code",
        BOOLEAN,
        False,
        without_effect="code from the checkpoint folder is neither needed nor run",
    ),
    # Labels and switches that upstream's files carry.
    Setting(
        "trainer.type",
        TEXT,
        "CausalLanguageModelingTrainer",
        only=("CausalLanguageModelingTrainer",),
        because="GLM is a causal language model",
    ),
    Setting("trainer.model_name", TEXT, "glm4"),  # a label
    Setting(
        "model.model_config.use_past",
        BOOLEAN,
        True,
        only=(True,),
        because="answers are always generated with a KV cache",
    ),
    Setting("model.model_config.use_flash_attention", BOOLEAN, True, without_effect=_ASCEND_ONLY),
    Setting("model.model_config.is_dynamic", BOOLEAN, False, without_effect=_ASCEND_ONLY),
    Setting(
        "generation_config.num_beams",
        INTEGER,
        1,
        only=(1,),
        because="beam search is not offered by this version",
    ),
    Setting("modal_type", TEXTS, ("text",), only=(("text",),), because="prompts are text"),
    Setting("profile", BOOLEAN, False, only=(False,), because=NO_PROFILE),
    Setting("do_eval", BOOLEAN, False, only=(False,), because=TRAINING),
    Setting("resume_training", BOOLEAN, False, only=(False,), because=TRAINING),
    Setting(
        "infer_precision_sync",
        BOOLEAN,
        False,
        without_effect="the CPU operators are deterministic in either case",
    ),
    Setting("print_separate_loss", BOOLEAN, True, without_effect=TRAINING),
    Setting("exclude_cann_cpu", BOOLEAN, False, without_effect=_ASCEND_ONLY),
    Setting(
        "verbose", BOOLEAN, False, help="show MindSpore's own messages, details and tracebacks"
    ),
)


_BY_NAME: dict[str, Setting] = {
    name: setting for setting in SETTINGS for name in (setting.path, *setting.aliases)
}
_BY_OPTION: dict[str, Setting] = {name: setting for setting in SETTINGS for name in setting.options}
_BLOCKS: frozenset[str] = frozenset(
    name.rsplit(".", depth)[0] for name in _BY_NAME for depth in range(1, name.count(".") + 1)
)


def find_setting(name: str, *, on_command_line: bool = False) -> Setting | None:
    """The setting that `name` (dotted) means, or None."""
    setting = _BY_NAME.get(name)
    return _BY_OPTION.get(name) if setting is None and on_command_line else setting


def is_block(name: str) -> bool:
    """Whether `name` is a block of settings, such as context."""
    return name in _BLOCKS


def block_keys(block: str) -> list[str]:
    """The full names of the settings in a block, in the order of the table."""
    return [name for name in _BY_NAME if name.startswith(f"{block}.")]


def nearest_name(name: str, *, extra: Iterable[str] = ()) -> str:
    """The setting, or one of `extra`, that `name` was probably meant to be; there always is one.

    A key of a known block is looked for in that block, unless exactly this key stands elsewhere:
    context.top_k is top_k, and max_device_memory at the top level context.max_device_memory.
    """
    block, _, key = name.rpartition(".")
    known = [*_BY_NAME, *extra]
    if not any(other.rpartition(".")[2] == key for other in known) and is_block(block):
        known = block_keys(block)
    return max(known, key=lambda other: _likeness(name, other))


def _likeness(name: str, known: str) -> tuple[float, float]:
    """How alike two names are: the more alike of their last parts and the whole, then the whole."""
    key, known_key = name.rpartition(".")[2], known.rpartition(".")[2]
    whole, last = (
        difflib.SequenceMatcher(None, left.lower(), right.lower()).ratio()
        for left, right in ((name, known), (key, known_key))
    )
    if len(key) > 2 and known_key.startswith(key):  # --temp is a shortened temperature
        last = max(last, 0.9)
    return max(whole, last), whole
