"""Every run setting, one row each: what it is called, and what becomes of it.

Parsing, --help, the checks, `RunConfig` and the tables of docs/configuration.md (written by
scripts/write_configuration_docs.py) follow from the rows. A new setting is a row, the keyword
argument of `LLM` that it names, and the code that uses it.

Names and nesting are those of MindSpore Transformers 1.7.0 (tools/register/template.py,
configs/glm4/predict_glm4.yaml, run_mindformer.py); some are ours. A setting takes effect, or `only`
its neutral values are accepted, or nothing changes; `refused_settings.py` lists what is never
accepted.
"""

from typing import Any

from mindformers_glm.config.model_levels import MODEL_LEVELS
from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.config.refused_settings import DENSE, NO_CKPT, NO_PROFILE, TRAINING
from mindformers_glm.config.serve_settings import SERVER
from mindformers_glm.config.setting import Setting, SettingsTable
from mindformers_glm.config.value_types import (
    BOOLEAN,
    CACHE_MODE,
    DTYPE,
    ESCAPED_TEXTS,
    GRAPH_LEVEL,
    INTEGER,
    JSON_OBJECT,
    KV_CACHE_DTYPE,
    NUMBER,
    SIZE,
    TEXT,
    TEXT_OR_INTEGER,
    TEXTS,
    TRUE_FALSE_AUTO,
    ValueType,
)
from mindformers_glm.core.quantization_scheme import GROUP_SIZES, SCHEMES

_ONE_WAY = "inference is split over model_parallel only, this must stay at its neutral value"
_FLOAT32_ONLY = "the CPU operators take norms and softmax in float32, which is the most exact"
_DETERMINISTIC = "the CPU operators are deterministic in either case"
_SWITCH = "it is a switch"
_LEVELS = "these are MindSpore Transformers' levels"


def _sampling(name: str, kind: ValueType, least: float | None, help_text: str) -> Setting:
    """A field of SamplingParams; what is left out is read from generation_config.json."""
    return Setting(name, kind, None, help_text, "sampling", minimum=least, aliases=_places(name))


def _neutral(path: str, kind: ValueType, value: Any, because: str) -> Setting:
    """A key that must keep the one value which fits what is done here."""
    return Setting(path, kind, value, only=(value,), because=because)


def _places(name: str) -> tuple[str, ...]:
    """Where else upstream reads a generation setting from."""
    return (f"generation_config.{name}", f"model.model_config.{name}")


