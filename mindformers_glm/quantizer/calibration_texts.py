"""The texts that ranges and errors are measured on, from the files that tools and guides name.

Each is tokenized alone, as msModelSlim's example for GLM does. Read are: JSON lines and JSON lists
of {"prompt", "ans"} or {"inputs_pretokenized", ...} (of which the questions count), of {"text"}
(C4, also as .json.gz) or of {"instruction", "input", "output"} (Alpaca); C-Eval's CSV files, also
the archive ceval-exam.zip of them. A fault is told with its line.
"""

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.system.files import open_file, parse_json, read_file
from mindformers_glm.tokenizer import GlmTokenizer

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "calibration" / "texts.jsonl"
# Of sets that hold thousands: as many as tools for GPTQ take.
MANY = 128
_MAX_BYTES = 256 * 2**20  # of a file that is read whole
_MAX_LINE_BYTES = 4 * 2**20
_CHOICES = "ABCD"
_CEVAL_PART = "val"  # the one that has answers and is meant for tuning
_EXPECTED = (
    'objects with "prompt", "inputs_pretokenized", "text", or "instruction" and "output", or texts'
)


@dataclass(frozen=True)
class CalibrationText:
    """One text.

    place: where it stands, for people: "calib.jsonl, line 3".
    may_be_cut: it is a document, of which the beginning is as good as the whole.
    """

    text: str
    place: str
    may_be_cut: bool = False


def read_calibration_file(path: Path, max_texts: int | None = None) -> list[CalibrationText]:
    """The texts of a file.

    Args:
        max_texts: no more than these; None: all, but `MANY` of C4, Alpaca and C-Eval's archive.
    Raises:
        ConfigError: it cannot be read, or holds something else; the sentence names the line.
    """
    name = path.name.lower()
    reader = next((read for end, read in _READERS.items() if name.endswith(end)), None)
    if reader is None:
        raise ConfigError(
            f"{path} ends in none of {', '.join(_READERS)}, by which calibration files are known: "
            "rename it, or convert it to JSON lines."
        )
    if not os.path.exists(path):  # False also for names that no file can have
        raise ConfigError(f"{path} does not exist: give a calibration file.")
    texts = reader(path, max_texts)
    if not texts:
        raise ConfigError(f"{path} holds no text: give a file with {_EXPECTED}.")
    return _spread(texts, max_texts) if max_texts is not None else texts


def given_texts(texts: Sequence[str]) -> list[CalibrationText]:
    """Those of the command line.

    Raises:
        ConfigError: one is empty.
    """
    found = [CalibrationText(text, f"calib_texts, text {n}") for n, text in enumerate(texts, 1)]
    for text in found:
        _check_text(text.text, text.place)
    return found


def tokenize_texts(
    texts: Iterable[CalibrationText], tokenizer: GlmTokenizer, max_tokens: int
) -> list[list[int]]:
    """The token ids of each text.

    Args:
        max_tokens: positions of the model.
    Raises:
        ConfigError: a text is longer than that, and is no document.
    """
    samples = []
    for text in texts:
        try:
            token_ids = tokenizer.encode(text.text)
        except PromptError as problem:
            raise ConfigError(f"{text.place}: {problem}") from None
        if len(token_ids) > max_tokens and not text.may_be_cut:
            raise ConfigError(
                f"{text.place} has {len(token_ids)} tokens, and the model has {max_tokens} "
                "positions: shorten it or leave it out."
            )
        if token_ids:
            samples.append(token_ids[:max_tokens])
    return samples


def _read_lines(path: Path, max_texts: int | None) -> list[CalibrationText]:
    lines = enumerate(read_file(path, ConfigError, _MAX_BYTES).split(b"\n"), start=1)
    return _read_objects(lines, str(path), max_texts)


def _read_packed_lines(path: Path, max_texts: int | None) -> list[CalibrationText]:
    """JSON lines behind gzip, of which no more is unpacked than is wanted."""
    try:
        with open_file(path) as packed, gzip.open(packed) as file:
            lines = iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b"")
            return _read_objects(enumerate(lines, start=1), str(path), max_texts or MANY)
    except (OSError, EOFError, zlib.error) as problem:
        raise ConfigError(f"Cannot unpack {path} ({problem}): download it again.") from None


def _read_json(path: Path, max_texts: int | None) -> list[CalibrationText]:
    content = read_file(path, ConfigError, _MAX_BYTES)
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _read_objects(enumerate(content.split(b"\n"), start=1), str(path), max_texts)
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise _not_utf8(f"{path}, line {content.count(10, 0, problem.start) + 1}") from None
    except ValueError as problem:
        raise ConfigError(f"{path} is not valid JSON ({problem}): mend or replace it.") from None
    places = (f"{path}, item {number}" for number in range(1, len(items) + 1))
    texts = [_read_object(item, place) for item, place in zip(items, places, strict=True)]
    is_alpaca = bool(items) and isinstance(items[0], dict) and "instruction" in items[0]
    return _spread(texts, max_texts or MANY) if is_alpaca else texts


