"""`mindformers-glm chat [DIR|URL]`: a conversation on the terminal."""

import argparse
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options, given_settings
from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig, load_run_config, prepare_environment
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.chat.files import read_tools
from mindformers_glm.serving.chat.model import ChatModel, LocalModel
from mindformers_glm.serving.chat.screen import PlainScreen, Screen, TerminalScreen
from mindformers_glm.serving.chat.server import ServerModel, is_url, sampling_fields
from mindformers_glm.serving.chat.session import ChatSession, interrupt_lines
from mindformers_glm.serving.predict import check_folder, tell_level
from mindformers_glm.serving.ranks import RankStarter, follow_rank_0, stops_by_interrupt
from mindformers_glm.system.interrupts import (
    exit_at_once,
    leave_at_once,
    on_interrupt,
    raise_once,
)
from mindformers_glm.system.log import write_line
from mindformers_glm.system.streams import keep_terminal

# Settings beside sampling that have a meaning for a server's model.
_FOR_SERVERS = ("chat_template_kwargs", "verbose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of the chat, and settings."""
    parser.add_argument(
        "place",
        nargs="?",
        metavar="DIR|URL",
        help="a checkpoint folder (same as --pretrained_model_dir), or a server with OpenAI's "
        "routes: http://HOST:PORT",
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    parser.add_argument("--tools", metavar="FILE", help="JSON file of functions to offer")
    parser.add_argument("--model", default="", metavar="NAME", help="the model's name at the URL")
    parser.add_argument("--api_key_file", metavar="FILE", help="the key for the URL, in a file")
    add_options(parser, "chat")


def run(arguments: argparse.Namespace) -> int:
    """Chat until the end and return the exit code."""
    on_interrupt(exit_at_once)
    place = arguments.place
    is_remote = place is not None and is_url(place)
    if place is not None and not is_remote:
        arguments.given = (*arguments.given, ("pretrained_model_dir", [place]))
    _check_together(arguments, is_remote=is_remote)
    config = load_run_config(
        arguments,
        script_folder=arguments.script_folder,
        default_target=default_target(),
        start_ranks=RankStarter(arguments.words),
    )
    if not config.verbose:
        warnings.filterwarnings("ignore")
    params = SamplingParams(**config.sampling)  # as early as it can be known
    if is_remote and config.llm["model_parallel"] > 1:
        raise ConfigError(
            f"The model runs at {arguments.place}, and one process talks to it: start no ranks."
        )
    if config.rank > 0:
        return follow_rank_0(config, config.llm)
    tools = read_tools(arguments.tools) if arguments.tools else []
    screen = open_screen()
    model = _reach(arguments, config) if is_remote else _load(config, params)
    if screen.is_terminal:
        interrupt_lines()
        stops_by_interrupt()
        screen.tell(f"{model.name}: /help lists the commands, Ctrl-D ends the chat")
    else:
        on_interrupt(raise_once)
    with closing(model):
        return ChatSession(model, screen, system=arguments.system, tools=tools).run()


def open_screen() -> Screen:
    """The terminal if there is one on both sides, else plain streams."""
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalScreen.open()
    return PlainScreen()


def _check_together(arguments: argparse.Namespace, *, is_remote: bool) -> None:
    """Refuse what the place of the model gives no meaning."""
    if not is_remote:
        for name in ("model", "api_key_file"):
            if getattr(arguments, name):
                raise ConfigError(f"--{name} belongs to a URL, and none is given: leave it out.")
        return
    refuse_local_settings(arguments, arguments.place)


def refuse_local_settings(arguments: argparse.Namespace, url: str) -> None:
    """Refuse settings that a model at a URL cannot be given.

    Raises:
        ConfigError: there is one.
    """
    for path in given_settings(arguments):
        setting = SETTINGS.find(path)
        if setting is not None and setting.use != "sampling" and setting.name not in _FOR_SERVERS:
            raise ConfigError(
                f"{path} is for a model in this process, and this one runs at {url}: leave it out."
            )


def _reach(arguments: argparse.Namespace, config: RunConfig) -> ChatModel:
    fields: dict[str, Any] = sampling_fields(config.sampling)
    if kwargs := config.llm["chat_template_kwargs"]:
        fields["chat_template_kwargs"] = dict(kwargs)
    keys = api_keys([], arguments.api_key_file, {})
    return ServerModel(
        arguments.place, model=arguments.model, api_key=keys[0] if keys else "", fields=fields
    )


def _load(config: RunConfig, params: SamplingParams) -> ChatModel:
    """Load the model; this is where MindSpore is imported."""
    check_folder(config)
    prepare_environment(config)
    tell_level(config)
    from mindformers_glm import LLM

    llm = LLM(config.pretrained_model_dir, **config.llm)
    llm.warm_up()
    from mindformers_glm.engine.led_engine import LedEngine

    restore = keep_terminal()

    def leave(problem: Exception) -> None:
        restore()
        write_line(f"error: {problem}")
        leave_at_once(1)

    name = Path(config.pretrained_model_dir).resolve().name
    return LocalModel(llm, LedEngine(llm, leave), name, params)
