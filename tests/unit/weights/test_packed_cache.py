"""The packed cache: whole or not there, read only if sound and of this checkpoint."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.serving import cli
from mindformers_glm.system import new_file as new_file_module
from mindformers_glm.weights import packed_cache, packed_file, packed_header, packed_mapping
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import FOLDER_NAME, PackedCache, PackedCacheSettings
from mindformers_glm.weights.packed_file import verify_file
from mindformers_glm.weights.packed_header import PackedFileError
from mindformers_glm.weights.packed_mapping import MapFile
from tests import quantized_folders
from tests.unit.quantization.float_folder import write_float_folder

FORMAT = {"params_dtype": "bfloat16", "layout": "test"}


def make_arrays(seed: int | None) -> dict[str, np.ndarray]:
    """Parameters of several types and sizes; zeros without a seed, as before loading."""
    types: dict[str, tuple[type, tuple[int, ...]]] = {
        "tiles": (np.uint16, (3, 5, 16, 32)),
        "int8": (np.uint8, (7, 4099)),
        "norm": (np.float32, (33,)),
        "empty": (np.float32, (0,)),
    }
    if seed is None:
        return {name: np.zeros(shape, dtype) for name, (dtype, shape) in types.items()}
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(1, 255, shape).astype(dtype) for name, (dtype, shape) in types.items()
    }


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packed_file, packed_header):
        monkeypatch.setattr(module, "PIECE_BYTES", 10_000)


def make_cache(
    folder: Path,
    arrays: dict[str, np.ndarray],
    mode: str = "on",
    place: Path | None = None,
    weight_format: dict[str, Any] = FORMAT,
) -> PackedCache:
    return PackedCache(
        PackedCacheSettings(mode, place), Checkpoint.open(folder), weight_format, arrays
    )


def write(folder: Path, seed: int = 1, **kwargs: Any) -> Path:
    """Write a cache and return its file."""
    cache = make_cache(folder, make_arrays(seed), **kwargs)
    cache.write()
    return cache.file


def check_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is told to be bad in one line, the arrays are as before, and it is written anew."""
    capsys.readouterr()
    arrays = make_arrays(None)
    cache = make_cache(folder, arrays)
    assert not cache.read()
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "is not used" in errors[0]
    assert not any(array.any() for array in arrays.values())
    write(folder, seed=2)
    assert make_cache(folder, arrays).read()
    np.testing.assert_equal(arrays, make_arrays(2))


def test_what_was_written_is_read(folder):
    file = write(folder)
    assert file.parent == folder / FOLDER_NAME
    arrays = make_arrays(None)
    assert make_cache(folder, arrays).read()
    np.testing.assert_equal(arrays, make_arrays(1))
    verify_file(file)


def test_nothing_is_read_where_nothing_is(folder, capsys):
    arrays = make_arrays(None)
    assert not make_cache(folder, arrays).read()
    assert not any(array.any() for array in arrays.values())
    assert capsys.readouterr().err == ""


def test_a_cache_folder_of_its_own_is_made(folder, tmp_path):
    place = tmp_path / "deep" / "cache"
    assert write(folder, place=place).parent == place
    assert not (folder / FOLDER_NAME).exists()
    assert make_cache(folder, make_arrays(None), place=place).read()


@pytest.mark.parametrize("position", [0, 9, 20, 60])
def test_a_damaged_header_is_noticed(folder, capsys, position):
    file = write(folder)
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    check_not_read(folder, capsys)


@pytest.mark.parametrize("cut", [0, 7, 47, 300, 5000, -4096, -1])
def test_a_truncated_file_is_noticed(folder, capsys, cut):
    file = write(folder)
    content = file.read_bytes()
    file.write_bytes(content[:cut])
    check_not_read(folder, capsys)


def test_a_longer_file_is_noticed(folder, capsys):
    file = write(folder)
    file.write_bytes(file.read_bytes() + b"x")
    check_not_read(folder, capsys)


