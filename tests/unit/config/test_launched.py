"""What is said when the processes of a job do not find each other."""

import pytest

from mindformers_glm.config.launched import check_parallel, explain_failed_meeting, find_rank
from mindformers_glm.core.errors import ConfigError

ENVIRON = {
    "MS_SCHED_HOST": "10.0.0.1",
    "MS_SCHED_PORT": "8118",
    "MS_WORKER_NUM": "2",
    "MS_TOPO_TIMEOUT": "60",
    "RANK_ID": "1",
}
# As MindSpore 2.7.1 says it.
STACK = (
    "\n\n----\n- C++ Call Stack: (For framework developers)\n----\ncluster/init.cc:40 Initialize\n"
)
NOT_ALL = (
    "Failed to initialize distributed job cluster because some processes in the cluster are not "
    "successfully spawned. It may be one of the following reasons:\n1.Spawned worker process "
    f"number is not as expected.{STACK}"
)
REPEATED = (
    "Failed to register the compute graph node: 1. Reason: Repeated registration node: 1 to the "
    f"scheduler. Please check if there's another scheduler process with port:8118{STACK}"
)


def test_not_all_processes_came() -> None:
    assert str(explain_failed_meeting(RuntimeError(NOT_ALL), ENVIRON)) == (
        "Not all 2 processes of the job met at 10.0.0.1:8118 within 60 seconds: start the same "
        "command on every host, each with a NODE_RANK of its own; scheduler.log on host 0 names "
        "those that came."
    )


def test_two_processes_have_one_rank() -> None:
    assert str(explain_failed_meeting(RuntimeError(REPEATED), ENVIRON)) == (
        "The job at 10.0.0.1:8118 has another rank 1 already: give every host a NODE_RANK of its "
        "own, and every job a MASTER_PORT of its own."
    )


def test_a_process_that_has_gone_silent_is_no_failed_meeting() -> None:
    message = "The total number of timed out node is 1. Timed out node list is: {1}, worker 1 is "
    message += "the first one timed out, please check its log."
    assert str(explain_failed_meeting(RuntimeError(message), ENVIRON)) == (
        "Rank 1 of the job at 10.0.0.1:8118 has given no sign for MS_NODE_TIMEOUT seconds: it "
        "hangs, was stopped, or its host is gone; the logs of all ranks may say more."
    )


def test_waiting_without_end_or_without_a_time_names_no_seconds() -> None:
    for environ in (ENVIRON | {"MS_TOPO_TIMEOUT": "-1"}, {"MS_SCHED_HOST": "10.0.0.1"}):
        text = str(explain_failed_meeting(RuntimeError(NOT_ALL), environ))
        assert "second" not in text
        assert "10.0.0.1" in text


@pytest.mark.parametrize(
    ("message", "quoted"),
    [
        (f"-----\n- Framework Error Message:\n-----\nNo route.{STACK}", "No route."),
        ("- nothing else", "- nothing else"),
        ("---\n", "no message"),
    ],
)
def test_other_failures_keep_their_first_words(message: str, quoted: str) -> None:
    assert str(explain_failed_meeting(RuntimeError(message), ENVIRON)) == (
        "MindSpore could not connect the processes of the job at 10.0.0.1:8118, scheduler.log on "
        f"host 0 may say why: {quoted}"
    )


def test_a_script_is_told_of_the_argument_and_a_command_of_the_option() -> None:
    with pytest.raises(ConfigError) as of_script:
        find_rank(2, {})
    assert str(of_script.value) == (
        "model_parallel 2 needs 2 processes, and this one was started without a launcher: bash "
        'scripts/msrun_launcher.sh "SCRIPT.py ..." 2, or leave model_parallel out.'
    )
    for use_parallel, size, asked in (
        (True, 4, "parallel_config.model_parallel 4"),
        (False, 4, "parallel_config.model_parallel 4"),
        (True, 1, "use_parallel True"),
    ):
        with pytest.raises(
            ConfigError, match=f"^{asked} needs processes .*run_mindformer.py"
        ) as of:
            check_parallel(use_parallel, size, {})
        assert "--use_parallel False --parallel_config.model_parallel 1" in str(of.value)
