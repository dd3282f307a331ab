"""Files of torch.save: where the tensors lie, as torch wrote them, and what is refused unrun."""

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.pytorch_file import read_pytorch_file

torch = pytest.importorskip("torch")

FORMATS = {
    "zip": {},
    "zip, pickle protocol 4": {"pickle_protocol": 4},
    "before 1.6": {"_use_new_zipfile_serialization": False},
}
every_format = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS.keys())


def state_dict() -> dict[str, Any]:
    """Tensors of every kind that a checkpoint holds; OrderedDict with _metadata as modules give."""
    torch.manual_seed(0)
    found = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3)).state_dict()
    whole = torch.randn(6, 4)
    found |= {
        "half": torch.randn(3, 7).half(),
        "bfloat": torch.randn(2, 3, 5).bfloat16(),
        "double": torch.randn(4).double(),
        "position_ids": torch.arange(10),
        "mask": torch.tensor([True, False]),
        "whole": whole,
        "rows": whole[2:5],  # the same storage, with an offset
        "tied": whole,
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "column": torch.randn(5, 1),
    }
    assert isinstance(found, OrderedDict)
    return found


def save(folder: Path, value: object, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def refusal(path: Path) -> str:
    """The one sentence that says why a file is not read."""
    with pytest.raises(CheckpointError) as caught:
        read_pytorch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


@every_format
def test_entries_hold_the_bytes_that_torch_saved(tmp_path: Path, options: dict[str, Any]):
    tensors = state_dict()
    path = save(tmp_path, tensors, **options)
    content = path.read_bytes()
    entries = read_pytorch_file(path)
    assert [entry.begin for entry in entries] == sorted(entry.begin for entry in entries)
    found = {entry.name: entry for entry in entries}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        entry = found[name]
        assert (entry.shape, entry.file) == (tuple(tensor.shape), path)
        assert entry.dtype == str(tensor.dtype).removeprefix("torch.")
        bits = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        assert content[entry.begin : entry.end] == bits.tobytes()


@every_format
def test_a_folder_is_viewed_as_one_of_safetensors(
    tensors, write_folder, options: dict[str, Any]
) -> None:
    folder = write_folder(tensors)
    expected = {
        name: Checkpoint.open(folder).view(name).data.copy()
        for name in Checkpoint.open(folder).entries
    }
    (folder / "model.safetensors").unlink()
    save(folder, {name: torch.from_numpy(array) for name, array in tensors.items()}, **options)
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.file_format, checkpoint.dtype) == ("PyTorch", "float32")
        assert set(checkpoint.entries) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(checkpoint.view(name).data, array)
            checkpoint.release(name)


def test_shared_tensors_are_read_one_by_one(tmp_path: Path):
    tensors = state_dict()
    save(tmp_path, tensors)
    with Checkpoint.open(tmp_path) as checkpoint:
        for name in ("whole", "rows", "tied"):
            np.testing.assert_array_equal(checkpoint.view(name).data, tensors[name].numpy())
        assert np.shares_memory(checkpoint.view("whole").data, checkpoint.view("rows").data)


@every_format
def test_thousands_of_tensors_are_within_the_limits(tmp_path: Path, options: dict[str, Any]):
    # The largest dense GLM has 900.
    tensors = {f"transformer.layers.{index}.weight": torch.zeros(1) for index in range(5000)}
    assert len(read_pytorch_file(save(tmp_path, tensors, **options))) == 5000


