import numpy as np

from mindformers_glm.engine.block_keys import extend_block_keys


def _keys(tokens: list[int], block_size: int = 2) -> list[bytes]:
    keys: list[bytes] = []
    extend_block_keys(keys, np.array(tokens, np.int32), len(tokens) // block_size, block_size)
    return keys


def test_texts_share_keys_up_to_the_block_where_they_part() -> None:
    first, second = _keys([1, 2, 3, 4, 5, 6]), _keys([1, 2, 3, 9, 5, 6])
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])


def test_the_same_tokens_at_another_place_have_another_key() -> None:
    assert len(set(_keys([1, 2, 1, 2, 1, 2]))) == 3


def test_a_block_of_another_size_has_another_key() -> None:
    assert not set(_keys([1, 2, 3, 4], 2)) & set(_keys([1, 2, 3, 4], 4))


def test_large_token_ids_do_not_run_together() -> None:
    assert _keys([1, 256]) != _keys([256, 1])
    assert _keys([257, 0]) != _keys([1, 1])


def test_keys_grow_with_the_text() -> None:
    text = np.array([5, 6, 7, 8, 9, 9], np.int32)
    keys: list[bytes] = []
    for num_blocks in (0, 1, 1, 3, 2):
        extend_block_keys(keys, text, num_blocks, 2)
    assert keys == _keys(text.tolist())


def test_generated_tokens_have_keys_of_their_own_where_that_matters() -> None:
    def keys(num_prompt_tokens: int | None) -> list[bytes]:
        found: list[bytes] = []
        text = np.array([5, 6, 7, 8, 9, 4], np.int32)
        extend_block_keys(found, text, 3, 2, num_prompt_tokens)
        return found

    assert keys(6) == keys(None)
    assert keys(4)[:2] == keys(6)[:2]
    assert len({key for prompt in (0, 1, 2, 3, 4, 6) for key in keys(prompt)[2:]}) == 6
