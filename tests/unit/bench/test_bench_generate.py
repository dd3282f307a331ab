"""Which engines bench_generate.py measures."""

import argparse
from typing import Any

import pytest
from bench_generate import FORMATS, list_contestants, split_contestants
from generate.measure import OURS, WORKERS


@pytest.fixture
def arguments() -> argparse.Namespace:
    nothing: dict[str, Any] = dict.fromkeys(
        ["hf_python", "llama_cpp_python", "llama_cpp_models", "openvino_python", "openvino_models"]
    )
    return argparse.Namespace(model="/slice", skip=[], pairs=False, **nothing)


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
