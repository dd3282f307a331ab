"""Rotations that spread outliers over all channels, folded into the weights: nothing runs online.

    residual stream   x -> x R. An RMS norm without weights keeps it, so the norms' weights are
                      folded into the linears behind them first; embedding and head are rotated too
    values of a head  v -> v R_h, undone in the columns of o: attention mixes tokens, no channels

glm4 norms the output of each branch with a weight of its own for each channel before it is added
(post_self_attn_layernorm, post_mlp_layernorm). That weight would have to stand between two
rotations and cannot be folded into either: there, only heads of v are rotated.
Source: QuaRot, Ashkboos et al. 2024, arXiv:2404.00456 (without its online rotations of down's and
o's inputs); norms folded as in SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024.
"""

from collections.abc import Mapping

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantizer.layer_parts import LayerParts
from mindformers_glm.quantizer.products import multiply
from mindformers_glm.quantizer.recipe import RESIDUAL
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV, TENSOR_NAMES

_CHUNK_ROWS = 8192  # of a matrix at a time: the copies in float64 are what memory goes to
_PALEY_ORDERS = (20, 12)  # of Hadamard matrices that are no power of two: 6144 is 512 * 12


def check_residual_rotation(config: GlmConfig) -> None:
    """Refuse what cannot be folded.

    Raises:
        UnsupportedError: the network's norms or its embedding stand in the way.
    """
    if config.has_sandwich_norms:
        raise UnsupportedError(
            f"A {config.model_type} checkpoint's residual stream cannot be rotated: "
            "post_self_attn_layernorm and post_mlp_layernorm scale each channel of it behind o and "
            "down, where no weight can take the rotation: rotate the heads of v alone, or smooth "
            "with m1 to m5."
        )
    if config.tie_word_embeddings:
        raise UnsupportedError(
            "The residual stream cannot be rotated where the head is the embedding "
            f"({config.in_file_keys('tie_word_embeddings')}=true): the last norm's weights are "
            "folded into the head alone. Rotate the heads of v alone, or smooth with m1 to m5."
        )


