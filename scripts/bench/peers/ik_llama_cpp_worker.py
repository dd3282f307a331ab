"""Worker of bench_generate.py: ik_llama.cpp through ik_llama_shim.cpp (build_ik_llama.sh).

The model is a GGUF file of make_gguf.py. A variant that ends in "-repacked" has the same weights in
the fork's interleaved layouts (its own tools' `-rtr 1`).
"""

import argparse
import ctypes
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from protocol import serve

_EMBEDDING = "token_embd.weight"
_MAX_BATCH = 512
_REPACKED = "-repacked"


class IkLlamaCppRunner:
    """Feeds token ids and takes the largest logit, as llama_cpp_worker.py does."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        folder = Path(sys.prefix) / "lib"
        self._shim = _open_library(folder / "libik_llama_shim.so")
        context_len = arguments.max_sequences * arguments.max_model_len
        is_repacked = arguments.variant.endswith(_REPACKED)
        path = arguments.model.removesuffix(f"{_REPACKED}.gguf")
        path = f"{path}.gguf" if path != arguments.model else path
        self._peer = self._shim.shim_open(
            path.encode(),
            arguments.threads,
            arguments.max_sequences,
            context_len,
            _MAX_BATCH,
            int(is_repacked),
        )
        if not self._peer:
            raise RuntimeError(f"ik_llama.cpp cannot load {path}")
        self._vocab_size = arguments.vocab_size
        commit = (folder / "version").read_text().strip()
        self.version = f"ik_llama.cpp {commit}, {self._shim.shim_describe().decode().strip()}"
        tensors = GGUFReader(path).tensors
        self.weight_bytes_per_token = sum(int(t.n_bytes) for t in tensors if t.name != _EMBEDDING)

    def start(self, prompts: list[list[int]]) -> None:
        self._shim.shim_clear(self._peer)
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
        begins = range(0, len(rows), _MAX_BATCH)
        for begin in begins:
            self._feed(rows[begin : begin + _MAX_BATCH])
        return self._choose(last - begins[-1])

    def _feed(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run rows of (token, position, sequence, whether logits are wanted)."""
        tokens, positions, sequences, wants = zip(*rows, strict=True)
        count = len(rows)
        ints = ctypes.c_int32 * count
        code = self._shim.shim_feed(
            self._peer,
            count,
            ints(*tokens),
            ints(*positions),
            ints(*sequences),
            (ctypes.c_int8 * count)(*wants),
        )
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def _choose(self, row: int) -> int:
        logits = self._shim.shim_logits(self._peer, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


def _open_library(path: Path) -> ctypes.CDLL:
    shim = ctypes.CDLL(str(path))
    shim.shim_open.restype = ctypes.c_void_p
    shim.shim_open.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 5]
    shim.shim_clear.restype = None
    shim.shim_clear.argtypes = [ctypes.c_void_p]
    shim.shim_feed.argtypes = [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 4]
    shim.shim_logits.restype = ctypes.POINTER(ctypes.c_float)
    shim.shim_logits.argtypes = [ctypes.c_void_p, ctypes.c_int]
    shim.shim_describe.restype = ctypes.c_char_p
    return shim


if __name__ == "__main__":
    serve(IkLlamaCppRunner)
