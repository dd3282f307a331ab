"""Arguments of a call in Python, as ChatGLM3 writes them, as rules of a grammar.

A JSON schema says what they may be. JSON's numbers, and texts in double quotes without what only
JSON escapes, are Python's, so what cannot hold true, false or null is left to the JSON schema
itself; the rest is written out here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mindformers_glm.core.errors import PromptError

_MAX_RULES = 300  # of one tool
# Of these a schema is written out here; titles and the like change nothing.
_OF_OBJECTS = ("type", "required", "additionalProperties", "$defs", "definitions")
_KNOWN = frozenset(
    (*_OF_OBJECTS, "properties", "items", "minItems", "maxItems", "enum", "const", "anyOf", "oneOf")
)
_SILENT = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "$comment",
    ]
)
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
# Any value; numbers have no exponent that leaves float64, which no JSON could then express.
_ANY = r"""
{p}_any: {P}_STRING | {P}_NUMBER | "True" | "False" | "None" | {p}_list | {p}_dict
{p}_list: "[" ({p}_any (", " {p}_any)*)? "]"
{p}_dict: "{{" ({p}_item (", " {p}_item)*)? "}}"
{p}_item: {P}_STRING ": " {p}_any
{P}_STRING: /'([^'\\\x00-\x1f\x7f]|\\[nrt'"\\])*'/ | /"([^"\\\x00-\x1f\x7f]|\\[nrt'"\\])*"/
{P}_NUMBER: /-?(0|[1-9][0-9]{{0,30}})(\.[0-9]{{1,30}})?([eE][-+]?[0-9]{{1,2}})?/
{P}_INTEGER: /-?(0|[1-9][0-9]{{0,30}})/
"""


@dataclass
class PythonArguments:
    """Rules of Lark for what stands between the brackets of a call.

    rule: the one that stands for all of it.
    rules: their text.
    schemas: the JSON schemas that they refer to as @name, with a label each.
    """

    rule: str
    rules: str
    schemas: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def write_python_arguments(prefix: str, label: str, schema: Mapping[str, Any]) -> PythonArguments:
    """Return rules for the arguments of one tool.

    Args:
        prefix: begins the name of each rule.
        label: names the schema in messages.
        schema: of an object, whose properties are the arguments.
    Raises:
        PromptError: it says something that calls in Python cannot keep.
    """
    return _Writer(prefix, label, schema).write()


class _Writer:
    def __init__(self, prefix: str, label: str, schema: Mapping[str, Any]) -> None:
        self._prefix, self._label, self._root = prefix, label, schema
        self._rules: list[str] = []
        self._schemas: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._of_place: dict[str, str] = {}  # rules of $ref, which may lead back to themselves
        self._num_rules = 0

    def write(self) -> PythonArguments:
        root = self._follow(self._root)
        for name in root.get("properties", {}):
            if not name.isidentifier():
                self._refuse(f"{name!r} cannot be the name of an argument in Python")
        body = self._write_members(root, "#", lambda name: f"{name}=")
        rules = f"{self._prefix}_arguments: {body}\n" + "".join(self._rules)
        rules += _ANY.lstrip().format(p=self._prefix, P=self._prefix.upper())
        return PythonArguments(f"{self._prefix}_arguments", rules, self._schemas)

    def _refuse(self, problem: str) -> None:
        raise PromptError(f"{self._label}: {problem}, as this model calls tools.")

    def _follow(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a $ref stands for."""
        seen = set()
        while isinstance(place := schema.get("$ref"), str):
            if place in seen or not place.startswith("#"):
                self._refuse(f"$ref {place!r:.80} leads nowhere")
            seen.add(place)
            found: Any = self._root
            for step in place.lstrip("#/").split("/") if place != "#" else []:
                step = step.replace("~1", "/").replace("~0", "~")
                found = found.get(step) if isinstance(found, Mapping) else None
            if not isinstance(found, Mapping):
                self._refuse(f"$ref {place!r:.80} leads nowhere")
            schema = found
        return schema

    def _write_value(self, schema: Any, place: str) -> str:
        """Return an expression of Lark for a value."""
        if schema is True or schema == {}:
            return f"{self._prefix}_any"
        if not isinstance(schema, Mapping):
            self._refuse(f"{place} is no schema")
        if "$ref" in schema:
            self._allow(schema, place, "$ref")
            reference = str(schema["$ref"])
            if reference not in self._of_place:
                rule = self._of_place[reference] = self._new_rule()
                self._rules.append(f"{rule}: {self._write_plain(self._follow(schema), place)}\n")
            return self._of_place[reference]
        return self._write_plain(schema, place)

    def _write_plain(self, schema: Mapping[str, Any], place: str) -> str:
        if "const" in schema or "enum" in schema:
            self._allow(schema, place, "const", "enum", "type")
            values = [schema["const"]] if "const" in schema else schema["enum"]
            if not isinstance(values, list) or not values:
                self._refuse(f"enum at {place} is no list of values")
            return f"({' | '.join(json.dumps(spelt) for v in values for spelt in _spell(v))})"
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                self._allow(schema, place, keyword)
                choices = [
                    self._write_value(choice, f"{place}/{keyword}/{index}")
                    for index, choice in enumerate(schema[keyword])
                ]
                return f"({' | '.join(choices)})"
        types = schema.get("type", _TYPES)
        types = [types] if isinstance(types, str) else types
        return f"({' | '.join(self._write_type(kind, schema, place) for kind in types)})"

    def _allow(self, schema: Mapping[str, Any], place: str, *keywords: str) -> None:
        extra = schema.keys() - _SILENT - {*keywords}
        if extra:
            named = ", ".join(sorted(extra))
            self._refuse(f"{named} at {place} cannot be kept beside {keywords[0]}")

    def _write_type(self, kind: str, schema: Mapping[str, Any], place: str) -> str:
        terminal = self._prefix.upper()
        extra = schema.keys() - _SILENT - _KNOWN
        if kind in ("string", "integer", "number") and extra:
            # Bounds, patterns and formats: JSON's way to write such a value is also Python's.
            name = self._new_rule()
            self._schemas[name] = f"{self._label} ({place})", {**schema, "type": kind}
            return f"@{name}"
        if extra:
            self._refuse(f"{', '.join(sorted(extra))} at {place} cannot be kept")
        if kind == "array":
            return self._write_array(schema, place)
        if kind == "object":
            return self._write_object(schema, place)
        plain = {
            "string": f"{terminal}_STRING",
            "integer": f"{terminal}_INTEGER",
            "number": f"{terminal}_NUMBER",
            "boolean": '("True" | "False")',
            "null": '"None"',
        }
        if kind not in plain:
            self._refuse(f"type {kind!r} at {place} is not known")
        return plain[kind]

    def _write_array(self, schema: Mapping[str, Any], place: str) -> str:
        item = self._write_value(schema.get("items", True), f"{place}/items")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'("[]" | "[" {item} {more} "]")'

    def _write_object(self, schema: Mapping[str, Any], place: str) -> str:
        if "properties" not in schema:
            value = schema.get("additionalProperties", True)
            if value is False:
                return '"{}"'
            item = f'{self._prefix.upper()}_STRING ": " {self._write_value(value, place)}'
            return f'("{{}}" | "{{" {item} (", " {item})* "}}")'
        return f'"{{" {self._write_members(schema, place, lambda name: f"{name!r}: ")} "}}"'

    def _write_members(self, schema: Mapping[str, Any], place: str, head: Any) -> str:
        """Write properties in their order: those that are not required may be missing."""
        if isinstance(schema.get("additionalProperties"), Mapping):
            self._refuse(f"additionalProperties at {place} cannot be kept beside properties")
        self._allow(schema, place, "properties", *_OF_OBJECTS)
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        members = []
        for name, value in properties.items():
            written = self._write_value(value, f"{place}/properties/{name}")
            members.append((f"{json.dumps(head(name))} {written}", name in required))
        for name in required:
            if name not in properties:
                self._refuse(f"{name!r} at {place} is required and has no schema")
        return self._join(members)

    def _join(self, members: list[tuple[str, bool]]) -> str:
        """Join members by commas: rule k stands for what comes from member k on, behind another."""
        behind = '""'
        first = ['""']
        for member, is_required in reversed(members):
            rule = self._new_rule()
            here = f'", " {member} {behind}'
            self._rules.append(f"{rule}: {here if is_required else f'{here} | {behind}'}\n")
            start = f"{member} {behind}"
            first = [start] if is_required else [start, *first]
            behind = rule
        rule = self._new_rule()
        self._rules.append(f"{rule}: {' | '.join(first)}\n")
        return rule

    def _new_rule(self) -> str:
        self._num_rules += 1
        if self._num_rules > _MAX_RULES:
            self._refuse(f"there are more than {_MAX_RULES} parts")
        return f"{self._prefix}_{self._num_rules}"


def _spell(value: Any) -> list[str]:
    """Return how Python writes a JSON value: a text in both quotes."""
    quoted = [json.dumps(value, ensure_ascii=False)] if isinstance(value, str) else []
    return [*dict.fromkeys([repr(value), *quoted])]
