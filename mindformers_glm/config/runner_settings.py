"""What a model runner must know besides the architecture: types and the largest step."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.value_types import DTYPE, KV_CACHE_DTYPE, ValueType
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.kv_cache import AUTO, INT8, KV_CACHE_DTYPES, count_head_bytes
from mindformers_glm.core.quantization_scheme import (
    MIXED,
    QuantizationScheme,
    in_precision,
    on_ranks,
    read_scheme,
)
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.core.stored_schemes import StoredSchemes

# (params_dtype, compute_dtype), and how products are taken. Accumulation is always float32.
PRECISIONS = (
    ("float32", "float32"),  # exact float32
    ("bfloat16", "bfloat16"),  # activations rounded to bfloat16 before each product
    ("bfloat16", "float32"),  # weights widened to float32, activations float32
    ("float16", "float16"),  # activations rounded to float16 before each, saturating at 65504
    ("float16", "float32"),  # weights widened to float32, activations float32
)

# A context of 131072 tokens would reserve gigabytes of KV cache that few prompts need.
DEFAULT_MAX_MODEL_LEN = 8192

# What a run does with the weights; all other settings change their bytes in memory.
_RUN_FIELDS = (
    "compute_dtype",
    "rotary_dtype",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
)
_DTYPE_FIELDS = {
    "params_dtype": DTYPE,
    "compute_dtype": DTYPE,
    "rotary_dtype": DTYPE,
    "kv_cache_dtype": KV_CACHE_DTYPE,
}


@dataclass(frozen=True)
class RunnerSettings:
    """Types and sizes a runner is built for.

    params_dtype: type of the weights in memory; compute_dtype: type in which activations enter a
    product; rotary_dtype: type the cos/sin tables are rounded to, None: what suits the device.
    kv_cache_dtype: type of cached keys and values as a run asks for it, "auto" among others; what
    comes of it is `kv_dtype`.
    `max_num_batched_tokens` is the largest number of rows in one step, `max_num_seqs` the largest
    number of sequences.
    model_parallel, model_parallel_rank: into how many parts the network is split, and which one
    this process holds.
    quantization: name of the scheme of all linear layers (core/quantization_scheme.py), whose
    weights and products have its types then; None: they are float.
    float_layers: numbers of decoder layers that stay float under a quantization: config.json's
    float_layers_id, and no setting of a run.
    stored_schemes: of a checkpoint that is quantized already: each linear layer, by its
    Megatron-Core name, and the scheme that keeps its integers, None where it runs as float. No
    setting of a run either. None: the checkpoint is float.
    shifted_norms: the linear layers whose norm has a bias in such a checkpoint.
    rounded_columns: those of whose activations each column has a scale and offset in it.
    has_kv_scales: such a checkpoint has scales of an int8 KV cache, for each channel.
    """

    params_dtype: str
    compute_dtype: str
    rotary_dtype: str | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    quantization: str | None = None
    quantization_group_size: int | None = None
    kv_cache_dtype: str = AUTO
    model_parallel: int = 1
    model_parallel_rank: int = 0
    float_layers: tuple[int, ...] = ()
    stored_schemes: tuple[tuple[str, QuantizationScheme | None], ...] | None = None
    shifted_norms: tuple[str, ...] = ()
    rounded_columns: tuple[str, ...] = ()
    has_kv_scales: bool = False

    def __post_init__(self) -> None:
        check_types_together(vars(self))
        if self.stored_schemes is not None and self.quantization is not None:
            raise ConfigError(
                f"quantization {self.quantization} is for float weights, and those of this "
                "checkpoint are quantized already: leave it out."
            )
        if self.rotary_dtype not in (None, *DTYPE_BYTES):
            raise ConfigError(
                f"rotary_dtype must be one of {', '.join(DTYPE_BYTES)}, got {self.rotary_dtype!r}."
            )
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ConfigError(
                f"kv_cache_dtype must be {KV_CACHE_DTYPE.description}, got {self.kv_cache_dtype!r}."
            )
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, Integral):
                raise ConfigError(f"{name} must be a whole number, got {size!r}.")
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, got {size}.")
        for name in ("model_parallel", "model_parallel_rank"):
            if type(getattr(self, name)) is not int:  # True is no size
                raise ConfigError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        TensorParallel(self.model_parallel, self.model_parallel_rank)

    @classmethod
    def for_config(
        cls,
        config: GlmConfig,
        stored_dtype: str,
        stored: StoredSchemes | None = None,
        **given: Any,
    ) -> "RunnerSettings":
        """Settings for a network: `with_defaults`, and what the folder says of quantization.

        Args:
            stored_dtype: type of the weights where config.json names none.
            stored: how its weights are quantized; None: they are float.
        """
        settings = cls.with_defaults(
            config.torch_dtype or stored_dtype, config.max_position_embeddings, **given
        )
        settings = replace(settings, float_layers=config.float_layers_id)
        return settings.with_stored(stored or StoredSchemes())

    def with_stored(self, stored: StoredSchemes) -> "RunnerSettings":
        """The same run of a checkpoint whose weights are quantized so, or are not."""
        kept = stored.kept
        return replace(
            self,
            stored_schemes=None if kept is None else tuple(kept.items()),
            shifted_norms=stored.shifted_norms,
            rounded_columns=stored.rounded_columns,
            has_kv_scales=stored.has_kv_scales,
        )

    @classmethod
    def with_defaults(
        cls, checkpoint_dtype: str, max_position_embeddings: int, **given: Any
    ) -> "RunnerSettings":
        """Settings with what is not given (or None) chosen from the checkpoint.

        Weights keep the checkpoint's type, products take the weights'.

        Raises:
            ConfigError: there is no such setting, or its value is of the wrong type, out of its
                range, or beyond the checkpoint's context.
        """
        for name in given:
            if name not in SETTING_NAMES:
                raise ConfigError(f"{name!r} is not a setting: use {', '.join(SETTING_NAMES)}.")
        chosen = {
            name: _read_dtype(name, value, _DTYPE_FIELDS[name]) if name in _DTYPE_FIELDS else value
            for name, value in given.items()
            if value is not None
        }
        params_dtype = chosen.get("params_dtype", checkpoint_dtype)
        compute_dtype = chosen.get("compute_dtype", params_dtype)
        defaults: dict[str, Any] = {
            "params_dtype": params_dtype,
            "compute_dtype": compute_dtype,
            "rotary_dtype": None,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 512,
            "max_model_len": min(max_position_embeddings, DEFAULT_MAX_MODEL_LEN),
            "block_size": 32,
        }
        settings = cls(**(defaults | chosen))
        if settings.max_model_len > max_position_embeddings:
            raise ConfigError(
                f"max_model_len={settings.max_model_len} is more than the checkpoint's "
                f"max_position_embeddings={max_position_embeddings}: lower it."
            )
        return settings

    @property
    def weight_format(self) -> dict[str, Any]:
        """The settings that the bytes of the weights in memory depend on, as JSON has them."""
        names = [field.name for field in fields(self) if field.name not in _RUN_FIELDS]
        found = {name: getattr(self, name) for name in names}
        found["float_layers"] = list(self.float_layers)
        del found["stored_schemes"], found["has_kv_scales"]
        if self.uses_kv_scales:
            found["uses_kv_scales"] = True
        for name in ("shifted_norms", "rounded_columns"):
            if layers := found.pop(name):
                found[name] = list(layers)
        if self.stored_schemes is not None:
            kept = {
                name: on_ranks(scheme, name, self.model_parallel)
                for name, scheme in self.stored_schemes
            }
            found["stored_schemes"] = {
                name: None if scheme is None else asdict(scheme) for name, scheme in kept.items()
            }
        return found

    @property
    def tensor_parallel(self) -> TensorParallel:
        """Which part of the network is meant."""
        return TensorParallel(self.model_parallel, self.model_parallel_rank)

    @property
    def kv_dtype(self) -> str:
        """Type of cached keys and values.

        Unless a run asks for another, int8 where the checkpoint has scales for it, and float16
        wherever products are not float32. That has 8 times bfloat16's precision in the same two
        bytes, and attention scores are where rounding shows most; keys and values come nowhere
        near its limit of 65504 (they saturate).
        """
        if self.kv_cache_dtype != AUTO:
            return self.kv_cache_dtype
        if self.has_kv_scales:
            return INT8
        return "float32" if self.compute_dtype == "float32" else "float16"

    @property
    def tells_prompts_apart(self) -> bool:
        """Whether a layer multiplies tokens of a prompt otherwise than generated ones."""
        schemes = dict(self.stored_schemes or ()).values()
        return any(scheme is not None and scheme.activation_scale == MIXED for scheme in schemes)

    @property
    def uses_kv_scales(self) -> bool:
        """Whether an int8 KV cache has the checkpoint's scales; else each head has its own."""
        return self.has_kv_scales and self.kv_dtype == INT8

    def kv_head_bytes(self, head_dim: int) -> int:
        """Bytes of the cached keys, or of the values, of one head and token."""
        return count_head_bytes(head_dim, self.kv_dtype, not self.uses_kv_scales)

    def scheme_of(self, layer_name: str) -> QuantizationScheme | None:
        """How a linear layer, by its Megatron-Core name, is quantized; None: it is not."""
        if self.stored_schemes is not None:
            scheme = dict(self.stored_schemes).get(layer_name)
            scheme = on_ranks(scheme, layer_name, self.model_parallel)
            return in_precision(scheme, self.compute_dtype)
        if any(layer_name.startswith(f"decoder.layers.{number}.") for number in self.float_layers):
            return None
        return read_scheme(self.quantization, self.quantization_group_size)

    @property
    def max_blocks_per_seq(self) -> int:
        """Blocks that the longest sequence needs."""
        return -(-self.max_model_len // self.block_size)


# What a run may say; the others come with the checkpoint.
_OF_THE_CHECKPOINT = (
    "float_layers",
    "stored_schemes",
    "shifted_norms",
    "rounded_columns",
    "has_kv_scales",
)
SETTING_NAMES = tuple(
    field.name for field in fields(RunnerSettings) if field.name not in _OF_THE_CHECKPOINT
)
# What `LLM` hands on as it was given; which part of the network this is, it finds out.
GIVEN_SETTINGS = tuple(name for name in SETTING_NAMES if not name.startswith("model_parallel"))


def check_types_together(values: Mapping[str, Any]) -> None:
    """Refuse types of weights and products that the operators do not compute.

    Args:
        values: of these fields of RunnerSettings; a dtype of None is not known yet.
    Raises:
        ConfigError: names the pairs they do, or the schemes.
    """
    pair = params_dtype, compute_dtype = values["params_dtype"], values["compute_dtype"]
    if None not in pair and pair not in PRECISIONS:
        allowed = ", ".join(f"{params}/{compute}" for params, compute in PRECISIONS)
        raise ConfigError(
            f"params_dtype {params_dtype} with compute_dtype {compute_dtype} cannot be computed: "
            f"use one of params_dtype/compute_dtype {allowed}."
        )
    read_scheme(values["quantization"], values["quantization_group_size"])


def _read_dtype(name: str, value: Any, kind: ValueType) -> str:
    """The full name of a type, which may be given as on the command line ("bf16")."""
    try:
        return kind.from_yaml(value)
    except ValueError:
        raise ConfigError(f"{name} must be {kind.description}, got {value!r}.") from None
