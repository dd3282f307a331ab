"""What a model answers, told apart: thoughts, text and tool calls."""

from mindformers_glm.tokenizer.replies.call_rules import CallRules, write_call_rules
from mindformers_glm.tokenizer.replies.detection import detect_parsers
from mindformers_glm.tokenizer.replies.parsed_reply import ParsedReply
from mindformers_glm.tokenizer.replies.reasoning import (
    CLOSE_TAG,
    OPEN_TAG,
    ReasoningSplitter,
)
from mindformers_glm.tokenizer.replies.reply_parser import (
    ASSISTANT_TOKEN,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    ReplyParser,
    check_parser_names,
    parse_reply,
)
from mindformers_glm.tokenizer.tool_call import ToolCall

__all__ = [
    "ASSISTANT_TOKEN",
    "CLOSE_TAG",
    "OPEN_TAG",
    "REASONING_PARSERS",
    "TOOL_CALL_PARSERS",
    "CallRules",
    "ParsedReply",
    "ReasoningSplitter",
    "ReplyParser",
    "ToolCall",
    "check_parser_names",
    "detect_parsers",
    "parse_reply",
    "write_call_rules",
]
