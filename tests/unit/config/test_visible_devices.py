"""Which device a process takes, and what cannot be meant."""

import pytest

from mindformers_glm.config.visible_devices import find_device
from mindformers_glm.core.errors import ConfigError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("device_id", "environ", "expected"),
    [
        (0, {}, None),
        (3, {}, 3),
        (0, {VISIBLE: "5"}, None),
        (1, {VISIBLE: "4,5"}, 1),
        (0, {"DEVICE_ID": "5"}, 5),
        (2, {"DEVICE_ID": "5"}, 2),
    ],
)
def test_one_process_takes_what_its_setting_says(
    device_id: int, environ: dict[str, str], expected: int | None
) -> None:
    assert find_device(device_id, 1, environ) == expected


@pytest.mark.parametrize("environ", [{}, {VISIBLE: "4,5"}])
def test_a_rank_takes_the_device_of_its_number(environ: dict[str, str]) -> None:
    # As upstream: in a job it leaves device_id out of MindSpore's context, which finds it.
    assert find_device(0, 2, environ | {"RANK_ID": "9", "DEVICE_ID": "1"}) is None


@pytest.mark.parametrize(
    ("device_id", "num_ranks", "environ", "words"),
    [
        (2, 4, {"DEVICE_ID": "2"}, "context.device_id 2 is for one process, and this job has 4"),
        (
            2,
            1,
            {VISIBLE: "4,5"},
            "takes card 2, counted .*=4,5 shows, and these are 2",
        ),
        (0, 4, {VISIBLE: "0,1", "DEVICE_ID": "2", "RANK_ID": "6"}, "Rank 6 takes card 2"),
        (0, 1, {"DEVICE_ID": "one"}, "DEVICE_ID must be the number of a card, got 'one'"),
        (0, 1, {VISIBLE: "1, 2"}, "must list numbers in ascending order .* got '1, 2'"),
        (0, 1, {VISIBLE: "2,1"}, "ascending"),
        (0, 1, {VISIBLE: "1,1"}, "ascending"),
        (0, 1, {VISIBLE: ""}, "ascending"),
        (0, 2, {VISIBLE: "a", "DEVICE_ID": "0"}, "ascending"),
    ],
)
def test_contradictions_are_told(
    device_id: int, num_ranks: int, environ: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        find_device(device_id, num_ranks, environ)
