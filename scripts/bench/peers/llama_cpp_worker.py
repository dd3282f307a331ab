"""Worker of bench_generate.py: llama.cpp through the C interface that llama-cpp-python wraps.

The model is a GGUF file of make_gguf.py; the environment comes from build_llama_cpp.sh.
"""

import argparse
import ctypes

import llama_cpp
import numpy as np
from gguf import GGUFReader
from protocol import serve

_EMBEDDING = "token_embd.weight"
_MAX_BATCH = 512  # tokens of one llama_decode, which is llama.cpp's default micro-batch


class LlamaCppRunner:
    """Feeds token ids to `llama_decode` and takes the largest logit."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        _silence()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            arguments.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {arguments.model}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = arguments.max_sequences
        settings.n_ctx = arguments.max_sequences * arguments.max_model_len
        settings.n_batch = settings.n_ubatch = _MAX_BATCH
        settings.n_threads = settings.n_threads_batch = arguments.threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot create a context")
        self._batch = llama_cpp.llama_batch_init(_MAX_BATCH, 0, 1)
        self._vocab_size = arguments.vocab_size
        self.version = f"llama-cpp-python {llama_cpp.__version__}, {_describe_build()}"
        tensors = GGUFReader(arguments.model).tensors
        self.weight_bytes_per_token = sum(int(t.n_bytes) for t in tensors if t.name != _EMBEDDING)

    def start(self, prompts: list[list[int]]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._next_tokens = [self._feed_prompt(i, prompt) for i, prompt in enumerate(prompts)]
        self._length = len(prompts[0])

    def step(self) -> None:
        rows = [(token, self._length, i, True) for i, token in enumerate(self._next_tokens)]
        self._feed(rows)
        self._next_tokens = [self._choose(i) for i in range(len(rows))]
        self._length += 1

    def prefill(self, prompt: list[int]) -> int:
        self.start([prompt])
        return self._next_tokens[0]

    def _feed_prompt(self, sequence: int, prompt: list[int]) -> int:
        last = len(prompt) - 1
        rows = [(token, i, sequence, i == last) for i, token in enumerate(prompt)]
        for begin in range(0, len(rows), _MAX_BATCH):
            self._feed(rows[begin : begin + _MAX_BATCH])
        return self._choose(-1)

    def _feed(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run rows of (token, position, sequence, whether logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, is_wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = is_wanted
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def _choose(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)  # waits for the result
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


@llama_cpp.llama_log_callback
def _ignore(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


def _silence() -> None:
    llama_cpp.llama_log_set(_ignore, ctypes.c_void_p(0))


def _describe_build() -> str:
    info = llama_cpp.llama_print_system_info().decode()
    features = [f.split("=")[0].strip() for f in info.replace("CPU :", "").split("|") if "= 1" in f]
    return " ".join(features)


if __name__ == "__main__":
    serve(LlamaCppRunner)
