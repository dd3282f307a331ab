"""How models whose folder brings no chat template write a conversation."""

from collections.abc import Mapping
from functools import partial

from mindformers_glm.tokenizer.chat import CHAT_FORMATS, write_chat
from mindformers_glm.tokenizer.glm_tokenizer import WriteChat

# By the name of the format that the tokenizer's files tell (loading.py).
BUILT_IN_FORMATS: Mapping[str, WriteChat] = {
    name: partial(write_chat, name) for name in CHAT_FORMATS
}
