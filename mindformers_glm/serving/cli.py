"""The console command `mindformers-glm`: one subcommand per thing a user does.

Exit codes: 0 done; 1 an error of the user, a prompt that failed, or a defect; 2 a command line
that cannot be understood (1 of the guides' quantizing scripts, which know one code for wrong use);
130 interrupted; 141 nobody reads the output any more.
"""

# Little is imported before `main` can answer Ctrl-C; the functions below import the rest.
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mindformers_glm.core.errors import GlmError, first_words
from mindformers_glm.system.interrupts import (
    EXIT_INTERRUPTED,
    INTERRUPTED,
    exit_at_once,
    leave_at_once,
    on_interrupt,
)
from mindformers_glm.system.log import is_verbose, set_verbose, write_line
from mindformers_glm.system.streams import drop_stdout, open_closed_streams
from mindformers_glm.version import __version__

# What stdout answers where its disk takes no more; whoever writes a file has his own sentence.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Name -> file below serving/, and what --help says. The file has `add_arguments(parser)` and
# `run(arguments)`, which returns the exit code; it is imported when its command is called.
COMMANDS = {
    "predict": ("predict", "answer prompts with a GLM model"),
    "serve": ("serve", "answer OpenAI's requests over HTTP"),
    "chat": ("chat.command", "talk to a GLM model, or to a server with OpenAI's routes"),
    "webui": ("web.command", "show a chat in the browser, with a GLM model or a server's"),
    "inspect": ("inspect.command", "describe and check a checkpoint folder without loading it"),
    "quantize": ("quantize", "quantize a float checkpoint and write the result"),
    "cache": ("cache", "list, verify or clear packed caches of loaded weights"),
    "download": ("download", "download a published checkpoint, ready to run"),
    "doctor": ("doctor.command", "say whether models can run on this machine, and what would help"),
}


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "mindformers-glm",
    script_folder: Path | None = None,
    line_code: int = 2,
) -> int:
    """Run one command and return its exit code; errors become one sentence on stderr.

    Args:
        argv: the arguments, sys.argv's unless given.
        prog: how the command is called in help texts.
        script_folder: where relative --config names are also looked for.
        line_code: the exit code of a command line that cannot be understood.
    """
    open_closed_streams()
    on_interrupt(exit_at_once)
    from mindformers_glm.config.environment import is_launched
    from mindformers_glm.config.sentence_parser import asks_for_verbose

    words = list(sys.argv[1:] if argv is None else argv)
    set_verbose(asks_for_verbose(words))  # until the settings are known: YAML may give it too
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    exit_code = report_problems(lambda: _run(words, prog, script_folder), line_code)
    if exit_code != 0 and is_launched():
        leave_at_once(exit_code)
    return exit_code


def report_problems(run: Callable[[], int], line_code: int = 2) -> int:
    """Run a program and return its exit code; what ends it is one sentence on stderr.

    Args:
        line_code: see `main`.
    """
    from mindformers_glm.config.sentence_parser import CommandLineError

    try:
        exit_code = run()
        sys.stdout.flush()  # so that a closed pipe is noticed here
        return exit_code
    except CommandLineError as problem:
        return _fail(problem, line_code)
    except GlmError as problem:
        return _fail(problem, 1)
    except KeyboardInterrupt:
        write_line(INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return 141
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("mindformers_glm"):
            raise
        return _fail(
            f"The interpreter {sys.executable} has no {problem.name}: activate the environment, or "
            "run `pip install -e .` in the source folder.",
            1,
        )
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno in _FULL and problem.filename is None:
            drop_stdout()
            return _fail(f"Cannot write to stdout: {problem.strerror}.", 1)
        defect = f"internal error, {type(problem).__name__}: {first_words(problem)}"
        hint = "" if is_verbose() else " (run again with --verbose for the whole story)"
        return _fail(f"{defect}{hint}", 1)


def _fail(problem: object, exit_code: int) -> int:
    if is_verbose():
        import traceback

        traceback.print_exc()
    write_line(f"error: {problem}")
    return exit_code


def _run(words: list[str], prog: str, script_folder: Path | None) -> int:
    import difflib
    from importlib import import_module

    from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser

    parser = SentenceParser(prog=prog, allow_abbrev=False)
    version_help = "versions of this project and of what it runs on"
    parser.add_argument("--version", action="store_true", help=version_help)
    parser.set_defaults(script_folder=script_folder, words=words)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (file, help_text) in COMMANDS.items():
        # run_mindformer.py is one command alone, so its name stands for both words.
        full_name = prog if prog.endswith(".py") else f"{prog} {name}"
        command = commands.add_parser(
            name, prog=full_name, allow_abbrev=False, help=help_text, description=help_text
        )
        if words[:1] == [name]:
            module = import_module(f"mindformers_glm.serving.{file}")
            command.set_defaults(run=module.run, reject=command.reject)
            module.add_arguments(command)
            command.add_argument("--version", action="store_true", help=version_help)
    if words[:1] in ([], ["-h"], ["--help"]):
        parser.print_help()
        return 0 if words else 2
    if words[0] == "--version" or (words[0] in COMMANDS and words[1:] == ["--version"]):
        return _print_versions()
    if words[0] not in COMMANDS:
        known = [*COMMANDS, "--version", "--help", "-h"]
        nearest = difflib.get_close_matches(words[0], known, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"{prog} --help lists the commands."
        raise CommandLineError(f"Unknown command {words[0]!r}: {advice}")
    try:
        arguments = parser.read(words)
    except SystemExit:  # --help of the command has been printed
        return 0
    if arguments.version:
        return _print_versions()
    try:
        os.getcwd()
    except OSError as problem:  # MindSpore ends by SIGABRT
        raise GlmError(
            f"The working directory cannot be used ({problem.strerror}): change to another one."
        ) from None
    exit_code: int = arguments.run(arguments)
    return exit_code


def _print_versions() -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from mindformers_glm.backends import BACKENDS

    print(f"mindformers_glm {__version__}")
    for package in ("mindspore", "mindformers"):
        try:
            print(package, version(package))
        except PackageNotFoundError:
            print(package, "not installed")
    print(f"Python {platform.python_version()} on {platform.machine()}")
    for name, backend in BACKENDS.items():
        obstacle = backend.find_obstacle()
        print(f"{name} not usable: {obstacle}" if obstacle else backend.describe())
    return 0
