"""What the workers of engines share that take requests and are stepped: ours, vLLM, OpenVINO.

A worker's own class loads the engine, and says how a request is added, stepped and ended.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable


class RequestRunner(ABC):
    """Runs requests side by side; none ends by itself."""

    def __init__(self) -> None:
        self._request_ids: list[int] = []
        self._num_requests = 0

    def start(self, prompts: list[list[int]]) -> None:
        self._begin(prompts)

    def step(self) -> None:
        stepped = dict(self._step())
        assert len(stepped) == len(self._request_ids), "a sequence has ended"

    def prefill(self, prompt: list[int]) -> int:
        (token,) = self._begin([prompt]).values()
        return token

    def _begin(self, prompts: list[list[int]]) -> dict[int, int]:
        """Forget all requests and add these; the first new token of each."""
        self._end(self._request_ids)
        self._request_ids = [self._num_requests + i for i in range(len(prompts))]
        self._num_requests += len(prompts)
        for request_id, prompt in zip(self._request_ids, prompts, strict=True):
            self._add(request_id, prompt)
        first: dict[int, int] = {}
        while len(first) < len(prompts):
            for request_id, token in self._step():
                first.setdefault(request_id, token)
        return first

    @abstractmethod
    def _add(self, request_id: int, prompt: list[int]) -> None:
        """Add a request that goes on for ever, by its largest logit."""

    @abstractmethod
    def _step(self) -> Iterable[tuple[int, int]]:
        """Run one step of the engine; the requests that it moved on, each with a new token."""

    @abstractmethod
    def _end(self, request_ids: list[int]) -> None:
        """End these requests; none is left."""
