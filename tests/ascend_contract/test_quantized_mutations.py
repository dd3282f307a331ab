"""A quantized layer that is filled or called wrongly is found: refused, or its logits differ."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.ascend.integer_methods import (
    DynamicMethod,
    IntegerMethod,
    StaticMethod,
    WeightOnlyMethod,
)
from tests import quantized_folders as folders
from tests.ascend_contract.install import in_pynative_mode
from tests.ascend_contract.references import ContractError
from tests.ascend_contract.steps import STEPS, KnownSequences, open_runner
from tests.model import hf_oracle

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], Any]
_FOUND = 2e-2  # one activation rounded the other way makes 3e-3
CASES = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS
_STEPS = {name: STEPS[name] for name in ("four prompts", "an answer each")}


def _map(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays: arrays.update({name: change(arrays[name])})


def _roll(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=0)


def _swap(first: str, second: str) -> Change:
    return lambda arrays: arrays.update({first: arrays[second], second: arrays[first]})


# By the folder's case: what may be wrong in the Parameters.
FILLED: dict[str, dict[str, Change]] = {
    "slim-w8a8": {
        "an input scale that is not inverted": _map("input_scale", lambda scale: 1 / scale),
        "an offset of the other sign": _map("input_offset", np.negative),
        "no offset": _map("input_offset", np.zeros_like),
        "scale and offset confused": _swap("input_scale", "input_offset"),
        "no quant_bias": _map("quant_bias", np.zeros_like),
        "quant_bias twice": _map("quant_bias", lambda bias: 2 * bias),
        "quant_bias in another order": _map("quant_bias", _roll),
        "deq_scale in another order": _map("deq_scale", _roll),
        "deq_scale as its bits": _map(
            "deq_scale", lambda scale: scale.view(np.int32).astype(np.float32)
        ),
        "rows in another order": _map("weight", _roll),
        "columns in another order": _map("weight", lambda codes: np.roll(codes, 1, axis=1)),
        "codes without their sign": _map("weight", lambda codes: codes & 127),
    },
    "slim-w8a8-dynamic": {
        "scales in another order": _map("w_scale", _roll),
        "scales of one": _map("w_scale", np.ones_like),
        "rows in another order": _map("weight", _roll),
        "codes of the other sign": _map("weight", np.invert),
    },
    "slim-w8a16-asymmetric": {
        "scales in another order": _map("w_scale", _roll),
        "offsets of the other sign": _map("w_offset", np.negative),
        "no offsets": _map("w_offset", np.zeros_like),
        "scales and offsets confused": _swap("w_scale", "w_offset"),
    },
}


def _bias_as(is_contained: bool) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        create = StaticMethod.create_weights

        def mutated(self: StaticMethod, *arguments: Any, **named: Any) -> None:
            create(self, *arguments, **named)
            self.contains_bias = is_contained

        monkeypatch.setattr(StaticMethod, "create_weights", mutated)

    return mutate


def _product(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Call QuantBatchMatmul with other operands."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        create = IntegerMethod.create_weights

        def mutated(self: IntegerMethod, *arguments: Any, **named: Any) -> None:
            create(self, *arguments, **named)
            product = self.product
            self.product = lambda *operands: product(*change(*operands))

        monkeypatch.setattr(IntegerMethod, "create_weights", mutated)

    return mutate


def _without_bias(method: type[IntegerMethod]) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        apply = method.apply
        monkeypatch.setattr(
            method,
            "apply",
            lambda self, layer, x, weight, bias=None: apply(self, layer, x, weight, None),
        )

    return mutate


CALLED: dict[str, dict[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "slim-w8a8": {
        "the float bias is added again": _bias_as(is_contained=False),
        "no quant_bias": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, None, None, None)
        ),
        "operands in another order": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, bias, offset, token)
        ),
        "a float quant_bias": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, None, bias.float(), None)
        ),
    },
    "ct-w8a8-static": {"the float bias is left out": _bias_as(is_contained=True)},
    "slim-w8a8-dynamic": {
        "no scale of the tokens": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, None, None, None)
        ),
        "the tokens' scale by rows": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, None, None, token[:, None])
        ),
        "the tokens' scale as a bias": _product(
            lambda x, w, scale, offset, bias, token: (x, w, scale, None, token, None)
        ),
        "the float bias is left out": _without_bias(DynamicMethod),
    },
    "slim-w8a16-asymmetric": {
        "the float bias is left out": _without_bias(WeightOnlyMethod),
        "no offsets": _product(lambda x, w, scale, offset, *others: (x, w, scale, None, *others)),
        "offsets of another type": _product(
            lambda x, w, scale, offset, *others: (x, w, scale, offset.half(), *others)
        ),
    },
}


@pytest.fixture(scope="module")
def calls() -> Iterator[Counter[str]]:
    with in_pynative_mode() as counted:
        yield counted


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, KnownSequences]]:
    """A quantized folder of a case, and the logits of a card's arithmetic."""
    root = tmp_path_factory.mktemp("mutations")
    source = hf_oracle.save_random_checkpoint(root / "hf", attention_bias=True, num_hidden_layers=1)
    known: dict[str, tuple[Path, KnownSequences]] = {}

    def make(name: str) -> tuple[Path, KnownSequences]:
        if name not in known:
            folders.write(source, root / name, CASES[name])
            known[name] = root / name, KnownSequences(source, root / name)
        return known[name]

    return make


def _is_found(folder: Path, sequences: KnownSequences) -> bool:
    runner = open_runner(folder, "float32")
    try:
        return max(sequences.errors(runner.execute, _STEPS).values()) > _FOUND
    except ContractError:
        return True


@pytest.mark.parametrize("name", CALLED)
def test_what_is_right_is_not_found(
    name: str, made: Callable[[str], tuple[Path, KnownSequences]], calls: Counter[str]
) -> None:
    assert not _is_found(*made(name))


@pytest.mark.parametrize(
    ("name", "mutation"), [(name, m) for name, changes in FILLED.items() for m in changes]
)
def test_wrong_parameters_are_found(
    name: str,
    mutation: str,
    made: Callable[[str], tuple[Path, KnownSequences]],
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = IntegerMethod.read

    def mutated(self: IntegerMethod, views: Any) -> Arrays:
        arrays = read(self, views)
        FILLED[name][mutation](arrays)
        return arrays

    monkeypatch.setattr(IntegerMethod, "read", mutated)
    assert _is_found(*made(name))


@pytest.mark.parametrize(
    ("name", "mutation"), [(name, m) for name, changes in CALLED.items() for m in changes]
)
def test_wrong_calls_are_found(
    name: str,
    mutation: str,
    made: Callable[[str], tuple[Path, KnownSequences]],
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    CALLED[name][mutation](monkeypatch)
    assert _is_found(*made(name))
