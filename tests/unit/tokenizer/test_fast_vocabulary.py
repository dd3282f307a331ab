"""Long texts; the oracle is the tokenizers library's own `encode`."""

import threading
import time
from itertools import pairwise

import pytest
from tokenizers import Tokenizer

from mindformers_glm.config.run_config import shipped_checkpoint
from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> GlmTokenizer:
    return load_tokenizer(shipped_checkpoint())


@pytest.mark.parametrize("is_special", [True, False])
def test_a_long_text_has_the_tokens_of_encode(tokenizer: GlmTokenizer, *, is_special: bool) -> None:
    text = "北京是中国的首都。 <|user|>\n the capital 12345  \n\n" * 500
    oracle = Tokenizer.from_file(str(shipped_checkpoint() / "tokenizer.json"))
    oracle.encode_special_tokens = not is_special
    encode = tokenizer.encode if is_special else tokenizer.vocabulary.encode_text
    assert encode(text) == oracle.encode(text, add_special_tokens=is_special).ids


def test_other_threads_run_while_a_long_text_is_encoded(
    tokenizer: GlmTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    is_over = threading.Event()
    times = [time.monotonic()]

    def tick() -> None:
        while not is_over.wait(0.002):
            times.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    begin_s = time.monotonic()
    tokenizer.encode("a b c d" * 100_000)
    taken_s = time.monotonic() - begin_s
    is_over.set()
    thread.join()
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < taken_s / 2
