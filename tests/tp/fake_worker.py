"""Stands in for a worker in tests of the launcher: no MindSpore, so it starts at once.

    fake_worker.py ACTION [RANK] [...]     RANK does the action, the others wait for their end

Every rank first writes `ready_RANK` with its process id into the working directory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LONG_S = 300


def main(action: str, who: str = "", *rest: str) -> None:
    rank = os.environ["RANK_ID"]
    print(f"rank {rank} starts")
    print(f"rank {rank} warns", file=sys.stderr)
    Path(f"ready_{rank}").write_text(str(os.getpid()))
    if action == "tell":
        print(json.dumps([who, *rest]))
        return
    if action == "terminal":
        for stream in (sys.stderr, sys.stdout, sys.stderr):
            columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
            print(stream.name, stream.isatty(), columns, file=stream)
        return
    if action == "environment":
        print(json.dumps(dict(os.environ)))
        return
    if action == "server" and rank == "0":  # it says what a server says of signals
        os.write(int(os.environ["MINDFORMERS_GLM_LAUNCHER_PIPE"]), b"ends 60\n")
        print("serves", flush=True)
    if action == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if action == "tidy":
        signal.signal(signal.SIGTERM, say_goodbye)
    if action == "parent":
        # A process that a signal to the group does not reach, and whose parent is gone.
        subprocess.run(["setsid", "--fork", "sleep", str(LONG_S)], check=True)
    if rank == who:
        while len(list(Path().glob("ready_*"))) < int(os.environ["MS_WORKER_NUM"]):
            time.sleep(0.02)
        if action == "exit":
            sys.exit(int(rest[0]))
        if action == "raise":
            raise ValueError("bad luck")
        if action == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
    if action == "flood":
        print("a line\n" * 1_000_000)
    if action != "exit" or rest[0] != "0":
        time.sleep(LONG_S)


def say_goodbye(number: int, frame: object) -> None:
    """As predict does: what is finished, what is missing, and a word."""
    print("finished answers")
    print("mindformers_glm: missing answers", file=sys.stderr)
    print("interrupted", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
