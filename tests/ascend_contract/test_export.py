"""The real operators' own checks of types and shapes, on a machine without a card."""

from importlib.metadata import version

import pytest

from tests import quantized_folders
from tests.ascend_contract.python_process import run_python
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

DTYPES = ("bfloat16", "float16")
QUANTIZED = {
    "W8A8": "slim-w8a8",
    "W8A8_DYNAMIC": "slim-w8a8-dynamic",
    "W8A16": "slim-w8a16-asymmetric",
}
ALL_STEPS = ("prefill", "decode", "chunks", "logits")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By graph, "exported" or the error; all of one process, which takes seconds to start."""
    folder = tmp_path_factory.mktemp("export")
    for name in ("glm4", "glm"):
        hf_oracle.save_random_checkpoint(folder / name, model_type=name, num_hidden_layers=1)
    to_chatglm(folder / "glm", folder / "chatglm")
    source = folder / "with biases"
    hf_oracle.save_random_checkpoint(source, num_hidden_layers=1, attention_bias=True)
    for name, case in QUANTIZED.items():
        cases = quantized_folders.WEIGHT_ONLY | quantized_folders.WITH_ACTIVATIONS
        quantized_folders.write(source, folder / name, cases[case])
    folders = [str(folder / name) for name in ("glm4", "glm", "chatglm", *QUANTIZED)]
    lines = run_python("tests/ascend_contract/export_steps.py", *folders)
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


@pytest.mark.parametrize(
    ("dialect", "steps"),
    [
        ("glm4", ALL_STEPS),
        *((name, ALL_STEPS[:2]) for name in ("glm", "chatglm", *QUANTIZED)),
    ],
)
def test_the_operators_take_our_calls(
    dialect: str, steps: tuple[str, ...], results: dict[str, str]
) -> None:
    names = [f"{dialect} {dtype} {step}" for dtype in DTYPES for step in steps]
    assert {name: results[name] for name in names} == dict.fromkeys(names, "exported")


@pytest.mark.parametrize(
    "step", [*ALL_STEPS, *(f"{name} {step}" for name in QUANTIZED for step in ALL_STEPS[:2])]
)
def test_the_operators_take_our_calls_with_sizes_left_open(
    step: str, results: dict[str, str]
) -> None:
    """As the runner compiles them on a card: `set_dynamic_inputs`."""
    assert results[f"any size {step}"] == "exported"


@pytest.mark.parametrize(
    ("wrong", "refused_by"),
    [
        pytest.param(
            "prefill: mask in float32",
            "FlashAttentionScore",
            marks=pytest.mark.skipif(
                version("mindspore") != "2.7.1", reason="2.7.2 and 2.9.0 let it through"
            ),
        ),
        ("prefill: slots in float32", "ReshapeAndCache"),
        ("prefill: no positions, keys or values", "ApplyRotaryPosEmb"),
        ("chunks: tables in float32", "PagedAttention"),
        ("chunks: lengths in bfloat16", "ApplyRotaryPosEmb"),
        ("prefill: all in float32", "ApplyRotaryPosEmb"),
        ("W8A8: a weight in int32", "QuantBatchMatmul"),
        ("W8A8: deq_scale in float16", "QuantBatchMatmul"),
        ("W8A8: quant_bias in float32", "QuantBatchMatmul"),
        ("W8A8: quant_bias in int64", "QuantBatchMatmul"),
        ("W8A8_DYNAMIC: a weight in bfloat16", "QuantBatchMatmul"),
        ("W8A8_DYNAMIC: w_scale in float16", "QuantBatchMatmul"),
        ("W8A16: a weight in float16", "WeightQuantBatchMatmul"),
        ("W8A16: w_scale in float32", "WeightQuantBatchMatmul"),
        ("W8A16: w_offset in int8", "WeightQuantBatchMatmul"),
    ],
)
def test_a_wrong_call_is_refused_by_its_operator(
    wrong: str, refused_by: str, results: dict[str, str]
) -> None:
    assert results[f"wrong {wrong}"].startswith("TypeError")
    assert refused_by in results[f"wrong {wrong}"]