def test_damage_at_the_ends_of_a_parameter_is_noticed_when_reading(folder, capsys):
    file = write(folder)
    content = bytearray(file.read_bytes())
    begin = content.index(make_arrays(1)["int8"].tobytes())
    content[begin + 5] ^= 1
    file.write_bytes(content)
    check_not_read(folder, capsys)


def test_damage_anywhere_is_noticed_when_verifying(folder):
    file = write(folder)
    content = bytearray(file.read_bytes())
    begin = content.index(make_arrays(1)["int8"].tobytes())
    content[begin + 5000] ^= 1  # in neither the first nor the last page of its piece
    file.write_bytes(content)
    with pytest.raises(PackedFileError, match="int8"):
        verify_file(file)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_told(folder, capsys, make):
    file = write(folder)
    file.unlink()
    make(file)
    assert not make_cache(folder, make_arrays(None)).read()
    assert "it is no ordinary file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.utime(folder / "model.safetensors", ns=(0, 10**18)),
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text() + " "
        ),
    ],
)
def test_a_changed_checkpoint_has_another_file(folder, change: Callable[[Path], Any]):
    old = write(folder)
    change(folder)
    arrays = make_arrays(None)
    cache = make_cache(folder, arrays)
    assert not cache.read()
    cache.write()
    # The old one could never be used again.
    assert [path.name for path in (folder / FOLDER_NAME).iterdir()] == [cache.file.name]
    assert cache.file != old


def test_integers_that_are_read_otherwise_have_another_file(tmp_path):
    source = write_float_folder(tmp_path / "float", "glm4")
    case = quantized_folders.WEIGHT_ONLY["gptq-v1-old-file"]
    quantized_folders.write(source, tmp_path / "gptq", case)
    settings = tmp_path / "gptq" / "quantize_config.json"
    files = []
    for version in ("gptq", "gptq_v2"):
        settings.write_text(json.dumps(dict(case.keys) | {"checkpoint_format": version}))
        checkpoint = Checkpoint.open(tmp_path / "gptq", find_format=find_format)
        files.append(PackedCache(PackedCacheSettings(), checkpoint, FORMAT, {}).file)
    assert files[0] != files[1]


def test_ranks_with_shares_of_their_own_leave_each_other_their_files(folder):
    files = []
    for rank in (0, 1, 0, 1):
        # Each rank knows the identity of its own share only.
        os.utime(folder / "model.safetensors", ns=(0, 10**18 + rank))
        checkpoint = Checkpoint.open(folder)
        checkpoint.is_share = True
        weight_format = FORMAT | {"model_parallel": 2, "model_parallel_rank": rank}
        settings = PackedCacheSettings("on", None)
        cache = PackedCache(settings, checkpoint, weight_format, make_arrays(rank))
        cache.write()
        files.append(cache.file)
    assert files[:2] == files[2:]
    assert set(files) == set((folder / FOLDER_NAME).iterdir())
    os.utime(folder / "model.safetensors", ns=(0, 2 * 10**18))
    cache = PackedCache(settings, Checkpoint.open(folder), weight_format, make_arrays(3))
    cache.write()
    assert list((folder / FOLDER_NAME).iterdir()) == [cache.file]


def test_another_format_has_another_file_beside_the_first(folder):
    first = write(folder)
    second = write(folder, seed=2, weight_format=FORMAT | {"quantization": "w8a16"})
    assert "w8a16" in second.name
    assert {first, second} == set((folder / FOLDER_NAME).iterdir())
    arrays = make_arrays(None)
    assert make_cache(folder, arrays).read()
    np.testing.assert_equal(arrays, make_arrays(1))


