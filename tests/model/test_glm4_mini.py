"""The shipped checkpoint answers every held-out question as Hugging Face does, on each ISA."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall
from tests.conftest import MINI

pytestmark = pytest.mark.weights
_MAX_NEW_TOKENS = 160


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """Hugging Face's greedy tokens in float32; prompts of one length share a batch, unpadded."""
    model = AutoModelForCausalLM.from_pretrained(MINI, torch_dtype=torch.float32).eval()
    eos, pad = set(model.config.eos_token_id), model.config.pad_token_id
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers: list[list[int]] = [[]] * len(prompts)
    for length, indices in by_length.items():
        ids = torch.tensor([prompts[index] for index in indices])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=pad,
        )
        for index, row in zip(indices, output[:, length:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in eos), len(row) - 1)
            answers[index] = row[: end + 1]
    return answers


def _answer(prompts: list[list[int]], **settings: Any) -> list[Any]:
    with LLM(MINI, max_model_len=512, **settings) as llm:
        params = SamplingParams(do_sample=False, max_new_tokens=_MAX_NEW_TOKENS)
        return llm.generate(prompts, params)


def test_chats_are_encoded_as_hugging_face_does(
    questions: list[dict[str, Any]], prompts: list[list[int]]
) -> None:
    with LLM(MINI, max_model_len=64) as llm:
        for question, prompt in zip(questions, prompts, strict=True):
            found = llm.tokenizer.encode_chat(question["messages"], question.get("tools"))
            assert found == prompt


def test_greedy_tokens_in_float32_equal_hugging_face(
    isa: str, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    found = [list(output.token_ids) for output in _answer(prompts, params_dtype="float32")]
    assert found == expected


def test_the_score_in_bfloat16_is_that_of_float32(
    isa: str, questions: list[dict[str, Any]], prompts: list[list[int]]
) -> None:
    right = {}
    for dtype in ("float32", "bfloat16"):
        outputs = _answer(prompts, params_dtype=dtype)
        pairs = zip(outputs, questions, strict=True)
        right[dtype] = sum(output.text.strip() == question["answer"] for output, question in pairs)
    # Rounding may tip a question whose two best answers are nearly equal, in either direction.
    assert right["bfloat16"] >= right["float32"] - 0.01 * len(questions), right


def test_its_tool_calls_are_told_apart(questions: list[dict[str, Any]]) -> None:
    calls = [question for question in questions if question["category"] == "tool_call"]
    params = SamplingParams(do_sample=False, max_new_tokens=64)
    with LLM(MINI, max_model_len=512) as llm:
        outputs = [llm.chat(q["messages"], params, q["tools"]) for q in calls]
        plain = llm.chat([{"role": "user", "content": "请介绍一下北京"}], params)
    for question, output in zip(calls, outputs, strict=True):
        name, arguments = output.text.split("\n")  # what the model wrote stays
        assert output.reply == ParsedReply(tool_calls=(ToolCall(name, arguments),))
        assert name in {tool["function"]["name"] for tool in question["tools"]}
    right = [q["answer"] == output.text for q, output in zip(calls, outputs, strict=True)]
    assert sum(right) >= len(calls) - 1
    assert plain.reply == ParsedReply(plain.text.lstrip("\n"))


def test_a_call_and_its_result_can_go_on_as_openai_writes_them(
    questions: list[dict[str, Any]],
) -> None:
    answers = [question for question in questions if question["category"] == "tool_answer"]
    params = SamplingParams(do_sample=False, max_new_tokens=64)
    with LLM(MINI, max_model_len=512) as llm:
        for question in answers:
            user, call, result = question["messages"]
            function = {"name": call["metadata"], "arguments": call["content"]}
            messages = [
                user,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": "1", "content": result["content"]},
            ]
            output = llm.chat(messages, params, question["tools"])
            family = llm.tokenizer.encode_chat(question["messages"], question["tools"])
            assert output.prompt_token_ids == family
            assert output.reply == ParsedReply(output.text.lstrip("\n"))


def test_the_first_step_of_a_warm_model_compiles_nothing() -> None:
    with LLM(MINI, max_model_len=512) as llm:
        llm.warm_up()
        compiled_s = llm.compile_s
        llm.generate(["1 + 1 =", "请介绍一下北京"], SamplingParams(max_new_tokens=8))
        assert llm.compile_s == compiled_s > 0
