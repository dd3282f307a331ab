"""What the workers of bench_generate.py share, on engines that count tokens up."""

import ctypes
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from gguf_sizes import read_tensor_bytes
from request_runner import RequestRunner
from row_runner import MAX_BATCH, Row, RowRunner, count_weight_bytes

_VOCAB_SIZE = 5_000


class _Rows(RowRunner):
    """The token after t at position p is t + p + 1, if the batch has it."""

    def __init__(self) -> None:
        super().__init__(_VOCAB_SIZE)
        self.fed: list[list[Row]] = []
        self.num_cleared = 0

    def _clear(self) -> None:
        self.num_cleared += 1

    def _feed(self, rows: list[Row]) -> None:
        self.fed.append(rows)

    def _logits(self, row: int) -> Any:
        found = self.fed[-1][row]
        assert found.is_wanted
        logits = (ctypes.c_float * _VOCAB_SIZE)()
        logits[found.token + found.position + 1] = 1.0
        return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))


class _Requests(RequestRunner):
    """The next token is one more than the last; a step prefills one request, or moves on all."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[int, int] = {}
        self.waiting: list[int] = []
        self.ended: list[int] = []

    def _add(self, request_id: int, prompt: list[int]) -> None:
        self.last[request_id] = prompt[-1]
        self.waiting.append(request_id)

    def _step(self) -> Iterable[tuple[int, int]]:
        moved = [self.waiting.pop(0)] if self.waiting else list(self.last)
        for request_id in moved:
            self.last[request_id] += 1
            yield request_id, self.last[request_id]

    def _end(self, request_ids: list[int]) -> None:
        self.ended += request_ids
        for request_id in request_ids:
            del self.last[request_id]


@pytest.mark.parametrize("length", [1, MAX_BATCH - 1, MAX_BATCH, MAX_BATCH + 1, 2 * MAX_BATCH])
def test_a_prompt_is_fed_in_batches_and_its_last_row_chosen(length: int) -> None:
    runner = _Rows()
    assert runner.prefill([7] * length) == 7 + length
    rows = [row for batch in runner.fed for row in batch]
    assert max(map(len, runner.fed)) <= MAX_BATCH
    assert [row.position for row in rows] == list(range(length))
    assert [row.is_wanted for row in rows] == [False] * (length - 1) + [True]


def test_sequences_go_on_with_the_largest_logit_of_their_row() -> None:
    runner = _Rows()
    runner.start([[1, 2], [10, 20], [100, 200]])
    runner.step()
    assert runner.fed[-1] == [Row(4, 2, 0, True), Row(22, 2, 1, True), Row(202, 2, 2, True)]
    runner.step()
    assert runner.fed[-1] == [Row(7, 3, 0, True), Row(25, 3, 1, True), Row(205, 3, 2, True)]
    runner.prefill([5])
    assert runner.num_cleared == 2


def test_requests_are_stepped_until_each_has_its_first_token() -> None:
    runner = _Requests()
    runner.start([[1, 2], [10, 20], [100, 200]])
    assert runner.last == {0: 3, 1: 21, 2: 201}
    runner.step()
    assert runner.last == {0: 4, 1: 22, 2: 202}
    assert runner.prefill([5]) == 6
    assert runner.ended == [0, 1, 2]
    assert runner.last == {3: 6}


def test_a_request_that_ends_by_itself_is_told() -> None:
    runner = _Requests()
    runner.start([[1], [2]])
    del runner.last[1]
    with pytest.raises(AssertionError, match="has ended"):
        runner.step()


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _write_gguf(path: Path, alignment: int, sizes: dict[str, int]) -> None:
    """Version 3 of ggml's docs/gguf.md, written by its text."""
    pairs = [
        _string("general.alignment") + struct.pack("<II", 4, alignment),
        _string("tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(_string, "a中b")),
        _string("nested") + struct.pack("<IIQ", 9, 9, 2) + 2 * struct.pack("<IQHH", 2, 2, 7, 7),
        _string("flag") + struct.pack("<IB", 7, 1),
        _string("rate") + struct.pack("<Id", 12, 0.5),
        _string("name") + struct.pack("<I", 8) + _string("glm"),
    ]
    tensors, begin = b"", 0
    for name, size in sizes.items():
        tensors += _string(name) + struct.pack("<IQQIQ", 2, 3, 5, 30, begin)
        begin += -(-size // alignment) * alignment
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), len(pairs)) + b"".join(pairs) + tensors
    head += bytes(-len(head) % alignment)
    path.write_bytes(head + bytes(begin))


@pytest.mark.parametrize("alignment", [32, 64])
def test_bytes_of_tensors_are_read_from_the_header(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "x.gguf"
    _write_gguf(path, alignment, {"token_embd.weight": 256, "output.weight": 640, "norm": 128})
    assert read_tensor_bytes(path) == {"token_embd.weight": 256, "output.weight": 640, "norm": 128}
    assert count_weight_bytes(str(path)) == 640 + 128


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(100))
    with pytest.raises(ValueError, match="no GGUF file"):
        read_tensor_bytes(path)
