"""A checkpoint folder: shards, index and memory-mapped views."""

import json
import mmap
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.sharding import Piece
from mindformers_glm.weights.checkpoint import Checkpoint

ONE = np.arange(3, dtype=np.float32)
INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_views_equal_what_was_saved(tensors, write_folder, num_shards):
    folder = write_folder(tensors, num_shards=num_shards)
    with Checkpoint.open(folder) as checkpoint:
        assert len(checkpoint.files) == num_shards
        assert set(checkpoint.entries) == set(tensors)
        assert checkpoint.num_bytes == sum(array.nbytes for array in tensors.values())
        for name, array in tensors.items():
            view = checkpoint.view(name)
            assert (view.name, view.dtype) == (name, "float32")
            np.testing.assert_array_equal(view.data, array)


def test_views_are_read_only_and_share_memory_with_the_mapping(tensors, write_folder):
    checkpoint = Checkpoint.open(write_folder(tensors))
    data = checkpoint.view("lm_head.weight").data
    assert np.shares_memory(data, checkpoint.view("lm_head.weight").data)
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 0


def test_nothing_is_mapped_before_the_first_view(tensors, write_folder):
    folder = write_folder(tensors)
    Checkpoint.open(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("padding", range(4))
def test_bfloat16_is_uint16_at_any_offset(tmp_path: Path, padding: int):
    # A one-byte tensor before it moves the data to an odd position.
    bits = np.array([0x3F80, 0xC000, 0x7FC0], np.uint16)  # 1.0, -2.0, NaN
    header = {
        "pad": {"dtype": "U8", "shape": [padding], "data_offsets": [0, padding]},
        "w": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [padding, padding + 6]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(padding) + bits.tobytes()
    )
    view = Checkpoint.open(tmp_path).view("w")
    assert (view.dtype, view.data.dtype, view.data.shape) == ("bfloat16", np.uint16, (1, 3))
    np.testing.assert_array_equal(view.data[0], bits)
    np.testing.assert_array_equal(view.data[0].copy(), bits)


def test_empty_and_scalar_tensors_have_their_shape(tmp_path: Path):
    save_file(
        {"empty": np.zeros((0, 4), np.float16), "scalar": np.array(5, np.float32)},
        tmp_path / "model.safetensors",
    )
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.view("empty").data.shape == (0, 4)
        checkpoint.release("empty")
        assert checkpoint.view("scalar").data[()] == 5


def test_integer_tensors_cannot_be_viewed(tmp_path: Path):
    save_file({"q": np.zeros(4, np.int8)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"'q' in .* is int8"):
        checkpoint.view("q")
    with pytest.raises(CheckpointError, match="holds no tensor of type"):
        _ = checkpoint.dtype


def test_dtype_is_what_most_bytes_are_stored_in(tmp_path: Path):
    save_file(
        {
            "norm": np.zeros(10, np.float32),
            "w": np.zeros(100, np.float16),
            "steps": np.zeros(1000, np.int64),
        },
        tmp_path / "model.safetensors",
    )
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.dtype == "float16"
    assert checkpoint.num_bytes_by_dtype == {"int64": 8000, "float16": 200, "float32": 40}


def resident_file_bytes(path: Path) -> int:
    """Sum of the Rss lines of all mappings of `path` in this process."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_release_drops_the_pages_of_a_view_that_stays_valid(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    ones = np.ones((8, 2**18), np.float32)  # 8 MiB each
    save_file({"a": ones, "b": ones}, path)
    checkpoint = Checkpoint.open(tmp_path)
    for name in ("a", "b"):
        checkpoint.release(name)  # nothing mapped yet: nothing to do
        view = checkpoint.view(name)
        assert view.data.sum() == ones.size
        assert resident_file_bytes(path) >= ones.nbytes
        checkpoint.release(name)
        assert resident_file_bytes(path) == 0
    assert view.data[3, 5] == 1


def test_views_outlive_close(tmp_path: Path):
    save_file({"a": ONE}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        view = checkpoint.view("a")
    np.testing.assert_array_equal(view.data, ONE)


def test_files_are_closed(tensors, write_folder):
    folder = write_folder(tensors, num_shards=3)
    num_open = len(os.listdir("/proc/self/fd"))
    with Checkpoint.open(folder) as checkpoint:
        for name in tensors:
            checkpoint.view(name)
    del checkpoint
    assert len(os.listdir("/proc/self/fd")) == num_open
    assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_file_cut_off_after_its_header_was_read_is_refused(tmp_path: Path, is_mapped: bool):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(4 * mmap.PAGESIZE, np.float32)}, path)
    checkpoint = Checkpoint.open(tmp_path)
    if is_mapped:
        checkpoint.view("a")
    os.truncate(path, 200)  # reading on would be SIGBUS
    with pytest.raises(CheckpointError, match="changed while it was being loaded"):
        checkpoint.view("a")


def test_a_file_that_vanished_or_became_empty_is_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": ONE}, path)
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(path, 0)
    with pytest.raises(CheckpointError, match="changed while it was being loaded"):
        checkpoint.view("a")
    path.unlink()
    with pytest.raises(CheckpointError, match="Cannot read"):
        checkpoint.view("a")


def test_symlinked_files_load_as_in_the_hugging_face_cache(tensors, write_folder, tmp_path):
    folder = write_folder(tensors, num_shards=2)
    snapshot = tmp_path / "snapshots" / "abc"
    blobs = tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checkpoint = Checkpoint.open(snapshot)
    np.testing.assert_array_equal(checkpoint.view("lm_head.weight").data, tensors["lm_head.weight"])
    (blobs / "1").unlink()  # a link without its blob
    assert_refused(snapshot, "model-00001-of-00002.safetensors")


def test_shards_without_an_index_are_all_taken(tensors, write_folder):
    folder = write_folder(tensors, num_shards=3)
    (folder / INDEX).unlink()
    assert set(Checkpoint.open(folder).entries) == set(tensors)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(folder, "lacks model-00002-of-00003.safetensors")


def test_model_safetensors_wins_over_other_files_without_an_index(tmp_path: Path):
    save_file({"a": ONE}, tmp_path / "model.safetensors")
    save_file({"a": ONE, "b": ONE}, tmp_path / "adapter_model.safetensors")
    assert set(Checkpoint.open(tmp_path).entries) == {"a"}


def test_files_the_index_does_not_name_are_left_alone(tmp_path: Path):
    save_file({"a": ONE}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({"b": ONE}, tmp_path / "adapter_model.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    assert set(Checkpoint.open(tmp_path).entries) == {"a"}


def nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def other_pytorch_files(folder: Path) -> None:
    for name in ("optimizer.bin", "training_args.bin", "consolidated.00.pth"):
        (folder / name).touch()


def one_pytorch_shard(folder: Path) -> None:
    (folder / "pytorch_model-00001-of-00002.bin").touch()


def pytorch_index_alone(folder: Path) -> None:
    weight_map = {"a": "pytorch_model-00001-of-00001.bin"}
    (folder / PYTORCH_INDEX).write_text(json.dumps({"weight_map": weight_map}))


def pytorch_index_and_single_file(folder: Path) -> None:
    pytorch_index_alone(folder)
    (folder / "pytorch_model-00001-of-00001.bin").touch()
    (folder / "pytorch_model.bin").touch()


def unread_pytorch_file(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(bytes(100))


def damaged_safetensors_beside_pytorch(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()
    (folder / "model.safetensors").touch()


def duplicated_tensor(folder: Path) -> None:
    save_file({"a": ONE, "b": ONE}, folder / "x.safetensors")
    save_file({"b": ONE}, folder / "y.safetensors")


def index_names_missing_file(folder: Path) -> None:
    save_file({"a": ONE}, folder / "x.safetensors")
    write_index(folder, {"a": "x.safetensors", "b": "model-00002-of-00002.safetensors"})


def index_names_many_missing_files(folder: Path) -> None:
    write_index(folder, {str(i): f"s{i}.safetensors" for i in range(7)})


def index_names_tensor_not_in_shard(folder: Path) -> None:
    save_file({"a": ONE}, folder / "x.safetensors")
    write_index(folder, {"a": "x.safetensors", "model.norm.weight": "x.safetensors"})


def index_names_the_wrong_shard(folder: Path) -> None:
    save_file({"a": ONE}, folder / "x.safetensors")
    save_file({"b": ONE}, folder / "y.safetensors")
    write_index(folder, {"a": "y.safetensors", "b": "x.safetensors"})


def shard_with_extra_tensor(folder: Path) -> None:
    save_file({"a": ONE, "stranger": ONE}, folder / "x.safetensors")
    write_index(folder, {"a": "x.safetensors"})


def index_broken(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {')


def index_without_weight_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"metadata": {}}')


def index_with_number(folder: Path) -> None:
    write_index(folder, {"a": 3})


def index_leading_out(folder: Path) -> None:
    write_index(folder, {"a": "../x.safetensors"})


def index_is_lfs_pointer(folder: Path) -> None:
    (folder / INDEX).write_text("version https://git-lfs.github.com/spec/v1\n")


def two_indexes(folder: Path) -> None:
    write_index(folder, {"a": "x.safetensors"})
    (folder / "other.safetensors.index.json").write_text("{}")


def index_and_single_file(folder: Path) -> None:
    save_file({"a": ONE}, folder / "x.safetensors")
    save_file({"a": ONE}, folder / "model.safetensors")
    write_index(folder, {"a": "x.safetensors"})


def shard_is_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def truncated_shard(folder: Path) -> None:
    save_file({"a": ONE}, folder / "x.safetensors")
    os.truncate(folder / "x.safetensors", (folder / "x.safetensors").stat().st_size - 1)
    write_index(folder, {"a": "x.safetensors"})


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (nothing, ["holds no *.safetensors and no pytorch_model*.bin"]),
        (other_pytorch_files, ["holds no *.safetensors and no pytorch_model*.bin"]),
        (one_pytorch_shard, ["lacks pytorch_model-00002-of-00002.bin"]),
        (pytorch_index_alone, ["names pytorch_model-00001-of-00001.bin", "does not hold"]),
        (pytorch_index_and_single_file, ["both pytorch_model.bin and", PYTORCH_INDEX]),
        (unread_pytorch_file, ["pytorch_model.bin is not a file of torch.save"]),
        (damaged_safetensors_beside_pytorch, ["model.safetensors has only 0 bytes"]),
        (duplicated_tensor, ["'b'", "x.safetensors", "y.safetensors"]),
        (index_names_missing_file, [INDEX, "names model-00002-of-00002.safetensors"]),
        (index_names_many_missing_files, ["s0.safetensors, ", "and 2 more"]),
        (index_names_tensor_not_in_shard, ["x.safetensors holds 'model.norm.weight'", "not"]),
        (index_names_the_wrong_shard, ["y.safetensors holds 'a'"]),
        (shard_with_extra_tensor, ["x.safetensors", "'stranger'"]),
        (index_broken, [INDEX, "not valid JSON"]),
        (index_without_weight_map, [INDEX, "no 'weight_map'"]),
        (index_with_number, [INDEX, "'a'", "3"]),
        (index_leading_out, [INDEX, "../x.safetensors"]),
        (index_is_lfs_pointer, [INDEX, "git lfs pull"]),
        (two_indexes, [INDEX, "other.safetensors.index.json"]),
        (index_and_single_file, ["both model.safetensors and"]),
        (shard_is_lfs_pointer, ["model.safetensors", "git lfs pull"]),
        (truncated_shard, ["x.safetensors is truncated", "download it again"]),
    ],
)
def test_a_broken_folder_is_one_sentence(
    tmp_path: Path, prepare: Callable[[Path], None], words: list[str]
):
    prepare(tmp_path)
    assert_refused(tmp_path, *words)


def test_folder_mistakes_are_told_apart(tmp_path: Path):
    assert_refused(tmp_path / "nowhere", "does not exist")
    assert_refused(tmp_path, "is empty")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", "is a file")


def test_row_chunks_cover_the_rows_and_hold_little_of_the_file_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("mindformers_glm.weights.tensor_view._CHUNK_BYTES", 4 * 2**20)
    rows = np.arange(16 * 2**20, dtype=np.float32).reshape(4096, -1)  # 64 MiB
    path = tmp_path / "model.safetensors"
    save_file({"rows": rows}, path)
    with Checkpoint.open(tmp_path) as checkpoint:
        view = checkpoint.view("rows")
        most, firsts = 0, []
        for first, chunk in view.row_chunks(100, 4000):
            np.testing.assert_array_equal(chunk, rows[first : first + len(chunk)])
            most = max(most, resident_file_bytes(path))
            firsts.append((first, first + len(chunk)))
    assert firsts[0][0] == 100
    assert firsts[-1][1] == 4000
    assert all(one[1] == two[0] for one, two in pairwise(firsts))
    assert most < 16 * 2**20


PIECES = [
    Piece(range(3, 9), range(0, 5)),
    Piece(range(0, 12), range(4, 10)),
    Piece(range(11, 12), range(9, 10)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("piece", PIECES, ids=str)
def test_a_piece_is_the_same_as_numpy_cuts(tmp_path, monkeypatch, piece, dtype):
    monkeypatch.setattr("mindformers_glm.weights.tensor_view._CHUNK_BYTES", 100)  # a row or two
    whole = np.arange(120).astype(dtype).reshape(12, 10)
    save_file({"before": whole, "w": whole, "bias": whole[0]}, tmp_path / "model.safetensors")
    rows = slice(piece.rows.start, piece.rows.stop)
    columns = slice(piece.columns.start, piece.columns.stop)
    with Checkpoint.open(tmp_path) as checkpoint:
        view = checkpoint.view("w", piece)
        np.testing.assert_array_equal(view.data, whole[rows, columns])
        chunks = [chunk for _, chunk in view.row_chunks()]
        assert all(chunk.flags.c_contiguous for chunk in chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), whole[rows, columns])
        bias = checkpoint.view("bias", Piece(range(2, 7), None))
        np.testing.assert_array_equal(bias.data, whole[0, 2:7])


def test_a_rank_maps_little_more_than_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("mindformers_glm.weights.tensor_view._CHUNK_BYTES", 4 * 2**20)
    rows = np.arange(16 * 2**20, dtype=np.float32).reshape(4096, -1)  # 64 MiB
    path = tmp_path / "model.safetensors"
    save_file({"rows": rows}, path)
    most = 0
    with Checkpoint.open(tmp_path) as checkpoint:
        for piece in (
            Piece(range(2048, 4096), range(0, 4096)),
            Piece(range(0, 4096), range(1024, 2048)),
        ):
            view = checkpoint.view("rows", piece)
            for first, chunk in view.row_chunks():
                row, column = piece.rows.start + first, piece.columns.start
                assert chunk[0, 0] == rows[row, column]
                assert chunk[-1, -1] == rows[row + len(chunk) - 1, piece.columns.stop - 1]
                most = max(most, resident_file_bytes(path))
            assert resident_file_bytes(path) == 0
    assert 0 < most < 16 * 2**20
