"""The self-test under the references: it passes without a fault, and names each that is planted."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindformers.parallel_core.inference.transformer import norm
from mindformers.parallel_core.inference.transformer.identity_op import IdentityOp
from mindspore import Parameter, Tensor, nn, ops

from mindformers_glm.backends import run_ascend_selftest
from mindformers_glm.backends.ascend import network, runner, selftest, step_inputs
from mindformers_glm.backends.ascend.backend import AscendBackend
from mindformers_glm.backends.part_report import SelfTestReport
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError, UnsupportedError
from mindformers_glm.serving.doctor.selftest import print_selftest
from tests.conftest import MINI
from tests.model import hf_oracle
from tests.model.dialects import save_dialect

Plant = Callable[[Any], None]
HEAD_DIM, KV_SIZE, QUERY_SIZE = 16, 32, 64  # of the random checkpoint
FAULTY_LAYER = 1


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_oracle.save_random_checkpoint(tmp_path_factory.mktemp("glm4"))


@pytest.mark.parametrize("dialect", ["glm4", "glm", "chatglm"])
def test_each_dialect_passes_in_float32(
    dialect: str, with_ascend: Counter[str], tmp_path: Path
) -> None:
    folder, _ = save_dialect(tmp_path, dialect, attention_bias=dialect != "glm")
    report = run_ascend_selftest(folder)
    assert report.is_equal, "\n".join(report.lines())
    assert with_ascend["FlashAttentionScore"] > 0
    assert with_ascend["PagedAttention"] > 0


def test_shipped_checkpoint_passes_in_float16(with_ascend: Counter[str]) -> None:
    report = run_ascend_selftest(MINI, "float16")
    assert report.is_equal, "\n".join(report.lines())
    assert report.tokens is not None
    assert report.tokens.found == report.tokens.expected


class HalfSplit(nn.Cell):
    """Rotates column i with i + d/2 of the rotated columns, as GPT-NeoX does."""

    def __init__(self, original: Any) -> None:
        super().__init__(auto_prefix=False)
        self.original = original
        half = np.arange(HEAD_DIM // 2).reshape(2, -1).T.ravel()  # 0, 4, 1, 5, ...
        self.order = np.concatenate([half, np.arange(HEAD_DIM // 2, HEAD_DIM)])

    def construct(self, query: Tensor, key: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        rotated = self.original(self._sort(query, self.order), self._sort(key, self.order), *others)
        back = np.argsort(self.order)
        return tuple(self._sort(rows, back) for rows in rotated)

    def _sort(self, rows: Tensor, order: np.ndarray) -> Tensor:
        heads = rows.asnumpy().reshape(len(rows), -1, HEAD_DIM)[..., order]
        return Tensor(np.ascontiguousarray(heads).reshape(rows.shape))


def half_split_rotation(layer: Any) -> None:
    layer.self_attention.rotary_emb = HalfSplit(layer.self_attention.rotary_emb)


def permute_rows(parameter: Parameter, order: np.ndarray) -> None:
    parameter.set_data(Tensor(parameter.asnumpy()[order], parameter.dtype))


def gate_and_up_swapped(layer: Any) -> None:
    weight = layer.mlp.linear_fc1.weight
    permute_rows(weight, np.roll(np.arange(len(weight)), len(weight) // 2))


def kv_heads_shifted(layer: Any, begin: int = QUERY_SIZE) -> None:
    order = np.arange(QUERY_SIZE + 2 * KV_SIZE)
    order[begin : begin + KV_SIZE] = np.roll(order[begin : begin + KV_SIZE], HEAD_DIM)
    permute_rows(layer.self_attention.linear_qkv.weight, order)


def value_heads_shifted(layer: Any) -> None:
    kv_heads_shifted(layer, QUERY_SIZE + KV_SIZE)


def missing(name: str) -> Plant:
    def plant(layer: Any) -> None:
        setattr(layer, name, IdentityOp())

    return plant


def wrong_eps(name: str, eps: float) -> Plant:
    def plant(layer: Any) -> None:
        getattr(layer, name).norm = norm.P.RmsNorm(eps)

    return plant


def bias_left_out(layer: Any) -> None:
    bias = layer.self_attention.linear_qkv.bias
    bias.set_data(ops.zeros_like(bias))


def wrong_slots(layer: Any) -> None:
    core = layer.self_attention.core_attention
    write = core.reshape_and_cache
    core.reshape_and_cache = lambda *given: write(*given[:4], Tensor(given[4].asnumpy()[::-1]))


def wrong_scale(operator: str) -> Plant:
    """By larger queries: the references refuse any other scale than GLM's."""

    def plant(layer: Any) -> None:
        core = layer.self_attention.core_attention
        attend = getattr(core, operator)
        # The references refuse another scale itself; a larger query does the same.
        setattr(core, operator, lambda query, *given: attend(query * 1.05, *given))

    return plant


def residuals_left_out(layer: Any) -> None:
    layer.add = lambda residual, branch: branch


