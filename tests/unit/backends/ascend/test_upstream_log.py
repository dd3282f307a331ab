"""backends/ascend/upstream_log.py: a log that cannot be kept."""

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.ascend import upstream_log
from mindformers_glm.core.errors import ConfigError


def test_a_folder_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotADirectoryError(20, "Not a directory", "/dev/full/x")

    monkeypatch.setattr(upstream_log, "get_logger", refuse)
    with pytest.raises(
        ConfigError, match=r"its log in /dev/full/x \(Not a directory\).*output_dir"
    ):
        upstream_log.quieten_upstream_log()
