"""msModelSlim's tp_list: a layer quantized as each of N ranks would have it.

Where a tool simulates tensor parallelism, the layers whose columns are split have a part for each
rank, `LAYER.tp_list.RANK.*`, quantized or float; quantized ones lie there a second time as a whole,
`LAYER.weight`. The scales of sums that cards exchange as int8 (gather_scale, reduce_scale) are not
used: sums are exchanged as floats here. Source: an output of msModelSlim 26.1.0 for two ranks.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import JOINED_PARTS, QuantizedLinear
from mindformers_glm.core.segmented_linear import FloatPart, SegmentedLinear

_PART = re.compile(r"(.+)\.tp_list\.\d+\.weight")
_EXCHANGE_SCALE = re.compile(r".+\.(gather_scale|reduce_scale(\.\d+)?)")
_FLOAT_TYPES = ("float32", "float16", "bfloat16")


def count_parts(layer: str, names: Mapping[str, object]) -> int:
    """How many parts a layer has; 0: it is whole."""
    count = 0
    while f"{layer}.tp_list.{count}.weight" in names:
        count += 1
    return count


def list_unused(names: Iterable[str]) -> dict[str, str]:
    """What CheckpointFormat.surplus says: repeated matrices, and scales of exchanged sums."""
    known = list(names)
    layers = {match[1] for name in known if (match := _PART.fullmatch(name))}
    found = {f"{layer}.weight": JOINED_PARTS for layer in layers}
    scales = {name for name in known if _EXCHANGE_SCALE.fullmatch(name)}
    return {name: what for name, what in found.items() if name in known} | dict.fromkeys(
        sorted(scales), "scales of int8 sums between cards"
    )


def part_shapes(
    layer: str,
    names: Sequence[str],
    shape: tuple[int, int],
    shape_of: Callable[[str], tuple[int, ...]],
) -> list[tuple[int, int]]:
    """The parts' shapes, which side by side are the matrix's.

    Raises:
        UnsupportedError: the parts are of rows.
        CheckpointError: they are not those of the matrix.
    """
    num_rows, num_columns = shape
    found = [shape_of(name) for name in names]
    if all(len(one) == 2 and one[1] == num_columns for one in found) and len(found) > 1:
        raise UnsupportedError(
            f"{layer} has scales for each rank in its rows, which this version does not read: "
            "quantize without tp_size."
        )
    columns = [one[-1] for one in found]
    if any(len(one) != 2 or one[0] != num_rows for one in found) or sum(columns) != num_columns:
        shapes = ", ".join(str(list(one)) for one in found)
        raise CheckpointError(
            f"{layer}.tp_list has parts of {shapes}, expected columns of {list(shape)}: a part is "
            "missing or of another model."
        )
    return [(num_rows, count) for count in columns]


def join_parts(
    layer: str,
    names: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    parts: Sequence[QuantizedLinear | None],
) -> SegmentedLinear:
    """The layer of its parts; None stands for a float one.

    Raises:
        CheckpointError: some are float and some are not.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return SegmentedLinear(
            tuple(
                FloatPart(f"{name}.weight", shape, _FLOAT_TYPES)
                for name, shape in zip(names, shapes, strict=True)
            )
        )
    kinds = {part.scheme and (part.scheme.label, part.scheme.group_size) for part in known}
    if len(known) < len(parts) or len(kinds) > 1:
        raise CheckpointError(
            f"{layer}.tp_list has parts that are quantized in different ways: quantize again."
        )
    return SegmentedLinear(tuple(known))
