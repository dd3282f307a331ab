"""Worker of bench_generate.py: this project, through the engine that `LLM` uses."""

import argparse
from collections.abc import Iterable

from protocol import serve
from request_runner import RequestRunner

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from mindformers_glm.version import __version__

# Any other variant is a value of LLM's `quantization`; the folder of one that begins so has it.
FLOAT, STORED = "bf16", "stored-"


class OurRunner(RequestRunner):
    """Steps the engine as `LLM.generate` does: scheduling, sampling and detokenizing included."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
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
        self._greedy = SamplingParams(
            do_sample=False, ignore_eos=True, max_new_tokens=arguments.max_model_len
        )
        self.version = f"{__version__}, {library.isa()}"
        self.allocated_bytes = self._llm.weights_bytes + self._llm.kv_cache_bytes
        config = self._llm.config
        embedding_bytes = 2 * config.vocab_size * config.hidden_size  # bfloat16 in every format
        self.weight_bytes_per_token = self._llm.weights_bytes - embedding_bytes

    def _add(self, request_id: int, prompt: list[int]) -> None:
        self._engine.add_request(str(request_id), prompt, self._greedy)

    def _step(self) -> Iterable[tuple[int, int]]:
        return [(int(one.request_id), one.token_ids[-1]) for one in self._engine.step()]

    def _end(self, request_ids: list[int]) -> None:
        for request_id in request_ids:
            self._engine.abort(str(request_id))


if __name__ == "__main__":
    serve(OurRunner)
