"""How far the logits of one model lie from those of another, on the same held-out texts.

    reference -> logits of every position on disk -> other model -> compared piece by piece

One model is in memory at a time. A position of the 9B has 151,552 logits, 606 KB.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.system.progress import Progress

_CHUNK_ROWS = 64  # that are compared at a time, in float64


@dataclass(frozen=True)
class MeasuredText:
    """Token ids, and the first position whose logits count: of an answer, the one before it."""

    token_ids: Sequence[int]
    first: int = 0


@dataclass(frozen=True)
class LogitQuality:
    """What a model's logits say of the texts, beside the reference's.

    Attributes:
        num_positions: that were compared, of all texts.
        kl: mean over positions of the Kullback-Leibler divergence from the reference's
            probabilities to this model's, in nats.
        agreement: share of positions whose likeliest token is the same.
        reference_perplexity, perplexity: of the texts' own next tokens; None: no text goes on
            behind a position that counts.
    """

    num_positions: int
    kl: float
    agreement: float
    reference_perplexity: float | None
    perplexity: float | None


class ReferenceLogits:
    """The reference's logits of each position, in a file without a name (`keep_logits`)."""

    def __init__(self, file: IO[bytes], texts: Sequence[MeasuredText]) -> None:
        self._file, self._texts = file, texts

    def compare(self, llm: LLM) -> LogitQuality:
        """Run another model on the same texts.

        Raises:
            CheckpointError: it has another vocabulary, or says something that is no number.
        """
        self._file.seek(0)
        totals = _Totals()
        for token_ids, start, logits in _run(llm, self._texts, "Comparing logits"):
            content = self._file.read(logits.nbytes)
            reference = np.frombuffer(content, np.float32)
            if reference.size != logits.size:
                raise CheckpointError(
                    "The two models have vocabularies of different sizes: compare a model with "
                    "the one that it was quantized of."
                )
            totals.add(token_ids, start, reference.reshape(logits.shape), logits)
        return totals.finish()


@contextmanager
def keep_logits(llm: LLM, texts: Sequence[MeasuredText], folder: Path) -> Iterator[ReferenceLogits]:
    """Run the reference and keep what it says while the block runs.

    Args:
        texts: what both models are run on.
        folder: on a disk that has room for it.
    Raises:
        OSError: it has not.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for _, _, logits in _run(llm, texts, "Logits of the float model"):
            file.write(logits.tobytes())
        file.flush()
        yield ReferenceLogits(file, texts)


def _run(
    llm: LLM, texts: Sequence[MeasuredText], label: str
) -> Iterator[tuple[Sequence[int], int, np.ndarray]]:
    """Each text's tokens, with pieces of the logits that count and where a piece begins."""
    with Progress(label, sum(len(text.token_ids) for text in texts), "tokens") as bar:
        for text in texts:
            start = 0
            with closing(llm.logits_chunks(text.token_ids)) as chunks:
                for logits in chunks:
                    skipped = min(max(text.first - start, 0), len(logits))
                    if skipped < len(logits):
                        yield text.token_ids, start + skipped, logits[skipped:]
                    start += len(logits)
                    bar.advance(len(logits))


class _Totals:
    """Sums over positions."""

    def __init__(self) -> None:
        self._num_positions = self._num_next = self._num_same = 0
        self._kl = 0.0
        self._surprise = np.zeros(2)  # of the reference and of the other, at the texts' tokens

    def add(
        self, token_ids: Sequence[int], start: int, reference: np.ndarray, logits: np.ndarray
    ) -> None:
        """Take a piece of a text's logits."""
        for begin in range(0, len(logits), _CHUNK_ROWS):
            rows = slice(begin, begin + _CHUNK_ROWS)
            ours, theirs = _log_probabilities(reference[rows]), _log_probabilities(logits[rows])
            if not np.isfinite(theirs).all():
                raise CheckpointError(
                    "The quantized model gives logits that are no numbers: its report cannot be "
                    "made, and it cannot be used."
                )
            self._num_positions += len(ours)
            self._kl += float((np.exp(ours) * (ours - theirs)).sum())
            self._num_same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            following = token_ids[start + begin + 1 : start + begin + 1 + len(ours)]
            places = np.arange(len(following))
            self._num_next += len(following)
            for number, found in enumerate((ours, theirs)):
                self._surprise[number] -= float(found[places, list(following)].sum())

    def finish(self) -> LogitQuality:
        """The means."""
        perplexities: list[float | None] = [None, None]
        if self._num_next:
            means = self._surprise / self._num_next
            perplexities = [math.exp(min(mean, 700.0)) for mean in means]
        return LogitQuality(
            num_positions=self._num_positions,
            kl=max(self._kl / self._num_positions, 0.0),
            agreement=self._num_same / self._num_positions,
            reference_perplexity=perplexities[0],
            perplexity=perplexities[1],
        )


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 [rows, vocab_size]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
