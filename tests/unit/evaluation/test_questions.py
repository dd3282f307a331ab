"""Files of questions, and what is asked of a model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.evaluation.questions import (
    Question,
    answer_questions,
    count_right,
    read_questions,
)

_CEVAL = {
    "id": 0,
    "inputs_pretokenized": "编写教科书的依据是____。\nA. 一\nB. 二",
    "choices_pretokenized": [" A", " B"],
    "label": 1,
    "targets_pretokenized": ["B"],
}
_CHAT = {"category": "x", "messages": [{"role": "user", "content": "1+1"}], "answer": "2"}


def _write(folder: Path, *lines: Any) -> Path:
    file = folder / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def test_both_forms_are_read(tmp_path: Path) -> None:
    chat, choice = read_questions(_write(tmp_path, _CHAT, "", _CEVAL))
    assert chat == Question(({"role": "user", "content": "1+1"},), "2")
    assert (choice.answer, choice.choices) == ("B", ("A", "B"))
    assert choice.messages[0]["content"] == f"{_CEVAL['inputs_pretokenized']}\n答案："


def test_a_subject_of_ceval_is_read(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "CEval/val/Social_Science"
    questions = read_questions(folder / "teacher_qualification.jsonl")
    assert len(questions) > 30
    assert {question.choices for question in questions} == {("A", "B", "C", "D")}
    assert questions[0].answer == "C"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not valid JSON"),
        ({"text": "x"}, "line 2 is no question"),
        ([1], "line 2 is no question"),
        (_CHAT | {"answer": 2}, 'line 2: "messages" must be'),
        (_CHAT | {"messages": []}, 'line 2: "messages" must be'),
        (_CEVAL | {"label": 2}, '"label" is 2, and there are 2 choices'),
        (_CEVAL | {"label": True}, 'line 2: "inputs_pretokenized" must be'),
        (_CEVAL | {"choices_pretokenized": ["A", " "]}, "none may be empty"),
    ],
)
def test_a_bad_line_is_told(line: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read_questions(_write(tmp_path, _CHAT, line))


def test_a_file_without_questions_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no question"):
        read_questions(_write(tmp_path, ""))
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="line 1 is not UTF-8"):
        read_questions(tmp_path / "x.jsonl")


class FakeModel:
    """Answers every question with its last word, or with the likeliest allowed token."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(
            has_chat_template=True, encode=list, spell_word=lambda word: [[ord(word[0])]]
        )
        self.calls: list[tuple[int, Any]] = []

    def chat(self, conversations: Any, params: Any, tools: Any) -> list[SimpleNamespace]:
        self.calls.append((len(conversations), tools))
        outputs = []
        for messages, wanted in zip(conversations, params, strict=True):
            text = messages[-1]["content"].split()[-1]
            bias = dict(wanted.logit_bias)
            if bias:
                text = chr(max(bias))
            is_long = len(text) > wanted.max_new_tokens
            outputs.append(
                SimpleNamespace(text=text, finish_reason="length" if bias or is_long else "stop")
            )
        return outputs


def _ask(text: str, answer: str, tools: tuple[Any, ...] = ()) -> Question:
    return Question(({"role": "user", "content": text},), answer, tools=tools)


def test_answers_keep_their_places_and_tools_their_questions() -> None:
    tool = {"name": "f"}
    asked = [_ask("say a", "a"), _ask("say b", "x", (tool,)), _ask("say c", "c")]
    model: Any = FakeModel()
    answers = answer_questions(model, asked)
    assert answers == ["a", "b", "c"]
    assert count_right(asked, answers) == 2
    assert model.calls == [(2, None), (1, [tool])]


def test_an_answer_that_goes_on_is_another() -> None:
    model: Any = FakeModel()
    assert answer_questions(model, [_ask("say abcdefghijkl", "a")]) == ["abcdefghijkl ..."]


def test_a_choice_is_a_letter() -> None:
    model: Any = FakeModel()
    question = Question(({"role": "user", "content": "x"},), "B", choices=("A", "B"))
    assert answer_questions(model, [question]) == ["B"]
    same = Question(({"role": "user", "content": "x"},), "B1", choices=("B1", "B2"))
    with pytest.raises(ConfigError, match="begin with the same token"):
        answer_questions(model, [same])
