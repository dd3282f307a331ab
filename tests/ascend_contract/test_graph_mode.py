"""The same network compiled, as a card runs it: two graphs and the output layer's."""

from pathlib import Path

import numpy as np

from tests.ascend_contract.graph_mode import graph_references
from tests.ascend_contract.steps import STEPS, KnownSequences, open_runner
from tests.model import hf_oracle


def test_a_prefill_and_a_decode_equal_hugging_face(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=1)
    sequences = KnownSequences(folder)
    steps = {name: STEPS[name] for name in ("four prompts", "an answer each")}
    with graph_references():
        runner = open_runner(folder, "float32")
        errors = sequences.errors(runner.execute, steps)
        compile_s = runner.compile_s
        again = sequences.errors(runner.execute, {"an answer each": STEPS["an answer each"]})
        runner.close()
    assert max(errors.values()) < 1e-5, errors
    assert np.allclose(list(again.values()), errors["an answer each"])
    assert runner.compile_s == compile_s > 0
