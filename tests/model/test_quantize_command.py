"""The whole command: a float folder in, a quantized one out, which answers like the float one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm import LLM
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.serving import cli
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.conftest import relative_error
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm
from tests.unit.serving.test_cli import _signal_handlers_are_put_back  # noqa: F401

PROMPT = np.random.default_rng(1).integers(2, 500, 40).tolist()
_TEXTS = ["一二三四五六七八九十", "the quick brown fox jumps over the lazy dog", "3.14159 2.71828"]
_W4 = "--w_bit 4 --a_bit 16 --group_size 32"
_ROTATED = "--a_bit 16 --rotation residual --disable_last_linear False"
_MIXED = {"W4A16", "W8A16"}
# Dialect, words of a command, what it makes of modules, and how far logits may be from the float
# ones: W8A16 alone is 0.03 on these models, whose weights are ten times a trained model's.
_CASES = (
    ("glm", "--recipe best", {"W8A8", "FLOAT"}, 0.25),
    ("glm", _ROTATED, {"W8A16"}, 0.06),
    ("chatglm", _ROTATED, {"W8A16"}, 0.06),
    ("glm", f"{_W4} --recipe best --target_bits 6 --format compressed-tensors", _MIXED, 0.5),
    ("chatglm", f"{_W4} --rounding gptq --target_bits 5 --format gptq", _MIXED, 0.5),
    ("glm", f"{_W4} --rounding awq --target_bits 7 --format awq", {"W4A16", "FLOAT"}, 0.5),
    ("glm4", f"{_W4} --recipe best --target_bits 5 --rotation values", _MIXED, 0.5),
    ("glm4", "--tp_size 2 --use_reduce_quant True --mindie_format", {"W8A8", "FLOAT"}, 0.25),
    ("chatglm", "--a_bit 16 --tp_size 4 --rounding gptq", {"W8A16"}, 0.06),
    ("glm4", "--target_bits 10 --mindie_format --rounding gptq", {"W8A8", "FLOAT"}, 0.25),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """A float folder of each dialect, and Hugging Face's logits."""
    made = {}
    for dialect in ("glm4", "glm"):
        folder = tmp_path_factory.mktemp(dialect) / "float"
        hf_oracle.save_random_checkpoint(folder, model_type=dialect)
        made[dialect] = folder, hf_oracle.logits(folder, PROMPT)
    folder = tmp_path_factory.mktemp("chatglm") / "float"
    made["chatglm"] = to_chatglm(made["glm"][0], folder), made["glm"][1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            (folder / name).write_bytes((made["glm"][0] / name).read_bytes())
    return made


@pytest.mark.parametrize(("dialect", "words", "labels", "allowed"), _CASES)
def test_a_quantized_folder_answers_as_the_float_one(
    dialect: str,
    words: str,
    labels: set[str],
    allowed: float,
    sources: dict[str, tuple[Path, np.ndarray]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, expected = sources[dialect]
    given = ["--model_path", str(source), "--save_directory", f"{tmp_path}/out"]
    given += [*words.split(), "--calib_texts", *_TEXTS]
    assert cli.main(["quantize", *given]) == 0, capfd.readouterr().err
    counts = capfd.readouterr().out.rpartition("linear modules: ")[2]
    assert {part.split()[1] for part in counts.split(",")} - {"FLOAT"} == labels - {"FLOAT"}
    with LLM(
        tmp_path / "out", max_model_len=64, params_dtype="float32", compute_dtype="float32"
    ) as llm:
        error = relative_error(llm.logits(PROMPT), expected)
    assert error < allowed, error


def test_mixed_widths_keep_to_the_budget(
    sources: dict[str, tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    source, _ = sources["glm4"]
    given = ["--model_path", str(source), "--save_directory", f"{tmp_path}/out"]
    words = f"{_W4} --target_bits 5.5 --disable_names model.layers.0.self_attn.o_proj"
    assert cli.main(["quantize", *given, *words.split(), "--calib_texts", *_TEXTS]) == 0
    total = spent = 0
    with (
        Checkpoint.open(source) as float_one,
        Checkpoint.open(tmp_path / "out", find_format=find_format) as made,
    ):
        assert made.quantized is not None
        widths = {}
        for name, entry in float_one.entries.items():
            module = name.removesuffix(".weight")
            if ".layers." not in name or len(entry.shape) < 2:
                continue
            rows, columns = entry.shape
            linear = made.quantized.linear(module, (rows, columns))
            scheme = None if linear is None else linear.scheme
            widths[module] = 16 if scheme is None else scheme.weight_bits
            total += rows * columns
            spent += rows * columns * widths[module]
    assert widths["model.layers.0.self_attn.o_proj"] == 16
    assert len({widths[f"model.layers.1.self_attn.{name}_proj"] for name in "qkv"}) == 1
    assert 5.0 < spent / total <= 5.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--rotation residual", "post_self_attn_layernorm"),
        (f"{_W4} --target_bits 4.5 --disable_names *.down_proj", "allow more bits a weight"),
        ("--w_bit 4 --a_bit 16 --group_size 128", "has 64 columns"),
    ],
)
def test_what_a_model_cannot_take_is_one_sentence(
    words: str,
    sentence: str,
    sources: dict[str, tuple[Path, np.ndarray]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = ["--model_path", str(sources["glm4"][0]), "--save_directory", f"{tmp_path}/out"]
    assert cli.main(["quantize", *given, *words.split(), "--calib_texts", *_TEXTS]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert not (tmp_path / "out").exists()


# The parent imports, its children run: nothing but the work is killed.
_KILLS = """
import os, random, signal, sys, time
from mindformers_glm.quantizer import quantize_folder
from mindformers_glm.serving import cli

def start(place):
    child = os.fork()
    if child == 0:
        os._exit(cli.main(["quantize", "--save_directory", place, *sys.argv[2:]]))
    return child

began = time.monotonic()
assert os.waitpid(start(sys.argv[1] + "/whole"), 0)[1] == 0
lasted = time.monotonic() - began
moments = random.Random(5)
killed = 0
for number in range(5):
    child = start(sys.argv[1] + "/killed")
    time.sleep(moments.uniform(0.2, 0.9) * lasted)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    if os.path.exists(sys.argv[1] + "/killed"):
        break
else:
    assert os.waitpid(start(sys.argv[1] + "/killed"), 0)[1] == 0
print(killed)
"""


def test_a_command_that_is_killed_five_times_makes_the_same_bytes(
    sources: dict[str, tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    words = f"{_W4} --recipe best --target_bits 5 --rotation values --use_kvcache_quant True"
    given = ["--model_path", str(sources["glm4"][0]), *words.split(), "--calib_texts", *_TEXTS]
    command = [sys.executable, "-c", _KILLS, str(tmp_path), *given]
    repo = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "killed").iterdir()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed", "whole"]
