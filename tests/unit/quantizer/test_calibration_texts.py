"""Calibration files of every kind, and one sentence with the line for what is wrong in them."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantizer.calibration_texts import (
    MANY,
    SHIPPED,
    CalibrationText,
    given_texts,
    read_calibration_file,
    tokenize_texts,
)
from mindformers_glm.tokenizer import load_tokenizer
from tests.conftest import MINI

_CSV = "id,question,A,B,C,D,answer\n0,一加一等于多少,一,二,三,四,B\n1,天空的颜色,红,蓝,绿,黑,B\n"
_FIRST = "一加一等于多少\nA. 一\nB. 二\nC. 三\nD. 四"


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _lines(*items: object) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


_GOOD = {
    "jsonl of prompts": ("a.jsonl", _lines({"prompt": "一", "ans": "x"}, {"prompt": "二"})),
    "jsonl of C-Eval": (
        "a.jsonl",
        _lines({"id": 0, "inputs_pretokenized": "一", "label": 2}, "二"),
    ),
    "json list": ("a.json", json.dumps([{"prompt": "一", "ans": "x"}, {"prompt": "二"}])),
    "json list of texts": ("a.json", json.dumps(["一", "二"])),
    "lines called json": ("a.json", _lines({"prompt": "一"}, {"prompt": "二"})),
    "byte order mark": ("a.jsonl", "\ufeff" + _lines("一", "二")),
    "blank lines": ("a.jsonl", "\n" + _lines("一") + "\n\n" + _lines("二") + "\n"),
    "C4": ("c4.json.gz", gzip.compress(_lines({"text": "一"}, {"text": "二"}).encode())),
}


@pytest.mark.parametrize("case", _GOOD)
def test_texts_are_read(case: str, tmp_path: Path) -> None:
    found = read_calibration_file(_write(tmp_path, *_GOOD[case]))
    assert [text.text for text in found] == ["一", "二"]


def test_alpaca_is_a_question_and_its_answer(tmp_path: Path) -> None:
    items = [
        {"instruction": "Add.", "input": "1 + 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
    ]
    found = read_calibration_file(_write(tmp_path, "alpaca_data_cleaned.json", json.dumps(items)))
    assert [text.text for text in found] == ["Add.\n1 + 1\n2", "Greet.\nHello"]


def test_ceval_csv_is_a_question_and_its_choices(tmp_path: Path) -> None:
    found = read_calibration_file(_write(tmp_path, "civil_servant_val.csv", _CSV))
    assert found[0] == CalibrationText(_FIRST, f"{tmp_path}/civil_servant_val.csv, line 2")
    assert len(found) == 2


def test_ceval_archive_gives_its_part_for_tuning(tmp_path: Path) -> None:
    path = tmp_path / "ceval-exam.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test/law_test.csv", "id,question,A,B,C,D\n0,no,1,2,3,4\n")
        archive.writestr("val/art_val.csv", _CSV)
        archive.writestr("val/law_val.csv", _CSV)
    found = read_calibration_file(path)
    assert [text.text for text in found] == [text.text for text in found[:2]] * 2
    assert found[0].text == _FIRST


def test_large_sets_give_a_part(tmp_path: Path) -> None:
    many = _lines(*({"text": f"text {number}"} for number in range(3 * MANY)))
    packed = _write(tmp_path, "c4.json.gz", gzip.compress(many.encode()))
    assert len(read_calibration_file(packed)) == MANY
    assert len(read_calibration_file(packed, 5)) == 5
    lines = _write(tmp_path, "a.jsonl", many)
    assert len(read_calibration_file(lines)) == 3 * MANY


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    many = _lines(*({"text": f"text {number}" * 99} for number in range(MANY)))
    damaged = gzip.compress(many.encode())[:-4]
    packed = _write(tmp_path, "c4.json.gz", damaged)
    assert len(read_calibration_file(packed, 1)) == 1
    with pytest.raises(ConfigError, match="Cannot unpack"):
        read_calibration_file(packed, 2 * MANY)


def test_shipped_set_is_of_both_languages() -> None:
    texts = [text.text for text in read_calibration_file(SHIPPED)]
    assert len(texts) == len(set(texts)) >= 50
    chinese = [text for text in texts if any("\u4e00" <= letter <= "\u9fff" for letter in text)]
    assert 20 <= len(chinese) <= len(texts) - 20
    assert max(map(len, texts)) < 400


_BAD = {
    "bad line": ("a.jsonl", _lines("一") + "{broken\n", "line 2 is not valid JSON"),
    "another object": ("a.jsonl", _lines("一", {"question": "x"}), "line 2 has question"),
    "a number": ("a.jsonl", _lines("一", 7), "line 2 is a int"),
    "an empty prompt": ("a.jsonl", _lines("一", {"prompt": " "}), 'line 2 has no text in "prompt"'),
    "not UTF-8": ("a.jsonl", _lines("一").encode() + b'"\xff"\n', "line 2 is not UTF-8"),
    "json not UTF-8": ("a.json", b'["a",\n"\xff"]', "line 2 is not UTF-8"),
    "empty": ("a.jsonl", "", "holds no text"),
    "blank": ("a.jsonl", "\n\n", "holds no text"),
    "an empty list": ("a.json", "[]", "holds no text"),
    "half a list": ("a.json", '["a"', "is not valid JSON"),
    "an item of a list": ("a.json", '["a", {"x": 1}]', "item 2 has x"),
    "another file": ("a.txt", "text", "ends in none of"),
    "no gzip": ("a.json.gz", "text", "Cannot unpack"),
    "half of gzip": ("a.json.gz", gzip.compress(_lines("a" * 999).encode())[:-9], "Cannot unpack"),
    "no archive": ("a.zip", "text", "Cannot unpack"),
    "other columns": ("a.csv", "id,question\n0,x\n", "line 1, has no column 'A'"),
    "a short row": ("a.csv", _CSV + "2,x,1\n", "line 4 has fewer columns"),
    "csv not UTF-8": ("a.csv", _CSV.encode() + b"\xff,x\n", "line 4 is not UTF-8"),
}


@pytest.mark.parametrize("case", _BAD)
def test_a_fault_is_one_sentence_with_its_line(case: str, tmp_path: Path) -> None:
    name, content, sentence = _BAD[case]
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_calibration_file(_write(tmp_path, name, content))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("val/readme.txt", "x")
    with pytest.raises(ConfigError, match=r"no val/SUBJECT\.csv"):
        read_calibration_file(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.zip"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_calibration_file(tmp_path / name)


def test_texts_are_tokenized_alone() -> None:
    tokenizer = load_tokenizer(MINI)
    texts = given_texts(["北京", "What is two plus two?"])
    found = tokenize_texts(texts, tokenizer, 100)
    assert found == [tokenizer.encode("北京"), tokenizer.encode("What is two plus two?")]


def test_a_text_longer_than_the_model_is_refused_by_its_line(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINI)
    texts = read_calibration_file(_write(tmp_path, "a.jsonl", _lines("北京", "北京 " * 100)))
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2 has \d+ tokens, and the model has 50"):
        tokenize_texts(texts, tokenizer, 50)


def test_a_document_longer_than_the_model_is_cut() -> None:
    (found,) = tokenize_texts(
        [CalibrationText("北京 " * 100, "c4", may_be_cut=True)], load_tokenizer(MINI), 50
    )
    assert len(found) == 50


def test_real_sets_are_read(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "calibration"
    counts = {"mix_dataset_glm.json": 300, "teacher_qualification.jsonl": 44, "boolq.jsonl": 50}
    for name, count in counts.items():
        found = read_calibration_file(folder / name)
        assert len(found) == count, name
        assert all(text.text for text in found)
