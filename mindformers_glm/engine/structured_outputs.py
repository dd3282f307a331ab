"""What form an answer must have, as callers say it: vLLM's settings, and a request's fields.

Names and meaning are those of vLLM (0.10 and later, `StructuredOutputsParams`) and of OpenAI's
`response_format`. What the form allows token by token is worked out by llguidance (constraints.py).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.argument_names import refuse_unknown_arguments

_NOT_OFFERED = "this version does not offer it"
_FORMS = ("json", "regex", "choice", "grammar", "json_object")
# Characters. OpenAI takes schemas of 120,000; one of this size is read in a tenth of a second.
MAX_SCHEMA_LENGTH = 131_072
MAX_GRAMMAR_LENGTH = 65_536
MAX_REGEX_LENGTH = 16_384
MAX_CHOICES = 10_000
# serde_json, which reads the schema for llguidance, takes 127.
_MAX_DEPTH = 100
# Groups and rules of a grammar, or groups of a regular expression, which may all be nested: a token
# mask of 300 nested repetitions takes 13 ms, one of 1,000 took seconds.
MAX_GROUPS = 400

# The beginning of a rule, in Lark ("name: ...") and in GBNF ("name ::= ...").
_RULE = re.compile(r"^\s*[?!]?[\w.-]+[^\n]*?:", re.MULTILINE)


@refuse_unknown_arguments(
    {
        "structural_tag": _NOT_OFFERED,
        "disable_fallback": "there is one library and nothing to fall back to",
        "disable_additional_properties": "say additionalProperties false in the schema",
        "whitespace_pattern": "disable_any_whitespace leaves out all of it",
        "json_schema": "json",
    }
)
@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form of an answer; exactly one of the first five.

    Args:
        json: a JSON schema, as an object or as its text; kept as text.
        regex: a regular expression that the whole answer matches (Rust's dialect: no look-around,
            no references back).
        choice: the answer is one of these texts.
        grammar: a grammar in llguidance's variant of Lark, or in GBNF as llama.cpp has it.
        json_object: True: any JSON object.
        disable_any_whitespace: JSON is written without blanks and line ends.
    Raises:
        ConfigError: none or several are given, or one is of the wrong type or too large.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ConfigError(
                f"structured_outputs takes exactly one of {', '.join(_FORMS)}, got "
                f"{' and '.join(given) or 'none'}."
            )
        for name in ("json_object", "disable_any_whitespace"):
            if getattr(self, name) not in (None, True, False):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r:.80}.")
        if self.json is not None:
            object.__setattr__(self, "json", _read_schema(self.json))
        if self.regex is not None:
            _check_text("regex", self.regex, MAX_REGEX_LENGTH)
            check_groups("regex", self.regex)
        if self.grammar is not None:
            _check_text("grammar", self.grammar, MAX_GRAMMAR_LENGTH)
            check_groups("grammar", self.grammar)
        if self.choice is not None:
            object.__setattr__(self, "choice", _read_choice(self.choice))


def read_structured_outputs(given: Any) -> StructuredOutputsParams | None:
    """Return what a setting `structured_outputs` says: the params, or an object of their names.

    Raises:
        ConfigError: it is something else.
    """
    if given is None or isinstance(given, StructuredOutputsParams):
        return given
    if isinstance(given, Mapping):
        # What clients fill in with null says nothing.
        named = {name: value for name, value in given.items() if value is not None}
        if all(isinstance(name, str) for name in named):
            return StructuredOutputsParams(**named)
    raise ConfigError(
        "structured_outputs must be StructuredOutputsParams or an object such as "
        f'{{"regex": "[0-9]+"}}, got {given!r:.80}.'
    )


# vLLM's older names of a request's fields -> those of StructuredOutputsParams.
_GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
STRUCTURED_OUTPUT_FIELDS = ("response_format", "structured_outputs", *_GUIDED)


def structured_outputs_of(request: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """Return what a request's fields say of the answer's form; None if they say nothing.

    Args:
        request: the body, or these fields of it (`STRUCTURED_OUTPUT_FIELDS`): OpenAI's
            `response_format`, vLLM's `structured_outputs` and `guided_*`. null counts as absent.
    Raises:
        ConfigError: a field is wrong, or two of them give a form.
    """
    found: dict[str, StructuredOutputsParams] = {}
    if (response_format := request.get("response_format")) is not None:
        form = _read_response_format(response_format)
        if form is not None:
            found["response_format"] = form
    form = read_structured_outputs(request.get("structured_outputs"))
    if form is not None:
        found["structured_outputs"] = form
    for name, setting in _GUIDED.items():
        if (value := request.get(name)) is not None:
            given: dict[str, Any] = {setting: value}
            found[name] = StructuredOutputsParams(**given)
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(found)} both give the answer a form: leave one out.")
    return next(iter(found.values()), None)


def _read_response_format(given: Any) -> StructuredOutputsParams | None:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object" and given.get("schema") is not None:  # as llama.cpp's clients write it
        return StructuredOutputsParams(json=given["schema"])
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind != "json_schema":
        raise ConfigError(
            'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": '
            f'"json_schema", "json_schema": {{...}}}}, got {given!r:.80}.'
        )
    wrapped = given.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ConfigError(
            'response_format of type json_schema needs "json_schema": {"name": ..., "schema": '
            f"{{...}}}}, got {wrapped!r:.80}."
        )
    return StructuredOutputsParams(json=schema)


def _read_schema(given: Any) -> str:
    """Return a schema's text with the order of its keys, which is that of the answer."""
    text = given if isinstance(given, str) else None
    try:
        schema = given if text is None else json.loads(text)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise ConfigError("The JSON schema is nested too deeply to be read.") from None
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"The JSON schema is no JSON ({problem}): {given!r:.80}.") from None
    if not isinstance(schema, Mapping):
        raise ConfigError(f"A JSON schema must be an object, got {text:.80}.")
    if len(text) > MAX_SCHEMA_LENGTH:
        raise ConfigError(
            f"The JSON schema has {len(text):,} characters, more than {MAX_SCHEMA_LENGTH:,}."
        )
    _check_depth(text)
    return text


