"""Which engines bench_generate.py measures."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_generate import (
    FORMATS,
    SCHEMES,
    list_contestants,
    list_schemes,
    parse_arguments,
    split_contestants,
)
from generate.measure import OURS, WORKERS
from safetensors.numpy import save_file


@pytest.fixture
def arguments() -> argparse.Namespace:
    nothing: dict[str, Any] = dict.fromkeys(
        [
            *("hf_python", "llama_cpp_python", "llama_cpp_models", "openvino_python"),
            *("openvino_models", "ik_llama_cpp_python", "vllm_python"),
        ]
    )
    schemes = {"formats": "int8,int4", "slices": "/slices", "schemes": list(SCHEMES), "together": 3}
    return argparse.Namespace(model="/slice", skip=[], pairs=False, **nothing, **schemes)


def test_ours_runs_alone_without_other_environments(arguments: argparse.Namespace) -> None:
    assert [c.label for c in list_contestants("bf16", arguments)] == [f"{OURS} bf16"]


def test_every_format_of_an_engine_is_a_contestant(arguments: argparse.Namespace) -> None:
    arguments.llama_cpp_python = "/env/bin/python"
    arguments.llama_cpp_models = "/gguf"
    *ours, first, second = list_contestants("int4", arguments)
    others = [first, second]
    assert [c.variant for c in ours] == ["w4a16", "w4a8_dynamic"]
    assert [c.model for c in others] == ["/gguf/Q4_0.gguf", "/gguf/Q4_K_M.gguf"]
    assert {c.python for c in others} == {"/env/bin/python"}


def test_skipped_formats_are_left_out(arguments: argparse.Namespace) -> None:
    arguments.hf_python = "/env/bin/python"
    arguments.skip = ["bf16-compiled"]
    assert [c.variant for c in list_contestants("bf16", arguments)] == ["bf16", "bf16"]


def test_pairs_are_ours_with_one_engine_each(arguments: argparse.Namespace) -> None:
    arguments.llama_cpp_python = arguments.openvino_python = "/env/bin/python"
    contestants = list_contestants("int4", arguments)
    assert split_contestants(contestants, arguments) == [contestants]
    arguments.pairs = True
    groups = split_contestants(contestants, arguments)
    assert [[c.variant for c in group] for group in groups] == [
        ["w4a16", "w4a8_dynamic", "Q4_0", "Q4_K_M"],
        ["w4a16", "w4a8_dynamic", "int4"],
    ]


def test_every_engine_has_a_worker() -> None:
    engines = {engine for group in FORMATS.values() for engine in group}
    assert [engine for engine in engines if not (WORKERS / f"{engine}_worker.py").exists()] == []


def test_schemes_run_beside_bfloat16_and_the_others_of_their_width(
    arguments: argparse.Namespace,
) -> None:
    arguments.ik_llama_cpp_python, arguments.llama_cpp_models = "/env/bin/python", "/gguf"
    found = list_schemes(arguments)
    assert [group for group, _ in found] == ["int8"] * 3 + ["int4"] * 2
    for group, contestants in found:
        labels = [one.label for one in contestants]
        assert labels[0] == f"{OURS} bf16"
        kind = {"int8": "Q8_0", "int4": "Q4_0"}[group]
        assert labels[-2:] == [f"ik_llama_cpp {kind}", f"ik_llama_cpp {kind}-repacked"]
    stored = [one for _, contestants in found for one in contestants if "stored" in one.variant]
    assert [one.variant for one in stored] == [f"stored-{name}" for name in SCHEMES]
    assert stored[0].model == "/slices/slim-w8a16"


def test_vllm_reads_what_it_can_of_the_same_folders(arguments: argparse.Namespace) -> None:
    arguments.vllm_python, arguments.schemes = "/env/bin/python", ["slim-w4a16", "awq"]
    ((_, contestants),) = list_schemes(arguments)
    assert [(one.label, one.model) for one in contestants if one.engine == "vllm"] == [
        ("vllm awq", "/slices/awq")
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--mode", "schemes"], "--mode schemes needs --slices"),
        (["--ik_llama_cpp_python", "p"], "need --llama_cpp_models"),
        (["--schemes", "w3"], "invalid choice: 'w3'"),
    ],
)
def test_what_is_missing_on_the_command_line_is_said(
    given: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_generate.py", "--model", "/slice", *given])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert words in capsys.readouterr().err


def test_a_build_of_what_is_no_source_folder_is_one_sentence(tmp_path: Path) -> None:
    script = WORKERS / "build_ik_llama.sh"
    for given, words in (
        ([], "usage: "),
        ([str(tmp_path / "env"), str(tmp_path)], "is no source folder of ik_llama.cpp"),
    ):
        ended = subprocess.run(["sh", str(script), *given], capture_output=True, text=True)
        assert ended.returncode == 2
        assert words in ended.stderr
        assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "env").exists()


def test_vllm_counts_the_weights_of_a_folder_without_the_embedding(tmp_path: Path) -> None:
    from vllm_worker import count_weight_bytes

    tensors = {"model.embed_tokens.weight": np.ones((4, 2), np.float32)}
    tensors |= {"model.norm.weight": np.ones(2, np.float32), "a.qweight": np.ones(3, np.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert count_weight_bytes(tmp_path) == 20