_RUN = (
    Setting(
        "pretrained_model_dir",
        TEXT,
        "",
        "Hugging Face folder (config.json, tokenizer, weights) or the name of a downloaded model",
        "command",
        unset="the small checkpoint shipped with this project",
    ),
    Setting("load_checkpoint", TEXT, "", "same as --pretrained_model_dir", "command"),
    Setting(
        "predict_data",
        TEXTS,
        (),
        "one or more prompts, a file of them (.txt, .jsonl, .json), or - for stdin",
        "command",
        aliases=("input_data",),
        commands=("predict",),
    ),
    Setting(
        "predict_batch_size",
        INTEGER,
        1,
        "number of prompts that run together",
        "LLM",
        "max_num_seqs",
        minimum=1,
        commands=("predict",),
    ),
    Setting(
        "save_file",
        TEXT,
        "text_generation_result.txt",
        "where the answers go as they are finished; .json and .jsonl say more of each",
        "command",
        commands=("predict",),
    ),
    Setting(
        "stream",
        TRUE_FALSE_AUTO,
        "auto",
        "write answers to stderr as they are generated; auto: one answer, on a terminal",
        "command",
        commands=("predict",),
    ),
    Setting(
        "output_dir",
        TEXT,
        "./output",
        "where MindSpore Transformers may log; predict itself writes nothing there",
        "command",
    ),
    Setting("seed", INTEGER, 0, "seed of sampling", "LLM", minimum=0),
    Setting(
        "run_mode", TEXT, "predict", "predict is the only mode", only=("predict",), because=TRAINING
    ),
    Setting(
        "verbose",
        BOOLEAN,
        False,
        "show MindSpore's own messages, details, tracebacks, and what the last line is made of",
        "command",
    ),
)
_GENERATION = (
    _sampling("do_sample", BOOLEAN, None, "False: always the likeliest token"),
    _sampling(
        "temperature", NUMBER, 0, "of sampling: divides the logits; 0: always the likeliest token"
    ),
    _sampling("top_k", INTEGER, -1, "sample from the k likeliest tokens; 0 or -1: from all"),
    _sampling("top_p", NUMBER, 0, "sample from the likeliest tokens whose probabilities reach p"),
    _sampling(
        "repetition_penalty", NUMBER, 0, "above 1: tokens of prompt and answer become less likely"
    ),
    _sampling(
        "presence_penalty", NUMBER, -2, "above 0: tokens of the answer become less likely; up to 2"
    ),
    _sampling(
        "frequency_penalty", NUMBER, -2, "the same for each time that they occur in it; up to 2"
    ),
    _sampling("max_new_tokens", INTEGER, 1, "longest answer, in tokens; beats max_length"),
    _sampling("max_length", INTEGER, 1, "longest prompt and answer together, in tokens"),
    _sampling("min_new_tokens", INTEGER, 0, "shortest answer, in tokens"),
    Setting("stop", ESCAPED_TEXTS, (), "texts that end an answer, not part of it", "sampling"),
    Setting(
        "prompt_lookup_num_tokens",
        INTEGER,
        None,
        "most tokens a step guesses ahead from prompt and answer; 0: none. Changes the speed only",
        "LLM",
        unset="11",
        minimum=0,
        aliases=_places("prompt_lookup_num_tokens"),
    ),
    Setting(
        "apply_chat_template",
        TRUE_FALSE_AUTO,
        "auto",
        "whether a prompt becomes a user's message; auto: when the checkpoint has a template, or "
        "is no base model and of a known chat format",
        "LLM",
    ),
    Setting(
        "chat_template",
        TEXT,
        None,
        "what writes conversations: the name of one of the checkpoint's templates, a template's "
        "text, or a file",
        "LLM",
        unset="the checkpoint's own",
    ),
    Setting(
        "chat_template_kwargs",
        JSON_OBJECT,
        None,
        "further variables of the chat template, e.g. '{\"enable_thinking\": false}'",
        "LLM",
    ),
    Setting(
        "add_generation_prompt",
        BOOLEAN,
        None,
        "whether a conversation ends where an answer begins",
        "LLM",
        unset="unless continue_final_message",
    ),
    Setting(
        "continue_final_message",
        BOOLEAN,
        False,
        "whether the answer goes on with the last message",
        "LLM",
    ),
    _neutral(
        "generation_config.num_beams", INTEGER, 1, "beam search is not offered by this version"
    ),
)
_PRECISION = (
    Setting(
        "model.model_config.params_dtype",
        DTYPE,
        None,
        "type of the weights in memory",
        "LLM",
        unset="as in the checkpoint",
    ),
    Setting(
        "model.model_config.compute_dtype",
        DTYPE,
        None,
        "type products are taken in",
        "LLM",
        unset="params_dtype",
    ),
    Setting(
        "model.model_config.rotary_dtype",
        DTYPE,
        None,
        "type the rotary tables are rounded to",
        "LLM",
        unset="float32",
    ),
    _neutral("model.model_config.layernorm_compute_dtype", DTYPE, "float32", _FLOAT32_ONLY),
    _neutral("model.model_config.softmax_compute_dtype", DTYPE, "float32", _FLOAT32_ONLY),
)
_QUANTIZATION = (
    Setting(
        "quantization",
        TEXT,
        None,
        "quantize the weights of all linear layers while they are loaded: w8a16 (int8), "
        "w8a8_dynamic (int8, products in int8 too), w4a16 (int4) or w4a8_dynamic (int4, "
        "products in int8)",
        "LLM",
        only=tuple(SCHEMES),
        because="these are the schemes that float weights can be quantized to",
    ),
    Setting(
        "quantization_group_size",
        INTEGER,
        None,
        "columns of a weight row that share a scale in w4a16 and w4a8_dynamic: 32, 64, 128",
        "LLM",
        unset="128",
        only=GROUP_SIZES,
        because="the int4 operators know no other group size",
    ),
)
_MEMORY = (
    Setting(
        "context.max_device_memory",
        SIZE,
        None,
        'most memory for weights, KV cache and workspace, e.g. "59GB"',
        "LLM",
        unset="no cap",
    ),
    Setting(
        "max_model_len",
        INTEGER,
        None,
        "longest prompt and answer the KV cache is sized for",
        "LLM",
        unset="the model's limit, at most 8192",
        minimum=1,
        aliases=("model.model_config.seq_length",),
    ),
    Setting(
        "packed_cache",
        CACHE_MODE,
        "auto",
        "keep the loaded weights in a file for the next start: on, off, auto where that saves much "
        "reading, or verify to check every byte of the file besides",
        "LLM",
    ),
    Setting(
        "model.model_config.block_size",
        INTEGER,
        32,
        "tokens of one KV-cache block",
        "LLM",
        minimum=1,
    ),
    Setting(
        "kv_cache_dtype",
        KV_CACHE_DTYPE,
        "auto",
        "type of cached keys and values: float16, float32, bfloat16, int8 (half of float16's "
        "bytes), or auto: int8 where the checkpoint has scales for it, else float16, beside "
        "float32 products float32",
        "LLM",
    ),
    Setting(
        "enable_prefix_caching",
        BOOLEAN,
        True,
        "prompts that begin alike compute the beginning once",
        "LLM",
    ),
    Setting(
        "model.model_config.num_blocks",
        INTEGER,
        minimum=1,
        without_effect="the number of KV cache blocks follows from max_device_memory, "
        "predict_batch_size and max_model_len",
    ),
)
_DEVICE = (
    Setting(
        "num_threads",
        INTEGER,
        None,
        "threads of the operators",
        "LLM",
        unset="OMP_NUM_THREADS, else the physical cores",
        minimum=1,
        check=check_num_threads,
    ),
    Setting(
        "context.device_target",
        TEXT,
        None,
        "CPU or Ascend",
        "LLM",
        unset="Ascend where there is one, else CPU",
        only=("CPU", "Ascend"),
        because="there is no other backend",
        options=("device_target",),
    ),
    Setting(
        "context.mode",
        TEXT_OR_INTEGER,
        0,
        "0: GRAPH_MODE; 1: PYNATIVE_MODE, operator by operator, on Ascend only",
        "device",
        only=(0, "GRAPH_MODE", 1, "PYNATIVE_MODE"),
        because="MindSpore knows no other mode",
        options=("mode",),
    ),
    Setting(
        "context.jit_level",
        TEXT,
        "O0",
        only=("O0",),
        because="the network is made of operators that are fused already, so only O0 is used",
        aliases=("context.jit_config.jit_level",),
    ),
    Setting(
        "context.save_graphs",
        GRAPH_LEVEL,
        False,
        "save MindSpore's graphs: True or a level from 0 to 3",
        "command",
    ),
    Setting("context.save_graphs_path", TEXT, "./graph", "where they are saved", "command"),
    Setting(
        "context.deterministic",
        TEXT,
        "OFF",
        use="device",
        only=("ON", "OFF"),
        because=_SWITCH,
        without_effect=_DETERMINISTIC,
        backend="Ascend",
    ),
    Setting(
        "infer_precision_sync",
        BOOLEAN,
        False,
        use="device",
        without_effect=_DETERMINISTIC,
        backend="Ascend",
    ),
    Setting(
        "context.postprocess_use_numpy",
        BOOLEAN,
        True,
        without_effect="sampling is always done in NumPy",
        aliases=("postprocess_use_numpy",),
    ),
    Setting(
        "context.enable_graph_kernel",
        BOOLEAN,
        False,
        without_effect="the network is made of operators that are fused already",
    ),
    Setting(
        "context.device_id",
        INTEGER,
        0,
        "the card, among those in ASCEND_RT_VISIBLE_DEVICES; 0: DEVICE_ID if that is set",
        "device",
        minimum=0,
        backend="Ascend",
        options=("device_id",),
    ),
    Setting(
        "context.ascend_config.precision_mode",
        TEXT,
        "must_keep_origin_dtype",
        use="device",
        only=("must_keep_origin_dtype", "force_fp16", "allow_fp32_to_fp16", "allow_mix_precision"),
        because="MindSpore knows no other mode",
        backend="Ascend",
    ),
    Setting("context.max_call_depth", INTEGER, 10000, use="device", minimum=1, backend="Ascend"),
    Setting(
        "context.infer_boost",
        TEXT,
        "on",
        use="device",
        only=("on", "off"),
        because=_SWITCH,
        backend="Ascend",
        aliases=("context.jit_config.infer_boost",),
    ),
    Setting(
        "exclude_cann_cpu",
        BOOLEAN,
        False,
        without_effect="MindSpore Transformers 1.7.0 reads it nowhere",
    ),
    Setting(
        "model.model_config.use_flash_attention", BOOLEAN, True, use="device", backend="Ascend"
    ),
    Setting(
        "model.model_config.is_dynamic",
        BOOLEAN,
        False,
        without_effect="a step may have any number of rows in either case",
    ),
)
_PROCESSES = (
    Setting(
        "use_parallel",
        BOOLEAN,
        False,
        "True when started by a launcher on several ranks",
        "command",
    ),
    Setting(
        "parallel_config.model_parallel",
        INTEGER,
        1,
        "number of ranks the weights are split over",
        "LLM",
        minimum=1,
    ),
    Setting(
        "auto_trans_ckpt",
        BOOLEAN,
        False,
        "True: each rank reads its share of the folder as downloaded; False: of one that "
        "scripts/process_weights.py wrote (one rank alone reads either)",
        "command",
    ),
    _neutral(
        "parallel_config.data_parallel",
        INTEGER,
        1,
        "upstream's inference has no data parallelism either; start one process per copy of the "
        "model",
    ),
    _neutral("parallel_config.pipeline_stage", INTEGER, 1, _ONE_WAY),
    _neutral("parallel_config.context_parallel", INTEGER, 1, _ONE_WAY),
    _neutral("parallel_config.micro_batch_num", INTEGER, 1, _ONE_WAY),
    _neutral("parallel_config.seq_split_num", INTEGER, 1, _ONE_WAY),
    _neutral("parallel_config.use_seq_parallel", BOOLEAN, False, _ONE_WAY),
    _neutral("parallel_config.expert_parallel", INTEGER, 1, DENSE),
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
)
_CHECKPOINT = (
    _neutral("use_legacy", BOOLEAN, False, "only the Mcore models are here, not the legacy ones"),
    _neutral("load_ckpt_format", TEXT, "safetensors", NO_CKPT),
    _neutral("src_strategy_path_or_dir", TEXT, "", NO_CKPT),
    _neutral("only_save_strategy", BOOLEAN, False, NO_CKPT),
    _neutral("load_ckpt_async", BOOLEAN, False, NO_CKPT),
    _neutral("balanced_load", BOOLEAN, False, NO_CKPT),
    Setting("transform_process_num", INTEGER, 1, minimum=1, without_effect=NO_CKPT),
    Setting("ckpt_use_legacy_format", BOOLEAN, True, without_effect=NO_CKPT),
    Setting(
        "trust_remote_code",
        BOOLEAN,
        False,
        without_effect="code from the checkpoint folder is neither needed nor run",
    ),
    _neutral(
        "trainer.type", TEXT, "CausalLanguageModelingTrainer", "GLM is a causal language model"
    ),
    Setting("trainer.model_name", TEXT, "glm4"),  # a label
    *(
        Setting(
            f"model_level.{device}",
            TEXT,
            None,
            f"how far the model was tested on {device}: a line at the start says so",
            "command",
            only=tuple(MODEL_LEVELS),
            because=_LEVELS,
        )
        for device in ("CPU", "Ascend")
    ),
    _neutral(
        "model.model_config.use_past", BOOLEAN, True, "answers are always generated with a KV cache"
    ),
    _neutral("modal_type", TEXTS, ("text",), "prompts are text"),
    _neutral("profile", BOOLEAN, False, NO_PROFILE),
    _neutral("do_eval", BOOLEAN, False, TRAINING),
    _neutral("resume_training", BOOLEAN, False, TRAINING),
    Setting("print_separate_loss", BOOLEAN, True, without_effect=TRAINING),
)

SETTINGS = SettingsTable(
    {
        "What to run": _RUN,
        "Generation": _GENERATION,
        "Precision": _PRECISION,
        "Quantization while loading": _QUANTIZATION,
        "Memory": _MEMORY,
        "Device and graph": _DEVICE,
        "Several processes": _PROCESSES,
        "Checkpoint and labels": _CHECKPOINT,
        "Server": SERVER,
    }
)
