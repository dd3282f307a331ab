"""MindSpore Transformers' own run_mindformer.py: its repository has it, its wheel does not."""

import ast
import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.ascend_contract.python_process import run_python
from tests.ascend_contract.upstream_callers import ENVIRONMENT
from tests.conftest import REPO
from tests.model import hf_oracle
from tests.model.dialects import save_dialect

PROMPT = "hello"
_TYPES = ("compute_dtype", "params_dtype", "rotary_dtype")


@pytest.fixture(scope="module")
def source() -> Path:
    """MindSpore Transformers' repository, as r1.7.0 has it."""
    folder = Path(os.environ.get("MINDFORMERS_SOURCE", "none"))
    if not (folder / "run_mindformer.py").exists():
        pytest.skip("set MINDFORMERS_SOURCE to the repository of mindformers 1.7.0")
    return folder


@pytest.mark.parametrize("dialect", ["glm", "chatglm"])
def test_it_answers_as_hugging_face_does(dialect: str, source: Path, tmp_path: Path) -> None:
    folder, glm = save_dialect(tmp_path, dialect)
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
    run_python(*command, folder=tmp_path, **ENVIRONMENT)
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
    models = str(REPO / "mindformers_glm" / "models")
    lines = run_python("-c", _HOOK, folder=tmp_path, **ENVIRONMENT, REGISTER_PATH=models)
    assert "RESULT mindformers_glm.models.chatglm" in lines