def test_identity_follows_the_file(tmp_path: Path):
    path = save(tmp_path, {"w": torch.zeros(4)})
    before = Checkpoint.open(tmp_path).identity
    assert Checkpoint.open(tmp_path).identity == before
    stat = path.stat()
    save(tmp_path, {"w": torch.ones(4)})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Checkpoint.open(tmp_path).identity != before


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@every_format
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, options: dict[str, Any]
):
    target = tmp_path / "created"
    path = save(tmp_path, {"w": torch.zeros(2), "x": Exploit(target)}, **options)
    assert "asks for" in refusal(path)
    assert "system" in refusal(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # it would have
    assert target.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.zeros(2)], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a StoredTensor, not a state dict"),
        ({"state_dict": {"w": torch.zeros(2)}}, "holds 'state_dict', which is not a tensor"),
        ({"step": 3}, "holds 'step', which is not a tensor"),
        ({3: torch.zeros(2)}, "a dictionary key that is not a text"),
        ({"w": torch.zeros(3, 4).t()}, "shape [4, 3] with strides [1, 4], which is not contiguous"),
        ({"w": torch.zeros(1).expand(4)}, "shape [4] with strides [0]"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'torch._utils._rebuild_sparse_tensor'"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "'torch.ComplexFloatStorage'"),
        ({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, "'torch._utils._rebuild_tensor_v3'"),
        ({"w": np.zeros(2)}, "asks for 'numpy"),
        (torch.nn.Linear(2, 2), "asks for 'torch.nn.modules.linear.Linear'"),
        ({"w": torch.zeros(2, device="meta")}, "'torch._utils._rebuild_meta_tensor_no_storage'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_state_dict_is_named(tmp_path: Path, value: object, words: str):
    assert words in refusal(save(tmp_path, value))


def test_quantized_tensors_are_refused(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        tensor = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
        path = save(tmp_path, {"w": tensor})
    assert "'torch._utils._rebuild_qtensor'" in refusal(path)


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in members.items():
            file.writestr(name.removesuffix("#2"), content)
    return path


def tensor_pickle(
    key: str = "0", num_elements: int = 4, offset: int = 0, size: int = 4, stride: int = 1
) -> bytes:
    """The pickle of {"w": tensor} by hand, in a few operations of protocol 2."""
    text = b"X" + struct.pack("<I", len(key.encode())) + key.encode()
    numbers = [b"J" + struct.pack("<i", number) for number in (num_elements, offset, size, stride)]
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\n" + text + b"X\x03\x00\x00\x00cpu" + numbers[0] + b"tQ"
        b"" + numbers[1] + numbers[2] + b"\x85" + numbers[3] + b"\x85\x89NtRs."
    )


SOUND = {"a/data.pkl": tensor_pickle(), "a/data/0": bytes(16), "a/version": b"3\n"}


def test_the_hand_written_archive_is_sound(tmp_path: Path):
    path = archive(tmp_path / "x.bin", SOUND)
    (entry,) = read_pytorch_file(path)
    assert (entry.name, entry.dtype, entry.shape, entry.num_bytes) == ("w", "float32", (4,), 16)
    assert set(torch.load(path, weights_only=True)) == {"w"}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "it begins otherwise"),
        ({"b/data": b""}, "no data.pkl"),
        ({"a/b/data.pkl": tensor_pickle(), "a/b/data/0": bytes(16)}, "no data.pkl"),
        (SOUND | {"b/data.pkl": b""}, "no data.pkl"),
        (SOUND | {"a/data/0#2": bytes(16)}, "a member of its zip archive twice"),
        (SOUND | {"a/byteorder": b"big"}, "big-endian"),
        ({"a/data.pkl": tensor_pickle()}, "lacks its storage '0'"),
        ({"a/data.pkl": tensor_pickle("../data/0"), "a/data/0": bytes(16)}, "'../data/0'"),
        (
            {"a/data.pkl": tensor_pickle("/etc/passwd"), "a/data/0": bytes(16)},
            "lacks its storage '/etc/passwd'",
        ),
        (SOUND | {"a/data/0": bytes(12)}, "holds 12 bytes of storage '0', expected 16"),
        (SOUND | {"a/data/0": bytes(20)}, "holds 20 bytes of storage '0', expected 16"),
        (SOUND | {"a/data.pkl": tensor_pickle(size=5)}, "fewer bytes than its tensor 'w' needs"),
        (SOUND | {"a/data.pkl": tensor_pickle(offset=1)}, "fewer bytes than its tensor 'w' needs"),
        (SOUND | {"a/data.pkl": tensor_pickle(offset=-1)}, "describes a tensor in a way"),
        (SOUND | {"a/data.pkl": tensor_pickle(num_elements=-4)}, "names a storage in a way"),
        (SOUND | {"a/data.pkl": bytes(5 * 2**20)}, "5242880 bytes of 'a/data.pkl'"),
    ],
)
def test_an_archive_that_torch_would_not_write_is_refused(
    tmp_path: Path, members: dict[str, bytes], words: str
):
    assert words in refusal(archive(tmp_path / "x.bin", members))


def test_compressed_members_are_refused(tmp_path: Path):
    path = archive(tmp_path / "x.bin", SOUND, zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in refusal(path)


def test_overlapping_members_are_refused(tmp_path: Path):
    # Two storages, the second of which the directory places at the first.
    members = SOUND | {"a/data/1": bytes(16)}
    path = archive(tmp_path / "x.bin", members)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        first, second = file.getinfo("a/data/0"), file.getinfo("a/data/1")
    place = content.rindex(b"a/data/1") - 4  # the offset stands right before the name
    assert struct.unpack_from("<I", content, place) == (second.header_offset,)
    struct.pack_into("<I", content, place, first.header_offset)
    path.write_bytes(content)
    assert "contradict each other" in refusal(path)  # the name there is another one
    struct.pack_into("<8s", content, place + 4, b"a/data/0")
    path.write_bytes(content)
    assert "twice" in refusal(path)


def deep(levels: int) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00w)" + b"\x85" * levels + b"s."


PICKLES = {
    "cut off": b"\x80\x02}X\x01\x00",
    "empty": b"",
    "without end": b"\x80\x02}",
    "no such operation": b"\x80\x02\xff.",
    "empty stack": b"\x80\x02R.",
    "two values": b"\x80\x02}}.",
    "no mark": b"\x80\x02}t.",
    "unknown memo": b"\x80\x02h\x05.",
    "huge memo number": b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
    "deep tuples": deep(1_000_000),
    "deep tuple as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",
    "itself as a value": b"\x80\x02}q\x00X\x01\x00\x00\x00wh\x00s.",
    "many marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "os.system": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "os.system, protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
    "INST": b"(X\x02\x00\x00\x00idios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x02\x00\x00\x00ido.",
    "NEWOBJ": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "BUILD on a global": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "a storage type that is called": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00w)R.",
    "OrderedDict of values": b"\x80\x02ccollections\nOrderedDict\n](\x85e\x85R.",
    "a huge integer": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a long decimal": b"I" + b"9" * 100_000 + b"\n.",
    "persistent id of text": b"\x80\x02X\x01\x00\x00\x00wQ.",
    "persistent id of text, protocol 0": b"Pstorage\n.",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
