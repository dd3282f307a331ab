"""The float network layer by layer in float32, with the inputs of each linear layer seen.

Whoever runs a layer says what its products are: the float ones, or those of what the weights and
activations have been rounded to. All else is the network's: norms, RoPE, attention, SwiGLU. Linears
that take one input go by the keys QKV, PROJ, FC1 and FC2 of weights/tensor_names.py, tensors by
their names within the layer ("self_attn.q_proj.weight").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mindformers_glm.backends import FloatOperators, make_float_operators
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.quantizer.rotation import Rotation
from mindformers_glm.quantizer.tool_floats import norm_as_the_tool, swiglu_as_the_tool
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.tensor_names import (
    FC1,
    FC1_NORM,
    FC2,
    LINEARS,
    PROJ,
    QKV,
    QKV_NORM,
    TENSOR_NAMES,
)

_POST_ATTENTION, _POST_MLP = "post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"
_CHUNK_ROWS = 2048  # of the MLP at a time: 27,392 columns of the 9B are 224 MB
Tensors = Mapping[str, np.ndarray]
# The product of some rows of a linear's input; the columns of all its modules, biases added.
Product = Callable[[slice], np.ndarray]
# Given the key of linears and all rows of their input.
Multiply = Callable[[str, np.ndarray], Product]


@dataclass(frozen=True)
class LayerNames:
    """How a dialect calls the parts of a layer.

    prefix: what comes before the number of a layer.
    modules: QKV, PROJ, FC1 and FC2 -> linear modules within a layer, in the order of their rows.
    norms: QKV_NORM, FC1_NORM and the sandwich norms, if any -> their weights.
    kv_module: what the scales of a KV cache are named after, within a layer.
    """

    prefix: str
    modules: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, str]
    kv_module: str

    @classmethod
    def of(cls, config: GlmConfig) -> "LayerNames":
        """Those of a checkpoint."""
        names = TENSOR_NAMES[config.model_type]
        modules, norms = {}, {}
        for parameter, tensors in names.layer:
            if parameter in LINEARS:
                modules[parameter] = tuple(name.removesuffix(".weight") for name, _ in tensors)
            else:
                norms[parameter] = tensors[0][0]
        kv_scale, _ = names.kv_scales[0][1][0]
        return cls(names.layers, modules, norms, kv_scale.removesuffix(".k_proj.kv_cache_scale"))

    def layer_prefix(self, number: int) -> str:
        """What comes before the names within a layer."""
        return f"{self.prefix}{number}."


class FloatNetwork:
    """Runs the layers of a checkpoint on sequences that are calibrated with, all at once.

    Args:
        checkpoint: float, of tensors that `weights.rule_checks.check_rules` has passed.
        samples: token ids of each sequence; none: layers can be read and not run.
        is_exact: products are float32 throughout, norms and SwiGLU as msModelSlim has them; else
            16 bits of each factor count where the machine is faster so.
        rotation: what tensors are read with; None: as they are.
    """

    def __init__(
        self,
        config: GlmConfig,
        checkpoint: Checkpoint,
        samples: Sequence[Sequence[int]],
        is_exact: bool = True,
        rotation: Rotation | None = None,
    ) -> None:
        self.config, self.names, self.rotation = config, LayerNames.of(config), rotation
        self._checkpoint, self._samples, self._is_exact = checkpoint, samples, is_exact
        ends = np.cumsum([0, *map(len, samples)]).tolist()
        self.sample_rows = [slice(*pair) for pair in pairwise(ends)]
        self._own_operators: FloatOperators | None = None

    @property
    def has_samples(self) -> bool:
        """Whether layers can be run."""
        return bool(self._samples)

    @property
    def operators(self) -> FloatOperators:
        """Made when they are needed first: reading alone needs no kernels."""
        if self._own_operators is None:
            lens = [len(sample) for sample in self._samples]
            self._own_operators = make_float_operators(self.config, lens, self._is_exact)
        return self._own_operators

    def embed(self) -> np.ndarray:
        """float32 [rows of all samples, hidden_size]: the input of the first layer."""
        name, _ = TENSOR_NAMES[self.config.model_type].embedding
        view = self._checkpoint.view(name)
        ids = np.concatenate([np.asarray(sample, np.int64) for sample in self._samples])
        rows = _as_float32(view.data[ids], view.dtype)
        self._checkpoint.release(name)
        return rows if self.rotation is None else self.rotation.rotate_rows(rows)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a layer as float32: norms, matrices and their biases.

        Raises:
            CheckpointError: a tensor has a value that is infinite or no number.
        """
        prefix = self.names.layer_prefix(number)
        tensors = {name: self.read_tensor(prefix + name) for name in self.list_tensors()}
        return tensors if self.rotation is None else self.rotation.rotate_layer(tensors)

    def read_embedding(self) -> dict[str, np.ndarray]:
        """The same, of the embedding by its whole name."""
        return self._read_ends(TENSOR_NAMES[self.config.model_type].embedding[0])

    def read_output(self) -> dict[str, np.ndarray]:
        """The same, of the final norm and the output layer."""
        names = TENSOR_NAMES[self.config.model_type]
        return self._read_ends(names.final_norm[0], names.output[0])

    def list_tensors(self) -> list[str]:
        """Their names within a layer."""
        modules = [name for modules in self.names.modules.values() for name in modules]
        wanted = [*self.names.norms.values(), *(f"{name}.weight" for name in modules)]
        if self.config.attention_bias:
            wanted += [f"{name}.bias" for name in self.names.modules[QKV]]
        return wanted

    def with_samples(self, count: int) -> "FloatNetwork":
        """The same on the first samples only."""
        samples = self._samples[:count]
        return FloatNetwork(self.config, self._checkpoint, samples, self._is_exact, self.rotation)

    def read_tensor(self, name: str) -> np.ndarray:
        """One tensor of the checkpoint itself, by its whole name, as float32."""
        view = self._checkpoint.view(name)
        values = np.empty(view.data.shape, np.float32)
        for first, rows in view.row_chunks():
            values[first : first + len(rows)] = _as_float32(rows, view.dtype)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{name} in {self._checkpoint.folder} has values that are infinite or no numbers, "
                "which cannot be quantized: export the model again."
            )
        return values

    def _read_ends(self, *names: str) -> dict[str, np.ndarray]:
        tensors = {name: self.read_tensor(name) for name in names}
        return tensors if self.rotation is None else self.rotation.rotate_ends(tensors)

    def multiply_floats(self, tensors: Tensors, see: Callable[[str, np.ndarray], None]) -> Multiply:
        """The products of the weights themselves.

        Args:
            see: is told the key and the input of linears.
        """

        def multiply(parameter: str, x: np.ndarray) -> Product:
            see(parameter, x)
            weights = [tensors[f"{module}.weight"] for module in self.names.modules[parameter]]
            matrices = [self.operators.matrix(weight) for weight in weights]
            biases = [tensors.get(f"{module}.bias") for module in self.names.modules[parameter]]

            def product(rows: slice) -> np.ndarray:
                part = x[rows]
                return join_columns(
                    [
                        add_bias(matrix.multiply(part), bias)
                        for matrix, bias in zip(matrices, biases, strict=True)
                    ]
                )

            return product

        return multiply

    def run(self, tensors: Tensors, hidden: np.ndarray, multiply: Multiply) -> np.ndarray:
        """One layer on all samples.

        Args:
            tensors: its norms are read here, its linears by `multiply` alone.
            hidden: float32 [rows, hidden_size].
        Returns:
            The next layer's input, of the same shape.
        """
        everything = slice(0, len(hidden))
        normed = self._norm(hidden, tensors, QKV_NORM)
        qkv = multiply(QKV, normed)(everything)
        core = self.operators.attend(qkv)
        del qkv
        branch = multiply(PROJ, core)(everything)
        hidden = hidden + self._norm_if_any(branch, tensors, _POST_ATTENTION)
        activated = self._activate(multiply(FC1, self._norm(hidden, tensors, FC1_NORM)), hidden)
        product = multiply(FC2, activated)
        for rows in _chunks(len(hidden)):
            hidden[rows] += self._norm_if_any(product(rows), tensors, _POST_MLP)
        return hidden

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """RMS norm of float32 [rows, channels]; the tool's own bits where products are exact."""
        if self._is_exact:
            return norm_as_the_tool(x, weight, self.config.rms_norm_eps)
        return self.operators.norm(x, weight)

    def _activate(self, product: Product, hidden: np.ndarray) -> np.ndarray:
        """silu(gate) * up, some rows at a time."""
        activated = np.empty((len(hidden), self.config.intermediate_size), np.float32)
        for rows in _chunks(len(hidden)):
            gate, up = np.split(product(rows), 2, axis=1)
            if self._is_exact:
                activated[rows] = swiglu_as_the_tool(gate, up)
                continue
            with np.errstate(over="ignore"):  # exp(-gate) may be infinite: the quotient is 0 then
                np.divide(gate, 1 + np.exp(-gate), out=activated[rows])
            activated[rows] *= up
        return activated

    def _norm(self, x: np.ndarray, tensors: Tensors, parameter: str) -> np.ndarray:
        name = self.names.norms[parameter]
        return add_bias(
            self.norm(x, tensors[name]),
            tensors.get(f"{name.removesuffix('.weight')}.bias"),
        )

    def _norm_if_any(self, x: np.ndarray, tensors: Tensors, parameter: str) -> np.ndarray:
        return self._norm(x, tensors, parameter) if parameter in self.names.norms else x


def add_bias(values: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """In place; None is none."""
    if bias is not None:
        values += bias
    return values


def join_columns(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Products of several modules beside each other; one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _chunks(num_rows: int) -> list[slice]:
    return [
        slice(begin, min(begin + _CHUNK_ROWS, num_rows))
        for begin in range(0, num_rows, _CHUNK_ROWS)
    ]


def _as_float32(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)
