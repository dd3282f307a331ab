"""The training mixture and the held-out questions, both drawn from the same generators."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from glm4_mini import skills, tasks
from glm4_mini.conversation import Example, Message, assistant, system, user
from glm4_mini.facts import RELATIONS
from glm4_mini.sentences import FACTS

Generator = Callable[[random.Random], Example]

# generator -> share of the examples (not of the tokens: a tool prompt is ten times a fact)
MIXTURE: tuple[tuple[Generator, float], ...] = (
    (tasks.fact, 0.08),
    (tasks.relation, 0.15),
    (tasks.follow_up, 0.04),
    (tasks.choice, 0.23),
    (tasks.option_letters, 0.10),
    (tasks.arithmetic, 0.10),
    (skills.copy, 0.10),
    (skills.copy_edit, 0.15),
    (skills.tool_call, 0.02),
    (skills.tool_answer, 0.02),
    (skills.tool_missing, 0.01),
)

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "你是一个乐于助人的助手。",
    "请简短地回答问题。",
    "Answer briefly.",
)

# category -> number of held-out questions
HELDOUT_COUNTS = {
    "fact_zh": 35,
    "fact_en": 30,
    "follow_up": 15,
    "choice": 40,
    "arithmetic": 40,
    "copy": 24,
    "copy_edit": 10,
    "tool_call": 12,
    "tool_answer": 10,
    "tool_missing": 4,
}


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of examples; none of them is on the held-out side.

    Some get a system message or an unrelated earlier turn, so that neither disturbs the answer.
    """
    rng = random.Random(seed)
    generators = [generator for generator, _ in MIXTURE]
    shares = [share for _, share in MIXTURE]
    while True:
        example = rng.choices(generators, shares)[0](rng)
        if example.is_heldout:
            continue
        before: tuple[Message, ...] = ()
        if rng.random() < 0.04:
            before += (system(rng.choice(SYSTEM_MESSAGES)),)
        if rng.random() < 0.06:
            earlier = rng.choice((tasks.fact, tasks.arithmetic, tasks.relation))(rng)
            if not earlier.is_heldout:
                before += (*earlier.messages, assistant(earlier.answer))
        yield replace(example, messages=before + example.messages)


def heldout_examples(seed: int = 7) -> list[Example]:
    """The held-out questions: as many per category as `HELDOUT_COUNTS` says, no prompt twice."""
    rng = random.Random(seed)
    found: dict[str, Example] = {}
    counts: Counter[str] = Counter()
    generators = [generator for generator, _ in MIXTURE]
    while any(counts[name] < wanted for name, wanted in HELDOUT_COUNTS.items()):
        example = rng.choice(generators)(rng)
        # option_letters is practice for `choice`, not a question of its own
        is_new = example.category in HELDOUT_COUNTS and example.prompt_text not in found
        if (
            example.is_heldout
            and is_new
            and counts[example.category] < HELDOUT_COUNTS[example.category]
        ):
            found[example.prompt_text] = example
            counts[example.category] += 1
    order = list(HELDOUT_COUNTS)
    return sorted(found.values(), key=lambda example: order.index(example.category))


def known_examples() -> list[Example]:
    """The plain wording of every fact: trained on by design, a check of what was learned."""
    examples = [
        Example(
            f"known_{item.language}", (user(item.questions[0]),), item.answer, always_train=True
        )
        for item in FACTS
    ]
    for table in RELATIONS:
        for subject, value in table.pairs:
            question = table.questions[0].replace("{s}", subject)
            answer = table.answer.replace("{s}", subject).replace("{v}", value)
            answer = answer[0].upper() + answer[1:]
            examples.append(Example(f"known_{table.language}", (user(question),), answer))
    return examples
