from tests.unit.engine.make_sequence import make_sequence


def test_generated_tokens_follow_the_prompt() -> None:
    sequence = make_sequence([5, 6], generated=[7, 8, 9])
    assert sequence.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert sequence.generated_token_ids.tolist() == [7, 8, 9]
    assert (sequence.num_prompt_tokens, sequence.num_generated) == (2, 3)


def test_a_one_token_prompt_can_grow() -> None:
    sequence = make_sequence([1], generated=range(100))
    assert sequence.token_ids.tolist() == [1, *range(100)]


def test_pending_are_the_tokens_the_cache_lacks() -> None:
    sequence = make_sequence(5)
    assert sequence.num_pending == 5
    sequence.num_computed = 5
    sequence.append(1)
    assert sequence.num_pending == 1


def test_distinct_tokens_are_those_of_prompt_and_answer_each_once() -> None:
    sequence = make_sequence([5, 6, 5], generated=[7, 6])
    assert sorted(sequence.distinct_token_ids.tolist()) == [5, 6, 7]
    sequence.append(8)
    sequence.append(5)
    assert sorted(sequence.distinct_token_ids.tolist()) == [5, 6, 7, 8]
    assert sequence.distinct_token_ids.dtype == "int32"
