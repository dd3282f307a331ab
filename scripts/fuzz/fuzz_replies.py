"""Is what a client gets of an answer what the model meant, wherever the answer is cut?

    python scripts/fuzz/fuzz_replies.py [--seed S] [--count N] [--cuts C]

Answer number i is the one that `random.Random("answer i")` makes (random_answers.py). Each goes
through its reply parser whole, byte by byte, and cut at C random sets of bytes, as tokens may cut
it: tags as text, and once more as special tokens. The sum of the pieces must be the same each time,
and be what was meant: the thoughts, the text, and each call once. Ends with 1 if it is not.
"""

import argparse
import codecs
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from random_answers import TOOLS, TURN, RandomAnswer, make_answer

from mindformers_glm.tokenizer.replies import CLOSE_TAG, OPEN_TAG, ParsedReply, ReplyParser


def find_faults(answer: RandomAnswer, rng: random.Random, num_cuts: int) -> list[str]:
    """What is wrong with the answer as it is read; nothing, it should be."""
    whole = read_answer(answer, [])
    faults = [f"{name}: {fault}" for name, fault in [("whole", compare(answer, whole))] if fault]
    length = len(answer.text.encode())
    cuts = [list(range(1, length))]
    cuts += [sorted(rng.choices(range(length + 1), k=rng.randint(1, 9))) for _ in range(num_cuts)]
    for places in cuts:
        found = read_answer(answer, places)
        if found != whole:
            faults.append(f"cut at {places[:9]}: {found}, whole: {whole}")
    if answer.kind.reasoning != "none" and not faults:
        for places in cuts[:2]:
            found = read_answer(answer, places, has_token_tags=True)
            if found != whole and not _spells_tags(answer):
                faults.append(f"tags as tokens, cut at {places[:9]}: {found}")
    return faults


def read_answer(
    answer: RandomAnswer, places: list[int], *, has_token_tags: bool = False
) -> ParsedReply:
    """The sum of what the parser says when the answer comes in pieces of bytes.

    Args:
        places: where it is cut, in bytes of UTF-8.
        has_token_tags: the tags are special tokens.
    """
    kind = answer.kind
    parser = ReplyParser(
        kind.tool_calls,
        TOOLS if answer.has_tools else (),
        kind.reasoning,
        starts_in_reasoning=kind.starts_inside,
        special_tokens=(OPEN_TAG, CLOSE_TAG) if has_token_tags else (),
    )
    reply, start = ParsedReply(), 0
    pattern = f"({TURN}|{OPEN_TAG}|{CLOSE_TAG})" if has_token_tags else f"({TURN})"
    for part in re.split(pattern, answer.text):
        if part == TURN:
            reply += parser.start_turn()
        elif has_token_tags and part in (OPEN_TAG, CLOSE_TAG):
            reply += parser.feed_token(part)
        else:
            for piece in _cut(part, [place - start for place in places]):
                reply += parser.feed(piece)
        start += len(part.encode())
    return reply + parser.flush(is_complete=True)


def _cut(text: str, places: list[int]) -> Iterator[str]:
    """The pieces of a text cut at bytes; a character comes with its last byte."""
    content = text.encode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    edges = [0, *(place for place in places if 0 < place < len(content)), len(content)]
    for start, end in pairwise(edges):
        yield decoder.decode(content[start:end])


def _spells_tags(answer: RandomAnswer) -> bool:
    """Whether there is a tag besides those around the thoughts: as a token it would be no text."""
    num_tags = len(re.findall(f"{OPEN_TAG}|{CLOSE_TAG}", answer.text))
    if answer.kind.starts_inside:
        return num_tags > 1
    return num_tags > (2 if answer.text.lstrip().startswith(OPEN_TAG) else 0)


def compare(answer: RandomAnswer, reply: ParsedReply) -> str:
    """What of an answer was read otherwise than meant; empty: nothing."""
    calls = [(call.name, json.loads(call.arguments)) for call in reply.tool_calls]
    if calls != answer.calls:
        return f"calls {calls}, meant {answer.calls}"
    if reply.reasoning != answer.reasoning:
        return f"thoughts {reply.reasoning!r}, meant {answer.reasoning!r}"
    if reply.content.rstrip() != answer.content.rstrip():
        return f"text {reply.content!r}, meant {answer.content!r}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--cuts", type=int, default=5)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for number in range(options.seed, options.seed + options.count):
        rng = random.Random(f"answer {number}")
        answer = make_answer(rng)
        faults = find_faults(answer, rng, options.cuts)
        counts["answers"] += 1
        counts["calls"] += len(answer.calls)
        counts["with thoughts"] += bool(answer.reasoning)
        counts["wrong"] += bool(faults)
        for fault in faults[:1]:
            print(f"answer {number}, {answer.kind}: {fault}\n    {answer.text!r}")
    print(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
