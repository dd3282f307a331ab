"""How the family writes conversations, for checkpoints that bring no template of their own."""

from mindformers_glm.tokenizer.chat.formats import CHAT_FORMATS, ChatFormat, write_chat
from mindformers_glm.tokenizer.chat.messages import offered_tools, read_role
from mindformers_glm.tokenizer.chat.template_messages import TemplateDialect

__all__ = [
    "CHAT_FORMATS",
    "ChatFormat",
    "TemplateDialect",
    "offered_tools",
    "read_role",
    "write_chat",
]
