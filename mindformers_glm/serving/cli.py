"""The console command `mindformers-glm`: one subcommand per thing a user does.

Exit codes: 0 done; 1 an error of the user, a prompt that failed, or a defect; 2 a command line
that cannot be understood; 130 interrupted; 141 nobody reads the output any more.
"""

# Little is imported before `main` can answer Ctrl-C; the functions below import the rest.
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mindformers_glm.core.errors import GlmError, first_words
from mindformers_glm.system.log import set_verbose
from mindformers_glm.version import __version__

EXIT_INTERRUPTED = 130
_INTERRUPTED = "interrupted"
_HELP = """\
usage: mindformers-glm COMMAND ...

  predict   answer prompts with a GLM model (--help lists its options)
  inspect   describe and check a checkpoint folder without loading it: inspect DIR
  cache     packed caches of loaded weights: cache list|verify|clear [DIR ...]
  download  a published checkpoint: download NAME (--help lists its options)
  --version versions of this project and of what it runs on
  --help    this text
"""


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "mindformers-glm",
    script_folder: Path | None = None,
) -> int:
    """Run one command and return its exit code; errors become one sentence on stderr.

    Args:
        argv: the arguments, sys.argv's unless given.
        prog: how the command is called in help texts.
        script_folder: where relative --config names are also looked for.
    """
    _on_interrupt(_exit_at_once)
    from mindformers_glm.config.command_line import CommandLineError, asks_for_verbose

    arguments = list(sys.argv[1:] if argv is None else argv)
    is_verbose = asks_for_verbose(arguments)

    def on_verbose(is_asked: bool) -> None:
        """Follow the setting once it is known: YAML may give it too."""
        nonlocal is_verbose
        is_verbose = is_asked
        set_verbose(is_asked)
        if not is_asked:
            # Upstream's deprecation warnings concern its developers.
            warnings.filterwarnings("ignore")

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        exit_code = _run(arguments, prog, script_folder, on_verbose)
        sys.stdout.flush()  # so that a closed pipe is noticed here
        return exit_code
    except CommandLineError as problem:
        return _fail(problem, 2, is_verbose)
    except GlmError as problem:
        return _fail(problem, 1, is_verbose)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again when it exits: give it a place that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as problem:
        defect = f"internal error, {type(problem).__name__}: {first_words(problem)}"
        hint = "" if is_verbose else " (run again with --verbose for the whole story)"
        return _fail(f"{defect}{hint}", 1, is_verbose)


def _fail(problem: object, exit_code: int, is_verbose: bool) -> int:
    if is_verbose:
        import traceback

        traceback.print_exc()
    print(f"error: {problem}", file=sys.stderr)
    return exit_code


def _run(
    arguments: list[str],
    prog: str,
    script_folder: Path | None,
    on_verbose: Callable[[bool], None],
) -> int:
    import difflib

    from mindformers_glm.config.command_line import CommandLineError

    commands: dict[str, Callable[[], int]] = {
        "predict": lambda: _predict(arguments[1:], prog, script_folder, on_verbose),
        "inspect": lambda: _inspect(arguments[1:]),
        "cache": lambda: _cache(arguments[1:]),
        "download": lambda: _download(arguments[1:]),
        "--version": _print_versions,
        "--help": lambda: _print_help(0),
        "-h": lambda: _print_help(0),
    }
    if not arguments:
        return _print_help(2)
    if arguments[0] not in commands:
        nearest = difflib.get_close_matches(arguments[0], commands, n=1, cutoff=0.0)
        raise CommandLineError(f"Unknown command {arguments[0]!r}: did you mean {nearest[0]}?")
    return commands[arguments[0]]()


def _predict(
    arguments: list[str],
    prog: str,
    script_folder: Path | None,
    on_verbose: Callable[[bool], None],
) -> int:
    from mindformers_glm.config.run_config import RunConfig, load_run_config
    from mindformers_glm.serving.predict import TextGenerator, create_llm, predict

    def load(config: RunConfig) -> TextGenerator:
        _on_interrupt(_exit_at_once)
        try:
            return create_llm(config)
        finally:
            _on_interrupt(_raise_once)

    _on_interrupt(_raise_once)
    # run_mindformer.py is this command alone, so its name stands for both words.
    prog = prog if prog.endswith(".py") else f"{prog} predict"
    config = load_run_config(
        arguments, prog=prog, script_folder=script_folder, on_verbose=on_verbose
    )
    return predict(config, load)


def _on_interrupt(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    # While a graph runs, MindSpore 2.7.1 turns Ctrl-C (SIGINT) into SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _raise_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that half-written files are removed; a second Ctrl-C must not disturb that."""
    _on_interrupt(signal.SIG_IGN)
    raise KeyboardInterrupt


def _exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Leave while modules are imported and weights are read, where nothing is written.

    An exception inside the import of a C extension comes out as something else, or as a crash.
    """
    # Not sys.stderr: a download may have turned it away from the libraries' bars.
    print(_INTERRUPTED, file=sys.__stderr__, flush=True)
    os._exit(EXIT_INTERRUPTED)


def _inspect(arguments: list[str]) -> int:
    from mindformers_glm.config.command_line import CommandLineError
    from mindformers_glm.serving.inspect import inspect_checkpoint

    if arguments in (["-h"], ["--help"]):
        print("usage: mindformers-glm inspect DIR")
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise CommandLineError("inspect takes one checkpoint folder: mindformers-glm inspect DIR")
    print(inspect_checkpoint(arguments[0]))
    return 0


def _cache(arguments: list[str]) -> int:
    from mindformers_glm.serving.cache import run_cache_command

    return run_cache_command(arguments)


def _download(arguments: list[str]) -> int:
    from mindformers_glm.serving.download import run_download_command

    return run_download_command(arguments)


def _print_versions() -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    print(f"mindformers_glm {__version__}")
    for package in ("mindspore", "mindformers"):
        try:
            print(package, version(package))
        except PackageNotFoundError:
            print(package, "not installed")
    print(f"Python {platform.python_version()} on {platform.machine()}")
    print("CPU operators", _describe_operators())
    return 0


def _describe_operators() -> str:
    try:
        from mindformers_glm.backends.cpu.library import describe_build, isa

        return f"{isa()}, {describe_build()}"
    except GlmError as problem:
        return f"not usable: {problem}"


def _print_help(exit_code: int) -> int:
    print(_HELP, end="")
    return exit_code
