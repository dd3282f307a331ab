"""Files that would take minutes or gigabytes: each ends at once, in one short sentence."""

import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.generation_defaults import from_generation_config
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.pytorch_file import read_pytorch_file
from mindformers_glm.weights.safetensors_header import read_header


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    begin = time.process_time()
    yield
    assert time.process_time() - begin < 5


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(GlmError) as problem:
        read()
    message = str(problem.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def write_header(path: Path, header: str, data: bytes = b"") -> Path:
    encoded = header.encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def tensor(shape: str, end: int = 4, name: str = "a") -> str:
    return f'"{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {end}]}}'


def braced(*tensors: str) -> str:
    return "{" + ",".join(tensors) + "}"


def shape(digits: int, dimensions: int) -> str:
    return "[" + ",".join(["9" * digits] * dimensions) + "]"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (braced(tensor(shape(4000, 1))), "a number of 4000 digits"),
        (braced(tensor(shape(90, 50))), "no proper dtype, shape"),
        (braced(tensor(shape(18, 64))), "takes 4 bytes, but its shape"),
        (braced(tensor(shape(1, 200_000))), "no proper dtype, shape"),
        (braced(*[tensor("[0]", 0, f"n{i}") for i in range(30_000)] * 2), "twice"),
        (braced(tensor("[2]", name="x" * 9_000_000)), "takes 4 bytes, but its shape"),
        (braced(tensor("[0]", 0, name=r"\ud800")), "is not valid JSON"),
        ("[" * 5_000_000, "nested too deeply"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested too deeply"),
        (braced(" " * 17 * 2**20), "is not a safetensors file"),
    ],
)
def test_a_safetensors_header(tmp_path: Path, header: str, words: str) -> None:
    path = write_header(tmp_path / "model.safetensors", header, bytes(4))
    assert words in refusal(lambda: read_header(path))


def test_the_largest_header_that_is_read_takes_little(tmp_path: Path) -> None:
    names = [tensor("[0]", 0, f"model.layers.{i}.self_attn.q_proj.weight") for i in range(100_000)]
    assert len(read_header(write_header(tmp_path / "x", braced(*names)))) == 100_000


@pytest.mark.parametrize("size", ["10000000", "1e7", "1e308", "1e400", "-1", "0", '"2"', "[2]"])
def test_a_manifest(tmp_path: Path, size: str) -> None:
    (tmp_path / "model.shares.json").write_text(
        f'{{"format_version": 1, "model_parallel": {size}, "source": "x", "files": []}}'
    )
    assert "model.shares.json" in refusal(lambda: Checkpoint.open(tmp_path, TensorParallel(2, 0)))


@pytest.mark.parametrize(
    "name", ["x" * 300, "北" * 100, "a\0b", "a\nb", "../x", "..", "", "\x1b[2J"]
)
def test_an_index(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a file name" in refusal(lambda: Checkpoint.open(tmp_path))


def test_shards_of_which_most_are_missing(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"m{number}-00001-of-99999.safetensors").write_bytes(b"")
    assert "and 99993 more" in refusal(lambda: Checkpoint.open(tmp_path))


def test_an_archive_with_an_endless_directory(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x")
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    directory = 3 * 2**30
    struct.pack_into("<I", content, end + 12, directory)
    struct.pack_into("<I", content, end + 16, 2**20)
    with path.open("wb") as file:  # sparse
        file.write(content[:end])
        file.seek(2**20 + directory)
        file.write(content[end:])
    assert "zip directory" in refusal(lambda: read_pytorch_file(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": %s}' % ("[" * 200 + "]" * 200), "nested too deeply"),
        ('{"hidden_size": %s}' % ("9" * 5000), "a number of 5000 digits"),
        ('{"model_type": "%s"}' % ("x" * 9_000_000), "is not known"),
        (" " * 17 * 2**20, "no such file needs"),
    ],
)
def test_a_config(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert words in refusal(lambda: GlmConfig.from_hf(tmp_path))


def _open(folder: Path) -> Any:
    return Checkpoint.open(folder, TensorParallel(2, 0))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", GlmConfig.from_hf),
        ("generation_config.json", from_generation_config),
        ("model.shares.json", _open),
        ("model.safetensors.index.json", _open),
        ("model.safetensors", _open),
        ("pytorch_model.bin", _open),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(tmp_path: Path, name: str, read: Any, make: Any) -> None:
    make(tmp_path / name)
    assert "Cannot read" in refusal(lambda: read(tmp_path))
