"""Worker of bench_generate.py: ik_llama.cpp through ik_llama_shim.cpp (build_ik_llama.sh).

The model is a GGUF file of make_gguf.py. A variant that ends in "-repacked" has the same weights in
the fork's interleaved layouts (its own tools' `-rtr 1`).
"""

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any

from protocol import serve
from row_runner import MAX_BATCH, Row, RowRunner, count_weight_bytes

_REPACKED = "-repacked"


class IkLlamaCppRunner(RowRunner):
    """Feeds token ids to the fork's `llama_decode`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.vocab_size)
        folder = Path(sys.prefix) / "lib"
        self._shim = _open_library(folder / "libik_llama_shim.so")
        path = arguments.model.replace(f"{_REPACKED}.gguf", ".gguf")
        self._peer = self._shim.shim_open(
            path.encode(),
            arguments.threads,
            arguments.max_sequences,
            arguments.max_sequences * arguments.max_model_len,
            MAX_BATCH,
            int(arguments.variant.endswith(_REPACKED)),
        )
        if not self._peer:
            raise RuntimeError(f"ik_llama.cpp cannot load {path}")
        commit = (folder / "version").read_text().strip()
        self.version = f"ik_llama.cpp {commit}, {self._shim.shim_describe().decode().strip()}"
        self.weight_bytes_per_token = count_weight_bytes(path)

    def _clear(self) -> None:
        self._shim.shim_clear(self._peer)

    def _feed(self, rows: list[Row]) -> None:
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

    def _logits(self, row: int) -> Any:
        return self._shim.shim_logits(self._peer, row)


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
