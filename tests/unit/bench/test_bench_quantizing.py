"""What bench_quantizing.py says of its figures, and that its rows can be asked for."""

from typing import Any

from bench_quantizing import check_claims, list_rows

from mindformers_glm.quantizer.options import QuantizeOptions


def _row(kl: float, right: int | None = None) -> dict[str, Any]:
    answers = None
    if right is not None:
        answers = {"num_questions": 200, "reference_right": 190, "right": right}
    return {"logits": {"kl": kl}, "answers": answers}


def test_rows_are_options_and_no_two_are_alike() -> None:
    rows = list_rows()
    for row in rows:
        QuantizeOptions(**row.options)
    assert len({(row.scheme, row.way) for row in rows}) == len(rows)


def test_claims_are_judged_by_rows_that_were_run() -> None:
    found = {
        ("W8A16", "nearest"): _row(0.1, 190),
        ("W8A8", "nearest"): _row(0.1, 187),
        ("W8A8", "best"): _row(0.2),
        ("W8A8", "as msModelSlim, m1"): _row(0.2),
        ("W8A8", "as msModelSlim, m4"): _row(0.1),
        ("W4A16 g64", "nearest"): _row(0.4),
        ("W4A16 g64", "GPTQ"): _row(0.2),
    }
    verdicts = [line.rpartition(": ") for line in check_claims("x", found)]
    assert [(what.split(" loses")[0].split(",")[0], verdict) for what, _, verdict in verdicts] == [
        ("x: W8A16 nearest", "holds"),
        ("x: W8A8 nearest", "FAILS"),
        ("x: W4A16 g64", "holds"),
        ("x: W8A8 best has KL 0.20000", "FAILS"),
    ]
