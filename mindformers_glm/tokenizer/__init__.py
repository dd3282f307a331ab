"""Text to token ids and back, by the files of the checkpoint and without code from there."""

from mindformers_glm.tokenizer.detokenizer import IncrementalDetokenizer
from mindformers_glm.tokenizer.glm_tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.loading import (
    check_vocabulary,
    find_tokenizer_file,
    load_tokenizer,
    open_tokenizer,
    tokenizer_digest,
)
from mindformers_glm.tokenizer.segments import Segment, SpecialToken
from mindformers_glm.tokenizer.token_ids_only import TokenIdsOnly

__all__ = [
    "GlmTokenizer",
    "IncrementalDetokenizer",
    "Segment",
    "SpecialToken",
    "TokenIdsOnly",
    "check_vocabulary",
    "find_tokenizer_file",
    "load_tokenizer",
    "open_tokenizer",
    "tokenizer_digest",
]
