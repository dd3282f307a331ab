"""Folders cut for N ranks: they hold what ranks cut themselves, and are refused where wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights import share_writer
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rules import build_rules
from mindformers_glm.weights.share_writer import write_shares
from mindformers_glm.weights.shares import MANIFEST_NAME, header_digest

REPO = Path(__file__).resolve().parents[3]


class Target:
    """Keeps what it is given."""

    def load(self, views) -> None:
        self.array = np.concatenate([view.data for view in views])


def load_share(folder: Path, rank: TensorParallel) -> dict[str, np.ndarray]:
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, rank) as checkpoint:
        rules = build_rules(config, checkpoint.cuts(config, rank))
        targets = {rule.parameter: Target() for rule in rules}
        load_weights(checkpoint, rules, targets)
    return {name: target.array for name, target in targets.items()}


@pytest.fixture
def whole_folder(tensors, raw_config, write_folder) -> Path:
    rng = np.random.default_rng(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((32, 24), np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    folder = write_folder(tensors, raw_config | {"vocab_size": 32}, num_shards=2)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_folder_of_shares_loads_as_the_whole_checkpoint_does(whole_folder, tmp_path, size):
    output = tmp_path / "cut"
    write_shares(whole_folder, output, size)
    for rank in range(size):
        mine = TensorParallel(size, rank)
        expected, found = load_share(whole_folder, mine), load_share(output, mine)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_named_chat_templates_come_along(whole_folder, tmp_path):
    name = "additional_chat_templates/tool_use.jinja"
    (whole_folder / name).parent.mkdir()
    (whole_folder / name).write_text("{{ tools }}")
    write_shares(whole_folder, tmp_path / "cut", 2)
    assert (tmp_path / "cut" / name).read_text() == "{{ tools }}"


def test_the_files_are_safetensors_to_the_library_too(whole_folder, tmp_path, tensors):
    write_shares(whole_folder, tmp_path / "cut", 2)
    parts = [
        load_file(tmp_path / "cut" / f"model-rank-0{rank}-of-02.safetensors") for rank in (0, 1)
    ]
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.bias"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), tensors[name])
    # Columns are there up to the borders of their group, which is all of them here.
    name = "model.layers.0.mlp.down_proj.weight"
    for part in parts:
        np.testing.assert_array_equal(part[name], tensors[name])


def test_a_share_has_what_scales_of_whole_rows_need(tensors, raw_config, write_folder, tmp_path):
    """300 inner columns are cut at 256: each file has its own, and how large whole rows are."""
    rng = np.random.default_rng(2)
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp"
        tensors[f"{prefix}.gate_up_proj.weight"] = rng.standard_normal((600, 24), np.float32)
        tensors[f"{prefix}.down_proj.weight"] = rng.standard_normal((24, 300), np.float32)
    folder = write_folder(tensors, raw_config | {"intermediate_size": 300})
    write_shares(folder, tmp_path / "cut", 2)
    config = GlmConfig.from_hf(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    for rank, columns in enumerate((range(256), range(256, 300))):
        mine = TensorParallel(2, rank)
        with Checkpoint.open(tmp_path / "cut", mine) as checkpoint:
            rules = build_rules(config, checkpoint.cuts(config, mine))
            (piece,) = next(
                source.pieces for rule in rules for source in rule.sources if source.name == name
            )
            view = checkpoint.view(name, piece)
            np.testing.assert_array_equal(view.data, tensors[name][:, columns])
            maxima = np.abs(tensors[name]).max(axis=1)
            np.testing.assert_array_equal(view.row_maxima(0, 24), maxima)


@pytest.mark.parametrize(("columns", "is_equal"), [(512, True), (384, False)])
def test_equal_parts_are_read_where_groups_end_there(
    tensors, raw_config, write_folder, tmp_path, columns, is_equal
):
    """512 inner columns are 2 groups for each of 2 ranks; 384 are 2 and 1, where 192 are wanted."""
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp"
        tensors[f"{prefix}.gate_up_proj.weight"] = np.ones((2 * columns, 24), np.float32)
        tensors[f"{prefix}.down_proj.weight"] = np.ones((24, columns), np.float32)
    folder = write_folder(tensors, raw_config | {"intermediate_size": columns})
    write_shares(folder, tmp_path / "cut", 2)
    mine = TensorParallel(2, 1, has_equal_parts=True)
    if is_equal:
        loaded = load_share(tmp_path / "cut", mine)
        assert loaded["decoder.layers.0.mlp.linear_fc2.weight"].shape == (24, columns // 2)
        return
    with pytest.raises(CheckpointError, match=r"intermediate_size=384 in 2 equal parts: give the"):
        load_share(tmp_path / "cut", mine)


def test_row_maxima_count_in_a_share_only(tensors, raw_config, write_folder):
    name = "model.layers.0.mlp.down_proj.weight.row_maxima"
    folder = write_folder(tensors | {name: np.zeros(24, np.float32)}, raw_config)
    with pytest.raises(CheckpointError, match=f"1 unknown: {re.escape(name)}"):
        load_share(folder, TensorParallel(2, 0))


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "I32"), ("shape", [12, 2]), ("shape", [2, 12])]
)
def test_row_maxima_must_fit_their_tensor(
    tensors, raw_config, write_folder, tmp_path, field, value
):
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp"
        tensors[f"{prefix}.gate_up_proj.weight"] = np.ones((600, 24), np.float32)
        tensors[f"{prefix}.down_proj.weight"] = np.ones((24, 300), np.float32)
    folder = write_folder(tensors, raw_config | {"intermediate_size": 300})
    write_shares(folder, tmp_path / "cut", 2)
    share, manifest = (
        tmp_path / "cut" / name for name in ("model-rank-00-of-02.safetensors", MANIFEST_NAME)
    )
    content = share.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["model.layers.0.mlp.down_proj.weight.row_maxima"][field] = value
    encoded = json.dumps(header).encode()
    share.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])
    described = json.loads(manifest.read_text())
    described["files"][0]["num_bytes"] = share.stat().st_size
    described["files"][0]["header_sha256"] = header_digest(share)
    manifest.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"down_proj\.weight\.row_maxima"):
        Checkpoint.open(tmp_path / "cut", TensorParallel(2, 0))


@pytest.mark.parametrize("vocab_size", [33, 31, 3])
def test_a_vocabulary_that_cannot_be_divided_is_cut_too(
    tensors, raw_config, write_folder, tmp_path, vocab_size
):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.arange(vocab_size * 24, dtype=np.float32).reshape(vocab_size, 24)
    folder = write_folder(tensors, raw_config | {"vocab_size": vocab_size})
    write_shares(folder, tmp_path / "cut", 4)
    ranks = [load_share(tmp_path / "cut", TensorParallel(4, rank)) for rank in range(4)]
    for parameter in ("embedding.word_embeddings.weight", "output_layer.weight"):
        joined = np.concatenate([rank[parameter] for rank in ranks])
        np.testing.assert_array_equal(joined, tensors["lm_head.weight"])


def test_configuration_and_tokenizer_come_along_and_the_index_stays(whole_folder, tmp_path):
    write_shares(whole_folder, tmp_path / "cut", 2)
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == [
        "config.json",
        "model-rank-00-of-02.safetensors",
        "model-rank-01-of-02.safetensors",
        MANIFEST_NAME,
        "tokenizer.json",
    ]


def test_tied_embeddings_are_stored_once(tensors, raw_config, write_folder, tmp_path):
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = np.ones((32, 24), np.float32)
    raw = raw_config | {"vocab_size": 32, "tie_word_embeddings": True}
    folder = write_folder(tensors, raw)
    write_shares(folder, tmp_path / "cut", 2)
    assert load_share(tmp_path / "cut", TensorParallel(2, 1))["output_layer.weight"].shape == (
        16,
        24,
    )


def refusal(folder: Path, rank: TensorParallel) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder, rank)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_number_of_ranks_is_refused(whole_folder, tmp_path):
    write_shares(whole_folder, tmp_path / "cut", 2)
    for wrong in (TensorParallel(), TensorParallel(4, 1)):
        message = refusal(tmp_path / "cut", wrong)
        assert f"was cut for model_parallel 2, not {wrong.size}" in message


def test_a_file_of_another_rank_or_folder_is_refused(whole_folder, tmp_path):
    cut = tmp_path / "cut"
    write_shares(whole_folder, cut, 2)
    first, second = (cut / f"model-rank-0{rank}-of-02.safetensors" for rank in (0, 1))
    shutil.copyfile(second, first)
    assert "another checkpoint or another rank" in refusal(cut, TensorParallel(2, 0))
    os.utime(
        whole_folder / "model-00001-of-00002.safetensors", ns=(1, 1)
    )  # other files, same shapes
    write_shares(whole_folder, tmp_path / "other", 2)
    shutil.copyfile(tmp_path / "other" / first.name, first)
    assert "another checkpoint or another rank" in refusal(cut, TensorParallel(2, 0))
    Checkpoint.open(cut, TensorParallel(2, 1))


def test_damaged_and_missing_files_are_refused(whole_folder, tmp_path):
    cut = tmp_path / "cut"
    write_shares(whole_folder, cut, 2)
    file = cut / "model-rank-01-of-02.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert f"has {len(whole) - 1} bytes" in refusal(cut, TensorParallel(2, 1))
    file.unlink()
    assert "lacks model-rank-01-of-02.safetensors" in refusal(cut, TensorParallel(2, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 1}, "format version 1"),
        ({"model_parallel": 3}, "one file for each of 3 ranks"),
        ({"files": None}, "is damaged"),
        ({"files": [{"name": 1}]}, "is damaged"),
        (None, "is not valid JSON"),
    ],
)
def test_a_broken_manifest_is_refused(whole_folder, tmp_path, change, words):
    cut = tmp_path / "cut"
    write_shares(whole_folder, cut, 2)
    manifest = json.loads((cut / MANIFEST_NAME).read_text())
    changed = "{" if change is None else json.dumps(manifest | change)
    (cut / MANIFEST_NAME).write_text(changed)
    message = refusal(cut, TensorParallel(2, 0))
    assert words in message
    assert "cut the original checkpoint anew" in message
    assert "download" not in message


@pytest.mark.parametrize(
    ("size", "words"),
    [(3, "model_parallel 3 cannot split this model"), (0, "at least 1 part, got 0")],
)
def test_a_split_that_does_not_work_is_refused_before_writing(whole_folder, tmp_path, size, words):
    with pytest.raises(ConfigError, match=words):
        write_shares(whole_folder, tmp_path / "cut", size)
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("size", [2, 4])
def test_a_folder_of_shares_is_not_cut_again(whole_folder, tmp_path, size):
    write_shares(whole_folder, tmp_path / "cut", 2)
    with pytest.raises(CheckpointError, match="holds shares already: give the original checkpoint"):
        write_shares(tmp_path / "cut", tmp_path / "again", size)
    assert not (tmp_path / "again").exists()


def test_an_existing_folder_and_a_full_disk_are_refused(whole_folder, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="exists: remove it"):
        write_shares(whole_folder, whole_folder, 2)
    monkeypatch.setattr(share_writer, "_SPARE_BYTES", 2**60)
    with pytest.raises(CheckpointError, match=" are free"):
        write_shares(whole_folder, tmp_path / "cut", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_nothing_is_left_behind_by_an_error_or_a_killed_process(
    whole_folder, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / ".cut.1.tmp").mkdir()  # of a process that was killed
    with monkeypatch.context() as patch:
        patch.setattr(share_writer, "_write_manifest", fail)
        with pytest.raises(CheckpointError, match=r"Cannot write .*cut: No space left on device"):
            write_shares(whole_folder, tmp_path / "cut", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    write_shares(whole_folder, tmp_path / "cut", 2)


def test_the_script_writes_beside_the_checkpoint_and_says_what_is_wrong(whole_folder, tmp_path):
    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPO / "scripts" / "process_weights.py"), *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
        )

    done = run("--model_path", str(whole_folder), "--tp_size", "2")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.search(r"checkpoint-tp2 \([\d.]+ KB\) is ready for 2 ranks", done.stderr)
    load_share(tmp_path / "checkpoint-tp2", TensorParallel(2, 1))
    failed = run("--model_path", str(whole_folder), "--tp_size", "2")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1

    (whole_folder / "inner").mkdir()
    above = run("--model-path", "..", "--tp-size=1", cwd=whole_folder / "inner")
    assert f"{tmp_path / 'checkpoint-tp1'} (" in above.stderr
    root = run("--model_path", "/", "--tp_size", "2")
    assert root.returncode == 1
    assert root.stderr.startswith("error: ")
    assert "give --output" in root.stderr
    unreadable = run("--model_path", str(whole_folder), "--tp_size", "two")
    assert unreadable.returncode == 2
    assert unreadable.stderr == (
        "error: The command line is wrong: argument --tp_size: invalid int value: 'two'.\n"
    )
    assert root.stderr.count("\n") == 1


def test_ctrl_c_while_the_script_is_imported_is_one_word(tmp_path):
    """numpy is one of the first imports; the one here presses Ctrl-C."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    result = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "process_weights.py"), "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
