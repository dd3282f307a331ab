"""What the operators refuse, instead of reading or writing where they must not."""

from collections.abc import Callable

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from mindformers_glm.backends.cpu.attn_metadata import HEADER_SIZE
from tests.kernels.kernel_calls import count, output, packed, scalar

F32 = np.float32


def refused(capfd: pytest.CaptureFixture[str], words: str, run: Callable[[], object]) -> None:
    """The call raises and one line on stderr says why."""
    with pytest.raises(KernelRefusedError):
        run()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]


def test_embedding_refuses_wrong_tokens_and_shapes(capfd: pytest.CaptureFixture[str]) -> None:
    table, ids = np.ones((4, 8), F32), np.int32([0, 1, 2])
    out = output(3, 8)

    def run(ids: np.ndarray, rows: np.ndarray, out: np.ndarray = out) -> np.ndarray:
        return call("glm_embedding", ids, table, rows, out=out)

    run(np.int32([0, 1, 99]), count(2))  # ids that are not real are not looked at
    refused(capfd, "token id 4", lambda: run(np.int32([0, 4, 0]), count(3)))
    refused(capfd, "token id -1", lambda: run(np.int32([-1, 4, 0]), count(3)))
    refused(capfd, "num_rows is 4", lambda: run(ids, count(4)))
    refused(capfd, "num_rows is -1", lambda: run(ids, count(-1)))
    refused(capfd, "ids has unexpected type", lambda: run(ids.astype(np.int64), count(1)))
    refused(capfd, "output has size 7", lambda: run(ids, count(1), output(3, 7)))
    refused(capfd, "dimensions", lambda: run(ids[None], count(1)))
    refused(capfd, "3 parameters", lambda: call("glm_embedding", ids, table, out=out))

    def run_part(first_id: int, vocab_size: int, ids: np.ndarray = ids) -> np.ndarray:
        vocabulary = np.int32([first_id, vocab_size])
        return call("glm_embedding", ids, table, count(3), vocabulary, out=out)

    run_part(4, 8)
    refused(capfd, "token id 8", lambda: run_part(4, 8, np.int32([0, 7, 8])))
    refused(capfd, "begins at token id 5", lambda: run_part(5, 8))
    refused(capfd, "begins at token id -1", lambda: run_part(-1, 8))


def test_linear_layers_refuse_wrong_shapes_and_counts(capfd: pytest.CaptureFixture[str]) -> None:
    tiles = packed(np.ones((20, 40), F32), "float32")
    x, norm, eps = np.ones((2, 40), F32), np.ones(40, F32), scalar(1e-5)

    def run(*inputs: np.ndarray, width: int = 20, symbol: str = "glm_linear_f32") -> np.ndarray:
        return call(symbol, *inputs, out=output(2, width))

    run(x, tiles, count(2))
    refused(capfd, "weight has size 2", lambda: run(x, tiles, count(2), width=33))
    refused(capfd, "weight has size 2", lambda: run(np.ones((2, 65), F32), tiles, count(2)))
    refused(capfd, "num_rows is 3", lambda: run(x, tiles, count(3)))
    refused(capfd, "bias has size 19", lambda: run(x, tiles, count(2), np.ones(19, F32)))
    refused(capfd, "cannot be multiplied", lambda: run(x, tiles, count(2), symbol="glm_linear_f16"))
    refused(capfd, "parameters", lambda: run(x, tiles))
    short = norm[:39].copy()
    refused(
        capfd,
        "norm_weight has size 39",
        lambda: run(x, short, eps, tiles, count(2), symbol="glm_norm_linear_f32"),
    )
    for rows, message in ((np.ones((3, 40), F32), "size 3"), (np.ones((2, 39), F32), "size 39")):
        refused(
            capfd,
            f"norm_weight has {message}",
            lambda rows=rows: run(x, rows, eps, tiles, count(2), symbol="glm_norm_linear_f32"),
        )
    refused(
        capfd,
        "weight has size 2",
        lambda: run(x, norm, eps, tiles, count(2), symbol="glm_norm_gated_linear_f32"),
    )


