"""Names for full KV-cache blocks: equal names mean equal tokens from the start of the text on.

K and V of a token follow from it and from all tokens before it, so a block's name is the SHA-256 of
the name of the block before it and of its own tokens, a chain as in vLLM's prefix caching (Kwon et
al. 2023, arXiv:2309.06180). No two texts with one SHA-256 are known, so equal names need no second
look at the tokens.
"""

import hashlib

import numpy as np


def extend_block_keys(
    keys: list[bytes],
    token_ids: np.ndarray,
    num_blocks: int,
    block_size: int,
    num_prompt_tokens: int | None = None,
) -> None:
    """Append the keys of a text's first `num_blocks` blocks that are not in `keys` yet.

    Args:
        keys: of the text's leading blocks; a text only grows, so they stay right.
        token_ids: int32, at least num_blocks * block_size of them.
        num_prompt_tokens: how many of them are a prompt, where K and V of generated ones are
            others; None: they are not.
    """
    assert num_blocks * block_size <= len(token_ids), "only full blocks have a key"
    for index in range(len(keys), num_blocks):
        digest = hashlib.sha256(keys[-1] if keys else b"")
        begin, end = index * block_size, (index + 1) * block_size
        digest.update(token_ids[begin:end].tobytes())
        if num_prompt_tokens is not None and end > num_prompt_tokens:
            digest.update(max(num_prompt_tokens - begin, 0).to_bytes(8, "little"))
        keys.append(digest.digest())
