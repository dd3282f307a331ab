"""The models and texts that bench_quantizing.py measures on.

glm4-mini with conversations of its own training mixture (none of the held-out ones) to calibrate
with and the held-out ones to measure on; and two small random models with outliers, of which the
texts are what the float model itself writes.

A random model becomes one with outliers as trained ones have them: in each layer a few channels
behind the norms are many times larger than the others, and the columns that read them are smaller
by less than that, so that they matter more than others do.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import REPO
from make_slice import write_random_checkpoint
from random_models import draw_prompt, write_tokenizer
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.system.new_folder import new_folder
from mindformers_glm.tokenizer.fast_tokenizer import new_fast_tokenizer

MINI = "mini"
MODELS = ("glm", "glm4", MINI)
_SEEDS, _MINI_SEED = {"glm": 2, "glm4": 1}, 3
_ASSET = REPO / "mindformers_glm" / "assets" / "glm4-mini"
_FLOAT, _CALIBRATION, _TEXTS = "float", "calibration.jsonl", "texts.jsonl"
_NUM_CALIBRATED, _NUM_MEASURED = 32, 16
_TOKENS = 96  # of a text that a random model writes
_NUM_OUTLIERS, _GROWTH, _SHRINKING = 6, 30.0, 6.0
_DEVIATION = 0.1
_COMMON = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "eos_token_id": [1],
    "pad_token_id": 0,
}
_DIALECTS: dict[str, dict[str, Any]] = {
    "glm4": _COMMON | {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]},
    "glm": _COMMON | {"model_type": "glm", "architectures": ["GlmForCausalLM"]},
}
# The norm whose outputs have outliers -> matrices that read them.
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_up_proj",),
}


@dataclass(frozen=True)
class MeasuredModel:
    """A float folder, and files for --calib_file, --report_texts and --questions.

    texts: None: the right answers to the questions.
    """

    name: str
    folder: Path
    calibration: Path
    texts: Path | None
    questions: Path | None = None


def prepare_model(name: str, folder: Path, seed: int | None = None) -> MeasuredModel:
    """One of MODELS, made in a folder, which appears whole; what is there is taken as it is.

    Args:
        seed: of another random model and its texts than the table's; of glm4-mini's calibration.
            Seeds less than 48 apart share prompts.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as made:
            if name == MINI:
                _write_conversations(made / _CALIBRATION, _MINI_SEED if seed is None else seed)
            else:
                _make_random(name, made, _SEEDS[name] if seed is None else seed)
    if name == MINI:
        return MeasuredModel(
            "glm4-mini", _ASSET, folder / _CALIBRATION, None, _ASSET / "heldout.jsonl"
        )
    return MeasuredModel(
        f"{name}, outliers", folder / _FLOAT, folder / _CALIBRATION, folder / _TEXTS
    )


def _write_conversations(file: Path, seed: int) -> None:
    """Some of glm4-mini's training mixture, by its own chat template."""
    sys.path.insert(0, str(REPO / "scripts"))
    from glm4_mini.corpus import training_examples

    writer = new_fast_tokenizer(tokenizer_file=str(_ASSET / "tokenizer.json"))
    template = json.loads((_ASSET / "tokenizer_config.json").read_text("utf-8"))["chat_template"]

    def write(messages: list[Any], answer: str, tools: list[Any]) -> str:
        whole = [*messages, {"role": "assistant", "content": answer}]
        given = tools or None
        return str(writer.apply_chat_template(whole, given, chat_template=template, tokenize=False))

    examples = training_examples(seed=seed)
    trained = [next(examples) for _ in range(_NUM_CALIBRATED)]
    _write_texts(file, [write(list(one.messages), one.answer, list(one.tools)) for one in trained])


def _make_random(dialect: str, made: Path, seed: int) -> None:
    """A random model with outliers, all of it drawn from `seed`, and the texts that it writes."""
    folder = made / _FLOAT
    write_random_checkpoint(folder, dialect, _DIALECTS[dialect], _DEVIATION, seed)
    write_tokenizer(folder, _COMMON["vocab_size"])
    _add_outliers(folder / "model.safetensors", np.random.default_rng(seed))
    count = _NUM_CALIBRATED + _NUM_MEASURED
    prompts = [draw_prompt(_COMMON["vocab_size"], 4, seed + number) for number in range(count)]
    params = SamplingParams(temperature=1.0, top_k=0, max_new_tokens=_TOKENS, ignore_eos=True)
    with LLM(folder, seed=seed, packed_cache="off", compute_dtype="float32") as llm:
        texts = [
            llm.tokenizer.decode([*prompt, *output.token_ids])
            for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True)
        ]
    _write_texts(made / _CALIBRATION, texts[:_NUM_CALIBRATED])
    _write_texts(made / _TEXTS, texts[_NUM_CALIBRATED:])


def _add_outliers(file: Path, rng: np.random.Generator) -> None:
    tensors = load_file(file)
    for number in range(_COMMON["num_hidden_layers"]):
        for norm, readers in _READERS.items():
            channels = rng.choice(_COMMON["hidden_size"], _NUM_OUTLIERS, replace=False)
            prefix = f"model.layers.{number}."
            tensors[f"{prefix}{norm}.weight"][channels] *= np.float32(_GROWTH)
            for reader in readers:
                tensors[f"{prefix}{reader}.weight"][:, channels] /= np.float32(_SHRINKING)
    save_file(tensors, file, {"format": "pt"})


def _write_texts(file: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
