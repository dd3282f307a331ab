"""The library of the kernels for another processor, running under an emulator.

It stands in for what `library.load()` returns, so that every kernel test runs on instruction sets
that this machine does not have. server.cc, the other end, defines the protocol.
"""

import ctypes
import math
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from mindformers_glm.backends.cpu.tile_packing import TILE_K, TILE_N, quantized_shapes

_ITEM_BYTES = (4, 2, 2)  # of the type codes in csrc/dtype.h


class EmulatedLibrary:
    """Has the functions of the real library; every symbol not defined here is an operator."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the server, which ends with this process.

        Args:
            command: the emulator, its options and the server.
        """
        self._errors = tempfile.NamedTemporaryFile("rb")  # noqa: SIM115 (as long as the server)
        # A second handle: the server's writing must not move the place where we read.
        with open(self._errors.name, "ab") as errors:
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def glm_isa(self) -> bytes:
        """Name of the instruction set in use."""
        return self._call("glm_isa", [_data(b"")])[1][0]

    def glm_available_isa(self, index: int) -> bytes | None:
        """Name of the index-th instruction set, None past the last."""
        code, (name, _) = self._call("glm_available_isa", [_data(b""), _number(index)])
        return name if code == 0 else None

    def glm_select_isa(self, name: bytes) -> int:
        """0, or 1 where the processor cannot run it."""
        return self._call("glm_select_isa", [_data(name)])[0]

    def glm_num_threads(self) -> int:
        """Threads the kernels use."""
        return self._call("glm_num_threads", [])[0]

    def glm_set_num_threads(self, count: int) -> None:
        """0: as many as at first."""
        self._call("glm_set_num_threads", [_number(count)])

    def glm_convert(self, dst: int, dst_code: int, src: int, src_code: int, count: int) -> int:
        """csrc/pack.cc."""
        return self._call_in_memory(
            "glm_convert",
            (dst, count * _ITEM_BYTES[dst_code]),
            dst_code,
            (src, count * _ITEM_BYTES[src_code]),
            src_code,
            count,
        )

    def glm_pack_rows(
        self,
        dst: int,
        dst_code: int,
        src: int,
        src_code: int,
        rows: int,
        columns: int,
        row_offset: int,
        tile_stride: int,
        tile_first: int,
    ) -> int:
        """csrc/pack.cc."""
        tile_row_size = -(-columns // TILE_K) * TILE_K * TILE_N
        last_tile_row = (row_offset + rows - 1) // TILE_N * tile_stride + tile_first
        return self._call_in_memory(
            "glm_pack_rows",
            (dst, (last_tile_row + 1) * tile_row_size * _ITEM_BYTES[dst_code]),
            dst_code,
            (src, rows * columns * _ITEM_BYTES[src_code]),
            src_code,
            rows,
            columns,
            row_offset,
            tile_stride,
            tile_first,
        )

    def glm_quantize_rows(
        self,
        tiles: int,
        scales: int,
        src: int,
        src_code: int,
        bits: int,
        group_size: int,
        rows: int,
        columns: int,
        row_offset: int,
        tile_stride: int,
        tile_first: int,
        row_maxima: int | None,
        kept_begin: int,
        kept_end: int,
    ) -> int:
        """csrc/quantize.cc."""
        num_tile_rows = (row_offset + rows - 1) // TILE_N * tile_stride + tile_first + 1
        (_, *tile_shape), (_, *scale_shape) = quantized_shapes(rows, columns, bits, group_size)
        return self._call_in_memory(
            "glm_quantize_rows",
            (tiles, num_tile_rows * math.prod(tile_shape)),
            (scales, num_tile_rows * math.prod(scale_shape) * 4),
            (src, rows * columns * _ITEM_BYTES[src_code]),
            src_code,
            bits,
            group_size,
            rows,
            columns,
            row_offset,
            tile_stride,
            tile_first,
            (row_maxima or 0, 0 if row_maxima is None else rows * 4),
            kept_begin,
            kept_end,
        )

    def __getattr__(self, symbol: str) -> Callable[..., int]:
        if not symbol.startswith("glm_"):
            raise AttributeError(symbol)

        def call_operator(
            count: int, params: Any, ndims: Any, shapes: Any, dtypes: Any, *_: None
        ) -> int:
            arguments, regions = [], []
            for i in range(count):
                shape = [shapes[i][axis] for axis in range(ndims[i])]
                num_bytes = _item_bytes(dtypes[i])
                for size in shape:
                    num_bytes *= size
                regions.append((params[i], num_bytes))
                arguments.append(_argument(dtypes[i], shape, _read(params[i], num_bytes)))
            code, results = self._call(symbol, arguments)
            for region, data in zip(regions, results, strict=True):
                _write(*region, data)
            return code

        return call_operator

    def _call_in_memory(self, symbol: str, *arguments: int | tuple[int, int]) -> int:
        """Call with numbers and with memory regions (address, bytes), which may be written to."""
        encoded = [_number(a) if isinstance(a, int) else _data(_read(*a)) for a in arguments]
        code, results = self._call(symbol, encoded)
        for argument, data in zip(arguments, results, strict=True):
            if not isinstance(argument, int):
                _write(*argument, data)
        return code

    def _call(self, symbol: str, arguments: list[bytes]) -> tuple[int, list[bytes]]:
        """The return value, and the data of every argument after the call."""
        pipe = self._server.stdin
        for part in (_sized(symbol.encode()), struct.pack("<q", len(arguments)), *arguments):
            pipe.write(part)
        pipe.flush()
        code = self._read_number()
        results = [self._server.stdout.read(self._read_number()) for _ in arguments]
        os.write(2, self._errors.read())  # what the kernel said about its arguments
        return code, results

    def _read_number(self) -> int:
        data = self._server.stdout.read(8)
        if len(data) < 8:
            code = self._server.wait()
            message = self._errors.read().decode()
            raise RuntimeError(f"the emulated kernels ended with code {code}: {message}")
        return struct.unpack("<q", data)[0]


def _item_bytes(dtype: bytes) -> int:
    return int(dtype.lstrip(b"bfloatuin")) // 8


def _read(address: int | None, num_bytes: int) -> bytes:
    return ctypes.string_at(address, num_bytes) if num_bytes else b""


def _write(address: int | None, num_bytes: int, data: bytes) -> None:
    # What a function only reads may lie in memory that cannot be written to.
    if data != _read(address, num_bytes):
        ctypes.memmove(address, data, num_bytes)


def _sized(data: bytes) -> bytes:
    return struct.pack("<q", len(data)) + data


def _argument(dtype: bytes, shape: Sequence[int], data: bytes) -> bytes:
    return _sized(dtype) + struct.pack(f"<{len(shape) + 1}q", len(shape), *shape) + _sized(data)


def _data(data: bytes) -> bytes:
    return _argument(b"", [], data)


def _number(value: int) -> bytes:
    return _data(struct.pack("<q", value))
