"""Every way a safetensors file can be broken is one sentence that names file and tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.safetensors_header import read_header


def tensor(begin: int, end: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_entries_equal_what_the_library_wrote(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.arange(4, dtype=np.float32),
        "empty": np.zeros((0, 5), np.float32),
        "scalar": np.array(7, np.float32),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    entries = {entry.name: entry for entry in read_header(path)}
    content = path.read_bytes()
    assert set(entries) == set(tensors)
    for name, array in tensors.items():
        entry = entries[name]
        assert (entry.shape, entry.dtype, entry.file) == (array.shape, array.dtype.name, path)
        assert content[entry.begin : entry.end] == array.tobytes()


def test_a_file_without_tensors_is_fine(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({}, path)
    assert read_header(path) == []


TWO = {"a": tensor(0, 8), "b": tensor(8, 16)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has only 0 bytes"),
        (b"1234567", "has only 7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is not a safetensors file"),
        (bytes(16), "is not a safetensors file"),
        ((100).to_bytes(8, "little") + b"{", "truncated inside its header: expected at least 108"),
        (file_bytes(b'{"a": '), "is not valid JSON"),
        (file_bytes(b"\xff\xff\xff"), "is not valid JSON"),
        (file_bytes(b"[" * 100_000), "is not valid JSON"),
        (file_bytes([1, 2]), "is not a JSON object"),
        (file_bytes(b'{"a": {}, "a": {}}'), "names 'a' twice"),
        (file_bytes({"a": 1}), "Tensor 'a'"),
        (file_bytes({"a": {"dtype": "F32"}}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, shape=None)}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, shape={})}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, shape=[2.0])}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, shape=[-2])}), "Tensor 'a'"),
        (file_bytes({"a": tensor(-8, 0)}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, dtype=["F32"])}), "Tensor 'a'"),
        (file_bytes({"a": tensor(0, 8, dtype="F4")}), "Tensor 'a'|unknown dtype 'F4'"),
        (file_bytes({"a": tensor(0, 8, shape=[3])}, bytes(8)), "its shape [3] in F32 needs 12"),
        (file_bytes({"a": tensor(8, 0)}, bytes(8)), "'a'|takes -8 bytes"),
        (file_bytes({"a": tensor(0, 0, shape=[2**62, 2**62])}), "takes 0 bytes"),
        (file_bytes({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "'b'|overlaps"),
        (file_bytes({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "'b'|overlaps"),
        (file_bytes({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)), "'b'|follows a gap"),
        (file_bytes({"a": tensor(4, 12)}, bytes(12)), "'a'|follows a gap"),
        (file_bytes(TWO, bytes(15)), "is truncated: expected"),
        (file_bytes(TWO), "is truncated: expected"),
        (file_bytes(TWO, bytes(17)), "bytes that belong to no tensor"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in words.split("|"):
        assert part in message


def test_a_truncated_file_tells_expected_and_present_bytes(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(
        CheckpointError, match=f"expected {len(whole)} bytes, it has {len(whole) - 30}"
    ):
        read_header(path)


def test_a_file_that_cannot_be_opened_is_a_sentence(tmp_path: Path):
    with pytest.raises(CheckpointError, match="Cannot read"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="Cannot read"):
        read_header(tmp_path / "gone.safetensors")
