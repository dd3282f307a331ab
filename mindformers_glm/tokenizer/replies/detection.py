"""Which parsers read the answers of a checkpoint, told by its chat template."""

# What a template of the family holds -> (tool_call_parser, reasoning_parser); the first row counts.
_MARKS = (
    ('"name": "finish"', "glm_z1_rumination", "glm_z1"),
    ("<arg_key>", "none", "glm_z1"),  # GLM-4.5 and later: calls of another kind
    ("</think>", "glm4", "glm_z1"),
    ("<think>", "glm4", "glm_z1"),
    ("[gMASK]sop", "chatglm3", "none"),
    ("observation", "glm4", "none"),
    ("metadata", "glm4", "none"),
)


def detect_parsers(chat_template: str) -> tuple[str, str]:
    """Return the names of the tool-call parser and of the reasoning parser.

    Templates of other models have neither.
    """
    for mark, tool_call_parser, reasoning_parser in _MARKS:
        if mark in chat_template:
            return tool_call_parser, reasoning_parser
    return "none", "none"
