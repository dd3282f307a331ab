"""The launcher interrupted before it has started anything."""

import sys
from collections.abc import Sequence

import pytest

from mindformers_glm.launcher.__main__ import main

LAUNCH = "mindformers_glm.launcher.launch"


class Interrupt:
    """Ctrl-C while a module is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == LAUNCH:
            raise KeyboardInterrupt


def test_ctrl_c_while_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, LAUNCH, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"