SMALL = "norms of small values"
# What is planted in layer 1, and the part and the step by which it has to be named.
FAULTS = {
    "rotation of halves": (half_split_rotation, "rotary query", "prompts"),
    "gate and up swapped": (gate_and_up_swapped, "linear_fc1 gate", "prompts"),
    "norm missing": (missing("post_self_attn_layernorm"), "post_self_attn_layernorm", "prompts"),
    "KV heads shifted": (kv_heads_shifted, "linear_qkv key", "prompts"),
    "eps 1e-6": (wrong_eps("pre_mlp_layernorm", 1e-6), "pre_mlp_layernorm", SMALL),
}
# Several at once, and every part and step that differs.
SETS_OF_FAULTS = {
    "of all kinds": (
        [
            missing("input_layernorm"),
            value_heads_shifted,
            wrong_scale("paged_attention"),
            residuals_left_out,
            wrong_eps("post_mlp_layernorm", 1e-3),
        ],
        {
            ("input_layernorm", "prompts"),
            ("linear_qkv value", "prompts"),
            ("core_attention", "one token each"),
            ("residual of attention", "prompts"),
            ("residual of MLP", "prompts"),
            ("post_mlp_layernorm", SMALL),
        },
    ),
    "of attention": (
        [bias_left_out, half_split_rotation, wrong_slots, wrong_scale("flash_attention")],
        {
            ("rotary query", "prompts"),
            ("rotary key", "prompts"),
            ("linear_qkv query", "prompts"),
            ("linear_qkv key", "prompts"),
            ("linear_qkv value", "prompts"),
            ("key_cache", "prompts"),
            ("value_cache", "prompts"),
            ("core_attention", "prompts"),
        },
    ),
}


def run_with(
    plants: list[Plant], folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> SelfTestReport:
    """The self-test with faults in layer 1 of 2."""
    plant_in_layer_1(plants, monkeypatch)
    return run_ascend_selftest(folder, dtype)


def plant_in_layer_1(plants: list[Plant], monkeypatch: pytest.MonkeyPatch) -> None:
    class FaultyRunner(selftest.AscendModelRunner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for plant in plants:
                plant(self.network.model.decoder.layers[FAULTY_LAYER])

    monkeypatch.setattr(selftest, "AscendModelRunner", FaultyRunner)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named_by_layer_and_part(
    fault: str,
    random_folder: Path,
    with_ascend: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant, part, step = FAULTS[fault]
    report = run_with([plant], random_folder, "float32", monkeypatch)
    assert not report.is_equal
    first = report.first_difference
    assert first is not None
    assert (first.part.layer, first.part.name, first.step) == (FAULTY_LAYER, part, step)
    assert f"First difference: layer 1, {part}, in step {step!r}" in "\n".join(report.lines())


@pytest.mark.parametrize(("plants", "named"), SETS_OF_FAULTS.values(), ids=SETS_OF_FAULTS)
def test_several_faults_are_each_named_in_float16(
    plants: list[Plant],
    named: set[tuple[str, str]],
    random_folder: Path,
    with_ascend: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = run_with(plants, random_folder, "float16", monkeypatch)
    different = [result for result in report.results if not result.is_equal]
    assert {result.part.layer for result in different} == {FAULTY_LAYER}
    first_steps = {result.part.name: result.step for result in reversed(different)}
    assert set(first_steps.items()) == named


def test_wrong_table_of_angles_is_named_in_the_first_layer(
    random_folder: Path, with_ascend: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = network.make_upstream_config

    def with_other_theta(config: GlmConfig, settings: RunnerSettings) -> Any:
        return original(replace(config, rope_theta=500_000.0), settings)

    monkeypatch.setattr(runner, "make_upstream_config", with_other_theta)
    report = run_ascend_selftest(random_folder)
    assert {r.part.name for r in report.results if not r.is_equal} == {"rotary query", "rotary key"}
    assert str(report.first_difference.part) == "layer 0, rotary query"


def test_command_ends_with_1_where_a_part_differs_and_writes_json(
    random_folder: Path,
    with_ascend: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant_in_layer_1([gate_and_up_swapped], monkeypatch)
    assert print_selftest(str(random_folder), "float16", as_json=True) == 1
    written = capsys.readouterr().out.splitlines()[-1]  # other tests bound upstream's log to stdout
    first = json.loads(written)["first_difference"]
    assert (first["layer"], first["part"]) == (1, "linear_fc1 gate")


def test_command_without_a_card_says_so() -> None:
    with pytest.raises(UnsupportedError, match="needs an NPU"):
        print_selftest("", None, as_json=False)


def test_operator_that_refuses_is_named_by_the_part_before_it(
    random_folder: Path, with_ascend: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_mask(*_: Any) -> np.ndarray:
        return np.zeros((1, 1), np.float32)

    monkeypatch.setattr(step_inputs, "_make_mask", make_mask)
    report = run_ascend_selftest(random_folder)
    assert not report.is_equal
    assert report.stopped.startswith("step 'prompts', behind layer 0, rotary key: ContractError")
    assert report.lines()[1] == f"Stopped: {report.stopped}"
    assert [str(result.part) for result in report.results][-1] == "layer 0, rotary key"
    assert report.first_difference is None
    assert len(report.results) == 7  # what was made before is right


def test_checkpoint_that_does_not_fit_is_refused_before_loading(
    random_folder: Path, with_ascend: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AscendBackend, "available_memory", lambda *_: 100_000)
    with pytest.raises(MemoryBudgetError, match="network on Ascend, available are 97"):
        run_ascend_selftest(random_folder)
