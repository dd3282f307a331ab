"""Worker of bench_generate.py: llama.cpp through the C interface that llama-cpp-python wraps.

The model is a GGUF file of make_gguf.py; the environment comes from build_llama_cpp.sh.
"""

import argparse
import ctypes
from typing import Any

import llama_cpp
from protocol import serve
from row_runner import MAX_BATCH, Row, RowRunner, count_weight_bytes


class LlamaCppRunner(RowRunner):
    """Feeds token ids to `llama_decode`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.vocab_size)
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
        settings.n_batch = settings.n_ubatch = MAX_BATCH
        settings.n_threads = settings.n_threads_batch = arguments.threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot create a context")
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        self.version = f"llama-cpp-python {llama_cpp.__version__}, {_describe_build()}"
        self.weight_bytes_per_token = count_weight_bytes(arguments.model)

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _feed(self, rows: list[Row]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i] = row.token
            batch.pos[i] = row.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
            batch.logits[i] = row.is_wanted
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def _logits(self, row: int) -> Any:
        return llama_cpp.llama_get_logits_ith(self._context, row)


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
