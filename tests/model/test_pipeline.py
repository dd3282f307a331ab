"""Pipeline and streamers of MindSpore Transformers on the registered classes."""

import threading
from functools import cache
from typing import Any

import pytest
import torch

from mindformers_glm.core.errors import ConfigError
from tests.conftest import MINI

pytestmark = pytest.mark.weights
PROMPTS = ["请介绍一下北京", "1+1=", "What planet is nearest the Sun?"]


@cache
def hugging_face(prompt: str, count: int = 12) -> str:
    """Prompt and greedy answer of transformers in float32, without special tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINI)
    model = AutoModelForCausalLM.from_pretrained(MINI, torch_dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tokens = model.generate(ids, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


@pytest.fixture(scope="module")
def network() -> Any:
    from mindformers_glm import Glm4ForCausalLM

    return Glm4ForCausalLM.from_pretrained(str(MINI), params_dtype="float32", max_model_len=64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from mindformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(MINI))


def test_a_pipeline_answers_as_hugging_face(network: Any, tokenizer: Any) -> None:
    from mindformers import pipeline

    answer = pipeline(task="text_generation", model=network, tokenizer=tokenizer)
    for prompt in PROMPTS:
        found = answer(prompt, max_new_tokens=12, do_sample=False)
        assert found == [{"text_generation_text": [hugging_face(prompt)]}]


def test_a_batch_that_the_pipeline_has_padded_answers_as_each_alone(
    network: Any, tokenizer: Any
) -> None:
    from mindformers import pipeline

    settings = {"max_new_tokens": 12, "do_sample": False, "batch_size": 3}
    expected = [{"text_generation_text": [hugging_face(prompt) for prompt in PROMPTS]}]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        answer = pipeline("text_generation", network, tokenizer, **settings)
        assert answer(PROMPTS) == expected


@pytest.mark.parametrize("given", [{}, {"tokenizer": str(MINI)}])
def test_a_pipeline_opens_a_folder(given: dict[str, Any]) -> None:
    from mindformers import pipeline

    answer = pipeline(
        "text_generation", str(MINI), **given, model_kwargs={"params_dtype": "float32"}
    )
    found = answer(PROMPTS[0], max_new_tokens=12, do_sample=False)
    assert found == [{"text_generation_text": [hugging_face(PROMPTS[0])]}]


@pytest.mark.parametrize("library", ["mindformers", "transformers"])
def test_a_text_streamer_prints_what_hugging_face_says(
    library: str, network: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import mindformers
    import transformers

    streamer = {"mindformers": mindformers, "transformers": transformers}[library].TextStreamer
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        settings = {"max_new_tokens": 12, "do_sample": False}
        capsys.readouterr()
        network.generate(ids, **settings, streamer=streamer(tokenizer, skip_special_tokens=True))
        assert capsys.readouterr().out == f"{hugging_face(prompt)}\n"


@pytest.mark.parametrize("library", ["mindformers", "transformers"])
def test_an_iterator_streamer_is_read_while_another_thread_generates(
    library: str, network: Any, tokenizer: Any
) -> None:
    import mindformers
    import transformers

    make = {"mindformers": mindformers, "transformers": transformers}[library].TextIteratorStreamer
    streamer = make(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    settings = {"max_new_tokens": 12, "do_sample": False, "streamer": streamer}
    ids = tokenizer(PROMPTS[0])["input_ids"]
    worker = threading.Thread(target=network.generate, args=(ids,), kwargs=settings)
    worker.start()
    # Upstream's iterator gives None at its end.
    pieces = list(iter(lambda: next(streamer, None), None))
    worker.join()
    assert "".join(pieces) == hugging_face(PROMPTS[0]).removeprefix(PROMPTS[0])


def test_a_streamer_hears_of_the_end_when_generation_fails(network: Any) -> None:
    class Heard(list):
        def put(self, tokens: Any) -> None:
            self.append(tokens.tolist())

        def end(self) -> None:
            self.append("end")

    heard = Heard()
    with pytest.raises(Exception, match="the limit is max_model_len=64"):
        network.generate([5] * 64, streamer=heard)
    assert heard == [[[5] * 64], "end"]


def test_what_is_no_streamer_and_several_prompts_are_refused(network: Any, tokenizer: Any) -> None:
    from mindformers import TextStreamer

    with pytest.raises(
        ConfigError, match=r"streamer must have put\(\) and end\(\), .* got a built"
    ):
        network.generate([5], streamer=print)
    with pytest.raises(ConfigError, match="shows the answer to one prompt, got 2 prompts"):
        network.generate([[5], [6]], streamer=TextStreamer(tokenizer))


def test_a_revision_of_a_folder_is_refused() -> None:
    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(ConfigError, match="revision is a hub's"):
        Glm4ForCausalLM.from_pretrained(str(MINI), revision="v1")
