"""The oldest layout's .npy files: pickled torch tensors, found without running anything."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.numpy_file import read_numpy_file
from mindformers_glm.weights.numpy_set import read_numpy_set
from mindformers_glm.weights.safetensors_header import read_header
from mindformers_glm.weights.tensor_entry import TensorEntry

_DTYPES = {"int8": np.int8, "int32": np.int32, "int64": np.int64, "float32": np.float32}


def values(entry: TensorEntry) -> np.ndarray:
    content = entry.file.read_bytes()[entry.begin : entry.end]
    return np.frombuffer(content, _DTYPES[entry.dtype]).reshape(entry.shape)


def save(path: Path, value: Any) -> Path:
    np.save(path, np.array(value, dtype=object), allow_pickle=True)
    return path


def test_torch_tensors_are_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    both = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "codes": torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4),
        "one": torch.tensor([0.5]),
        "shared": both[2:],
        "expanded": torch.zeros(1).expand(5, 1),
        "long": torch.tensor([2**40]),
    }
    found = read_numpy_file(save(tmp_path / "x.npy", tensors))
    assert [entry.name for entry in found] == list(tensors)
    for entry in found:
        wanted = tensors[entry.name].numpy()
        np.testing.assert_array_equal(np.broadcast_to(values(entry), wanted.shape), wanted)
    assert {entry.name: entry.shape for entry in found}["expanded"] == (1, 1)


def test_the_tools_set_holds_what_its_safetensors_hold(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "msmodelslim"
    (file,) = (folder / "chatglm_w8a8").glob("*.safetensors")
    expected = {entry.name: entry for entry in read_header(file)}
    found = read_numpy_set(folder / "chatglm_w8a8_numpy")
    lost = {name for name in expected if name.endswith("query_key_value.weight")}
    assert {entry.name for entry in found} == set(expected) - lost
    assert len(lost) == 2  # their biases have taken their place
    for entry in found:
        wanted = values(expected[entry.name])
        found_values = np.broadcast_to(
            values(entry).reshape(len(values(entry)), -1), (len(wanted), wanted.size // len(wanted))
        )
        np.testing.assert_array_equal(found_values.reshape(-1), wanted.reshape(-1))


class _Harmful:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


@pytest.mark.parametrize("name", ["x", "y"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "was-run"
    value = {name: _Harmful(mark)} if name == "x" else _Harmful(mark)
    save(tmp_path / "bad.npy", value)
    with pytest.raises(CheckpointError, match="nothing of the file was run"):
        read_numpy_file(tmp_path / "bad.npy")
    assert not mark.exists()


def _forge(*operations: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (117 - len(header)) + b"\n"
    magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    return magic + header + b"".join(operations)


BAD: dict[str, bytes] = {
    "empty": b"",
    "no object": b"",
    "no pickle": _forge(),
    "an array that is called": _forge(b"\x80\x03", b"cnumpy\nndarray\n", b")", b"R."),
    "a storage of text": _forge(b"\x80\x03", b"ctorch.storage\n_load_from_bytes\n", b"N\x85R."),
    "a storage of nothing": _forge(
        b"\x80\x03", b"ctorch.storage\n_load_from_bytes\n", b"C\x01x\x85R."
    ),
    "a list": _forge(pickle.dumps([1, 2], protocol=3)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_set_of_tensors_is_one_sentence(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(BAD[case])
    if case == "no object":
        np.save(path, np.ones(3))
    with pytest.raises(CheckpointError) as caught:
        read_numpy_file(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")


def test_every_cut_of_a_file_is_told(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = save(tmp_path / "x.npy", {"a": torch.ones(3, dtype=torch.int8)})
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_numpy_file(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks quant_weight\.npy"):
        read_numpy_set(tmp_path)
