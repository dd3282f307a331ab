"""What `serve --ray` and `predict --ray` refuse, and what they hand to other processes."""

import argparse
import json
import signal
from pathlib import Path

import pytest

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options, add_other_names
from mindformers_glm.config.run_config import load_run_config
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving import cli
from mindformers_glm.serving.ray import cluster as ray_cluster
from mindformers_glm.serving.ray import serve as ray_serve
from mindformers_glm.serving.ray.words import given_words, read_words


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and no key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINDFORMERS_GLM_API_KEY", raising=False)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a Ray, which must not be asked."""
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(ray_cluster, "version", lambda name: "2.60.0")


def _arguments(*words: str) -> argparse.Namespace:
    parser = SentenceParser(prog="serve", allow_abbrev=False)
    add_options(parser, "serve")
    add_other_names(parser)
    return parser.read(list(words))


def _handed_on(*words: str) -> list[str]:
    arguments = _arguments(*words)
    config = load_run_config(arguments, script_folder=None, default_target=default_target())
    return given_words(arguments, config)


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "model", "--api-key-file", "keys"),
        ("--load_checkpoint=model", "--serve.api_key_file=keys"),
        ("--options", "pretrained_model_dir=model", "api_key_file=keys"),
        ("--config", "c.yaml"),
    ],
)
def test_files_are_found_from_another_folder(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({}))
    (tmp_path / "keys").write_text("secret")
    (tmp_path / "c.yaml").write_text("load_checkpoint: model\nserve: {api_key_file: keys}\n")
    handed_on = _handed_on(*words)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    config = read_words(handed_on)
    assert config.pretrained_model_dir == tmp_path / "model"
    assert config.server["api_key_file"] == str(tmp_path / "keys")


@pytest.mark.parametrize(
    "words",
    [
        ("--chat_template", "t.jinja"),
        ("--options", "chat_template=t.jinja"),
        ("--config", "c.yaml"),
    ],
)
def test_a_template_is_found_from_another_folder(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    (tmp_path / "c.yaml").write_text("chat_template: t.jinja\n")
    handed_on = _handed_on(*words)
    monkeypatch.chdir("/")
    assert read_words(handed_on).llm["chat_template"] == str(tmp_path / "t.jinja")


@pytest.mark.parametrize("template", ["{{ messages }}", "tool_use", "none.jinja", "x" * 5000])
def test_a_template_that_is_no_file_stays_as_it_is(template: str, tmp_path: Path) -> None:
    (tmp_path / "tool_use").touch()  # a name of the checkpoint's comes before a file's
    handed_on = _handed_on("--chat_template", template)
    assert handed_on == [f"--chat_template={template}"]


def test_what_is_not_given_is_not_handed_on() -> None:
    assert _handed_on("--max_num_seqs", "4") == ["--max_num_seqs=4"]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("serve --ray replicas=0", "--ray replicas= takes a whole number from 1, got '0'"),
        ("serve --ray replicas=x", "--ray replicas= takes a whole number from 1, got 'x'"),
        ("serve --ray", "--ray: expected at least one argument"),
        ("serve --ray replicas=2 --tensor-parallel-size 2", "one process each"),
        ("serve --ray replicas=2 --ssl_certfile c.pem", "plain HTTP"),
        ("serve --ray replicas=2 --pretrained_model_dir nowhere", "nowhere"),
        ("serve --ray replicas=2 --port 70000", "0 to 65535"),
        ("predict --ray replicas=2,max=3 --predict_data a", "takes replicas=, cpus= and address="),
        ("predict --ray replicas=0 --predict_data a", "whole number from 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) != 0
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if not line.startswith("mindformers_glm: ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert wanted in errors[0]


@pytest.mark.usefixtures("ray")
def test_a_taken_port_is_told_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with ray_serve.open_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert cli.main(["serve", "--ray", "replicas=1", "--port", str(port)]) != 0
    assert "another program has it" in capsys.readouterr().err


@pytest.mark.usefixtures("ray")
def test_a_key_that_others_would_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINDFORMERS_GLM_API_KEY", "secret")
    assert cli.main(["serve", "--ray", "replicas=1,address=10.0.0.1:6379"]) != 0
    error = capsys.readouterr().err
    assert "give --api_key_file" in error
    assert "secret" not in error


def test_a_missing_or_other_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mindformers-glm\[ray\]'"):
        ray_cluster.check_packages("ray")
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(ray_cluster, "version", lambda name: "2.9.3")
    with pytest.raises(ConfigError, match=r"2\.9\.3 is installed"):
        ray_cluster.check_packages("ray")


def test_a_second_signal_hurries_and_one_that_is_heard_twice_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(ray_serve.time, "monotonic", lambda: now_s)
    signals = ray_serve.Signals()
    assert not signals.has_come
    signals.take(signal.SIGTERM, None)
    signals.take(signal.SIGTERM, None)
    assert (signals.has_come, signals.has_hurried) == (True, False)
    now_s = 102.0
    signals.take(signal.SIGINT, None)
    assert signals.has_hurried
