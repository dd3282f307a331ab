"""What a quantized folder has lost, measured beside the float one that it was made of.

Both run by the engine that serves them, one after the other, with products in float32: so the
difference is that of the quantization alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mindformers_glm.backends import FLOAT_TARGET
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.evaluation.logit_quality import (
    LogitQuality,
    MeasuredText,
    ReferenceLogits,
    keep_logits,
)
from mindformers_glm.evaluation.questions import (
    Question,
    answer_questions,
    count_right,
    read_questions,
)
from mindformers_glm.quantizer.calibration_texts import read_calibration_file, tokenize_texts
from mindformers_glm.system.log import note
from mindformers_glm.tokenizer import GlmTokenizer, check_vocabulary, load_tokenizer

SHIPPED_TEXTS = Path(__file__).resolve().parent.parent / "assets" / "evaluation" / "texts.jsonl"
_USUAL_LIMIT = 8192  # of tokens, where nothing else is said


@dataclass(frozen=True)
class HeldOut:
    """What models are measured on: texts, and questions, maybe none.

    are_answers: the texts are the questions with their right answers, of which answers count.
    """

    texts: Sequence[MeasuredText]
    questions: Sequence[Question]
    are_answers: bool = False


@dataclass(frozen=True)
class AnswerQuality:
    """Answers to questions: right ones of both models, and those that are the same text."""

    num_questions: int
    reference_right: int
    right: int
    same: int


@dataclass(frozen=True)
class QuantizedQuality:
    """What was measured; answers is None without questions."""

    logits: LogitQuality
    answers: AnswerQuality | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """Two columns for people."""
        found, answers = self.logits, self.answers
        rows = [
            ("", "float", "quantized"),
            (f"KL to float, {found.num_positions} tokens", "", f"{found.kl:.6f}"),
            ("perplexity", _number(found.reference_perplexity), _number(found.perplexity)),
            ("likeliest token as float's", "", f"{found.agreement:.1%}"),
        ]
        if answers is not None:
            of = f" of {answers.num_questions}"
            rows += [
                ("questions right", f"{answers.reference_right}{of}", f"{answers.right}{of}"),
                ("answers as float's", "", f"{answers.same}{of}"),
            ]
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{name:{width}}  {a:>12}  {b:>12}" for name, a, b in rows)


class FloatReference:
    """The float model's logits and answers, to compare any number of folders with."""

    def __init__(self, held_out: HeldOut, logits: ReferenceLogits, answers: list[str]) -> None:
        self._held_out, self._logits, self._answers = held_out, logits, answers

    def without_questions(self) -> "FloatReference":
        """The same texts alone, which take less time."""
        return FloatReference(replace(self._held_out, questions=()), self._logits, [])

    def compare(self, folder: Path, settings: Mapping[str, Any] | None = None) -> QuantizedQuality:
        """Run a quantized folder.

        Args:
            settings: further arguments of LLM.
        """
        questions = self._held_out.questions
        with _open(folder, self._held_out, settings or {}) as llm:
            logits = self._logits.compare(llm)
            answers = answer_questions(llm, questions)
        if not questions:
            return QuantizedQuality(logits, None)
        same = sum(one == other for one, other in zip(answers, self._answers, strict=True))
        return QuantizedQuality(
            logits,
            AnswerQuality(
                num_questions=len(questions),
                reference_right=count_right(questions, self._answers),
                right=count_right(questions, answers),
                same=same,
            ),
        )


@contextmanager
def run_float(source: Path, held_out: HeldOut, scratch: Path) -> Iterator[FloatReference]:
    """Run the float model; what it says is kept while the block runs.

    Args:
        scratch: a folder on a disk with room for the logits of all texts.
    Raises:
        CheckpointError: the disk is full.
        GlmError: the model cannot be run.
    """
    with ExitStack() as stack:
        try:
            with _open(source, held_out, {}) as llm:
                answers = answer_questions(llm, held_out.questions)
                logits = stack.enter_context(keep_logits(llm, held_out.texts, scratch))
        except OSError as problem:
            raise CheckpointError(
                f"Cannot keep the float model's logits in {scratch}: {problem.strerror}."
            ) from None
        yield FloatReference(held_out, logits, answers)


def read_held_out(source: Path, texts: Path | None, questions: Path | None) -> HeldOut:
    """What a model is to be measured on.

    Args:
        source: of the model, whose tokenizer is taken.
        texts: a file of any form that calibration sets have; None: the right answers to the
            questions, where they are texts; else texts that ship with the project, which nothing
            is calibrated with.
        questions: a file for `read_questions`.
    Raises:
        GlmError: a file or the tokenizer cannot be read.
    """
    tokenizer, config = load_tokenizer(source), GlmConfig.from_hf(source)
    check_vocabulary(tokenizer, config.vocab_size, source)
    asked = [] if questions is None else read_questions(questions)
    limit = config.max_position_embeddings
    answers = [question for question in asked if not question.choices]
    if texts is None and answers and tokenizer.has_chat_template:
        right = [_measure_answer(question, tokenizer) for question in answers]
        return HeldOut([one for one in right if len(one.token_ids) <= limit], asked, True)
    found = read_calibration_file(texts or SHIPPED_TEXTS)
    if texts is None:
        note(
            f"measuring on the {len(found)} short texts that ship with the project: texts like "
            "those the model will see are better (--report_texts)"
        )
    samples = tokenize_texts(found, tokenizer, limit)
    if not samples:
        raise ConfigError(f"{texts} has no text of which the tokenizer makes tokens: give another.")
    return HeldOut([MeasuredText(sample) for sample in samples], asked)


def _measure_answer(question: Question, tokenizer: GlmTokenizer) -> MeasuredText:
    prompt = tokenizer.encode_chat(question.messages, question.tools or None)
    answer = tokenizer.encode_segments([question.answer])
    return MeasuredText([*prompt, *answer], first=len(prompt) - 1)


def _open(folder: Path, held_out: HeldOut, settings: Mapping[str, Any]) -> LLM:
    longest = max(len(text.token_ids) for text in held_out.texts)
    arguments: dict[str, Any] = {
        "compute_dtype": "float32",
        "device_target": FLOAT_TARGET,
        "max_model_len": longest if longest > _USUAL_LIMIT else None,
        "packed_cache": "off",
        "tool_call_parser": "none",
        "reasoning_parser": "none",
    }
    return LLM(folder, **arguments | dict(settings))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
