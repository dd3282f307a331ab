"""What a float checkpoint is to become: the one description that options are turned into."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mindformers_glm.core.quantized_linear import FLOAT

# How weights are rounded.
NEAREST, GPTQ, AWQ = "nearest", "gptq", "awq"
# What is rotated before anything else (rotation.py).
VALUES, RESIDUAL = "values", "residual"
# How the range of a static activation is found (msModelSlim's act_method 1, 2, 3).
MIN_MAX, HISTOGRAM, AUTOMATIC = 1, 2, 3
SEARCHED = 4  # ours: by the error of the output (range_search.py)


@dataclass(frozen=True)
class Recipe:
    """How layers are quantized; frozen, checked by options.py, which makes it.

    Attributes:
        weight_bits: 4 or 8.
        activation: how activations enter the product: FLOAT, STATIC, DYNAMIC or MIXED of
            core/quantized_linear.py.
        group_size: columns that share a scale; None: the whole row. Of W4A8_DYNAMIC the scales of
            groups are on a second level, beside one of each row.
        is_symmetric: weights have no zero points.
        is_per_tensor: a whole weight has one scale, which stands in each of its rows (mm_tensor).
        act_method: of static activations: MIN_MAX, HISTOGRAM, AUTOMATIC or SEARCHED.
        anti_method: "" or m1 to m5, before anything is rounded.
        disable_names: modules of the checkpoint that stay float.
        disable_level: as many of the layers with the widest inputs stay float besides.
        quantizes_output: the output layer is quantized too (disable_last_linear False).
        rounding: NEAREST, GPTQ or AWQ.
        is_sparse: W8A8S: bodies of 4 bits with outliers of 8.
        is_co_sparse: of W8A8S: the `fraction` of largest weights are outliers; else those beyond
            `sigma_factor` standard deviations with `use_sigma`, and none without (lowbit).
        has_kv_scales: scales of an int8 KV cache are calibrated too (C8).
        rotation: "", VALUES (of each head) or RESIDUAL (the same, and the residual stream).
        target_bits: average width of the weights of all layers' linears, those that stay float
            counted as 16 bits: widths are mixed by sensitivity (sensitivity.py); None: all have
            `weight_bits`, which is the narrowest otherwise.
        max_bits: the widest of quantized weights then.
        bits_of: module -> width, of those that have another one than `weight_bits`.
        num_ranks: linears whose columns are split have ranges of each of so many ranks.
        has_exchange_scales: scales of int8 sums between those are found too.
        is_msmodelslim: whatever the tool does otherwise than is best is done as it does it.
    """

    weight_bits: int = 8
    activation: str = FLOAT
    group_size: int | None = None
    is_symmetric: bool = True
    is_per_tensor: bool = False
    act_method: int = MIN_MAX
    anti_method: str = ""
    disable_names: frozenset[str] = frozenset()
    disable_level: int = 0
    quantizes_output: bool = False
    rounding: str = NEAREST
    is_sparse: bool = False
    is_co_sparse: bool = False
    fraction: float = 0.01
    use_sigma: bool = False
    sigma_factor: float = 3.0
    has_kv_scales: bool = False
    rotation: str = ""
    target_bits: float | None = None
    max_bits: int = 8
    bits_of: Mapping[str, int] = field(default_factory=dict)
    num_ranks: int = 1
    has_exchange_scales: bool = False
    is_msmodelslim: bool = False

    def for_module(self, name: str) -> "Recipe":
        """The same with the width of one module; only int4 has groups then."""
        bits = self.bits_of.get(name)
        if bits is None:
            return self
        group_size = self.group_size if bits == self.weight_bits else None
        return replace(self, weight_bits=bits, group_size=group_size, bits_of={})