def _read_choice(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(f"choice must be a list of texts, got {given!r:.80}.")
    for text in given:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"choice must hold non-empty texts, got {text!r:.80}.")
    if len(given) > MAX_CHOICES or sum(map(len, given)) > MAX_SCHEMA_LENGTH:
        raise ConfigError(
            f"choice has {len(given):,} texts of {sum(map(len, given)):,} characters, more than "
            f"{MAX_CHOICES:,} or {MAX_SCHEMA_LENGTH:,}."
        )
    for text in given:
        _check_unicode("choice", text)
    return tuple(given)


def _check_text(name: str, given: Any, limit: int) -> None:
    if not isinstance(given, str) or not given:
        raise ConfigError(f"{name} must be a non-empty text, got {given!r:.80}.")
    if len(given) > limit:
        raise ConfigError(f"{name} has {len(given):,} characters, more than {limit:,}.")
    _check_unicode(name, given)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} is not valid Unicode (it has half a surrogate pair).") from None


def _check_depth(text: str) -> None:
    """Refuse a schema nested so deeply that a parser's stack might not hold it."""
    depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', text):
        depth += 1 if mark in "{[" else -1 if mark in "}]" else 0
        if depth > _MAX_DEPTH:
            raise ConfigError(f"The JSON schema is nested more than {_MAX_DEPTH} levels deep.")


def check_groups(name: str, text: str) -> None:
    """Refuse what may be nested so deeply that finding the next token takes long.

    Raises:
        ConfigError: a grammar or a regular expression has too many groups and rules.
    """
    count = text.count("(") + (len(_RULE.findall(text)) if name == "grammar" else 0)
    if count > MAX_GROUPS:
        raise ConfigError(f"{name} has {count} groups and rules, more than {MAX_GROUPS}.")
