"""FP8 against torch, and parts of words."""

import numpy as np
import pytest

from mindformers_glm.quantization import packing


def test_every_fp8_number_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(packing.E4M3, expected)


def test_values_lie_lowest_bits_first() -> None:
    words = np.array([[0x76543210, -0x12345678]], np.int32)
    expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE]
    expected[8:] = [int(digit, 16) for digit in reversed(f"{-0x12345678 % 2**32:08x}")]
    assert packing.unpack(words, 4)[0].tolist() == expected
    octets = list((0x76543210).to_bytes(4, "little") + (-0x12345678 % 2**32).to_bytes(4, "little"))
    assert packing.unpack(words, 8)[0].tolist() == octets


@pytest.mark.parametrize("wanted", [range(0, 8), range(3, 5), range(7, 9), range(0, 16)])
def test_wanted_values_are_cut_out_of_whole_words(wanted: range) -> None:
    values = np.arange(24)
    units = packing.aligned(wanted, 8)
    of_units = values[units.start * 8 : units.stop * 8]
    assert of_units[packing.trim(wanted, 8)].tolist() == list(wanted)
