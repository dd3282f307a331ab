"""The real command line on upstream's network: run_mindformer.py --device_target Ascend."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.conftest import MINI, REPO
from tests.e2e.run_process import finish
from tests.model import hf_oracle

NUM_TOKENS = 8
# What a user gives; the last two lines are for the references, which compute in float32.
COMMAND = [
    *("--config", "configs/glm4/predict_glm4.yaml", "--run_mode", "predict"),
    *("--use_parallel", "False", "--device_target", "Ascend"),
    *("--max_new_tokens", str(NUM_TOKENS), "--do_sample", "False", "--max_model_len", "128"),
    *("--context.mode", "1", "--model.model_config.params_dtype", "float32"),
    *("--model.model_config.compute_dtype", "float32"),
]


def _predict(work: Path, *arguments: str) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ascend_contract.predict", *COMMAND, *arguments],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = finish(process)
    assert run.exit_code == 0, run.errors
    results = ast.literal_eval((work / "text_generation_result.txt").read_text(encoding="utf-8"))
    assert [ast.literal_eval(line) for line in run.stdout] == results
    return [text for result in results for text in result["text_generation_text"]]


@pytest.mark.weights
def test_one_prompt_and_a_file_of_prompts_are_answered_as_hugging_face_does(
    tmp_path: Path,
) -> None:
    texts = ["请介绍一下北京", "What is 2 + 3?"]
    tokenizer, model = AutoTokenizer.from_pretrained(MINI), hf_oracle.load(MINI)
    expected = []
    for text in texts:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        tokens = hf_oracle.greedy_tokens_of(model, prompt, NUM_TOKENS)
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert _predict(tmp_path, "--predict_data", texts[0]) == expected[:1]
    (tmp_path / "questions.txt").write_text("\n".join(texts), encoding="utf-8")
    file = ("--predict_data", "questions.txt", "--predict_batch_size", "2")
    assert _predict(tmp_path, *file) == expected
