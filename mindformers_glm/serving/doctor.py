"""`mindformers-glm doctor`: whether a model can run on this machine, and what would help."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.finding import Finding
from mindformers_glm.serving.doctor_software import examine_software
from mindformers_glm.system.host import Host


def add_arguments(parser: SentenceParser) -> None:
    """Add options."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Do what `doctor` asks for.

    Returns:
        The exit code: 1 where a model cannot run, else 0.
    """
    findings = examine(Host(os.environ))
    print(_to_json(findings) if arguments.json else "\n".join(_to_lines(findings)))
    return int(any(finding.state == "problem" for finding in findings))


def examine(host: Host) -> list[Finding]:
    """Look at everything."""
    return examine_software(host)


def _to_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, ensure_ascii=False)


def _to_lines(findings: Sequence[Finding]) -> list[str]:
    return [f"{finding.state:<8}{finding.name:<16}{finding.found}" for finding in findings]
