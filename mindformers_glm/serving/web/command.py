"""`mindformers-glm webui [DIR]`: a chat in the browser."""

import argparse
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options
from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.chat.command import refuse_local_settings
from mindformers_glm.serving.chat.server import ServerModel, is_url, sampling_fields
from mindformers_glm.serving.web.server import OwnServer
from mindformers_glm.system.interrupts import exit_at_once, on_interrupt
from mindformers_glm.system.log import note, write_line

if TYPE_CHECKING:
    from mindformers_glm.serving.web.page import PageSettings

_PACKAGES = ("gradio", "fastapi", "uvicorn", "httptools", "prometheus_client")
# A field of the page that a setting gives its first value -> the field of SamplingParams.
_ON_THE_PAGE = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of the page, and settings."""
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="a checkpoint folder, which a server of the page's own serves (same as "
        "--pretrained_model_dir); none: glm4-mini",
    )
    parser.add_argument(
        "--api_base_url", metavar="URL", help="a running server with OpenAI's routes instead"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address of the page")
    parser.add_argument("--port", default="7860", help="port of the page; 0: one that is free")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt at first")
    parser.add_argument("--tools", metavar="FILE", help="JSON file of functions to offer at first")
    parser.add_argument("--model", default="", metavar="NAME", help="the model's name at the URL")
    parser.add_argument("--api_key_file", metavar="FILE", help="the key for the server, in a file")
    parser.add_argument(
        "--tp_size", default="1", metavar="N", help="processes that share the model in DIR"
    )
    add_options(parser, "webui")


def run(arguments: argparse.Namespace) -> int:
    """Show the page until a signal comes and return the exit code."""
    on_interrupt(exit_at_once)
    url = arguments.api_base_url
    _check_together(arguments)
    if arguments.folder is not None:
        arguments.given = (*arguments.given, ("pretrained_model_dir", [arguments.folder]))
    config = load_run_config(
        arguments, script_folder=arguments.script_folder, default_target=default_target()
    )
    if not config.verbose:
        warnings.filterwarnings("ignore")
    SamplingParams(**config.sampling)  # as early as it can be known
    _check_packages()
    from mindformers_glm.serving.server.run_server import open_socket

    make_settings = _read_settings(arguments, config)
    listener = open_socket(arguments.host, _read_number("port", arguments.port, low=0))
    if url is not None:
        model = ServerModel(url, model=arguments.model, api_key=_key(arguments), fields={})
        return _show(make_settings(url), listener, model.name, None)
    server = OwnServer(_words_for_serve(arguments))
    try:
        import gradio  # noqa: F401  takes seconds, in which the model is loaded

        own_url = server.wait_until_ready()
        model = ServerModel(own_url, api_key=_key(arguments), fields={})
        return _show(make_settings(own_url), listener, model.name, server)
    finally:
        server.end()


def _show(settings: "PageSettings", listener: Any, name: str, server: OwnServer | None) -> int:
    from mindformers_glm.serving.web.app import PageServer, create_web_app
    from mindformers_glm.serving.web.page import ChatPage

    page = ChatPage(settings)
    page_server = PageServer(create_web_app(page), page.answers.stop_all)
    exit_code = 0

    def take_death(server_exit_code: int) -> None:
        nonlocal exit_code
        exit_code = 1
        write_line(f"error: the server of the page has ended with exit code {server_exit_code}")
        page_server.end()

    if server is not None:
        server.watch(take_death)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    note(f"a chat with {name} is at http://{shown}:{port}; Ctrl-C ends it")
    if host not in ("127.0.0.1", "::1"):
        note("anybody who reaches this address can use the model")
    page_server.run_on(listener)
    return exit_code


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuse what the place of the model gives no meaning."""
    url = arguments.api_base_url
    if url is None:
        if arguments.folder is not None and is_url(arguments.folder):
            raise ConfigError(f"{arguments.folder} is a server: give it as --api_base_url.")
        if arguments.model:
            raise ConfigError("--model belongs to --api_base_url, and none is given: leave it out.")
        return
    if not is_url(url):
        raise ConfigError(f"--api_base_url must begin with http:// or https://, got {url!r}.")
    if arguments.folder is not None:
        raise ConfigError(
            f"The model runs at {url} or is {arguments.folder}: give the URL or the folder."
        )
    if arguments.tp_size != "1":
        raise ConfigError(f"--tp_size is for a model in DIR, and this one runs at {url}.")
    refuse_local_settings(arguments, url)


def _read_settings(
    arguments: argparse.Namespace, config: RunConfig
) -> "Callable[[str], PageSettings]":
    """Read all that a page is told but the server's URL, which may be known later only."""
    from mindformers_glm.serving.chat.files import read_tools
    from mindformers_glm.tokenizer.tool_call import write_json

    fields: dict[str, Any] = {}
    if arguments.api_base_url is not None:  # a server of one's own is started with these
        fields = sampling_fields(
            {k: v for k, v in config.sampling.items() if k not in _ON_THE_PAGE.values()}
        )
        if kwargs := config.llm["chat_template_kwargs"]:
            fields["chat_template_kwargs"] = dict(kwargs)
    sampling = {name: config.sampling[field] for name, field in _ON_THE_PAGE.items()}
    tools = write_json(read_tools(arguments.tools)) if arguments.tools else ""
    key = _key(arguments)

    def make(url: str) -> "PageSettings":
        from mindformers_glm.serving.web.page import PageSettings

        return PageSettings(url, arguments.model, key, fields, sampling, arguments.system, tools)

    return make


def _words_for_serve(arguments: argparse.Namespace) -> list[str]:
    """The command line of the page's own server: the same settings."""
    words = ["--config", arguments.config] if arguments.config is not None else []
    for name, texts in arguments.given:
        # --name=VALUE takes a value that begins with -.
        words += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
    if arguments.options:
        words += ["--options", *arguments.options]
    if arguments.api_key_file is not None:
        words += ["--api_key_file", arguments.api_key_file]
    num_processes = _read_number("tp_size", arguments.tp_size, low=1)
    return words + (["--tensor_parallel_size", str(num_processes)] if num_processes > 1 else [])


def _key(arguments: argparse.Namespace) -> str:
    return next(iter(api_keys([], arguments.api_key_file)), "")


def _read_number(name: str, text: str, *, low: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < low:
        raise ConfigError(f"--{name} must be a whole number of at least {low}, got {text!r}.")
    return int(text)


def _check_packages() -> None:
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"webui needs {', '.join(missing)}: run pip install 'mindformers-glm[web]', or pip "
            "install -e '.[web]' in the source folder."
        )
