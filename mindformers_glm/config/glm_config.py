"""The architecture of a GLM checkpoint, read from its config.json and from nothing else.

The family has one network in three dialects, which name its sizes differently. A dialect's keys are
read by a file of its own; what comes out is always the same GlmConfig.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mindformers_glm.config.adapter import refuse_adapter_alone
from mindformers_glm.config.chatglm_keys import (
    CHATGLM_KEY_NAMES,
    read_chatglm_keys,
    write_chatglm_keys,
)
from mindformers_glm.config.glm_keys import read_glm_keys, write_glm_keys
from mindformers_glm.config.json_keys import SIZE_FIELDS, read_text
from mindformers_glm.config.rope_scaling import RopeScaling
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.system.files import read_json_object, require_folder


@dataclass(frozen=True)
class Dialect:
    """How one model_type writes the family's network.

    architectures: the classes of it that generate text; the first where config.json names none.
    read, write: config.json to fields of GlmConfig and back.
    key_names: field of GlmConfig -> the dialect's key, where it has another name.
    has_sandwich_norms: whether a branch's output is normed before it is added to the residual.
    """

    architectures: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    has_sandwich_norms: bool
    key_names: Mapping[str, str] = field(default_factory=dict)

    def in_its_words(self, text: str) -> str:
        """Call every field that a text names by the key that config.json has for it."""
        for name, key in self.key_names.items():
            text = re.sub(rf"\b{name}\b", key, text)
        return text


# model_type -> dialect.
DIALECTS = {
    "glm4": Dialect(("Glm4ForCausalLM",), read_glm_keys, write_glm_keys, has_sandwich_norms=True),
    "glm": Dialect(("GlmForCausalLM",), read_glm_keys, write_glm_keys, has_sandwich_norms=False),
    "chatglm": Dialect(
        ("ChatGLMModel", "ChatGLMForConditionalGeneration"),
        read_chatglm_keys,
        write_chatglm_keys,
        has_sandwich_norms=False,
        key_names=CHATGLM_KEY_NAMES,
    ),
}

_MOE = "a mixture of experts"
_VISION = "a model that sees images"
_ON_ASCEND = "run it with vLLM, or on Ascend with MindSpore Transformers' own glm4_moe"
_WITH_VLLM = "run it with vLLM"
# Relatives that this project does not run: (what it is, what runs it).
_RELATIVES = {
    "glm4_moe": (_MOE, _ON_ASCEND),
    "glm4_moe_lite": (f"{_MOE} with latent attention", _WITH_VLLM),
    "glm_moe_dsa": (f"{_MOE} with sparse attention", _WITH_VLLM),
    "glm4v": (_VISION, _WITH_VLLM),
    "glm4v_text": (_VISION, _WITH_VLLM),
    "glm4v_moe": (_VISION, _WITH_VLLM),
    "glm4v_moe_text": (_VISION, _WITH_VLLM),
    "glm_ocr": (_VISION, _WITH_VLLM),
    "glm_ocr_text": (_VISION, _WITH_VLLM),
}
# Their classes, for a config.json that lacks model_type.
_RELATIVE_CLASSES = {
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "GlmMoeDsaForCausalLM": "glm_moe_dsa",
    "Glm4vForConditionalGeneration": "glm4v",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe",
    "GlmOcrForConditionalGeneration": "glm_ocr",
}
_MAX_SIZE = 2**31 - 1  # the kernels index with int32

QUANTIZED_HINT = (
    "quantized checkpoints are not supported in that form: use the float checkpoint, which the "
    "setting quantization can quantize while it is loaded"
)
# Keys of every dialect that this version cannot honour; null, false and empty are fine.
_REFUSED_KEYS = dict.fromkeys(
    # MLX writes quantization. What others write (quantization_config, quantize, quantization_bit)
    # is for quantization/stored_format.py.
    ("quantization",),
    QUANTIZED_HINT,
)
# Every layer's tensors are listed by name; the largest GLM has 92 layers.
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class GlmConfig:
    """Sizes and constants of the network, by their Hugging Face names.

    torch_dtype: the type config.json states; None when it states none, which means "as stored"
        (`Checkpoint.dtype` tells). Hugging Face would widen to float32 then: twice the memory.
    rope_scaling: None is plain RoPE; otherwise max_position_embeddings is the extended context.
    eos_token_ids: may be empty, generation_config.json can hold them instead.
    float_layers_id: numbers of the layers whose linears no quantization touches; a key of the
        ChatGLM2 guide for MindIE ATB. `world_size` beside it is that guide's number of cards
        and is not read: a run says model_parallel.
    """

    model_type: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    attention_bias: bool
    tie_word_embeddings: bool
    hidden_act: str
    torch_dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    rope_scaling: RopeScaling | None = None
    float_layers_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check what the values must satisfy together."""
        for name in SIZE_FIELDS:
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ConfigError(
                    f"{name} must be from 1 to {_MAX_SIZE}, it is {getattr(self, name)}"
                )
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers must be at most {_MOST_LAYERS}, it is {self.num_hidden_layers}"
            )
        for number in self.float_layers_id:
            if not 0 <= number < self.num_hidden_layers:
                raise ConfigError(
                    f"float_layers_id has layer {number}, and num_hidden_layers="
                    f"{self.num_hidden_layers} gives layers 0 to {self.num_hidden_layers - 1}"
                )
        for name in ("rms_norm_eps", "rope_theta", "partial_rotary_factor"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name} must be a positive number, it is {number}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.partial_rotary_factor > 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"RoPE rotates pairs: head_dim={self.head_dim} times partial_rotary_factor="
                f"{self.partial_rotary_factor} must give an even number from 2 to head_dim"
            )
        if self.rope_scaling is not None and self.rope_theta <= 1:
            raise ConfigError(f"rope_theta must be above 1 for YaRN, it is {self.rope_theta}")
        if self.hidden_act != "silu":
            raise UnsupportedError(f"hidden_act must be 'silu', it is {self.hidden_act!r}")
        if self.torch_dtype is not None and self.torch_dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"torch_dtype must be one of {', '.join(DTYPE_BYTES)}, it is {self.torch_dtype!r}"
            )

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that RoPE rotates; truncated as Hugging Face does."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def has_sandwich_norms(self) -> bool:
        """Whether a branch's output is normed before it is added to the residual stream."""
        return DIALECTS[self.model_type].has_sandwich_norms

    def in_file_keys(self, text: str) -> str:
        """Call every field that a text names by the key that config.json has for it."""
        return DIALECTS[self.model_type].in_its_words(text)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes one token takes in the KV cache of all layers, keys and values in `dtype`."""
        per_layer = 2 * self.num_key_value_heads * self.head_dim * DTYPE_BYTES[dtype]
        return self.num_hidden_layers * per_layer

    @classmethod
    def from_hf(cls, folder: str | Path) -> "GlmConfig":
        """Read `config.json` of a Hugging Face folder.

        Raises:
            ConfigError: the folder or file is missing or broken, or a key is missing or wrong.
            UnsupportedError: it describes a model that this version cannot run.
        """
        path = require_folder(folder, ConfigError) / "config.json"
        if not path.exists():
            refuse_adapter_alone(path.parent)
            raise ConfigError(
                f"{path.parent} has no config.json: give a Hugging Face folder as downloaded."
            )
        return cls.from_dict(read_json_object(path, ConfigError), str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> "GlmConfig":
        """Build the config from a parsed config.json.

        Args:
            source: what the errors call it, e.g. the file's path.
        """
        try:
            return _read_config(raw)
        except (ConfigError, UnsupportedError) as problem:
            raise type(problem)(f"{source}: {problem}.") from None

    def to_dict(self) -> dict[str, Any]:
        """The keys of a config.json that `from_dict` reads back to this."""
        fields = asdict(self)
        fields["architectures"] = [fields.pop("architecture")]
        return DIALECTS[self.model_type].write(fields)


def _read_config(raw: Mapping[str, Any]) -> GlmConfig:
    model_type, architecture = _read_model(raw)
    for key, reason in _REFUSED_KEYS.items():
        if raw.get(key):
            raise UnsupportedError(f"it has {key!r}, but {reason}")
    dialect = DIALECTS[model_type]
    fields = dialect.read(raw)
    try:
        return GlmConfig(model_type=model_type, architecture=architecture, **fields)
    except (ConfigError, UnsupportedError) as problem:
        raise type(problem)(dialect.in_its_words(str(problem))) from None


def _read_model(raw: Mapping[str, Any]) -> tuple[str, str]:
    if raw.get("model_type") is None:
        _refuse_relative_class(raw.get("architectures"))
    model_type = read_text(raw, "model_type")
    if model_type in _RELATIVES:
        _refuse_relative(f"model_type {model_type!r}", model_type)
    if model_type not in DIALECTS:
        raise UnsupportedError(
            f"model_type {model_type!r} is not known; this version runs: {', '.join(DIALECTS)}"
        )
    known = DIALECTS[model_type].architectures
    # A config saved without its model has no architectures: model_type says enough then.
    found = raw.get("architectures") or [known[0]]
    if not (isinstance(found, list) and len(found) == 1 and found[0] in known):
        wanted = " or ".join(repr([name]) for name in known)
        raise UnsupportedError(f"architectures must be {wanted}, it is {found!r}")
    return model_type, found[0]


def _refuse_relative_class(architectures: Any) -> None:
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and name in _RELATIVE_CLASSES:
            _refuse_relative(f"architectures {architectures!r:.100}", _RELATIVE_CLASSES[name])


def _refuse_relative(named_by: str, model_type: str) -> NoReturn:
    what, remedy = _RELATIVES[model_type]
    raise UnsupportedError(f"{named_by} is {what}, which is not supported here: {remedy}")
