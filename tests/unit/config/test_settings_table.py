"""One row is a whole setting: what follows from the table, and that its rows hold."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import mindformers_glm
from mindformers_glm import LLM, SamplingParams
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.config.setting import Setting, SettingsTable
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.config.value_types import INTEGER
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.llm_arguments import DEFAULT_PROMPT_LOOKUP_NUM_TOKENS
from mindformers_glm.serving.predict import create_llm
from scripts.write_configuration_docs import tables_by_page
from tests.unit.config.predict_arguments import predict_arguments


def load(*argv: str) -> RunConfig:
    return load_run_config(predict_arguments(*argv), environ={})


def add_row(monkeypatch: pytest.MonkeyPatch, row: Setting) -> None:
    """Let the table have one more row, in the section Memory."""
    memory = (*SETTINGS.sections["Memory"], row)
    for name, value in vars(SettingsTable({**SETTINGS.sections, "Memory": memory})).items():
        monkeypatch.setattr(SETTINGS, name, value)


@pytest.fixture
def _new_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Setting(
        "context.new_knob", INTEGER, 3, "turns the knob", "LLM", minimum=1, options=("knob",)
    )
    add_row(monkeypatch, row)


@pytest.mark.usefixtures("_new_knob")
def test_a_row_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict_arguments("--help")
    assert "--knob N turns the knob (default 3)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("_new_knob")
def test_a_row_is_read_from_yaml_and_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("context: {new_knob: 4}")
    given = ["--config", str(path)]
    assert load().llm["new_knob"] == 3
    assert load(*given).llm["new_knob"] == 4
    assert load(*given, "--knob", "5").llm["new_knob"] == 5
    assert load(*given, "--options", "context.new_knob=6").llm["new_knob"] == 6


@pytest.mark.usefixtures("_new_knob")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--context.new_knob", "0"], "must be at least 1, got 0"),
        (["--context.new_knob", "x"], "must be a whole number, got 'x'"),
        (["--context.new_knop", "4"], r"did you mean context\.new_knob\?"),
    ],
)
def test_a_row_is_checked(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*argv)


@pytest.mark.usefixtures("_new_knob")
def test_a_row_is_handed_to_what_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindformers_glm, "LLM", lambda folder, **given: given, raising=False)
    handed: Any = create_llm(load("--knob", "7"))
    assert handed["new_knob"] == 7


@pytest.mark.usefixtures("_new_knob")
def test_a_row_is_documented() -> None:
    memory = tables_by_page()["configuration.md"]["Memory"]
    assert "| `context.new_knob` (`--knob`) | 3 | turns the knob |\n" in memory


def test_a_row_of_another_device_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_row(monkeypatch, Setting("cpu_knob", INTEGER, use="LLM", backend="CPU"))
    load("--cpu_knob", "1")
    load("--cpu_knob", "1", "--device_target", "CPU")
    assert capsys.readouterr().err == ""
    load("--cpu_knob", "1", "--device_id", "3", "--device_target", "Ascend")
    assert capsys.readouterr().err == (
        "mindformers_glm: --cpu_knob 1 changes nothing here: it takes effect on CPU only\n"
    )


def test_the_check_of_a_row_sees_the_value_that_was_settled_on(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("num_threads: 100000")
    assert load("--config", str(path), "--num_threads", "1").llm["num_threads"] == 1
    with pytest.raises(ConfigError, match="the processors of this machine, got 100000"):
        load("--config", str(path))


def test_what_is_settled_cannot_be_changed() -> None:
    config: Any = load()
    with pytest.raises(TypeError):
        config.llm["seed"] = 1


def test_each_row_names_an_argument_that_is_there() -> None:
    names = {use: {row.name for row in SETTINGS if row.use == use} for use in ("LLM", "sampling")}
    assert names["LLM"] <= set(inspect.signature(LLM).parameters)
    assert names["sampling"] <= {field.name for field in fields(SamplingParams)}
    for use, found in names.items():
        assert len(found) == sum(row.use == use for row in SETTINGS)


def test_no_setting_is_silently_ignored() -> None:
    idle = [
        row.path
        for row in SETTINGS
        if not (row.use or row.only or row.without_effect or row.backend)
    ]
    assert idle == ["trainer.model_name"]  # a label


def test_the_default_draft_length_is_the_engines() -> None:
    row = SETTINGS.find("prompt_lookup_num_tokens")
    assert row is not None
    assert row.unset == str(DEFAULT_PROMPT_LOOKUP_NUM_TOKENS)


def test_defaults_of_the_table_are_those_of_the_settings_they_set() -> None:
    settings = vars(RunnerSettings.with_defaults("bfloat16", 8192))
    rows = [row for row in SETTINGS if row.use == "LLM" and row.default is not None]
    own = {row.name: row.default for row in rows if row.name in settings}
    own.pop("max_num_seqs")  # predict runs one prompt at a time unless told otherwise
    assert own == {name: settings[name] for name in own}
    assert "block_size" in own


def test_no_name_means_two_settings() -> None:
    names = [name for row in SETTINGS for name in (row.path, *row.aliases)]
    assert len(names) == len(set(names))
