"""The table of npu-smi, in the forms of three kinds of card."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindformers_glm.backends.ascend.npu_smi import NpuChip, parse_chips
from tests.unit.fake_host import NPU_SMI_A2, NPU_SMI_A3, NPU_SMI_DUO

MIB = 2**20


def test_an_a2_tells_its_hbm_and_not_its_empty_ddr() -> None:
    assert parse_chips(NPU_SMI_A2) == [
        NpuChip(0, 0, "910B3", "OK", 3400 * MIB, 65536 * MIB),
        NpuChip(1, 1, "910B3", "OK", 41200 * MIB, 65536 * MIB),
    ]


def test_both_chips_of_a_duo_are_devices_of_their_own() -> None:
    assert parse_chips(NPU_SMI_DUO) == [
        NpuChip(4, 0, "310P3", "OK", 1500 * MIB, 44280 * MIB),
        NpuChip(4, 1, "310P3", "OK", 1460 * MIB, 43690 * MIB),
    ]


def test_an_a3_counts_its_chips_by_phy_id() -> None:
    chips = parse_chips(NPU_SMI_A3)
    assert [(chip.card, chip.device, chip.health) for chip in chips] == [
        (2, 4, "OK"),
        (2, 5, "Alarm"),
    ]


def test_a_chip_without_memory_is_a_chip() -> None:
    text = "| 0  910B4 | Critical | - |\n| 0 | 0000:C1:00.0 | 0   NA  NA |"
    assert parse_chips(text) == [NpuChip(0, 0, "910B4", "Critical")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dcmi model initialized failed, because the device is used. ret is -8020",
        "\x00\xff | | |\n|||\n| 0 |",
        NPU_SMI_A2.replace("0000:C", "somewhere "),  # no second row of a chip
        "\n".join(line for line in NPU_SMI_A2.splitlines() if "910B3" not in line),
        "| 1       0 | 4711          | python                   | 37850 |",
    ],
)
def test_other_texts_have_no_chips(text: str) -> None:
    assert parse_chips(text) == []


_CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["0     910B3", "0  0", "0  \u00b2", "0000:C1:00.0", "1 / 2", "9/0 1/"]),
)


@given(st.lists(st.lists(_CELLS, min_size=3, max_size=3), max_size=4))
@example([["0  910B3", "OK", ""], ["0  \u00b2", "0000:C1:00.0", "1/2"]])  # int() takes no squares
def test_no_table_is_too_strange(rows: list[list[str]]) -> None:
    parse_chips("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
