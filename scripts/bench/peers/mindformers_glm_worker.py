"""Worker of bench_generate.py: this project, through the engine that `LLM` uses."""

import argparse

from protocol import serve

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from mindformers_glm.version import __version__

# Any other variant is a value of LLM's `quantization`; the folder of one that begins so has it.
FLOAT, STORED = "bf16", "stored-"


class OurRunner:
    """Steps the engine as `LLM.generate` does: scheduling, sampling and detokenizing included."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        is_as_stored = arguments.variant == FLOAT or arguments.variant.startswith(STORED)
        quantization = {} if is_as_stored else {"quantization": arguments.variant}
        self._llm = LLM(
            arguments.model,
            max_num_seqs=arguments.max_sequences,
            max_model_len=arguments.max_model_len,
            prompt_lookup_num_tokens=0,
            enable_prefix_caching=False,
            num_threads=arguments.threads,
            **quantization,
        )
        self._engine = self._llm.engine
        self._request_ids: list[str] = []
        self._greedy = SamplingParams(
            do_sample=False, ignore_eos=True, max_new_tokens=arguments.max_model_len
        )
        self.version = f"{__version__}, {library.isa()}"
        self.allocated_bytes = self._llm.weights_bytes + self._llm.kv_cache_bytes
        config = self._llm.config
        embedding_bytes = 2 * config.vocab_size * config.hidden_size  # bfloat16 in every format
        self.weight_bytes_per_token = self._llm.weights_bytes - embedding_bytes

    def start(self, prompts: list[list[int]]) -> None:
        self._forget()
        for prompt in prompts:
            self._add(prompt)
        waiting = set(self._request_ids)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step()}

    def step(self) -> None:
        outputs = self._engine.step()
        assert len(outputs) == len(self._request_ids), "a sequence has ended"

    def prefill(self, prompt: list[int]) -> int:
        self._forget()
        self._add(prompt)
        while not (outputs := self._engine.step()):
            pass
        return outputs[0].token_ids[0]

    def _add(self, prompt: list[int]) -> None:
        request_id = str(len(self._request_ids))
        self._engine.add_request(request_id, prompt, self._greedy)
        self._request_ids.append(request_id)

    def _forget(self) -> None:
        for request_id in self._request_ids:
            self._engine.abort(request_id)
        self._request_ids.clear()


if __name__ == "__main__":
    serve(OurRunner)
