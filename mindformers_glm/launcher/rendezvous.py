"""The scheduler process: lets the workers find each other and ends when all have left.

msrun runs the user's program here too, up to its own call of `init`, which does not return in this
role. Nothing of the program is needed for that.
"""

import signal
import sys

from mindformers_glm.config.environment import failed_meeting


def main() -> int | str:
    """Be the scheduler, and return what `sys.exit` is to make of its end.

    Who signals all processes of a job means the launcher, which ends this one by SIGKILL when the
    ranks have had their time. Blocked in all threads, whatever handlers MindSpore chooses.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    from mindspore.communication import init

    try:
        init()
    except RuntimeError as problem:
        return f"error: {failed_meeting(problem)}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
