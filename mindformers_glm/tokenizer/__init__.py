"""Text to token ids and back, by the files of the checkpoint and without code from there."""

from mindformers_glm.tokenizer.detokenizer import IncrementalDetokenizer
from mindformers_glm.tokenizer.glm_tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.loading import (
    check_vocabulary,
    find_tokenizer_file,
    load_tokenizer,
    tokenizer_digest,
)
from mindformers_glm.tokenizer.segments import Segment, SpecialToken

__all__ = [
    "GlmTokenizer",
    "IncrementalDetokenizer",
    "Segment",
    "SpecialToken",
    "check_vocabulary",
    "find_tokenizer_file",
    "load_tokenizer",
    "tokenizer_digest",
]
