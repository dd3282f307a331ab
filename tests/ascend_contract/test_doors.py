"""The registered classes on Ascend: upstream's network, for upstream's own callers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ascend_contract.upstream_callers import GREEDY, PROMPTS
from tests.conftest import REPO
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

DIALECTS = ("glm4", "glm", "chatglm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each dialect; that of chatglm has glm's weights."""
    root = tmp_path_factory.mktemp("folders")
    made = {
        name: hf_oracle.save_random_checkpoint(root / name, model_type=name)
        for name in ("glm4", "glm")
    }
    made["chatglm"] = to_chatglm(made["glm"], root / "chatglm")
    for folder in made.values():  # upstream's pipeline pads, also a single prompt
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}))
    return made
