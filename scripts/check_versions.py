"""Check pairs of MindSpore Transformers and MindSpore in environments of their own.

    python scripts/check_versions.py [--folder DIR] [--again] [--only CHECK] [--remove] [PAIR ...]

Run it by the environment that the project is installed in, whose kernels it uses. Each pair gets a
virtual environment in DIR (3.3 GB with torch) with both packages from the package index, what they
want, this project's other requirements and the project in place. There the checks below run, of
which each is a part of the test suite with an oracle of its own. The end is a table in Markdown for
docs/versions.md, and a line for each thing that failed. What is done is kept: environments, and the
checks of this commit that passed. `--again` runs these too, `--only` runs one and leaves the others
as they were, `--remove` removes an environment when its pair is done.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mindformers_glm.config.supported_versions import PINNED, TESTED  # noqa: E402

PAIRS = (
    *(
        f"{row.packages['mindformers']}/{row.packages['mindspore']}"
        for row in TESTED
        if row is not PINNED
    ),
    "2.0.0/2.10.0",  # hyper-parallel, which it needs, was on no index on 2026-11-30
)
_IMPORT = (
    "import mindformers_glm, mindformers, mindspore; from mindformers import AutoModel;"
    "import mindformers_glm.backends.ascend.runner, mindformers_glm.backends.cpu.runner"
)
_CONTRACT = "tests/ascend_contract"
# What a check is called, and the tests that it is: of each thing that upstream's code decides, one
# that has Hugging Face, NumPy or the real operators' checks as its oracle.
CHECKS: Mapping[str, tuple[str, ...]] = {
    "import": ("-c", _IMPORT),
    "registration": (
        *("-m", "pytest", "tests/model/test_registration.py"),
        *("tests/model/test_registration_of_dialects.py", "-k"),
        "lookup or goes_through or construct_runs or may_not_say or resolved",
    ),
    "pipeline": ("-m", "pytest", "tests/model/test_pipeline.py"),
    "glm4-mini": (
        *("-m", "pytest", "tests/model/test_glm4_mini.py"),
        *("-k", "encoded or (greedy_tokens_in_float32 and avx2)"),
    ),
    "README's command": ("-m", "pytest", "tests/e2e/test_predict.py", "-k", "one_prompt"),
    "CPU network": (
        *("-m", "pytest", "tests/model/test_parity.py"),
        *("-k", "several_graphs or short_float_glm"),
    ),
    "two processes": ("-m", "pytest", "tests/tp/test_split_model.py", "-k", "writes_and_prints"),
    "Ascend network": ("-m", "pytest", f"{_CONTRACT}/test_network.py"),
    "LLM on it": ("-m", "pytest", f"{_CONTRACT}/test_llm.py"),
    "references": ("-m", "pytest", f"{_CONTRACT}/test_references.py"),
    "MINDIR export": ("-m", "pytest", f"{_CONTRACT}/test_export.py"),
}
_PYTEST_OPTIONS = ("-q", "-p", "no:cacheprovider", "--timeout", "1800")
_COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")
_LIMIT_S = 3600
_OWN_PINS = ("mindspore", "mindformers", "transformers", "tokenizers")  # the pair decides these
_NOT_FOR_CHECKS = ("ruff", "mypy", "types-PyYAML", "pre-commit")
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    cell: as the table shows it: what passed, or what failed of how many.
    problems: a line each, of what failed.
    commit, date: of the project when it was run.
    """

    cell: str
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    commit: str = ""
    date: str = ""


@dataclass
class Result:
    """What is known of a pair.

    versions: of the interpreter and what the pair brought.
    outcomes: by the check's name; "installation" too.
    """

    versions: str = ""
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def dates(self) -> str:
        """The days on which it was found out."""
        return ", ".join(sorted({outcome.date for outcome in self.outcomes.values()}))

    @classmethod
    def read(cls, file: Path) -> "Result":
        """What `write` wrote; nothing where there is no file."""
        if not file.exists():
            return cls()
        known = json.loads(file.read_text(encoding="utf-8"))
        return cls(known["versions"], {k: Outcome(**v) for k, v in known["outcomes"].items()})

    def write(self, file: Path) -> None:
        """Keep it for the next run of this script."""
        file.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


