"""A replica: a plain server on a port of its own, and the actor of Ray Serve that watches it."""

import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mindformers_glm.config.environment import api_keys
from mindformers_glm.serving.ray import board as ray_board
from mindformers_glm.serving.ray.table import DRAINING, READY
from mindformers_glm.serving.ray.words import read_words
from mindformers_glm.serving.web.server import OwnServer
from mindformers_glm.system.log import write_line

QUEUE = "queue"  # how Ray's autoscaler is told the length of a queue
_BEAT_S = 1.0
_ASK_S = 5.0
_LISTEN_S = 8.0  # between two questions to the server how it is
_FROZEN_S = 30.0  # without an answer to them
_COUNTS = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


class Engine:
    """Starts `mindformers-glm serve` beside itself and tells ingresses where it is.

    The server is a process of its own: Ray imports protobuf 7 before MindSpore can import its
    older one, and a server that dies takes nothing else with it.

    Args:
        words: its settings; the address among them does not count.
        host: where the server listens; "": the address by which the cluster knows its machine.
    """

    def __init__(self, words: Sequence[str], host: str = "") -> None:
        from ray import serve

        config = read_words(words)
        server = config.server
        self._keys = api_keys(server["api_key"], server["api_key_file"])
        context = serve.get_replica_context()
        self._application, self._name = context.app_name, context.replica_id.unique_id
        self._server = OwnServer(
            words, host=host or _own_address(), has_access_log=server["access_log"]
        )
        try:
            self._url = self._server.wait_until_ready()
        except BaseException:
            self._server.end()
            raise
        self._drain_s = server["drain_timeout_s"]
        self._exit_code: int | None = None
        self._state = READY
        self._beat = 0
        self._heard_s = time.monotonic()  # when the server answered last
        self._asked_s = self._heard_s
        self._ended = threading.Event()
        self._server.watch(self._take_death)
        threading.Thread(target=self._speak, daemon=True).start()

    def check_health(self) -> None:
        """Ray Serve asks this; an error has the replica replaced.

        Raises:
            RuntimeError: the server has ended, or does not answer.
        """
        if self._exit_code is not None:
            raise RuntimeError(f"The server of the replica ended with code {self._exit_code}.")
        if self._is_frozen():
            raise RuntimeError(f"The server has not answered for {_FROZEN_S:g} s.")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Answers under way and waiting, of ingresses and of whoever else asks the server."""
        return {QUEUE: self._queue_length()}

    def url(self) -> str:
        """Where the server is."""
        return self._url

    def __del__(self) -> None:
        """Ray Serve ends the replica: answers under way come to their end."""
        if not hasattr(self, "_ended"):  # it has never begun
            return
        self._state = DRAINING
        with suppress(Exception):  # the head may be gone; the server is to be ended all the same
            self._post()
        self._server.end(self._drain_s)
        self._ended.set()
        with suppress(Exception):
            ray_board.take_away(self._application, [self._name])

    def _take_death(self, exit_code: int) -> None:
        write_line(f"error: the server of replica {self._name} ended with code {exit_code}")
        self._exit_code = exit_code
        self._ended.set()
        with suppress(Exception):  # ingresses find out by themselves
            ray_board.take_away(self._application, [self._name])

    def _speak(self) -> None:
        """Say again and again that the server is there, for as long as it answers."""
        has_failed = False
        while not self._ended.wait(_BEAT_S if self._beat else 0):
            try:
                self._listen()
                if not self._is_frozen():
                    self._post()
                has_failed = False
            except Exception as problem:
                if not has_failed:
                    write_line(f"error: replica {self._name} cannot reach the head: {problem}")
                has_failed = True

    def _post(self) -> None:
        self._beat += 1
        entry = {"url": self._url, "state": self._state, "beat": self._beat}
        ray_board.post(self._application, self._name, entry)

    def _listen(self) -> None:
        if time.monotonic() - self._asked_s < _LISTEN_S:
            return
        self._asked_s = time.monotonic()
        try:
            self._ask("/health")
        except urllib.error.HTTPError:
            pass  # an answer, too: Ray Serve hears otherwise of a server that ends
        except OSError:
            return
        self._heard_s = time.monotonic()

    def _is_frozen(self) -> bool:
        return time.monotonic() - self._heard_s > _FROZEN_S

    def _queue_length(self) -> float:
        return sum(map(float, _COUNTS.findall(self._ask("/metrics"))))

    def _ask(self, path: str) -> str:
        headers = {"authorization": f"Bearer {self._keys[0]}"} if self._keys else {}
        request = urllib.request.Request(f"{self._url}{path}", headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ASK_S) as page:
            return str(page.read().decode())


def _own_address() -> str:
    """The address of this machine by which the cluster knows it."""
    import ray

    own: str = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()
    return str(next(node["NodeManagerAddress"] for node in nodes if node["NodeID"] == own))
