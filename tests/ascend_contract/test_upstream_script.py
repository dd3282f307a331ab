"""MindSpore Transformers' own run_mindformer.py: its repository has it, its wheel does not."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.ascend_contract.upstream_callers import ENVIRONMENT
from tests.conftest import REPO
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

PROMPT = "hello"
_TYPES = ("compute_dtype", "params_dtype", "rotary_dtype")
_ENVIRONMENT = os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPO)}


@pytest.fixture(scope="module")
def source() -> Path:
    """MindSpore Transformers' repository, as r1.7.0 has it."""
    folder = Path(os.environ.get("MINDFORMERS_SOURCE", "none"))
    if not (folder / "run_mindformer.py").exists():
        pytest.skip("set MINDFORMERS_SOURCE to the repository of mindformers 1.7.0")
    return folder


@pytest.mark.parametrize("dialect", ["glm", "chatglm"])
def test_it_answers_as_hugging_face_does(dialect: str, source: Path, tmp_path: Path) -> None:
    glm = hf_oracle.save_random_checkpoint(tmp_path / "hf", model_type="glm")
    folder = to_chatglm(glm, tmp_path / "chatglm") if dialect == "chatglm" else glm
    file = folder / "tokenizer_config.json"  # it pads, also a single prompt
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}))
    command = f"""
        {REPO}/tests/ascend_contract/run_upstream_script.py {source}/run_mindformer.py
        --config configs/glm4/predict_glm4.yaml --run_mode predict --use_parallel False
        --device_target Ascend --mode 1 --pretrained_model_dir {folder} --predict_data {PROMPT}
        --model.model_config.seq_length 128 --model.model_config.num_blocks 64
    """.split()
    for name in _TYPES:
        command += [f"--model.model_config.{name}", "float32"]
    ended = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    ((answer,),) = (
        found["text_generation_text"]
        for found in ast.literal_eval((tmp_path / "text_generation_result.txt").read_text())
    )
    tokenizer = AutoTokenizer.from_pretrained(glm)
    ids = tokenizer(PROMPT)["input_ids"]
    expected = tokenizer.decode(ids + hf_oracle.greedy_tokens(glm, ids, 20 - len(ids)))
    assert answer == expected  # 20 tokens in all, as it has them where nobody says more


_HOOK = """
from mindformers.core.context.build_context import build_mf_context
from mindformers.tools.register import MindFormerModuleType as Type, MindFormerRegister as Register
build_mf_context({"run_mode": "predict", "use_legacy": False, "context": {}, "parallel": {}})
Register.get_instance_from_cfg({"model_type": "chatglm", "auto_register": "glm.GlmModelConfig"},
                               Type.CONFIG)
print("RESULT", Register.get_cls(Type.MODELS, "ChatGLMModel").__module__)
"""


def test_auto_register_imports_this_package(tmp_path: Path) -> None:
    """An unchanged script: `--register_path FOLDER --model.model_config.auto_register NAME`."""
    environment = _ENVIRONMENT | {"REGISTER_PATH": str(REPO / "mindformers_glm" / "models")}
    ended = subprocess.run(
        [sys.executable, "-c", _HOOK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "RESULT mindformers_glm.models.chatglm" in ended.stdout, ended.stderr
