"""How conversations are written: one form of messages, and the family's own chat formats."""

from mindformers_glm.tokenizer.chat.formats import CHAT_FORMATS, ChatFormat, write_chat
from mindformers_glm.tokenizer.chat.marked import MarkedConversation
from mindformers_glm.tokenizer.chat.messages import (
    Message,
    Tool,
    offered_tools,
    read_messages,
    read_tools,
)
from mindformers_glm.tokenizer.chat.options import (
    NO_OPTIONS,
    NOTHING_TO_CONTINUE,
    ChatOptions,
)
from mindformers_glm.tokenizer.chat.template_forms import TemplateForm, list_forms

__all__ = [
    "CHAT_FORMATS",
    "NOTHING_TO_CONTINUE",
    "NO_OPTIONS",
    "ChatFormat",
    "ChatOptions",
    "MarkedConversation",
    "Message",
    "TemplateForm",
    "Tool",
    "list_forms",
    "offered_tools",
    "read_messages",
    "read_tools",
    "write_chat",
]
