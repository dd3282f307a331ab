"""A child that fork() makes of a process that has run a model."""

import os

from mindformers_glm.core.errors import UnsupportedError

_users: set[int] = set()  # process ids; a child inherits its parent's


def check_not_forked() -> None:
    """Remember this process as one that runs models.

    MindSpore's threads and OpenMP's do not live on in a child of fork(), which would wait for them
    for ever.

    Raises:
        UnsupportedError: it is the child of such a process.
    """
    _users.add(os.getpid())
    if len(_users) > 1:
        _users.remove(os.getpid())
        raise UnsupportedError(
            "This process was forked from one that has loaded a model, and none can run in it: "
            "start processes with multiprocessing.get_context('spawn'), or load the first model in "
            "the child."
        )
