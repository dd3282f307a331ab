"""Whether a checkpoint holds exactly the tensors that its rules ask for."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mindformers_glm.config.glm_config import QUANTIZED_HINT
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import SourceTensor, WeightRule
from mindformers_glm.weights.shards import list_names
from mindformers_glm.weights.tensor_entry import TensorEntry
from mindformers_glm.weights.tensor_names import TENSOR_NAMES

_LAYER_NUMBER = re.compile(r"[a-z.]+\.layers\.(\d+)\.")
# What training and export tools leave in a checkpoint and a run does not need; nothing else is let
# through. TRL, LLaMA-Factory: v_head.summary; trlx: v_head.0, v_head.2; OpenRLHF: score.
ALL_ZEROS = "all zeros"  # what `find_surplus` says of tensors that are
_SURPLUS = {
    "constants of RoPE, which follow from config.json": re.compile(
        r"(model|transformer)\.((encoder\.)?layers\.\d+\.self_att(n|ention)\.)?"
        r"rotary_(pos_)?emb\.inv_freq"
    ),
    "a value head": re.compile(r"(v_head|value_head|score)(\.summary|\.\d)?\.(weight|bias)"),
}
# GPTQ and AWQ; MLX; bitsandbytes; FP8, compressed-tensors and msModelSlim; HQQ, AQLM, quanto, EXL2.
_QUANTIZED_TENSOR = re.compile(
    r".+\.(qweight|qzeros|g_idx|scales|biases|SCB|absmax|quant_map|quant_state\..+|"
    r"weight_(scales?|scale_inv|packed|zero_point|offset)|input_(scale|offset)|quant_bias|"
    r"deq_scale|W_q|codebooks|_data|q_(weight|scale|groups|invperm))",
    re.DOTALL,
)
_LORA_TENSOR = re.compile(r".+\.(lora_[A-Za-z_]+|base_layer)(\..+)?", re.DOTALL)


def check_rules(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    """Check that the checkpoint holds the tensors the rules ask for, and known surplus at most.

    Raises:
        UnsupportedError: its weights are quantized.
        CheckpointError: one sentence naming what is missing, wrongly shaped or typed, or unknown.
    """
    sources = {name: source for rule in rules for source in rule.sources for name in source.stored}
    entries = checkpoint.entries
    missing = [name for name in sources if name not in entries]
    # Surplus is let through beside a whole network only.
    known = {} if missing else find_surplus(rules, checkpoint)
    unknown = [name for name in entries if name not in sources and name not in known]
    quantized = [name for name in unknown if _QUANTIZED_TENSOR.fullmatch(name)]
    if quantized and checkpoint.quantized is None:
        raise UnsupportedError(
            f"{checkpoint.folder} is quantized ({len(quantized)} tensors such as "
            f"{quantized[0]:.100}), but {QUANTIZED_HINT}."
        )
    expected = dict(sources)
    for rule in rules:
        expected |= {name: replace(rule.sources[0], name=name) for name in rule.repeats}
    wrong_shapes, wrong_dtypes, wrong_types = [], [], []
    for name, source in expected.items():
        if name not in entries:
            continue
        spec = source.stored[name]
        if entries[name].shape != spec.shape:
            wrong_shapes.append(_describe_shape(name, source, entries[name]))
        if entries[name].dtype not in spec.dtypes:
            if source.linear is None:
                wrong_dtypes.append(f"{name} is {entries[name].dtype}")
            else:
                wrong_types.append(
                    f"{name} is {entries[name].dtype}, not {' or '.join(spec.dtypes)}"
                )
    problems = [
        _list_names(f"{len(missing)} missing", missing, _missing_hint(missing, sources, entries)),
        _list_names(f"{len(wrong_shapes)} of another shape", wrong_shapes, ""),
        _list_names(
            f"{len(wrong_dtypes)} not bfloat16, float16 or float32",
            wrong_dtypes,
            "convert float64 to float32; nothing in the folder says how integers are quantized",
        ),
        _list_names(f"{len(wrong_types)} of another type", wrong_types, ""),
        _list_names(f"{len(unknown)} unknown", unknown, _unknown_hint(unknown, sources)),
    ]
    if found := "; ".join(problem for problem in problems if problem):
        raise CheckpointError(f"The tensors in {checkpoint.folder} do not fit its config: {found}.")


def find_surplus(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensors of the closed list that are there and not needed: name -> what it is."""
    used = {name for rule in rules for source in rule.sources for name in source.stored}
    repeats = {name: rule.sources[0].name for rule in rules for name in rule.repeats}
    found = {}
    for name in checkpoint.entries:
        if name in repeats:
            found[name] = f"repeats {repeats[name]}"
        for what, pattern in _SURPLUS.items():
            if pattern.fullmatch(name):
                found[name] = what
    if (form := checkpoint.quantized) is not None:
        found |= {name: what for name, what in form.surplus().items() if name not in used}
        zeros = {name: f"{what}, {ALL_ZEROS}" for name, what in form.zeros().items()}
        found |= {name: what for name, what in zeros.items() if name not in used}
    return found


def _list_names(what: str, names: list[str], hint: str) -> str:
    if not names:
        return ""
    return f"{what}: {list_names(names)}" + (f" ({hint})" if hint else "")


def _describe_shape(name: str, source: SourceTensor, entry: TensorEntry) -> str:
    text = f"{name} is {list(entry.shape)}, expected {list(source.stored[name].shape)}"
    if len(entry.shape) != len(source.shape) or source.linear is not None:
        return text
    triples = zip(source.sizes, source.shape, entry.shape, strict=True)
    return f"{text} by {', '.join(size for size, want, came in triples if want != came)}"


def _missing_hint(
    missing: list[str], sources: dict[str, SourceTensor], entries: dict[str, TensorEntry]
) -> str:
    if missing == [TENSOR_NAMES["glm4"].output[0]]:
        return "config.json may lack tie_word_embeddings: true"
    stored = max(_layer_numbers(list(entries)), default=-1)
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if 0 <= stored < wanted:
        return (
            f"layers 0 to {stored} are there, config.json says that there are {wanted + 1}: a "
            "shard is missing or the config is of another model"
        )
    return "is a shard missing?" if missing else ""


def _unknown_hint(unknown: list[str], sources: dict[str, SourceTensor]) -> str:
    if any(_LORA_TENSOR.fullmatch(name) for name in unknown):
        return "a LoRA adapter, which is not supported: merge it with PEFT's merge_and_unload()"
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if any(layer > wanted for layer in _layer_numbers(unknown)):
        return f"config.json says that there are {wanted + 1} layers"
    return ""


def _layer_numbers(names: list[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _LAYER_NUMBER.match(name))}
