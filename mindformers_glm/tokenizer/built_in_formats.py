"""How models whose folder brings no chat template write a conversation."""

from collections.abc import Mapping

from mindformers_glm.tokenizer.glm_tokenizer import WriteChat

# By the name of the format that the tokenizer's files tell (loading.py).
BUILT_IN_FORMATS: Mapping[str, WriteChat] = {}
