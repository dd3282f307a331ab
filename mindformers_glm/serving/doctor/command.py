"""`mindformers-glm doctor`: whether a model can run on this machine, and what would help."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from mindformers_glm.config.known_variables import KNOWN_VARIABLES
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError, first_words
from mindformers_glm.core.finding import Finding
from mindformers_glm.serving.doctor.machine import examine_machine
from mindformers_glm.serving.doctor.software import DEFAULT_PROBE, INSTALL, examine_software
from mindformers_glm.system.host import Host
from mindformers_glm.system.log import write_line
from mindformers_glm.version import __version__

_NAME_COLUMN, _TEXT_COLUMN = 11, 28
_MAX_COLUMNS = 100  # longer lines are hard to read
_MAX_VALUE = 200  # characters of a variable that are shown


def add_arguments(parser: SentenceParser) -> None:
    """Add options."""
    parser.add_argument(
        "--device_target", metavar="DEVICE", help="CPU or Ascend; else what a run would take"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--all", action="store_true", help="also what variables that are not set would do"
    )
    parser.add_argument(
        "--ascend_selftest",
        nargs="?",
        const="",
        metavar="DIR",
        help="compare the Ascend network with the CPU's, part by part, and nothing else; DIR left "
        "out: on the small checkpoint that ships with this package",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16"), help="of that comparison; else as stored"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what `doctor` asks for.

    Returns:
        The exit code: 1 where a model cannot run or the two networks differ, else 0.
    Raises:
        ConfigError: there is no such device, or options that do not go together.
        GlmError: see `print_selftest`.
    """
    if arguments.ascend_selftest is not None:
        if arguments.device_target is not None or arguments.all:
            raise ConfigError("--ascend-selftest takes --dtype and --json: leave the others out.")
        # Only here: the rest of doctor must work where the backends cannot be imported.
        from mindformers_glm.serving.doctor.selftest import print_selftest

        return print_selftest(arguments.ascend_selftest, arguments.dtype, arguments.json)
    if arguments.dtype:
        raise ConfigError("--dtype is the type of --ascend-selftest: give that, or leave it out.")
    if sys.stderr.isatty():
        write_line("Looking around; MindSpore takes some seconds to start ...")
    diagnosis = Diagnosis.make(Host(os.environ), arguments.device_target)
    if arguments.json:
        print(json.dumps(diagnosis.to_dict(), ensure_ascii=False, indent=1))
    else:
        columns = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
        print("\n".join(diagnosis.lines(columns, arguments.all)))
    return int(not diagnosis.can_run)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        device_target: the device that a run takes; None where they cannot be looked at.
        environ: the variables that are set.
    """

    device_target: str | None
    findings: tuple[Finding, ...]
    environ: dict[str, str]

    @classmethod
    def make(cls, host: Host, device_target: str | None) -> "Diagnosis":
        """Look at everything.

        Args:
            device_target: None: what a run takes where it is left out.
        Raises:
            ConfigError: there is no such device.
        """
        try:
            device_target, probe, of_devices = _examine_devices(host, device_target)
        except ImportError as problem:  # the backends need NumPy
            probe = DEFAULT_PROBE
            of_devices = [Finding("devices", "backends", str(problem), "problem", INSTALL)]
        findings = (
            *_collect("software", examine_software(host, probe)),
            *_collect("machine", examine_machine(host)),
            *of_devices,
            *_examine_variables(host, device_target or ""),
        )
        return cls(device_target, findings, dict(host.environ))

    @property
    def can_run(self) -> bool:
        """Whether nothing stops a model."""
        return self._count("problem") == 0

    @property
    def _target(self) -> str:
        return self.device_target or "any device"

    def _count(self, state: str) -> int:
        return sum(finding.state == state for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For programs; the names are stable."""
        variables = [
            {
                "name": row.name,
                "value": self.environ.get(row.name),
                "reader": row.reader,
                "effect": row.effect,
                "devices": row.devices,
                "feature_ids": row.ids,
            }
            for row in KNOWN_VARIABLES
        ]
        return {
            "version": __version__,
            "device_target": self.device_target,
            "can_run": self.can_run,
            "findings": [asdict(finding) for finding in self.findings],
            "variables": variables,
        }

    def lines(self, columns: int, with_unset: bool = False) -> Iterator[str]:
        """For people, in lines of at most this length (a word may be longer)."""
        yield f"mindformers_glm {__version__}, device_target {self._target}"
        for section, findings in groupby(self.findings, key=lambda finding: finding.section):
            yield ""
            yield section
            rest = list(findings)
            while rest:
                finding = rest.pop(0)
                # What several have in common is said behind the last of them.
                is_repeated = bool(rest) and rest[0].advice == finding.advice
                yield from _finding_lines(finding, columns, with_advice=not is_repeated)
        unset = [row for row in KNOWN_VARIABLES if row.name not in self.environ]
        if with_unset:
            yield ""
            yield "variables that are not set"
            for row in unset:
                yield from _name_lines("", row.name, row.describe(self._target), columns)
        yield ""
        yield from textwrap.wrap(self._summary(), columns)

    def _summary(self) -> str:
        problems, hints = self._count("problem"), self._count("hint")
        hints_text = f"{hints} {'hint' if hints == 1 else 'hints'}"
        if problems:
            problems_text = f"{problems} {'problem' if problems == 1 else 'problems'}"
            return f"No model can run on {self._target}: {problems_text}, {hints_text}."
        return (
            f"Models can run on {self._target}: no problem, {hints_text}. Whether one fits: "
            "mindformers-glm inspect DIR"
        )


