"""The command line of `serve`, ours and that of other servers."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving import serve
from mindformers_glm.serving.server.run_server import ListenSettings, check_tls, open_socket


def _arguments(*argv: str) -> argparse.Namespace:
    parser = SentenceParser(prog="serve", allow_abbrev=False)
    serve.add_arguments(parser)
    return parser.read(argv)


def _config(*argv: str) -> RunConfig:
    return load_run_config(_arguments(*argv), environ={})


def test_defaults_are_safe() -> None:
    config = _config()
    assert config.server["host"] == "127.0.0.1"
    assert config.server["allowed_origins"] == ()
    assert not config.server["any_model_name"]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max-num-seqs", "8"], "max_num_seqs", 8),
        (["--batch_size", "16"], "max_num_seqs", 16),
        (["--max-num-batched-tokens", "256"], "max_num_batched_tokens", 256),
        (["--dtype", "bfloat16"], "params_dtype", "bfloat16"),
        (["--dtype", "half"], "params_dtype", "float16"),
        (["--dtype", "float32"], "compute_dtype", "float32"),
        (["--dtype=float"], "params_dtype", "float32"),
        (["--dtype", "auto"], "params_dtype", "bfloat16"),
        (["--block-size", "16"], "block_size", 16),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--enable-prefix-caching"], "enable_prefix_caching", True),
        (["--tool-call-parser", "glm_4"], "tool_call_parser", "glm_4"),
        (["--max-model-len", "4096"], "max_model_len", 4096),
        ([], "prefill_tokens_beside_decode", 256),
        ([], "max_num_seqs", None),
        (["--options", "predict_batch_size=3"], "max_num_seqs", None),
    ],
)
def test_spellings_of_vllm_reach_the_model(argv: list[str], name: str, value: Any) -> None:
    if "predict_batch_size=3" in argv:
        with pytest.raises(CommandLineError, match="not of serve"):
            _config(*argv)
        return
    assert serve._llm_arguments(_config(*argv))[name] == value


def test_yaml_keys_stand_in_a_block(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("serve:\n  port: 9000\n  served_model_name: [a, b]\npredict_batch_size: 4\n")
    config = _config("--config", str(path), "--port", "9001")
    assert config.server["port"] == 9001
    assert serve._model_names(config, None) == ("a", "b")
    assert serve._llm_arguments(config)["max_num_seqs"] is None


def test_the_folder_is_a_name_of_the_model_too(tmp_path: Path) -> None:
    folder = tmp_path / "GLM-4"
    folder.mkdir()
    config = _config("--model", str(folder))
    assert serve._model_names(config, f"{folder}") == ("GLM-4", str(folder))


def test_options_of_vllm_without_effect_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments("--gpu-memory-utilization", "0.9", "--enable-auto-tool-choice")
    serve._tell_other_names(arguments)
    told = capsys.readouterr().err
    assert "--gpu_memory_utilization changes nothing here" in told
    assert "--enable_auto_tool_choice changes nothing here: it is always so" in told


def test_an_unknown_option_is_a_sentence() -> None:
    with pytest.raises(CommandLineError, match="Unknown setting"):
        _config("--prot", "80")


@pytest.mark.parametrize("argv", [["--foo", "1"], ["--options", "foo=1"]])
def test_an_unknown_option_points_to_its_own_help(argv: list[str]) -> None:
    with pytest.raises(CommandLineError, match="mindformers-glm serve --help lists them"):
        _config(*argv)


def test_keys_come_from_three_places(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("b\nc\n")
    assert api_keys(["a"], str(path), {"MINDFORMERS_GLM_API_KEY": "d"}) == ("a", "b", "c", "d")
    assert api_keys([], None, {}) == ()
    path.write_text("  b  \r\n\n")
    assert api_keys([], str(path), {}) == ("b",)
    path.write_text("my secret\n")  # not two keys
    with pytest.raises(ConfigError, match="without blanks"):
        api_keys([], str(path), {})
    path.write_text("")
    for given, file in ([], str(path)), (["a b"], None), ([""], None), (["ключ"], None):
        with pytest.raises(ConfigError):
            api_keys(given, file, {})


@pytest.mark.parametrize(
    ("given", "text", "environ", "place"),
    [
        (["a b"], "", {}, "--api_key"),
        ([], "good\n\na b\n", {}, "line 3 of api_key_file"),
        ([], "", {"MINDFORMERS_GLM_API_KEY": "a b"}, "the variable MINDFORMERS_GLM_API_KEY"),
    ],
)
def test_a_wrong_key_is_told_by_its_place_and_not_shown(
    tmp_path: Path, given: list[str], text: str, environ: dict[str, str], place: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=place) as found:
        api_keys(given, str(path) if text else None, environ)
    assert "a b" not in str(found.value)


@pytest.mark.parametrize("origin", ["*", "https://page.test", "http://[::1]:80", "app://x"])
def test_origins_of_pages_are_taken(origin: str) -> None:
    serve._check_origins((origin,))


@pytest.mark.parametrize("origin", ["page.test", '["*"]', "https://page.test/", "", "null"])
def test_what_is_no_origin_of_a_page_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins must be origins"):
        serve._check_origins(("https://page.test", origin))


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 65535, got 70000"):
        open_socket("127.0.0.1", 70000)


def test_files_for_tls_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("no certificate")
    with pytest.raises(ConfigError, match="no PEM, or broken") as told:
        check_tls(ListenSettings("127.0.0.1", 0, str(path), None, 1.0, 1.0))
    assert "_ssl.c" not in str(told.value)
    assert "None" not in str(told.value)
