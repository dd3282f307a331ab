"""Integers of 2, 4 or 8 bits packed into wider ones: the one place that unpacks them."""

import numpy as np

# AutoAWQ "gemm": nibble i of a word is column AWQ_ORDER[i] of eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(words: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Take words apart along their last axis.

    Args:
        words: int8, uint8 or int32 [..., W].
        bits: of a value, the lowest bits of a word first.
        order: order[i] is the place of value i of a word; None: i.
    Returns:
        uint8 [..., W * values in a word].
    """
    unsigned = np.ascontiguousarray(words).view(f"<u{words.dtype.itemsize}")
    # The bytes of a little-endian word are its values in order, a byte at a time.
    octets = unsigned.view(np.uint8).reshape(*words.shape[:-1], -1)
    per_byte = 8 // bits
    if per_byte == 1:
        values = octets
    elif per_byte == 2:  # a byte's two values as the bytes of a word: twice as fast as one by one
        pairs = octets.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        values = pairs.view(np.uint8)
    else:
        values = np.empty((*octets.shape, per_byte), np.uint8)
        for place in range(per_byte):
            values[..., place] = octets >> (bits * place) & (2**bits - 1)
        values = values.reshape(*octets.shape[:-1], -1)
    if order is None:
        return values
    places = values.reshape(*values.shape[:-1], -1, len(order))
    sorted_values = np.empty_like(places)
    sorted_values[..., list(order)] = places
    return sorted_values.reshape(values.shape)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put codes together along their last axis, the reverse of `unpack` and `as_signed`.

    Args:
        codes: int8 [..., n] of 2 or 4 bits.
    Returns:
        uint8 [..., n / values in a byte], rounded up; missing values are zeros.
    """
    per_byte = 8 // bits
    padded = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per_byte) * per_byte), np.uint8)
    padded[..., : codes.shape[-1]] = codes.view(np.uint8) & np.uint8(2**bits - 1)
    octets = padded[..., ::per_byte].copy()
    for place in range(1, per_byte):
        octets |= padded[..., place::per_byte] << np.uint8(bits * place)
    return octets


def unpack_rows(octets: np.ndarray, bits: int) -> np.ndarray:
    """Take bytes apart along their first axis: int8 [B, n] -> uint8 [B * values in a byte, n]."""
    unsigned, per_byte = octets.view(np.uint8), 8 // bits
    values = np.empty((len(octets) * per_byte, *octets.shape[1:]), np.uint8)
    for place in range(per_byte):
        values[place::per_byte] = unsigned >> (bits * place) & (2**bits - 1)
    return values


def as_signed(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 two's complements of so many bits as int8."""
    if bits == 8:
        return values.view(np.int8)
    shift = 8 - bits
    signed = (values << shift).view(np.int8)
    signed >>= shift
    return signed


def swap_nibbles(octets: np.ndarray) -> np.ndarray:
    """Bytes with their halves exchanged, uint8."""
    unsigned = np.ascontiguousarray(octets).view(np.uint8)
    return unsigned << 4 | unsigned >> 4


def aligned(wanted: range, unit: int) -> range:
    """The units of `unit` values that hold all the wanted ones."""
    return range(wanted.start // unit, -(-wanted.stop // unit))


def trim(wanted: range, unit: int) -> slice:
    """Where the wanted values are among those of `aligned`."""
    start = wanted.start - wanted.start // unit * unit
    return slice(start, start + len(wanted))


def _make_e4m3() -> np.ndarray:
    """All 256 values of OCP's E4M3: bias 7, no infinities, NaN where all other bits are set."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _make_e4m3()
# Each value is a float16 too, whose bits lead back to the code.
_E4M3_OF_HALF = np.zeros(2**16, np.uint8)
_E4M3_OF_HALF[E4M3.astype(np.float16).view(np.uint16)] = np.arange(256)


def encode_e4m3(values: np.ndarray) -> np.ndarray:
    """uint8 codes of float32 values that are E4M3 numbers."""
    return _E4M3_OF_HALF[values.astype(np.float16).view(np.uint16)]
