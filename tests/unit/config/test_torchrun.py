"""Variables of PyTorch's starters, as MindSpore wants them."""

import pytest

from mindformers_glm.config.torchrun import read_torchrun
from mindformers_glm.core.errors import ConfigError

_JOB = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_job_by_hand_meets_at_its_port() -> None:
    found = read_torchrun(_JOB)
    assert found is not None
    assert found["MS_SCHED_HOST"] == "127.0.0.1"
    assert found["MS_SCHED_PORT"] == "29500"
    assert (found["MS_ROLE"], found["RANK_ID"], found["MS_WORKER_NUM"]) == ("MS_WORKER", "1", "2")
    assert found["DEVICE_ID"] == "1"


def test_beside_torchruns_own_store_it_is_the_next_port() -> None:
    found = read_torchrun(_JOB | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert found is not None
    assert found["MS_SCHED_PORT"] == "29501"


@pytest.mark.parametrize(
    "environ",
    [{}, {"RANK": "0"}, _JOB | {"MS_ROLE": "MS_WORKER"}, _JOB | {"RANK": "0", "WORLD_SIZE": "1"}],
    ids=["nothing", "half", "our launcher", "one process"],
)
def test_other_processes_are_left_alone(environ: dict[str, str]) -> None:
    assert read_torchrun(environ) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": "two"}, "RANK must be a whole number, got 'two'"),
        ({"RANK": "2"}, "from 0 to WORLD_SIZE - 1, got 2 of 2"),
        ({"MASTER_PORT": ""}, "MASTER_PORT must be a whole number"),
        ({"MASTER_PORT": "65536"}, "choose another --master_port"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "has no IPv4 address"),
    ],
)
def test_what_is_wrong_is_a_sentence(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_torchrun(_JOB | changed)