def test_norm_sum_and_gather_refuse_wrong_shapes_and_rows(
    capfd: pytest.CaptureFixture[str],
) -> None:
    x, weight, eps, out = np.ones((2, 8), F32), np.ones(8, F32), scalar(1e-5), output(2, 8)
    refused(
        capfd,
        "residual has size 1",
        lambda: call("glm_rms_norm_add", x, weight, eps, x[:1], count(1), out=out),
    )
    refused(
        capfd,
        "residual has size 1",
        lambda: call("glm_residual_add", x, x[:1], count(1), out=out),
    )
    refused(
        capfd,
        "output has size 7",
        lambda: call("glm_residual_add", x, x, count(1), out=output(2, 7)),
    )
    refused(
        capfd,
        "weight has size 7",
        lambda: call("glm_rms_norm", x, weight[:7].copy(), eps, count(1), out=out),
    )
    refused(
        capfd,
        "sampled row 2",
        lambda: call("glm_gather_rows", x, np.int32([0, 2]), count(2), out=out),
    )


# Metadata of one sequence of 3 tokens, 2 of them new, in a cache of 4 blocks of 2 slots.
HEADER = [2, 1, 2, 1, 2, 0, 0, 0]
POSITIONS, SLOTS, STARTS, LENS, TABLE = [1, 2], [5, 2], [0, 2], [3], [2, 1]


def _metadata(**changes: list[int]) -> np.ndarray:
    parts = {
        "header": HEADER,
        "positions": POSITIONS,
        "slots": SLOTS,
        "starts": STARTS,
        "lens": LENS,
        "table": TABLE,
        **changes,
    }
    return np.concatenate(list(parts.values())).astype(np.int32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"header": [3, 1, 2, 1, 2, 0, 0, 0]}, "3 rows"),
        ({"header": [-1, 1, 2, 1, 2, 0, 0, 0]}, "-1 rows"),
        ({"header": [2, 2, 2, 1, 2, 0, 0, 0]}, "2 sequences"),
        ({"header": [2, 1, 3, 1, 2, 0, 0, 0]}, "header denies"),
        ({"positions": [1, 3]}, "position 3 of row 1"),
        ({"positions": [-1, 2]}, "position -1 of row 0"),
        ({"slots": [5, 8]}, "slot 8 of row 1"),
        ({"slots": [-1, 2]}, "slot -1 of row 0"),
        ({"starts": [0, 1]}, "query_start"),
        ({"starts": [1, 2]}, "query_start"),
        ({"lens": [5]}, "seq_lens"),
        ({"lens": [-1]}, "seq_lens"),
        ({"table": [2, 4]}, "block 4 of 4"),
        ({"table": [-1, 1]}, "block -1"),
    ],
    ids=str,
)
def test_attention_refuses_wrong_metadata_before_it_writes(
    capfd: pytest.CaptureFixture[str], changes: dict[str, list[int]], words: str
) -> None:
    keys, values = np.zeros((4, 1, 2, 8), F32), np.zeros((4, 1, 2, 8), F32)
    tensors = (np.ones((2, 24), F32), np.ones((9, 4), F32), keys, values)
    call("glm_attention", *tensors, _metadata(), out=output(2, 8))
    keys[:] = 0
    refused(
        capfd,
        words,
        lambda: call("glm_attention", *tensors, _metadata(**changes), out=output(2, 8)),
    )
    assert (keys == 0).all(), "a refused step must not have written"


def test_attention_refuses_wrong_shapes(capfd: pytest.CaptureFixture[str]) -> None:
    cache, qkv, cos_sin = np.zeros((4, 1, 2, 8), F32), np.ones((2, 24), F32), np.ones((9, 4), F32)

    def run(
        qkv: np.ndarray = qkv,
        cos_sin: np.ndarray = cos_sin,
        values: np.ndarray = cache,
        metadata: np.ndarray | None = None,
        width: int = 8,
    ) -> np.ndarray:
        tensors = (qkv, cos_sin, cache, values, _metadata() if metadata is None else metadata)
        return call("glm_attention", *tensors, out=output(2, width))

    refused(capfd, "width 25 of qkv", lambda: run(qkv=np.ones((2, 25), F32)))
    refused(capfd, "output has size 9", lambda: run(width=9))
    refused(capfd, "rotary_dim 10", lambda: run(cos_sin=np.ones((9, 10), F32)))
    refused(capfd, "rotary_dim 3", lambda: run(cos_sin=np.ones((9, 3), F32)))
    refused(capfd, "position 2 of row 1", lambda: run(cos_sin=np.ones((2, 4), F32)))
    refused(capfd, "value_cache has size 3", lambda: run(values=cache[:3]))
    refused(capfd, "differ in type", lambda: run(values=cache.astype(np.float16)))
    refused(capfd, "shorter", lambda: run(metadata=np.zeros(HEADER_SIZE - 1, np.int32)))