def test_a_file_of_another_key_or_of_other_parameters_is_not_read(folder, capsys):
    file = write(folder)
    other = make_cache(folder, make_arrays(None), weight_format=FORMAT | {"layout": "new"})
    file.rename(other.file)
    assert not other.read()
    assert "other files or for other settings" in capsys.readouterr().err
    other.file.rename(file)
    arrays = make_arrays(None)
    arrays["norm"] = np.zeros((34,), np.float32)
    assert not make_cache(folder, arrays).read()
    assert "holds other Parameters" in capsys.readouterr().err


def test_a_folder_that_moved_keeps_its_cache(folder, tmp_path):
    write(folder)
    moved = folder.rename(tmp_path / "moved")
    assert make_cache(moved, make_arrays(None)).read()


def test_off_neither_reads_nor_writes(folder):
    assert not write(folder, mode="off").exists()
    write(folder)
    assert not make_cache(folder, make_arrays(None), mode="off").read()


@pytest.mark.parametrize(
    ("least", "share", "is_written"), [(0, 1e9, True), (10**9, 1e9, False), (0, 1e-9, False)]
)
def test_auto_writes_what_is_large_and_much_smaller_than_the_checkpoint(
    folder, monkeypatch, least, share, is_written
):
    monkeypatch.setattr(packed_cache, "_LEAST_BYTES", least)
    monkeypatch.setattr(packed_cache, "_WORTHWHILE_SHARE", share)
    assert write(folder, mode="auto").exists() is is_written
    write(folder)
    assert make_cache(folder, make_arrays(None), mode="auto").read()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="auto, on, off"):
        PackedCacheSettings("yes")


def test_a_full_disk_is_told_before_writing(folder, monkeypatch, capsys):
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    assert not write(folder).exists()
    assert "MB and 1 GB to spare, 1.0 GB are free" in capsys.readouterr().err


@pytest.mark.parametrize("is_unnamed", [True, False])
@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_file_that_could_not_be_finished(
    folder, monkeypatch, capsys, problem, is_unnamed
):
    if not is_unnamed:
        monkeypatch.setattr(new_file_module.os, "O_TMPFILE", _unknown_flag(monkeypatch))

    def fail(*_: Any) -> int:
        raise problem

    monkeypatch.setattr(packed_file.os, "pwrite", fail)
    if isinstance(problem, OSError):
        write(folder)
        assert "No space left" in capsys.readouterr().err
    else:
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    assert not (folder / FOLDER_NAME).exists()


