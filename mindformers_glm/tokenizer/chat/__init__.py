"""How the family writes conversations, for checkpoints that bring no template of their own."""

from mindformers_glm.tokenizer.chat.formats import CHAT_FORMATS, ChatFormat, write_chat

__all__ = ["CHAT_FORMATS", "ChatFormat", "write_chat"]
