"""`mindformers-glm serve [DIR]`: a model behind OpenAI's routes."""

import argparse
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options, add_other_names
from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig, load_run_config, prepare_environment
from mindformers_glm.config.serve_settings import WITHOUT_EFFECT
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.predict import check_folder, tell_level
from mindformers_glm.serving.ranks import RankStarter, ends_by_signal, follow_rank_0
from mindformers_glm.system.interrupts import exit_at_once, leave_at_once, on_interrupt
from mindformers_glm.system.log import note, write_line

if TYPE_CHECKING:
    from mindformers_glm.engine.llm import LLM
    from mindformers_glm.serving.server.run_server import ListenSettings

_ENGINE_STOP_S = 30.0
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s\"',]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: settings, and the spellings of other servers."""
    parser.add_argument("folder", nargs="?", metavar="DIR", help="same as --pretrained_model_dir")
    parser.add_argument(
        "--ray",
        nargs="+",
        metavar="NAME=VALUE",
        help="serve by Ray: replicas=N[,min=N,max=N,ingresses=N,address=...] (docs/ray.md)",
    )
    add_options(parser, "serve")
    add_other_names(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the end and return the exit code."""
    on_interrupt(exit_at_once)
    _tell_other_names(arguments)
    if arguments.folder is not None:
        arguments.given = (*arguments.given, ("pretrained_model_dir", [arguments.folder]))
    config = load_run_config(
        arguments,
        script_folder=arguments.script_folder,
        default_target=default_target(),
        start_ranks=RankStarter(arguments.words) if arguments.ray is None else _refuse_ranks,
    )
    if not config.verbose:
        warnings.filterwarnings("ignore")
    if config.rank > 0 and arguments.ray is None:
        return follow_rank_0(config, _llm_arguments(config))
    _check_packages()
    _check_origins(config.server["allowed_origins"])
    if arguments.ray is not None:
        from mindformers_glm.serving.ray.serve import serve_on_ray

        return serve_on_ray(arguments, config)
    return serve(config, _typed_folder(arguments))


def serve(config: RunConfig, typed_folder: str | None) -> int:
    """Load the model of `config` and answer requests; what can be wrong is looked for first.

    Args:
        typed_folder: the model as the user has called it: requests may call it so too.
    Returns:
        The exit code: 0 after a signal, 1 where the engine has failed.
    """
    from mindformers_glm.serving.server.app import create_app
    from mindformers_glm.serving.server.engine_link import EngineLink, Limits
    from mindformers_glm.serving.server.metrics import Metrics
    from mindformers_glm.serving.server.run_server import (
        HttpServer,
        allow_many_connections,
        check_tls,
        open_socket,
    )
    from mindformers_glm.serving.server.service import Service, ServiceSettings

    server = config.server
    SamplingParams(**config.sampling)  # as early as it can be known
    keys = api_keys(server["api_key"], server["api_key_file"])
    listen = _listen_settings(config)
    check_tls(listen)
    check_folder(config)
    names = _model_names(config, typed_folder)
    allow_many_connections()
    listener = open_socket(listen.host, listen.port)
    prepare_environment(config)
    tell_level(config)
    llm_arguments = _llm_arguments(config)
    max_running = llm_arguments["max_num_seqs"] or 32  # LLM's own default
    limits = Limits(max_running + server["max_queued_requests"], server["request_timeout_s"])
    metrics = Metrics(names[0])
    link = EngineLink(
        lambda: _open_llm(config.pretrained_model_dir, llm_arguments), limits, metrics
    )
    llm = link.start()
    metrics.watch(lambda: link.state, lambda: link.num_open)
    settings = ServiceSettings(
        str(config.pretrained_model_dir),
        names,
        server["any_model_name"],
        config.sampling,
        server["max_body_size"],
        server["client_timeout_s"],
        server["keep_alive_s"],
    )
    app = create_app(
        Service(link, llm, settings),
        api_keys=keys,
        allowed_origins=server["allowed_origins"],
        has_access_log=server["access_log"],
    )
    address = listener.getsockname()

    def tell_ready() -> None:
        ends_by_signal(listen.drain_timeout_s + _ENGINE_STOP_S)
        _tell_ready(config, llm, names, address, has_key=bool(keys))

    exit_code = HttpServer(app, link, listen, tell_ready).run_on(listener)
    return _end(link, exit_code)


def _refuse_ranks(num_ranks: int) -> NoReturn:
    from mindformers_glm.serving.ray.app import refuse_ranks

    refuse_ranks(num_ranks)


def _end(link: Any, exit_code: int) -> int:
    if link.problem is not None:
        leave_at_once(1)  # what it holds may never be given back
    try:
        link.stop(_ENGINE_STOP_S)
    except Exception as problem:
        write_line(f"error: {problem}")
        leave_at_once(1)
    return exit_code


def _open_llm(folder: Path, arguments: dict[str, Any]) -> "LLM":
    """Load the model and compile what the first step would; in the engine's thread."""
    from mindformers_glm import LLM

    llm: LLM = LLM(folder, **arguments)
    llm.warm_up()
    return llm


def _llm_arguments(config: RunConfig) -> dict[str, Any]:
    return {**config.llm, **config.server_llm}


def _listen_settings(config: RunConfig) -> "ListenSettings":
    from mindformers_glm.serving.server.run_server import ListenSettings

    server = config.server
    return ListenSettings(
        server["host"],
        server["port"],
        server["ssl_certfile"],
        server["ssl_keyfile"],
        server["client_timeout_s"],
        server["drain_timeout_s"],
    )


def _model_names(config: RunConfig, typed_folder: str | None) -> tuple[str, ...]:
    if given := config.server["served_model_name"]:
        if not all(given):
            raise ConfigError("served_model_name is empty: give a name, or leave it out.")
        return tuple(dict.fromkeys(given))
    own = config.pretrained_model_dir.resolve().name
    return tuple(dict.fromkeys([own, *([typed_folder] if typed_folder else [])]))


def _typed_folder(arguments: argparse.Namespace) -> str | None:
    given = [texts[0] for name, texts in arguments.given if name == "pretrained_model_dir"]
    return given[-1] if given else None


def _tell_other_names(arguments: argparse.Namespace) -> None:
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(arguments, name) is not None:
            note(f"--{name} changes nothing here: {reason}")


def _tell_ready(
    config: RunConfig, llm: "LLM", names: Sequence[str], address: Any, *, has_key: bool
) -> None:
    """One summary, when requests are answered."""
    scheme = "https" if config.server["ssl_certfile"] else "http"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    engine = llm.engine.config
    num_tokens = engine.num_blocks * engine.block_size
    note(
        f"serving {', '.join(names)} at {scheme}://{host}:{address[1]}/v1, "
        f"{'with' if has_key else 'without'} API key{_name_ranks(llm)}; {engine.max_num_seqs} "
        f"answers together, up to {engine.max_model_len} tokens each, {num_tokens} in the KV "
        f"cache; weights {llm.weights_bytes / 2**30:.2f} GiB {llm.settings.params_dtype}, KV cache "
        f"{llm.kv_cache_bytes / 2**30:.2f} GiB"
    )
    if not has_key and address[0] not in ("127.0.0.1", "::1"):
        note("anybody who reaches this address can use the model: --api_key_file asks for a key")


def _name_ranks(llm: "LLM") -> str:
    return f", on {llm.group.size} ranks" if llm.group.size > 1 else ""


def _check_origins(origins: Sequence[str]) -> None:
    """Refuse what no browser calls a page's origin: it would forbid all pages in silence."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                "allowed_origins must be origins of web pages, such as https://HOST or "
                f"http://HOST:PORT without a path, or *, got {origin!r:.80}."
            )


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [
        name
        for name in ("starlette", "uvicorn", "httptools", "prometheus_client")
        if find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"serve needs {', '.join(missing)}: run pip install 'mindformers-glm[serve]', or "
            "pip install -e '.[serve]' in the source folder."
        )
