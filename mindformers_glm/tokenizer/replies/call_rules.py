"""How a model of the family writes calls, as rules of a grammar: what its parser reads as calls.

The rules are in llguidance's variant of Lark. The parsers that read such calls are beside this file
(call_candidates.py); what a grammar of here allows, they take for as many calls as it has.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat.messages import Tool, function_of, tool_name
from mindformers_glm.tokenizer.chat.official_prompts import RUMINATION_TOOLS
from mindformers_glm.tokenizer.replies.call_candidates import (
    CallCandidate,
    JsonObjectCall,
    NamedJsonCall,
    PythonCall,
)
from mindformers_glm.tokenizer.replies.python_arguments import write_python_arguments
from mindformers_glm.tokenizer.replies.reply_parser import TOOL_CALL_PARSERS

_MAX_PARALLEL_CALLS = 16


@dataclass
class CallRules:
    """Rules of Lark, of which `calls` is one or more calls.

    rules: their text.
    schemas: the JSON schemas that they refer to as @name: a label for messages, and the schema.
    """

    rules: str = ""
    schemas: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def write_call_rules(
    tool_call_parser: str,
    tools: Sequence[Tool],
    *,
    name: str | None = None,
    is_parallel: bool = False,
    separator: str,
) -> CallRules:
    """Return rules for calls of the tools.

    Args:
        tool_call_parser: a key of `TOOL_CALL_PARSERS`; the parser that reads the answer.
        name: the only tool that may be called; None: any.
        is_parallel: several calls may follow each other.
        separator: what stands between them, in Lark.
    Raises:
        PromptError: the model was not trained to call tools, there is no such tool, or its calls
            cannot write a tool's parameters.
    """
    syntax = TOOL_CALL_PARSERS[tool_call_parser]
    if syntax.candidate is None:
        raise PromptError(
            "tool_choice demands a call, and no way is known in which this model calls tools "
            f"(tool_call_parser {tool_call_parser}): use auto or none."
        )
    known = {tool_name(tool): tool for tool in tools}
    known |= {tool["name"]: tool for tool in RUMINATION_TOOLS if tool["name"] in syntax.fixed_tools}
    if name is not None and name not in known:
        offered = ", ".join(map(str, known)) or "none"
        raise PromptError(f"tool_choice names {name!r}, which is not offered (tools: {offered}).")
    if not known:
        raise PromptError("tool_choice demands a call, and no tools are offered.")
    rules = CallRules()
    called = [name] if name is not None else [*known]
    for index, tool in enumerate(called):
        is_text = known[tool].get("type") in syntax.text_tools
        write = _write_text_call if is_text else _WRITERS[syntax.candidate]
        write(rules, f"call_{index}", tool, known[tool])
    one = " | ".join(f"call_{index}" for index in range(len(called)))
    more = f" ({separator} call){{0,{_MAX_PARALLEL_CALLS - 1}}}" if is_parallel else ""
    rules.rules += f"calls: call{more}\ncall: {one}\n"
    return rules


def _write_named_json(rules: CallRules, rule: str, name: str, tool: Tool) -> None:
    """The name, then the arguments on the next line."""
    rules.rules += f"{rule}: {json.dumps(name)} {_NEWLINE} @{rule}_arguments\n"
    rules.schemas[f"{rule}_arguments"] = _label(name), _parameters_of(name, tool)


def _write_text_call(rules: CallRules, rule: str, name: str, tool: Tool) -> None:
    """The name of a built-in tool, then text up to the end of the message."""
    rules.rules += f"{rule}: {json.dumps(name)} {_NEWLINE} /(.|\\n)*[^ \\n](.|\\n)*/\n"


def _write_json_object(rules: CallRules, rule: str, name: str, tool: Tool) -> None:
    head = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
    rules.rules += f'{rule}: {head} @{rule}_arguments "}}"\n'
    rules.schemas[f"{rule}_arguments"] = _label(name), _parameters_of(name, tool)


def _write_python(rules: CallRules, rule: str, name: str, tool: Tool) -> None:
    """The name, then `tool_call(...)` in a block; sentencepiece puts blanks before both."""
    arguments = write_python_arguments(rule, _label(name), _parameters_of(name, tool))
    head = f'" "? {json.dumps(name)} {_NEWLINE} " "? "```python\\ntool_call("'
    rules.rules += f'{rule}: {head} {arguments.rule} ")\\n```"\n{arguments.rules}'
    rules.schemas |= arguments.schemas


_NEWLINE = '"\\n"'
_WRITERS: dict[type[CallCandidate], Callable[[CallRules, str, str, Tool], None]] = {
    NamedJsonCall: _write_named_json,
    JsonObjectCall: _write_json_object,
    PythonCall: _write_python,
}


def _label(name: str) -> str:
    return f"The parameters of tool {name!r}"


def _parameters_of(name: str, tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments; further ones than it names are not made up."""
    parameters = function_of(tool).get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise PromptError(f"{_label(name)} must be a JSON schema, got {parameters!r:.80}.")
    schema = {"type": "object", **parameters}
    if schema["type"] != "object":
        raise PromptError(f"{_label(name)} must be of type object, got {schema['type']!r:.80}.")
    is_closed = {"$ref", "anyOf", "allOf", "oneOf", "patternProperties"}.isdisjoint(schema)
    if is_closed:
        schema = {"additionalProperties": False, **schema}
    return schema