def _read_csv(path: Path, max_texts: int | None) -> list[CalibrationText]:
    return _read_table(read_file(path, ConfigError, _MAX_BYTES), str(path))


def _read_archive(path: Path, max_texts: int | None) -> list[CalibrationText]:
    """C-Eval's questions of all subjects, those of its part for tuning."""
    content = io.BytesIO(read_file(path, ConfigError, _MAX_BYTES))
    texts = []
    try:
        with zipfile.ZipFile(content) as archive:
            for member in archive.infolist():
                pieces = member.filename.split("/")
                if member.filename.endswith(".csv") and _CEVAL_PART in pieces[:-1]:
                    if member.file_size > _MAX_BYTES:
                        raise ConfigError(f"{path} has a {member.filename} of too many bytes.")
                    table = archive.read(member)
                    texts += _read_table(table, f"{path}, {member.filename}")
    # zipfile raises the last two for a compression it does not know and for a password.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as problem:
        raise ConfigError(f"Cannot unpack {path} ({problem}): download it again.") from None
    if not texts:
        raise ConfigError(
            f"{path} holds no {_CEVAL_PART}/SUBJECT.csv, as C-Eval's archive does: give that."
        )
    return _spread(texts, max_texts or MANY)


_READERS: dict[str, Callable[[Path, int | None], list[CalibrationText]]] = {
    ".json.gz": _read_packed_lines,
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".zip": _read_archive,
}


def _read_objects(
    lines: Iterable[tuple[int, bytes]], where: str, max_texts: int | None
) -> list[CalibrationText]:
    """An object a line; blank lines are none."""
    texts: list[CalibrationText] = []
    for number, line in lines:
        place = f"{where}, line {number}"
        if len(line) > _MAX_LINE_BYTES:
            raise ConfigError(f"{place} has more than {_MAX_LINE_BYTES} bytes: shorten it.")
        if line.strip():
            texts.append(_read_object(_parse_line(line, place), place))
        if len(texts) == max_texts:
            break
    return texts


def _parse_line(line: bytes, place: str) -> Any:
    try:
        return parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _not_utf8(place) from None
    except ValueError as problem:
        raise ConfigError(
            f"{place} is not valid JSON ({problem}): write one object a line."
        ) from None


def _not_utf8(place: str) -> ConfigError:
    return ConfigError(f"{place} is not UTF-8 text: save the file as UTF-8.")


def _read_object(item: Any, place: str) -> CalibrationText:
    if isinstance(item, str):
        return CalibrationText(_check_text(item, place), place)
    if not isinstance(item, dict):
        raise ConfigError(f"{place} is a {type(item).__name__}, expected {_EXPECTED}.")
    for key in ("prompt", "inputs_pretokenized"):
        if key in item:
            return CalibrationText(_check_text(item[key], place, key), place)
    if "text" in item:
        return CalibrationText(_check_text(item["text"], place, "text"), place, may_be_cut=True)
    if "instruction" in item and "output" in item:
        parts = [item["instruction"], item.get("input") or "", item["output"]]
        if all(isinstance(part, str) for part in parts):
            text = "\n".join(filter(None, parts))
            return CalibrationText(_check_text(text, place), place, may_be_cut=True)
    keys = ", ".join(map(str, list(item)[:5])) or "nothing"
    raise ConfigError(f"{place} has {keys:.200}, expected {_EXPECTED}.")


def _check_text(text: Any, place: str, key: str = "") -> str:
    if not isinstance(text, str) or not text.strip():
        what = f"has no text in {json.dumps(key)}" if key else "holds no text"
        raise ConfigError(f"{place} {what}: write one, or leave it out.")
    return text


def _read_table(content: bytes, where: str) -> list[CalibrationText]:
    """C-Eval's columns: id, question, A, B, C, D, answer."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise _not_utf8(f"{where}, line {content.count(10, 0, problem.start) + 1}") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return list(_read_rows(rows, where))


def _read_rows(rows: "csv.DictReader[str]", where: str) -> Iterator[CalibrationText]:
    wanted = ("question", *_CHOICES)
    lacking = [name for name in wanted if name not in (rows.fieldnames or ())]
    if lacking:
        raise ConfigError(
            f"{where}, line 1, has no column {lacking[0]!r}, expected those of C-Eval: "
            f"{', '.join(wanted)}."
        )
    try:
        for row in rows:
            place = f"{where}, line {rows.line_num}"
            cells = [row[name] for name in wanted]
            if any(cell is None for cell in cells):
                raise ConfigError(f"{place} has fewer columns than the first: mend it.")
            choices = [f"{name}. {row[name]}" for name in _CHOICES]
            question = _check_text(row["question"], place, "question")
            yield CalibrationText("\n".join([question, *choices]), place)
    except csv.Error as problem:
        raise ConfigError(f"{where}, line {rows.line_num}, is no CSV ({problem}).") from None


def _spread(texts: list[CalibrationText], count: int) -> list[CalibrationText]:
    """So many of them, at equal distances."""
    if len(texts) <= count:
        return texts
    return [texts[number * len(texts) // count] for number in range(count)]
