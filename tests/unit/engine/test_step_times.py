"""Time of steps, told apart by what their rows were for."""

from mindformers_glm.engine.scheduler import Chunk
from mindformers_glm.engine.step_times import StepTimes
from tests.unit.engine.make_sequence import make_sequence


class Clock:
    """Time that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run(times: StepTimes, clock: Clock, step_s: float, *rows: tuple[int, int, int]) -> None:
    """A step of chunks (start, end, new tokens) of sequences of 4 prompt tokens."""
    times.begin_step()
    chunks = []
    for start, end, num_new in rows:
        sequence = make_sequence([1, 2, 3, 4])
        for _ in range(end + num_new - 4):
            sequence.append(5)
        chunks.append(Chunk(sequence, start, end, is_sampled=num_new > 0))
    clock.now_s += step_s
    times.end_step(chunks)


def test_prompts_and_answers_are_told_apart() -> None:
    clock = Clock()
    times = StepTimes(clock)
    run(times, clock, 1.0, (0, 3, 0))  # a chunk that samples nothing
    run(times, clock, 2.0, (3, 4, 1))
    run(times, clock, 4.0, (4, 5, 1))
    run(times, clock, 8.0, (5, 6, 3))  # two guesses were right
    assert (times.num_steps, times.num_prompt_tokens) == (4, 4)
    assert (times.num_first_tokens, times.num_next_tokens, times.num_new_tokens) == (1, 4, 5)
    assert (times.prompt_s, times.answer_s) == (3.0, 12.0)


def test_a_step_of_both_is_shared_by_its_rows() -> None:
    clock = Clock()
    times = StepTimes(clock)
    run(times, clock, 8.0, (0, 3, 0), (4, 5, 1))
    assert (times.prompt_s, times.answer_s) == (6.0, 2.0)


def test_time_between_steps_counts_until_nobody_waits() -> None:
    clock = Clock()
    times = StepTimes(clock)
    run(times, clock, 1.0, (4, 5, 1))
    clock.now_s += 0.5  # the caller writes the answer to the screen
    run(times, clock, 1.0, (5, 6, 1))
    assert times.answer_s == 2.5
    times.pause()
    clock.now_s += 100
    run(times, clock, 1.0, (4, 5, 1))
    assert times.answer_s == 3.5