def _examine_devices(host: Host, device_target: str | None) -> tuple[str, str, list[Finding]]:
    """The device that a run takes, its probe, and what was found of it and of the others."""
    from mindformers_glm.backends import BACKENDS, default_target

    target = default_target() if device_target is None else device_target
    if target not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise ConfigError(f"device_target must be one of {names}, got {target!r}.")
    findings: list[Finding] = []
    for name, backend in BACKENDS.items():
        found = _collect(name, backend.diagnose(host))
        findings += found if name == target else [_summarize(name, found)]
    findings.sort(key=lambda finding: finding.section != target)
    # Where something is missing, MindSpore can tell nothing new of the device.
    is_broken = any(finding.state == "problem" for finding in findings)
    return target, DEFAULT_PROBE if is_broken else BACKENDS[target].probe, findings


def _collect(section: str, findings: Iterable[Finding]) -> list[Finding]:
    """All of them; where a machine is so broken that looking at it fails, those up to there."""
    collected = []
    try:
        for finding in findings:
            collected.append(finding)
    except Exception as problem:
        found = f"{type(problem).__name__}: {first_words(problem)}"
        advice = "Report this: looking further failed, which is a defect of mindformers-glm doctor."
        collected.append(Finding(section, "doctor", found, "hint", advice))
    return collected


def _summarize(device: str, findings: list[Finding]) -> Finding:
    """One line of a device that is not taken: what is wrong there stops nothing."""
    problems = [finding for finding in findings if finding.state == "problem"]
    if not problems:
        return Finding("other devices", device, "usable")
    first = problems[0]
    if len(findings) == 1:
        return Finding("other devices", device, first.found)
    advice = f"Run `mindformers-glm doctor --device_target {device}` if it is to be used."
    found = f"not usable: {first.name} {first.found}"
    return Finding("other devices", device, found, "hint", advice)


def _examine_variables(host: Host, target: str) -> Iterator[Finding]:
    for row in KNOWN_VARIABLES:
        value = host.environ.get(row.name)
        if value is None:
            continue
        printable = "".join(sign if sign.isprintable() else "?" for sign in value)
        short = printable if len(value) <= _MAX_VALUE else f"{printable[:_MAX_VALUE]}..."
        found, advice = f"{short or 'empty'}: {row.describe(target)}", row.advise(value, target)
        yield Finding("environment", row.name, found, "hint" if advice else "ok", advice)


def _finding_lines(finding: Finding, columns: int, with_advice: bool) -> Iterator[str]:
    yield from _name_lines(finding.state, finding.name, finding.found, columns)
    if finding.advice and with_advice:
        yield from _wrap(finding.advice, columns)


def _name_lines(state: str, name: str, text: str, columns: int) -> Iterator[str]:
    head = f"  {state}".ljust(_NAME_COLUMN) + name
    first, *rest = _wrap(text, columns)
    if len(head) >= _TEXT_COLUMN:
        yield head
        yield first
    else:
        yield head.ljust(_TEXT_COLUMN) + first.strip()
    yield from rest


def _wrap(text: str, columns: int) -> list[str]:
    indent = " " * _TEXT_COLUMN
    return textwrap.wrap(
        text,
        max(columns, _TEXT_COLUMN + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]