@dataclass(frozen=True)
class Environment:
    """The virtual environment of one pair."""

    pair: str
    parent: Path

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.parent / "mindformers-{}-mindspore-{}".format(*self.pair.split("/"))

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def results_file(self) -> Path:
        """What became of its checks, as JSON."""
        return self.folder.with_suffix(self.folder.suffix + ".json")

    def log_file(self, step: str) -> Path:
        """Everything that a step said."""
        return self.parent / f"{self.folder.name}-{re.sub(r'[^a-z0-9]+', '-', step.lower())}.log"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the pairs and print the table; the exit code is 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="MINDFORMERS/MINDSPORE")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/mindformers_glm_versions"), help="where to work"
    )
    parser.add_argument("--again", action="store_true", help="run checks that passed too")
    parser.add_argument("--only", choices=CHECKS, metavar="CHECK", help=f"one of {list(CHECKS)}")
    parser.add_argument("--remove", action="store_true", help="remove environments when done")
    arguments = parser.parse_args(argv)
    for pair in arguments.pairs:
        if not re.fullmatch(r"\d[\w.]*/\d[\w.]*", pair):
            parser.error(f"a pair is written like {PAIRS[0]}, got {pair}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for pair in arguments.pairs:
        environment = Environment(pair, arguments.folder.resolve())
        found[pair] = check(environment, is_again=arguments.again, only=arguments.only)
        if arguments.remove:
            shutil.rmtree(environment.folder, ignore_errors=True)
    print("\n".join(table_lines(found)))
    problems = [
        f"{pair}, {name}: {problem}"
        for pair, result in found.items()
        for name, outcome in result.outcomes.items()
        for problem in outcome.problems
    ]
    print("\n".join(["", *problems] if problems else []))
    return int(bool(problems))


def check(environment: Environment, *, is_again: bool, only: str | None = None) -> Result:
    """Make the environment and run the checks in it; what is known already is read.

    Args:
        only: the one check to run; the others stay as they were.
    """
    commit = _commit()
    result = Result.read(environment.results_file)
    is_kept = {
        name: outcome.commit == commit and not outcome.problems and not is_again
        for name, outcome in result.outcomes.items()
    }
    chosen = [name for name in CHECKS if (not is_kept.get(name) if only is None else name == only)]
    if not chosen:
        return result
    stamp = partial(replace, commit=commit, date=time.strftime("%Y-%m-%d"))
    installed = _told(environment, "installation", partial(install, environment))
    result.outcomes["installation"] = stamp(installed)
    if not installed.problems:
        result.versions = _versions(environment)
        for name in chosen:
            outcome = _told(environment, name, partial(run, environment, name, CHECKS[name]))
            result.outcomes[name] = stamp(outcome)
            result.write(environment.results_file)
    result.write(environment.results_file)
    return result


def install(environment: Environment) -> Outcome:
    """Make the virtual environment and install the pair, and the project in place."""
    if not Path(environment.python).exists():
        made = [sys.executable, "-m", "venv", str(environment.folder)]
        subprocess.run(made, check=True)
    mindformers, mindspore = environment.pair.split("/")
    packages = [f"mindformers=={mindformers}", f"mindspore=={mindspore}", *_other_requirements()]
    with environment.log_file("installation").open("w") as log:
        command = [environment.python, "-m", "pip", "install", "--no-cache-dir", *packages]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        said = environment.log_file("installation").read_text(encoding="utf-8").splitlines()
        errors = [line for line in said if line.startswith("ERROR: ")]
        return Outcome("failed", [(errors or said or ["pip said nothing"])[-1]])
    # In place and without its pins, which name one pair; the kernels know no MindSpore.
    for site_packages in environment.folder.glob("lib/python3*/site-packages"):
        (site_packages / "mindformers_glm_in_place.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    return Outcome("done")


def run(environment: Environment, name: str, command: Sequence[str]) -> Outcome:
    """Run one check in the environment."""
    options = _PYTEST_OPTIONS if "pytest" in command else ()
    log_file = environment.log_file(name)
    with log_file.open("w") as log:
        try:
            code = subprocess.run(
                [environment.python, *command, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                timeout=_LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Outcome("too slow", [f"not done after {_LIMIT_S} s; {log_file}"])
    said = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return read_outcome(code, said, log_file, is_test="pytest" in command)


def read_outcome(code: int, said: Sequence[str], log_file: Path, *, is_test: bool) -> Outcome:
    """What a finished command says of its check.

    Args:
        said: its lines; pytest ends with the counts and, by -ra, lists what failed before.
    """
    counts = {word.rstrip("s"): int(n) for n, word in _COUNTS.findall(said[-1] if said else "")}
    num_failed = counts.get("failed", 0) + counts.get("error", 0)
    num_run = num_failed + counts.get("passed", 0)
    if code == 0 and not is_test:
        return Outcome("works")
    if code == 0 and num_run:
        return Outcome(f"{num_run} passed")
    listed = [line for line in said if line.startswith(("FAILED ", "ERROR "))]
    problems = listed or [next((line for line in reversed(said) if line.strip()), f"exit {code}")]
    cell = f"**{num_failed} of {num_run} failed**" if num_run else "**failed**"
    return Outcome(cell, [*problems, f"all of it: {log_file}"])


def table_lines(found: Mapping[str, Result]) -> Iterator[str]:
    """The table in Markdown: a row a pair, a column a check."""
    names = ["installation", *CHECKS]
    yield f"| mindformers / mindspore | with | {' | '.join(names)} | when |"
    yield "|" + "---|" * (len(names) + 3)
    for pair, result in found.items():
        cells = [result.outcomes.get(name, Outcome("not run")).cell for name in names]
        row = [pair.replace("/", " / "), result.versions, *cells, result.dates]
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")


def _told(environment: Environment, name: str, work: Callable[[], Outcome]) -> Outcome:
    """Do it, and say what became of it at once: the whole takes many minutes."""
    begin = time.monotonic()
    outcome = work()
    seconds = round(time.monotonic() - begin, 1)
    print(f"{environment.pair}: {name}: {outcome.cell} ({seconds:.0f} s)", file=sys.stderr)
    return replace(outcome, seconds=seconds)


def _other_requirements() -> list[str]:
    """What this project and its tests need, but for what the pair decides."""
    wanted = []
    for requirement in requires("mindformers-glm") or ():
        wish, _, condition = requirement.partition(";")
        name = _NAME.match(wish)
        is_wanted = name is not None and name[0] not in _OWN_PINS + _NOT_FOR_CHECKS
        if is_wanted and "download" not in condition:
            wanted.append(wish.strip())
    return wanted


def _versions(environment: Environment) -> str:
    """The interpreter and what the pair brought, as far as this project depends on it."""
    code = (
        "import platform, importlib.metadata as m; print('Python', platform.python_version(), *("
        "f', {n} {m.version(n)}' for n in ('transformers', 'tokenizers', 'numpy')), sep=' ')"
    )
    done = subprocess.run([environment.python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip().replace(" ,", ",")


def _commit() -> str:
    """The state of the project; a changed tree is its own state each time."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    return head.strip() + (f" with changes of {time.time():.0f}" if changed else "")


if __name__ == "__main__":
    sys.exit(main())