def test_a_cache_folder_that_was_there_stays(folder, monkeypatch, tmp_path):
    def fail(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(packed_file.os, "pwrite", fail)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(folder, place=place)
    assert list(place.iterdir()) == []


def _unknown_flag(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make opening with O_TMPFILE fail as on a file system that has no unnamed files."""
    flag, real_open = os.O_TMPFILE, os.open

    def open_without(path: str, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & flag == flag:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(new_file_module.os, "open", open_without)
    return flag


def test_a_file_system_without_unnamed_files_will_do(folder, monkeypatch):
    _unknown_flag(monkeypatch)
    abandoned = folder / FOLDER_NAME / ".x.glmpack.0123456789abcdef.tmp"
    abandoned.parent.mkdir()
    abandoned.write_text("left by a process that was killed")
    file = write(folder)
    assert list(file.parent.iterdir()) == [file]
    assert make_cache(folder, make_arrays(None)).read()


def test_nothing_is_left_of_a_process_that_was_killed(folder):
    script = """
import os, sys
from pathlib import Path
from mindformers_glm.system.new_file import new_file
with new_file(Path(sys.argv[1])) as file:
    os.pwrite(file, b"half", 0)
    os._exit(130)
"""
    place = folder / "x.glmpack"
    before = sorted(folder.iterdir())
    assert subprocess.run([sys.executable, "-c", script, str(place)]).returncode == 130
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_checkpoint_is_read_without_a_word(folder, capsys):
    folder.chmod(0o500)
    try:
        write(folder, mode="auto")
        assert capsys.readouterr().err == ""
        write(folder, mode="on")
        assert "no packed cache is written" in capsys.readouterr().err
    finally:
        folder.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_told_if_it_was_asked_for(folder, capsys):
    (folder / "file").write_text("")
    write(folder, place=folder / "file")
    assert "no packed cache is written" in capsys.readouterr().err
    # Beside the checkpoint nobody asked for one in particular.
    (folder / FOLDER_NAME).write_text("")
    cache = make_cache(folder, make_arrays(1), mode="auto")
    cache._tell_not_written("for a reason")
    assert capsys.readouterr().err == ""


def test_two_writers_at_once_leave_one_sound_file(folder):
    caches = [make_cache(folder, make_arrays(1)) for _ in range(4)]
    threads = [threading.Thread(target=cache.write) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list((folder / FOLDER_NAME).iterdir()) == [caches[0].file]
    verify_file(caches[0].file)


def test_the_header_names_the_checkpoint(folder):
    content = write(folder).read_bytes()
    length = int.from_bytes(content[8:16], "little")
    assert json.loads(content[48 : 48 + length])["source"] == str(folder.resolve())


class FakeMapping:
    """Stands for the system: "maps" by copying and says how much of it lies in huge pages.

    Args:
        share: of every Parameter in huge pages.
        read_again_share: the same of what was dropped from the page cache.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, share: float, read_again_share: float = 0
    ) -> None:
        self.mapped: dict[int, int] = {}
        self.num_maps = 0
        self.dropped: list[tuple[int, int]] = []
        self._share, self._read_again_share = share, read_again_share
        for module in (packed_header, packed_mapping):
            monkeypatch.setattr(module, "HUGE_PAGE", 8192)
        monkeypatch.setattr(packed_mapping, "_count_huge_bytes", self._count)
        monkeypatch.setattr(packed_mapping.os, "posix_fadvise", self._drop)

    def __call__(self, array: np.ndarray, file: int, offset: int) -> None:
        assert offset % 8192 == 0
        memory = array.reshape(-1).view(np.uint8)
        if file < 0:
            self.mapped.pop(array.ctypes.data, None)
            memory.fill(0)
        else:
            self.num_maps += 1
            self.mapped[array.ctypes.data] = array.nbytes
            os.preadv(file, [memory.data], offset)

    def _count(self, _: object) -> dict[int, int]:
        share = self._read_again_share if self.dropped else self._share
        return {address: int(share * num_bytes) for address, num_bytes in self.mapped.items()}

    def _drop(self, file: int, offset: int, num_bytes: int, advice: int) -> None:
        assert offset % 8192 == num_bytes % 8192 == 0
        assert advice == os.POSIX_FADV_DONTNEED
        self.dropped.append((offset, num_bytes))


def read_mapped(folder: Path, mapping: MapFile) -> tuple[PackedCache, dict[str, np.ndarray]]:
    arrays = make_arrays(None)
    cache = PackedCache(PackedCacheSettings("on"), Checkpoint.open(folder), FORMAT, arrays, mapping)
    cache.read()
    return cache, arrays


LARGE = [array.nbytes for array in make_arrays(None).values() if array.nbytes >= 8192]


def test_large_parameters_are_mapped_where_huge_pages_hold_them(folder, monkeypatch):
    mapping = FakeMapping(monkeypatch, share=1)
    write(folder)
    cache, arrays = read_mapped(folder, mapping)
    np.testing.assert_equal(arrays, make_arrays(1))
    assert mapping.num_maps == len(LARGE)
    assert not mapping.dropped
    assert cache.mapped_bytes == sum(mapping.mapped.values()) == sum(LARGE)


def test_what_the_page_cache_holds_in_small_pages_is_read_again_and_mapped(folder, monkeypatch):
    mapping = FakeMapping(monkeypatch, share=0.5, read_again_share=1)
    write(folder)
    cache, arrays = read_mapped(folder, mapping)
    np.testing.assert_equal(arrays, make_arrays(1))
    assert len(mapping.dropped) == 1  # the fake knows no pages: all others count as read again
    assert cache.mapped_bytes == sum(mapping.mapped.values()) == sum(LARGE)


def test_small_pages_are_copied_instead(folder, monkeypatch):
    mapping = FakeMapping(monkeypatch, share=0.1, read_again_share=0.1)
    write(folder)
    cache, arrays = read_mapped(folder, mapping)
    np.testing.assert_equal(arrays, make_arrays(1))
    # The smallest was enough to see it.
    assert [num_bytes for _, num_bytes in mapping.dropped] == [-(-min(LARGE) // 8192) * 8192]
    assert mapping.num_maps == 2
    assert mapping.mapped == {}
    assert cache.mapped_bytes == 0


def test_only_what_lies_in_small_pages_is_copied(folder, monkeypatch):
    mapping = FakeMapping(monkeypatch, share=1)
    monkeypatch.setattr(
        packed_mapping,
        "_count_huge_bytes",
        lambda _: {a: n if n == min(LARGE) else 0 for a, n in mapping.mapped.items()},
    )
    write(folder)
    cache, arrays = read_mapped(folder, mapping)
    np.testing.assert_equal(arrays, make_arrays(1))
    assert cache.mapped_bytes == sum(mapping.mapped.values()) == min(LARGE)


def test_a_file_system_that_cannot_map_is_read(folder, monkeypatch):
    mapping = FakeMapping(monkeypatch, share=1)
    write(folder)

    def refuse(array: np.ndarray, file: int, offset: int) -> None:
        if file >= 0 and array.nbytes == max(LARGE):
            raise RuntimeError("mmap: No such device")
        mapping(array, file, offset)

    cache, arrays = read_mapped(folder, refuse)
    np.testing.assert_equal(arrays, make_arrays(1))
    assert mapping.mapped == {}
    assert cache.mapped_bytes == 0


def test_damage_is_noticed_in_a_mapped_file_too(folder, monkeypatch, capsys):
    mapping = FakeMapping(monkeypatch, share=1)
    file = write(folder)
    content = bytearray(file.read_bytes())
    content[content.index(make_arrays(1)["int8"].tobytes())] ^= 1
    file.write_bytes(content)
    cache, arrays = read_mapped(folder, mapping)
    assert "the bytes of int8 have changed" in capsys.readouterr().err
    assert mapping.mapped == {}
    assert cache.mapped_bytes == 0
    assert not any(array.any() for array in arrays.values())


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write another header with a digest that fits, as whoever plants a file does."""
    content = file.read_bytes()
    length = int.from_bytes(content[8:16], "little")
    header = json.loads(content[48 : 48 + length])
    encoded = json.dumps(change(header) or header).encode()
    prefix = content[:8] + len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest()
    data = content[packed_header.HUGE_PAGE :]
    file.write_bytes((prefix + encoded).ljust(packed_header.HUGE_PAGE, b"\0") + data)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [1],
        lambda header: header.clear(),
        lambda header: header.update(source=5),
        lambda header: header.update(key=None),
        lambda header: header["key"].update(identity=[]),
        lambda header: header["key"].update(format="bfloat16"),
        lambda header: header.update(parameters={}),
        lambda header: header["parameters"].append(7),
        lambda header: header["parameters"][0].pop("shape"),
        lambda header: header["parameters"][0].update(more=1),
        lambda header: header["parameters"][0].update(begin=True),
        lambda header: header["parameters"][0].update(begin=-4096),
        lambda header: header["parameters"][1].update(begin=0),
        lambda header: header["parameters"][0].update(num_bytes=10**30),
        lambda header: header["parameters"][0].update(shape=[1.5]),
        lambda header: header["parameters"][0].update(shape=[1] * 1000),
        lambda header: header["parameters"][0].update(checksums=[], page_checksums=[]),
        lambda header: header["parameters"][0].update(checksums=["x"]),
        lambda header: header["parameters"][0]["page_checksums"].append("00000000"),
        lambda header: header["parameters"].append(header["parameters"][0]),
        lambda header: header["parameters"][0].update(num_bytes=0, checksums=[], page_checksums=[]),
    ],
)
def test_a_header_with_a_digest_is_not_believed_either(folder, capsys, change):
    file = write(folder)
    rewrite_header(file, change)
    check_not_read(folder, capsys)
    assert cli.main(["cache", "verify", str(folder)]) == 0


def test_a_malformed_header_beside_it_stops_nothing(folder, capsys):
    other = write(folder, weight_format=FORMAT | {"layout": "old"})
    rewrite_header(other, lambda header: header.update(key=[]))
    file = write(folder)
    assert make_cache(folder, make_arrays(None)).read()
    capsys.readouterr()
    for action in "list", "verify":
        assert cli.main(["cache", action, str(folder)]) == 1
        output = capsys.readouterr().out
        assert "its header is not one that this version writes" in output
        assert str(file) in output


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_may_write_to_is_not_read(folder, capsys, mode):
    write(folder).chmod(mode)
    check_not_read(folder, capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_another_user_is_not_read(folder, capsys):
    os.chown(write(folder), 1234, -1)
    check_not_read(folder, capsys)


def test_a_link_is_not_followed(folder, tmp_path, capsys):
    file = write(folder)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    check_not_read(folder, capsys)
    assert not file.is_symlink()


@pytest.mark.parametrize("name", ["x.glmpack", ".x.glmpack.0123456789abcdef.tmp"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_stops_nothing(folder, capsys, make, name):
    (folder / FOLDER_NAME).mkdir()
    make(folder / FOLDER_NAME / name)
    write(folder)
    assert make_cache(folder, make_arrays(None)).read()
    for action in "list", "verify":
        assert cli.main(["cache", action, str(folder)]) == int(name == "x.glmpack")


def open_parents(folder: Path) -> None:
    for parent in folder.parent, *folder.parent.parents:  # pytest's are its user's own
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)


@pytest.mark.parametrize(
    ("place", "mode", "expected"),
    [
        ("model.safetensors", 0o644, 0o644),
        ("model.safetensors", 0o600, 0o600),
        ("model.safetensors", 0o640, 0o640),
        ("config.json", 0o600, 0o600),
        (".", 0o700, 0o600),
        (".", 0o711, 0o644),
    ],
)
def test_a_cache_is_no_more_readable_than_its_checkpoint(folder, place, mode, expected):
    open_parents(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / place).chmod(mode)
    assert write(folder, place=folder / "cache").stat().st_mode & 0o777 == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize("place", ["cache", "checkpoint"])
def test_a_group_that_cannot_read_the_checkpoint_cannot_read_its_cache(folder, place):
    """Of a folder with its own group the cache is that group's; another's folder lets it not in."""
    open_parents(folder)
    (folder / "model.safetensors").chmod(0o640)
    shared = folder / "cache"
    shared.mkdir()
    assert write(folder, place=shared).stat().st_mode & 0o777 == 0o640
    if place == "cache":
        os.chown(shared, -1, 1234)
        shared.chmod(0o2770)
    else:
        os.chown(folder, -1, 1234)
        folder.chmod(0o750)
    next(shared.iterdir()).unlink()
    assert write(folder, place=shared).stat().st_mode & 0o777 == 0o600


def test_verify_looks_at_every_byte_before_it_is_used(folder, capsys):
    file = write(folder)
    arrays = make_arrays(None)
    assert make_cache(folder, arrays, mode="verify").read()
    content = bytearray(file.read_bytes())
    content[content.index(make_arrays(1)["int8"].tobytes()) + 5000] ^= 1
    file.write_bytes(content)
    assert not make_cache(folder, arrays, mode="verify").read()
    assert "the bytes of int8 have changed" in capsys.readouterr().err
    assert not any(array.any() for array in arrays.values())
    assert make_cache(folder, arrays).read()  # as every other start: it looks at the ends