def test_a_hostile_pickle_is_one_sentence(tmp_path: Path, content: bytes):
    members = {"a/data.pkl": content, "a/data/0": bytes(16)}
    assert "data.pkl" not in refusal(archive(tmp_path / "x.bin", members)).split(": ")[0]


def test_two_descriptions_of_one_storage_are_refused(tmp_path: Path):
    one, other = tensor_pickle(), tensor_pickle(num_elements=2, size=2).replace(b"w", b"v")
    both = one[:-1] + other[3:]  # without the end and without protocol and dictionary
    path = archive(tmp_path / "x.bin", {"a/data.pkl": both, "a/data/0": bytes(16)})
    assert "describes its storage '0' in two ways" in refusal(path)


def legacy(
    value: bytes = tensor_pickle(),
    version: object = 1001,
    system: object = {"little_endian": True},
    keys: object = ["0"],
    storages: bytes = (4).to_bytes(8, "little") + bytes(16),
) -> bytes:
    """A file as PyTorch before 1.6 wrote it."""
    magic, *others = (pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, version, system))
    return magic + b"".join(others) + value + pickle.dumps(keys, 2) + storages


def test_the_hand_written_older_file_is_sound(tmp_path: Path):
    path = tmp_path / "x.bin"
    path.write_bytes(legacy(tensor_pickle().replace(b"tQ", b"NtQ")))
    (entry,) = read_pytorch_file(path)
    assert (entry.name, entry.num_bytes, entry.end) == ("w", 16, path.stat().st_size)
    full = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    path.write_bytes(legacy(tensor_pickle().replace(b"tQ", b"NtQ"), system=full))
    assert set(torch.load(path, weights_only=True)) == {"w"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (legacy(version=1000), "PyTorch or a machine of another kind"),
        (legacy(system={"little_endian": False}), "a machine of another kind"),
        (legacy(system=[]), "a machine of another kind"),
        (legacy(keys=[]), "other storages than its tensors need"),
        (legacy(keys=["0", "0"]), "other storages than its tensors need"),
        (legacy(keys=[0]), "other storages than its tensors need"),
        (legacy(storages=b""), "holds 0 bytes of storage '0', expected 16"),
        (legacy(storages=(5).to_bytes(8, "little") + bytes(20)), "holds 20 bytes of storage '0'"),
        (legacy(storages=(4).to_bytes(8, "little") + bytes(15)), "is truncated"),
        (legacy(storages=(4).to_bytes(8, "little") + bytes(17)), "belong to no tensor"),
        (legacy(b"\x80\x02cos\nsystem\n."), "asks for 'os.system'"),
        (legacy(b"\x80\x02" + b"(" * 300_000 + b"."), "takes more than 200000 operations"),
    ],
)
def test_an_older_file_that_torch_would_not_write_is_refused(
    tmp_path: Path, content: bytes, words: str
):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it begins otherwise"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "it begins otherwise"),
        (b"PK\x03\x04", "directory is not readable"),
        (pickle.dumps({"w": 1}), "it begins otherwise"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_file_that_cannot_be_opened_is_a_sentence(tmp_path: Path):
    assert "Cannot read" in refusal(tmp_path)
    assert "Cannot read" in refusal(tmp_path / "gone.bin")


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def overwrite_number(content: bytes, rng: np.random.Generator) -> bytes:
    """Lengths and offsets become extreme."""
    changed = bytearray(content)
    width = int(rng.choice([2, 4, 8]))
    place = int(rng.integers(len(content) - width))
    changed[place : place + width] = rng.choice([b"\xff", b"\x7f", b"\x00"]) * width
    return bytes(changed)


@every_format
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in an operation that is refused
@pytest.mark.parametrize("damage", [truncate, flip, overwrite_number])
def test_a_damaged_file_is_read_within_its_bounds_or_refused_in_a_sentence(
    tmp_path: Path,
    damage: Callable[[bytes, np.random.Generator], bytes],
    options: dict[str, Any],
):
    buffer = io.BytesIO()
    torch.save(state_dict(), buffer, **options)
    sound, rng = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / "pytorch_model.bin"
    refusals = []
    for _ in range(400):
        path.write_bytes(damage(sound, rng))
        try:
            entries = read_pytorch_file(path)
        except CheckpointError as problem:
            refusals.append(str(problem))
            continue
        assert all(0 <= e.begin <= e.end <= path.stat().st_size for e in entries)
    assert all(str(path) in message and "\n" not in message for message in refusals)
    assert len(refusals) == 400 or (refusals and damage is not truncate)
