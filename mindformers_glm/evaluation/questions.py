"""Questions with known answers, from files, asked greedily.

    {"messages": [...], "answer": "...", "tools": [...]}     the whole answer must be this text
    {"inputs_pretokenized": "...", "choices_pretokenized": [" A", ...], "label": 2}
                                                            C-Eval: the likeliest letter counts

A question of choice is asked as it is written, with "答案：" behind it, in the model's chat format
where it has one. C-Eval's own program lets the model explain itself first; this does not, so its
figures are for comparing a model with itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.system.files import parse_json, read_file

_MAX_BYTES = 64 * 2**20
_EXPECTED = (
    'objects with "messages" and "answer", or with "inputs_pretokenized", '
    '"choices_pretokenized" and "label"'
)
_BEFORE_LETTER = "\n答案："
_SURE = 100.0  # added to the logits of letters, so that one of them is chosen
_SPARE_TOKENS = 8  # an answer may be longer than the right one by these, and is wrong then


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        messages: the conversation up to the answer.
        answer: the right one.
        choices: what may be answered; none: any text.
        tools: functions that the model is told of.
    """

    messages: tuple[Mapping[str, Any], ...]
    answer: str
    choices: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines.

    Raises:
        ConfigError: it cannot be read, or a line is no such object; the sentence names the line.
    """
    questions = []
    for number, line in enumerate(read_file(path, ConfigError, _MAX_BYTES).split(b"\n"), start=1):
        if line.strip():
            questions.append(_read_line(line, f"{path}, line {number}"))
    if not questions:
        raise ConfigError(f"{path} holds no question: give a file with {_EXPECTED}.")
    return questions


def answer_questions(llm: LLM, questions: Sequence[Question]) -> list[str]:
    """The model's greedy answers, in the order of the questions.

    Raises:
        ConfigError: choices do not begin with different tokens, or the model cannot be asked.
    """
    answers = [""] * len(questions)
    groups: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        groups.setdefault(json.dumps(question.tools), []).append(place)
    for places in groups.values():
        asked = [questions[place] for place in places]
        params = [_params_of(llm, question) for question in asked]
        outputs = (
            llm.chat([list(one.messages) for one in asked], params, list(asked[0].tools) or None)
            if llm.tokenizer.has_chat_template
            else llm.generate([_as_text(one) for one in asked], params)
        )
        for place, output in zip(places, outputs, strict=True):
            if output.finish_reason == "error":
                raise ConfigError(f"question {place + 1} cannot be asked: {output.error}")
            answers[place] = output.text.strip()
            if output.finish_reason != "stop" and not questions[place].choices:
                answers[place] += " ..."  # goes on, so it is another answer
    return answers


def count_right(questions: Sequence[Question], answers: Sequence[str]) -> int:
    """How many answers are the expected ones."""
    return sum(
        question.answer == answer for question, answer in zip(questions, answers, strict=True)
    )


def _params_of(llm: LLM, question: Question) -> SamplingParams:
    if not question.choices:
        num_tokens = len(llm.tokenizer.encode(question.answer)) + _SPARE_TOKENS
        return SamplingParams(do_sample=False, max_new_tokens=num_tokens)
    first_tokens = {choice: llm.tokenizer.spell_word(choice)[0][0] for choice in question.choices}
    if len(set(first_tokens.values())) < len(first_tokens):
        raise ConfigError(
            f"The choices {', '.join(question.choices)} begin with the same token in this model's "
            "vocabulary: name them by letters."
        )
    bias = dict.fromkeys(first_tokens.values(), _SURE)
    return SamplingParams(do_sample=False, max_new_tokens=1, logit_bias=bias)


def _as_text(question: Question) -> str:
    return "\n".join(str(message.get("content", "")) for message in question.messages)


def _read_line(line: bytes, place: str) -> Question:
    try:
        item = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{place} is not UTF-8 text: save the file as UTF-8.") from None
    except ValueError as problem:
        raise ConfigError(
            f"{place} is not valid JSON ({problem}): write one object a line."
        ) from None
    if isinstance(item, dict) and "messages" in item:
        return _read_conversation(item, place)
    if isinstance(item, dict) and "inputs_pretokenized" in item:
        return _read_choice(item, place)
    raise ConfigError(f"{place} is no question, expected {_EXPECTED}.")


def _read_conversation(item: Mapping[str, Any], place: str) -> Question:
    messages, answer, tools = item["messages"], item.get("answer"), item.get("tools") or []
    are_objects = all(
        isinstance(given, list) and all(isinstance(one, dict) for one in given)
        for given in (messages, tools)
    )
    if not are_objects or not messages or not isinstance(answer, str):
        raise ConfigError(
            f'{place}: "messages" must be a list of messages, "answer" a text and "tools", if '
            "there are any, a list of functions."
        )
    return Question(tuple(messages), answer, tools=tuple(tools))


def _read_choice(item: Mapping[str, Any], place: str) -> Question:
    text, choices, label = (
        item.get(key) for key in ("inputs_pretokenized", "choices_pretokenized", "label")
    )
    are_texts = isinstance(choices, list) and all(isinstance(one, str) for one in choices)
    is_number = isinstance(label, int) and not isinstance(label, bool)
    if not isinstance(text, str) or not are_texts or not is_number:
        raise ConfigError(
            f'{place}: "inputs_pretokenized" must be a text, "choices_pretokenized" a list of '
            'texts and "label" the number of the right one, from 0.'
        )
    assert isinstance(choices, list)
    assert isinstance(label, int)
    if not 0 <= label < len(choices) or not all(choice.strip() for choice in choices):
        raise ConfigError(
            f'{place}: "label" is {label}, and there are {len(choices)} choices, of which none '
            "may be empty."
        )
    names = tuple(choice.strip() for choice in choices)
    message = {"role": "user", "content": text + _BEFORE_LETTER}
    return Question((message,), names[label], choices=names)
