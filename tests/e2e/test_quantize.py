"""Quantizing by the commands of the guides, and what a wrong one is told."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.quantizer.sparse_copy import copy_sparse
from mindformers_glm.quantizer.work_folder import WorkFolder
from mindformers_glm.serving import cli
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.e2e.run_process import REPO, Run, finish
from tests.unit.serving.test_cli import _signal_handlers_are_put_back  # noqa: F401

_SCRIPTS = REPO / "scripts"
_TEXTS = '[{"prompt": "北京", "ans": "x"}, {"prompt": "One and one is two."}]'


def _run(work: Path, *words: str) -> Run:
    process = subprocess.Popen(
        words,
        cwd=work,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finish(process)


def _labels(folder: Path) -> dict[str, str]:
    """What msModelSlim's description says of matrices."""
    (file,) = folder.glob("quant_model_description*.json")
    types = json.loads(file.read_text())
    return {name: kind for name, kind in types.items() if name.endswith("proj.weight")}


@pytest.fixture
def texts(work: Path) -> Path:
    (work / "mix_dataset_glm.json").write_text(_TEXTS)
    return work / "mix_dataset_glm.json"


def test_w8a8c8_by_the_command_of_the_guide(
    written_checkpoint: Path, work: Path, texts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = f"""--model_path {written_checkpoint} --save_directory {work}/out --device_type npu
        --act_method 2 --disable_level L0 --w_bit 8 --a_bit 8 --use_kvcache_quant True
        --calib_file {texts} --anti_file {texts} --trust_remote_code True"""
    assert cli.main(["quantize", *words.split()], prog="quant_glm.py") == 0
    told = capfd.readouterr()
    assert [line.split(":")[1].strip() for line in told.err.splitlines()] == [
        "--device_type npu",
        "--trust_remote_code",
    ]
    assert "W8A8" in told.out
    described = json.loads((work / "out/quant_model_description.json").read_text())
    assert (described["model_quant_type"], described["kv_cache_type"]) == ("W8A8", "C8")
    with Checkpoint.open(work / "out", find_format=find_format) as written:
        assert written.quantized is not None
        assert written.quantized.has_kv_scales
    assert sorted(work.iterdir()) == [texts, work / "out"]  # and nothing of the work


def test_quant_glm4_w8a8(written_checkpoint: Path, work: Path, texts: Path) -> None:
    script = str(_SCRIPTS / "quant_glm4_w8a8.sh")
    places = ("-src", str(written_checkpoint), "-dst", "out")
    run = _run(work, "bash", script, *places, "-trust_remote_code", "--calib_file", str(texts))
    assert run.exit_code == 0, run.errors
    raw = json.loads((work / "out/config.json").read_text())
    assert raw["quantize"] == "w8a8"
    assert raw["quantization_config"]["disable_level"] == "L25"
    assert (work / "out/quant_model_description_w8a8.json").exists()
    assert (work / "out/quant_model_weight_w8a8.safetensors").exists()


def test_sparse_weights_by_position(written_checkpoint: Path, work: Path, texts: Path) -> None:
    script = str(_SCRIPTS / "convert_quant_weights.sh")
    run = _run(work, "bash", script, str(written_checkpoint), "out", str(texts), "4", "0", "0,1")
    assert run.exit_code == 0, run.errors
    assert [note for note in run.notes if "W8A8SC" in note] == run.notes[:1]
    kinds = _labels(work / "out")
    sparse = {name for name, kind in kinds.items() if kind == "W8A8S"}
    assert sparse == {name for name in kinds if name.endswith("o_proj.weight")}
    assert json.loads((work / "out/config.json").read_text())["quantize"] == "w8a8s"
    assert not (work / "out/compress").exists()


def test_npy_files_and_their_compression(written_checkpoint: Path, work: Path, texts: Path) -> None:
    export, compress = (
        (sys.executable, str(_SCRIPTS / name))
        for name in ("export_quant_weight.py", "generate_compress_weight.py")
    )
    given = ("--float_weight", str(written_checkpoint), "--data_path", str(texts))
    run = _run(work, *export, *given, "--quant_weight", "sparse", "--sparse")
    assert run.exit_code == 0, run.errors
    with Checkpoint.open(written_checkpoint, None, find_format, work / "sparse") as opened:
        assert opened.quantized is not None
        assert opened.quantized.tool == "msModelSlim, .npy files"
    run = _run(work, *compress, "--weight_path", "sparse/quant_weight.npy", "--save_path", "out")
    assert (run.exit_code, len(run.notes), run.errors) == (0, 1, [])
    assert "W8A8SC" in run.notes[0]
    for file in (work / "sparse").iterdir():
        assert (work / "out" / file.name).read_bytes() == file.read_bytes()
    (work / "sparse" / "weight_scale.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds W8A8,"):
        copy_sparse(work / "sparse", work / "again")


_WRONG_SCRIPTS = {
    "quant_glm4_w8a8.sh": "needs -src and -dst",
    "quant_glm4_w8a8.sh -src": "-src needs a path",
    "quant_glm4_w8a8.sh -tgt out": "does not know -tgt",
    "convert_quant_weights.sh in out": "takes 6 arguments, got 2",
    "convert_quant_weights.sh in out calib 3 0 0": "TP must be",
    "convert_quant_weights.sh in out calib 4 0 0 -trust": "seventh",
}


@pytest.mark.parametrize("words", _WRONG_SCRIPTS)
def test_a_wrong_script_call_is_one_sentence(words: str, work: Path) -> None:
    name, *others = words.split()
    run = _run(work, "bash", str(_SCRIPTS / name), *others)
    assert (run.exit_code, len(run.errors)) == (1, 1)
    assert _WRONG_SCRIPTS[words] in run.errors[0]


_WRONG_LINES = {
    "quant_glm.py --w_bits 8": "unrecognized arguments: --w_bits 8",
    "quant_glm.py --w_bit": "--w_bit: expected one argument",
    "quant_glm.py --w_bit 5": "--w_bit must be",
    "export_quant_weight.py --float_weight in": "required: --quant_weight",
    "generate_compress_weight.py --weight_path in": "required: --save_path",
}


@pytest.mark.parametrize("words", _WRONG_LINES)
def test_a_guides_script_has_one_exit_code_for_wrong_use(words: str, work: Path) -> None:
    name, *others = words.split()
    run = _run(work, sys.executable, str(_SCRIPTS / name), *others)
    assert (run.exit_code, len(run.errors)) == (1, 1)
    assert _WRONG_LINES[words] in run.errors[0]


_WRONG = {
    "no place": ("--model_path {in}", "--save_directory is needed"),
    "the source": ("--model_path {in} --save_directory {in}", "own folder"),
    "in the source": ("--model_path {in} --save_directory {in}/out", "own folder"),
    "no model": ("--model_path nowhere --save_directory out", "does not exist"),
    "bits": ("--model_path {in} --save_directory out --w_bit 5", "--w_bit"),
    "a name": ("--model_path {in} --save_directory out --disable_names x", "no linear module"),
    "no file": ("--model_path {in} --save_directory out --calib_file x.json", "does not exist"),
    "a long name": (f"--model_path {{in}} --save_directory {'x' * 300}", "name too long"),
    "work in OUT": ("--model_path {in} --save_directory out --work_directory out/w", "one in the"),
    "OUT is work": ("--model_path {in} --save_directory out --work_directory out", "one in the"),
    "OUT in work": ("--model_path {in} --save_directory w/out --work_directory w", "one in the"),
    "work in it": ("--model_path {in} --save_directory out --work_directory {in}/w", "one in the"),
    "work a file": (
        "--model_path {in} --save_directory out --work_directory bad.jsonl --a_bit 16",
        "Cannot work in bad.jsonl: File exists",
    ),
    "bad line": ("--model_path {in} --save_directory out --calib_file bad.jsonl", "line 2"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_wrong_use_is_one_sentence_and_leaves_nothing(
    case: str,
    written_checkpoint: Path,
    work: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(work)
    (work / "bad.jsonl").write_text('{"prompt": "x"}\n{\n')
    words, sentence = _WRONG[case]
    assert cli.main(["quantize", *words.replace("{in}", str(written_checkpoint)).split()]) == 1
    told = capfd.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "internal error" not in errors[0]
    assert "what is done is kept" not in told
    assert not {file.name for file in written_checkpoint.iterdir()} & {"out", "w"}
    assert [file.name for file in work.iterdir()] == ["bad.jsonl"]


def test_a_quantized_model_is_not_quantized_again(
    written_checkpoint: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = ["--model_path", str(written_checkpoint), "--save_directory", f"{work}/one"]
    assert cli.main(["quantize", *first, "--a_bit", "16"]) == 0
    assert capfd.readouterr().err == ""
    again = ["--model_path", f"{work}/one", "--save_directory", f"{work}/two", "--a_bit", "16"]
    assert cli.main(["quantize", *again]) == 1
    assert "is quantized already (msModelSlim, new layout)" in capfd.readouterr().err


def test_a_full_disk_leaves_the_work_and_the_same_command_goes_on(
    written_checkpoint: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_path", str(written_checkpoint), "--save_directory", f"{work}/out"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        assert cli.main(["quantize", *words, "--a_bit", "16"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capfd.readouterr().err.splitlines()
    assert told == [
        f"mindformers_glm: what is done is kept in {work}/.out.quantizing: the same command goes "
        "on there",
        f"error: Cannot write {work}/out: File too large.",
    ]
    assert [file.name for file in work.iterdir()] == [".out.quantizing"]
    assert cli.main(["quantize", *words, "--a_bit", "16"]) == 0
    assert [file.name for file in work.iterdir()] == ["out"]


def test_a_disk_that_fills_up_at_any_moment_is_one_sentence(
    written_checkpoint: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real one, which gets larger until all has room: the same command goes on each time."""
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    words = ["--model_path", str(written_checkpoint), "--save_directory", f"{disk}/out"]
    seen = set()
    try:
        for number in range(1, 20):
            size = f"remount,size={8 * int(1.6**number)}k"
            subprocess.run(["mount", "-o", size, str(disk)], check=True)
            if cli.main(["quantize", *words, "--a_bit", "16"]) == 0:
                break
            errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
            assert len(errors) == 1
            assert errors[0].endswith(": No space left on device.")
            seen.add(errors[0].split()[3])
            assert {file.name for file in disk.iterdir()} <= {".out.quantizing"}
        assert {file.name for file in disk.iterdir()} == {"out"}
        assert len(seen) > 1, seen  # within the work, and within the result
        with Checkpoint.open(disk / "out", find_format=find_format) as written:
            assert written.quantized is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_work_of_another_quantization_is_left_alone(
    written_checkpoint: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (work / ".out.quantizing").mkdir()
    (work / ".out.quantizing/job.json").write_text('{"job": "another"}')
    (work / ".out.quantizing/layer_00000.safetensors").write_text("x")
    words = ["--model_path", str(written_checkpoint), "--save_directory", f"{work}/out"]
    assert cli.main(["quantize", *words, "--a_bit", "16"]) == 1
    (told,) = capfd.readouterr().err.splitlines()  # and no word of work that is kept
    assert "has the work of another quantization" in told
    names = ["job.json", "layer_00000.safetensors"]
    assert sorted(file.name for file in (work / ".out.quantizing").iterdir()) == names
    (work / ".out.quantizing/layer_00000.safetensors").unlink()  # where nothing is done yet
    assert cli.main(["quantize", *words, "--a_bit", "16"]) == 0
    assert [file.name for file in work.iterdir()] == ["out"]


@pytest.mark.parametrize("target", ["there", "not there"])
def test_a_link_leads_to_the_place(target: str, written_checkpoint: Path, work: Path) -> None:
    (work / "there").mkdir()
    (work / "out").symlink_to(work / target)
    words = ["--model_path", str(written_checkpoint), "--save_directory", f"{work}/out"]
    assert cli.main(["quantize", *words, "--a_bit", "16"]) == 0
    assert (work / target / "config.json").exists()
    assert (work / "out").is_symlink()


def test_ctrl_c_keeps_the_work_and_two_runs_at_once_are_told(
    written_checkpoint: Path,
    work: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["quantize", "--model_path", str(written_checkpoint), "--a_bit", "16"]
    words += ["--work_directory", f"{work}/mine", "--save_directory"]
    finish_layer = WorkFolder.finish
    seen: list[int] = []

    def interrupt(folder: WorkFolder, next_layer: int, activations: Any) -> None:
        finish_layer(folder, next_layer, activations)
        if not seen:
            seen.append(next_layer)
            assert cli.main([*words, f"{work}/second"]) == 1  # while this run is at work
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(WorkFolder, "finish", interrupt)
    assert cli.main([*words, f"{work}/out"]) == 130
    told = capfd.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("error:")] == [
        f"error: Another process quantizes in {work}/mine: wait for it, or give another work "
        "folder."
    ]
    assert told[-1] == "interrupted"
    assert [file.name for file in work.iterdir()] == ["mine"]
    assert cli.main([*words, f"{work}/out"]) == 0
    assert [file.name for file in work.iterdir()] == ["out"]


def test_damaged_weights_are_named(
    written_checkpoint: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = work / "float"
    shutil.copytree(written_checkpoint, source)
    file = sorted(source.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    words = ["--model_path", str(source), "--save_directory", f"{work}/out", "--a_bit", "16"]
    assert cli.main(["quantize", *words]) == 1
    (error,) = capfd.readouterr().err.splitlines()
    assert file.name in error
    assert [found.name for found in work.iterdir()] == ["float"]


def test_a_work_folder_is_removed_when_all_is_done(written_checkpoint: Path, work: Path) -> None:
    words = ["--model_path", str(written_checkpoint), "--save_directory", f"{work}/out"]
    words += ["--a_bit", "16", "--work_directory", f"{work}/mine"]
    assert cli.main(["quantize", *words]) == 0
    assert [file.name for file in work.iterdir()] == ["out"]
