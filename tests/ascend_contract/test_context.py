"""The card that a process takes, and the groups of a job's ranks."""

from unittest import mock

import mindspore as ms
import pytest

from mindformers_glm.backends.ascend import context
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.sharding import TensorParallel
from tests.ascend_contract.ranks import as_rank

SET = "The 'mindspore.set_device' can not be modified."
BEGUN = "The runtime has been initialized, please set it before the kernel is executed"


@pytest.mark.parametrize(("size", "device_id", "taken"), [(1, 3, 3), (1, 0, None), (2, 0, None)])
def test_a_rank_leaves_its_card_to_mindspore(size: int, device_id: int, taken: int | None) -> None:
    with (
        mock.patch.object(ms, "set_device") as set_device,
        mock.patch.object(ms, "set_context"),
        mock.patch.dict("os.environ"),
    ):
        context.set_context(DeviceSettings(device_id=device_id), TensorParallel(size))
    set_device.assert_called_once_with("Ascend", taken)


@pytest.mark.parametrize("device_id", [None, 3])
@pytest.mark.parametrize("message", [SET, BEGUN])
def test_a_second_model_stays_on_the_card(message: str, device_id: int | None) -> None:
    with on_a_card(message, ("Ascend", 3)):
        context.take_card(device_id)


@pytest.mark.parametrize(
    ("message", "taken", "device_id", "words"),
    [
        (SET, ("Ascend", 3), 2, "runs on Ascend 3 already, and Ascend 2 is asked for"),
        (BEGUN, ("Ascend", 3), 2, "runs on Ascend 3 already, and Ascend 2 is asked for"),
        (SET, ("CPU", 0), None, "runs on CPU 0 already, and Ascend is asked for"),
    ],
)
def test_another_card_needs_another_process(
    message: str, taken: tuple[str, int], device_id: int | None, words: str
) -> None:
    with on_a_card(message, taken), pytest.raises(ConfigError, match=words):
        context.take_card(device_id)


def on_a_card(message: str, taken: tuple[str, int]) -> mock._patch:
    return mock.patch.multiple(
        ms,
        set_device=mock.Mock(side_effect=RuntimeError(message)),
        get_current_device=lambda: taken,
        get_context=lambda name: taken[1],
    )


def test_groups_of_another_size_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came through MindSpore Transformers' own start has formed groups already."""
    monkeypatch.setattr(context, "meet_ranks", lambda tensor_parallel: None)
    with as_rank(2, 0), pytest.raises(ConfigError, match="this job's 4 processes into groups of 2"):
        context.connect.__wrapped__(TensorParallel(4, 0))
