"""What a stream shows piece by piece is what `generate` returns at once."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.engine import answer_sampler
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.sequence import Sequence
from tests.engine.conftest import VOCAB

_PIECES = ["北", "京是首都", "👍", "👩‍👩‍👧", "🇨🇳", "é", "e\u0301", "\ufffd", "a", " ", "\n", "𓂀"]
_NUM_BYTES = 30  # the folder's context has room for prompt and answer of 64 tokens
_NUM_PROMPTS = 500


def _echo(logits: np.ndarray, sequence: Sequence, allowed: None) -> int:
    """The answer is the prompt."""
    place = sequence.num_generated
    is_over = place == sequence.num_prompt_tokens
    return VOCAB - 1 if is_over else int(sequence.token_ids[place])


def _make_prompts(llm: LLM) -> Iterator[tuple[list[int], str]]:
    """Token ids, some of which end within a character, and their text as Python decodes it."""
    rng = random.Random(0)
    for _ in range(_NUM_PROMPTS):
        text = "".join(rng.choices(_PIECES, k=rng.randint(1, 12)))
        written = text.encode()[: rng.randint(1, _NUM_BYTES)]
        token_ids = llm.tokenizer.encode(text)[: len(written)]  # a byte is a token
        yield token_ids, written.decode(errors="replace")


@pytest.mark.parametrize("stop", [(), ("🇨", "京是首")])
def test_streamed_text_is_the_returned_text(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    monkeypatch.setattr(answer_sampler, "sample_token", _echo)
    llm = LLM(checkpoint)
    params = SamplingParams(max_tokens=_NUM_BYTES + 1, stop=stop)
    prompts, texts = zip(*_make_prompts(llm), strict=True)
    outputs = llm.generate(prompts, params)
    assert len(outputs) == _NUM_PROMPTS
    for prompt, text, output in zip(prompts, texts, outputs, strict=True):
        ends = [place for place in map(text.find, stop) if place >= 0]
        assert output.text == text[: min(ends, default=None)]
        pieces = [streamed.delta_text for streamed in llm.stream(prompt, params)]
        assert "".join(pieces) == output.text
        assert not any("\ufffd" in piece and "\ufffd" not in text for piece in pieces)
