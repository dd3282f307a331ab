"""The arithmetic of bench_generate.py."""

from typing import Any

import pytest
from generate.measure import Shape, count_prefill_flop, measure
from generate.report import (
    Round,
    Series,
    describe_disk_reads,
    describe_scaling,
    format_rows,
    format_series,
)

from mindformers_glm.config.glm_config import GlmConfig

GB = 10**9


def _series(
    label: str, rounds: list[list[float]], limit: float = GB, num_tokens: int = 1
) -> Series:
    series = Series(label, num_tokens, GB, "GB")
    series.rounds = [Round(seconds, limit) for seconds in rounds]
    return series


def test_time_is_the_median_of_the_rounds_medians() -> None:
    # One slow round and one slow step in another do not count.
    assert _series("a", [[2.0, 2.0, 9.0], [3.0, 3.0, 3.0], [50.0, 60.0, 70.0]]).seconds == 3.0


def test_p90_is_of_all_steps() -> None:
    steps = [float(i) for i in range(11)]
    assert _series("a", [steps[:3], steps[3:]]).p90_seconds == pytest.approx(9.0)


def test_each_round_is_held_against_its_own_limit() -> None:
    series = Series("a", 1, GB, "GB")
    # 1 GB in 2 s at 1 GB/s, in 1 s at 2 GB/s, in 1 s at 4 GB/s.
    series.rounds = [Round([2.0], GB), Round([1.0], 2 * GB), Round([1.0], 4 * GB)]
    assert series.fraction_of_limit == 0.5


def test_speed_is_compared_by_medians_and_by_pairs() -> None:
    ours = _series("ours", [[1.0], [2.0], [4.0]])
    theirs = _series("theirs", [[3.0], [3.0], [6.0]])
    of_medians, of_pairs = ours.speed_against(theirs)
    assert of_medians == 1.5  # 3 / 2
    assert of_pairs == 1.5  # the median of 3, 1.5, 1.5
    assert ours.speed_against(_series("slow", [[2.0], [8.0], [16.0]])) == (4.0, 4.0)


def test_table_compares_every_other_line_with_ours() -> None:
    ours, theirs = _series("ours", [[0.5], [0.5]]), _series("theirs", [[1.0], [1.0]])
    lines = format_series([ours, theirs], 1).splitlines()
    assert lines[0].endswith("| ours is faster by |")
    assert lines[2] == "| ours | 500.0 | 500.0 | 2 | 1 | 1 | 200% |  |"
    assert lines[3] == "| theirs | 1000.0 | 1000.0 | 1 | 1 | 1 | 100% | 2.00 (pairs 2.00) |"


def test_prefill_counts_equal_tokens() -> None:
    ours, theirs = Series("ours", 8, 1, "GFLOP"), Series("theirs", 8, 1, "GFLOP")
    ours.rounds = [Round([1.0], GB, token) for token in (5, 6, 7)]
    theirs.rounds = [Round([1.0], GB, token) for token in (5, 9, 7)]
    assert "same token 2 of 3" in format_series([ours, theirs], 1)


def test_weights_that_were_read_again_are_told() -> None:
    series = _series("theirs", [[1.0], [1.0]])
    assert describe_disk_reads(series) is None
    series.rounds.append(Round([1.0], GB, disk_reads=5000))
    assert "theirs: 5000 page faults" in str(describe_disk_reads(series))


def test_scaling_is_also_given_for_memory_of_one_speed() -> None:
    one = _series("ours", [[1.0]], limit=GB)
    # Two seconds for 16 tokens, while the memory was twice as fast.
    many = _series("ours", [[2.0]], limit=2 * GB, num_tokens=16)
    assert describe_scaling(one, many) == (
        "ours: 16 sequences make 8.0 times the tokens/s of 1; 4.0 times at one read speed"
    )


def test_rows_keep_three_digits() -> None:
    assert format_rows([{"a": 0.12345, "b": 123.45}]).splitlines()[2] == "| 0.123 | 123.5 |"


@pytest.fixture
def config() -> GlmConfig:
    keys = {
        "model_type": "glm4",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "eos_token_id": [1],
        "pad_token_id": 1,
    }
    return GlmConfig.from_dict(keys, source="test")


def test_prefill_operations_are_those_counted_by_hand(config: GlmConfig) -> None:
    # A token's multiplications in a layer: q and o 8x16 each, k and v 8x8 each, three of 8x16.
    # Attention over 10 tokens: 16 products for q k and for p v, with half of 10 tokens each.
    per_layer = 2 * 10 * (2 * 128 + 2 * 64 + 3 * 128 + 2 * 16 * 5)
    assert count_prefill_flop(config, 10) == 3 * per_layer + 2 * 8 * 32


class _Turns:
    """Stands for the probe and for workers; writes down who is asked."""

    ready = {"weight_bytes_per_token": GB}  # noqa: RUF012

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def ask(self, **command: Any) -> dict[str, Any]:
        self._log.append(self.name)
        return {"seconds": [1.0], "token": 3, "disk_reads": 0}

    def measure(self) -> float:
        self._log.append("probe")
        return float(len(self._log))


def test_workers_take_turns_with_a_probe_around_each(config: GlmConfig) -> None:
    log: list[str] = []
    workers: list[Any] = [_Turns("a", log), _Turns("b", log)]
    probe: Any = _Turns("probe", log)
    series = measure(Shape(0, 512), workers, config, probe, rounds=2)
    warm_up, one_round = ["a", "b"], ["probe", "a", "probe", "b", "probe"]
    assert log == [*warm_up, *one_round, *one_round]
    # The limit of a measurement is the mean of those before and after it.
    assert [one.limit_per_s for one in series[0].rounds] == [(3 + 5) / 2, (8 + 10) / 2]
