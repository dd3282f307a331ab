"""The real command line on upstream's network: run_mindformer.py --device_target Ascend."""

import ast
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.ascend_contract.predict import THEN
from tests.ascend_contract.python_process import run_python
from tests.conftest import MINI
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
    (tmp_path / "questions.txt").write_text("\n".join(texts), encoding="utf-8")
    one = (*COMMAND, "--predict_data", texts[0])
    file = (*COMMAND, "--predict_data", "questions.txt", "--predict_batch_size", "2")
    lines = run_python("-m", "tests.ascend_contract.predict", *one, THEN, *file, folder=tmp_path)
    # MindSpore tells there which MS_ALLOC_CONF it has, which upstream sets for a prediction.
    answers = [ast.literal_eval(line) for line in lines if not line.startswith("[MS_ALLOC_CONF]")]
    texts_found = [text for answer in answers for text in answer["text_generation_text"]]
    assert texts_found == expected[:1] + expected
    saved = (tmp_path / "text_generation_result.txt").read_text(encoding="utf-8")
    assert ast.literal_eval(saved) == answers[1:]
