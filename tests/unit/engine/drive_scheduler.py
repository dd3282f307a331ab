"""Step a scheduler without a network."""

from mindformers_glm.engine.scheduler import Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from tests.unit.engine.make_sequence import make_sequence


def add(scheduler: Scheduler, *prompts: int | list[int]) -> list[Sequence]:
    """Queue a sequence for each prompt (make_sequence)."""
    sequences = [make_sequence(prompt) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def run_step(scheduler: Scheduler) -> Schedule:
    """Do one step and give every sampled sequence the token 9."""
    schedule = scheduler.schedule()
    scheduler.complete(schedule)
    for chunk in schedule.chunks:
        if chunk.is_sampled:
            chunk.sequence.append(9)
    return schedule