class Rotation:
    """All rotations of a network; its tensors in, what they are then out.

    Args:
        kind: VALUES or RESIDUAL of recipe.py.
    Raises:
        UnsupportedError: see `check_residual_rotation`.
    """

    def __init__(self, config: GlmConfig, kind: str) -> None:
        self._config = config
        self._of_values = make_rotation(config.head_dim)
        self._of_residual: np.ndarray | None = None
        if kind == RESIDUAL:
            check_residual_rotation(config)
            self._of_residual = make_rotation(config.hidden_size)

    @property
    def has_residual(self) -> bool:
        """Whether embedding, final norm and head are others, too."""
        return self._of_residual is not None

    def rotate_layer(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All tensors of a layer, by their names within it."""
        rotated = dict(tensors) | rotate_values(tensors, self._config, self._of_values)
        if self._of_residual is None:
            return rotated
        return rotated | rotate_residual(rotated, self._config, self._of_residual)

    def rotate_ends(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same for the embedding, or for the final norm and the head, by their whole names."""
        if self._of_residual is None:
            return dict(tensors)
        return rotate_ends(tensors, self._config, self._of_residual)

    def rotate_rows(self, embedded: np.ndarray) -> np.ndarray:
        """Some rows of the embedding."""
        if self._of_residual is None:
            return embedded
        return _rotate_columns(embedded, self._of_residual)


def make_rotation(size: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal float64 [size, size].

    A Hadamard matrix with random signs, which spreads every channel evenly, where there is one of
    a power of two times 1, 12 or 20; else any.
    """
    rng = np.random.default_rng(seed)
    hadamard = _hadamard(size)
    if hadamard is not None:
        return hadamard * rng.choice([-1.0, 1.0], size)[:, None] / np.sqrt(size)
    orthogonal, upper = np.linalg.qr(rng.standard_normal((size, size)))
    return orthogonal * np.sign(np.diag(upper))


def rotate_residual(
    tensors: Mapping[str, np.ndarray], config: GlmConfig, rotation: np.ndarray
) -> dict[str, np.ndarray]:
    """Let a layer take and give a rotated residual stream; before anything is smoothed.

    Args:
        tensors: all of a layer's, by their names within the layer; none is written to.
        rotation: orthogonal [hidden_size, hidden_size], the same for all layers.
    Returns:
        The tensors that are others then, in the dtype they had.
    Raises:
        UnsupportedError: see `check_residual_rotation`.
    """
    check_residual_rotation(config)
    parts = LayerParts(config, tensors)
    for parameter in (QKV, FC1):
        norm = parts.norm_of(parameter)
        for name in parts.linears(parameter):
            parts.changed[name] = _rotate_columns(parts[name], rotation, parts[norm])
        parts.changed[norm] = np.ones_like(parts[norm])
    for parameter in (PROJ, FC2):
        for name in parts.linears(parameter):
            parts.changed[name] = _rotate_columns(parts[name].T, rotation).T.copy()
    return parts.changed


def rotate_ends(
    tensors: Mapping[str, np.ndarray], config: GlmConfig, rotation: np.ndarray
) -> dict[str, np.ndarray]:
    """The same for what lies outside the layers: the embedding, the last norm and the head.

    Args:
        tensors: by their names in the checkpoint, all three, or the embedding, or the other two.
    """
    check_residual_rotation(config)
    names = TENSOR_NAMES[config.model_type]
    embedding, norm, head = (each[0] for each in (names.embedding, names.final_norm, names.output))
    rotated = {}
    if embedding in tensors:
        rotated[embedding] = _rotate_columns(tensors[embedding], rotation)
    if head in tensors:
        rotated[norm] = np.ones_like(tensors[norm])
        rotated[head] = _rotate_columns(tensors[head], rotation, tensors[norm])
    return rotated


def rotate_values(
    tensors: Mapping[str, np.ndarray], config: GlmConfig, rotation: np.ndarray
) -> dict[str, np.ndarray]:
    """Rotate the values of every head, and the columns of o that take them; of every dialect.

    Args:
        tensors: as of `rotate_residual`.
        rotation: orthogonal [head_dim, head_dim].
    Returns:
        The tensors that are others then, in the dtype they had.
    """
    parts = LayerParts(config, tensors)
    for place in parts.value_rows():
        values = parts[place.name].copy()
        rows = values[place.rows]
        heads = rows.reshape(config.num_key_value_heads, config.head_dim, -1)
        values[place.rows] = (rotation.T @ heads).reshape(rows.shape)
        parts.changed[place.name] = values
    for name in parts.linears(PROJ):
        columns = parts[name].reshape(-1, config.head_dim)
        parts.changed[name] = _rotate_columns(columns, rotation).reshape(parts[name].shape)
    return parts.changed


def _rotate_columns(
    weight: np.ndarray, rotation: np.ndarray, norm: np.ndarray | None = None
) -> np.ndarray:
    """weight @ rotation, or (weight * norm) @ rotation, in float64 and back in weight's dtype."""
    rotated = np.empty(weight.shape, weight.dtype)
    for begin in range(0, len(weight), _CHUNK_ROWS):
        rows = weight[begin : begin + _CHUNK_ROWS]
        rotated[begin : begin + _CHUNK_ROWS] = multiply(
            rows if norm is None else rows * norm, rotation.T
        )
    return rotated


def _hadamard(size: int) -> np.ndarray | None:
    """float64 [size, size] of ones and minus ones with orthogonal rows, by Sylvester and Paley."""
    order = next((order for order in _PALEY_ORDERS if size % order == 0), 1)
    factor = size // order
    if factor & (factor - 1):
        return None
    matrix = np.ones((1, 1)) if order == 1 else _paley(order)
    while len(matrix) < size:
        matrix = np.kron([[1.0, 1.0], [1.0, -1.0]], matrix)
    return matrix


def _paley(order: int) -> np.ndarray:
    """Paley's first construction, of a prime order - 1 that leaves 3 when divided by 4."""
    prime = order - 1
    squares = {number * number % prime for number in range(1, prime)}
    signs = np.array([0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))])
    numbers = np.arange(prime)
    skew = np.zeros((order, order))
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = signs[(numbers[:, None] - numbers) % prime]
    return skew + np.eye(order)
