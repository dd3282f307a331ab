"""What an ingress knows of the replicas: where they are, who is under way there, who is gone."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mindformers_glm.serving.ray.choice import choose_replica

READY, DRAINING = "ready", "draining"  # a draining one answers what it has
LOST, GONE = "lost", "gone"  # what an ingress makes of one that does not answer, or is silent
_SILENT_S = 10.0  # a replica that says nothing for so long is gone, with its machine


class Replica:
    """One replica, as this ingress sees it.

    Attributes:
        name: Ray's, which no later replica has again.
        url: of its server.
        state: as it said last.
        exchanges: the tasks that wait for its answers; cancelled when it is gone.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.state = ""
        self.exchanges: set[asyncio.Future[Any]] = set()
        self._beat = -1
        self.heard_s = 0.0

    @property
    def load(self) -> int:
        """Requests of this ingress under way there."""
        return len(self.exchanges)

    def hear(self, entry: Mapping[str, Any], now_s: float) -> None:
        """Take what the replica says of itself; its beat tells news from what is left over."""
        if entry["beat"] != self._beat:
            self._beat, self.heard_s = entry["beat"], now_s
            self.state = entry["state"]

    def leave(self) -> None:
        """It is gone: nobody waits for it any more."""
        self.state = GONE
        for exchange in list(self.exchanges):
            exchange.cancel()


class ReplicaTable:
    """All replicas, by what they say of themselves every second.

    Args:
        clock: seconds; of the event loop where None.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._replicas: dict[str, Replica] = {}
        self._changed = asyncio.Event()

    @property
    def ready(self) -> list[Replica]:
        """Those that take requests."""
        return [one for one in self._replicas.values() if one.state == READY]

    def targets(self) -> list[dict[str, Any]]:
        """All of them, in the form of Prometheus's http_sd_configs."""
        return [
            {
                "targets": [one.url.partition("://")[2]],
                "labels": {"replica": one.name, "state": one.state},
            }
            for one in sorted(self._replicas.values(), key=lambda one: one.name)
        ]

    def update(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what the replicas say, by their names; those that say nothing any more are gone."""
        now_s = self._clock()
        for name, entry in entries.items():
            if name not in self._replicas:
                self._replicas[name] = Replica(name, entry["url"])
            self._replicas[name].hear(entry, now_s)
        for name, replica in list(self._replicas.items()):
            if name not in entries or now_s - replica.heard_s > _SILENT_S:
                replica.leave()
            if name not in entries:
                del self._replicas[name]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def mark_lost(self, replica: Replica) -> None:
        """Choose it no more until it speaks again: it does not answer."""
        if replica.state == READY:
            replica.state = LOST

    def silent(self, least_s: float) -> list[str]:
        """Names of those that have said nothing for so long."""
        now_s = self._clock()
        return [name for name, one in self._replicas.items() if now_s - one.heard_s > least_s]

    async def choose(
        self, beginning: bytes, avoided: Collection[str], patience_s: float
    ) -> Replica | None:
        """The replica for a request; waits for one where there is none. None: none has come."""
        end_s = self._clock() + patience_s
        while True:
            replica = choose_replica(self.ready, beginning, avoided)
            left_s = end_s - self._clock()
            if replica is not None or left_s <= 0:
                return replica
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except asyncio.TimeoutError:
                return None
