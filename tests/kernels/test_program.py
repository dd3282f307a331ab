"""Several operators in one call: the same bits as one after the other, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from aot_call import KernelRefusedError, call, prepare

from mindformers_glm.backends.cpu import library
from tests.kernels.kernel_calls import UNTOUCHED, count, output, packed, scalar

HIDDEN, FFN, MAX_ROWS, ROWS = 40, 70, 5, 3
OUTPUT = -1  # the place of the last result


@pytest.fixture
def inputs(rng: np.random.Generator) -> list[np.ndarray]:
    """What the operators of an MLP take: x, norm weight, eps, fc1, fc2, number of rows."""

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    fc1 = packed(numbers(2 * FFN, HIDDEN), "float32", is_gated=True)
    fc2 = packed(numbers(HIDDEN, FFN), "float32")
    x = numbers(MAX_ROWS, HIDDEN)
    return [x, numbers(HIDDEN), scalar(1e-5), fc1, fc2, count(ROWS)]


def program(
    *stages: tuple[str, int, int, int, list[int]], constants: tuple[np.ndarray, ...] = ()
) -> np.ndarray:
    """Stages of symbol, operand that has the rows, width, place, operands: csrc/program.cc."""
    numbers = [len(constants)]
    for constant in constants:
        is_float = int(constant.dtype == np.float32)
        numbers += [is_float, len(constant), *constant.view(np.int32).tolist()]
    numbers.append(len(stages))
    for symbol, rows_operand, width, place, operands in stages:
        number = library.operator_number(symbol)
        numbers += [number, rows_operand, width, place, len(operands), *operands]
    return np.int32(numbers)


def kept(place: int) -> int:
    """The operand that is what an earlier stage has left in a place."""
    return -1 - place


FC1 = ("glm_norm_gated_linear_f32", 0, FFN, 0, [0, 1, 2, 3, 5])
FC2 = ("glm_linear_f32", 0, HIDDEN, 1, [kept(0), 4, 5])
LAST_FC2 = (*FC2[:3], OUTPUT, FC2[4])
ADD = ("glm_residual_add", 0, HIDDEN, OUTPUT, [kept(1), 0, 5])


def test_a_program_equals_its_operators_one_after_the_other(inputs: list[np.ndarray]) -> None:
    x, norm, eps, fc1, fc2, num_rows = inputs
    inner = call(
        "glm_norm_gated_linear_f32", x, norm, eps, fc1, num_rows, out=output(MAX_ROWS, FFN)
    )
    branch = call("glm_linear_f32", inner, fc2, num_rows, out=output(MAX_ROWS, HIDDEN))
    expected = call("glm_residual_add", branch, x, num_rows, out=output(MAX_ROWS, HIDDEN))
    for _ in range(2):  # the second one finds the first one's results in the buffers
        out = output(MAX_ROWS, HIDDEN)
        found = call("glm_program", *inputs, program(FC1, FC2, ADD), out=out)
        np.testing.assert_array_equal(found, expected)
        assert (found[ROWS:] == UNTOUCHED).all()


def test_constants_are_operands_behind_the_inputs(inputs: list[np.ndarray]) -> None:
    x, norm, eps, fc1, _, num_rows = inputs
    expected = call(
        "glm_norm_gated_linear_f32", x, norm, eps, fc1, num_rows, out=output(MAX_ROWS, FFN)
    )
    stage = ("glm_norm_gated_linear_f32", 0, FFN, OUTPUT, [0, 1, 4, 2, 3])
    stages = program(stage, constants=(num_rows, eps))
    found = call("glm_program", x, norm, fc1, stages, out=output(MAX_ROWS, FFN))
    np.testing.assert_array_equal(found, expected)


def test_rows_of_the_result_may_be_those_of_another_operand(rng: np.random.Generator) -> None:
    x = rng.standard_normal((MAX_ROWS, HIDDEN)).astype(np.float32)
    stages = program(
        ("glm_gather_rows", 1, HIDDEN, 2, [0, 1, 2]),
        ("glm_residual_add", 0, HIDDEN, OUTPUT, [kept(2), kept(2), 2]),
    )
    found = call("glm_program", x, np.int32([4, 1]), count(2), stages, out=output(2, HIDDEN))
    np.testing.assert_array_equal(found, 2 * x[[4, 1]])


def test_results_stay_in_their_places() -> None:
    x = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)

    def swap(source: int, place: int) -> tuple[str, int, int, int, list[int]]:
        return ("glm_gather_rows", 1, HIDDEN, place, [source, 1, 2])

    stages = program(
        ("glm_residual_add", 0, HIDDEN, 1, [0, 0, 2]),
        swap(kept(1), 0),
        swap(0, 2),
        swap(kept(2), 0),
        ("glm_residual_add", 0, HIDDEN, 2, [kept(0), kept(1), 2]),
        swap(kept(2), OUTPUT),
    )
    found = call("glm_program", x, np.int32([1, 0]), count(2), stages, out=output(2, HIDDEN))
    np.testing.assert_array_equal(found, 3 * x[::-1])


def test_two_threads_do_not_share_results() -> None:
    def add_often(num_rows: int) -> bool:
        x = np.random.default_rng(num_rows).standard_normal((num_rows, HIDDEN)).astype(np.float32)
        stages = program(
            ("glm_residual_add", 0, HIDDEN, 0, [0, 0, 1]),
            ("glm_residual_add", 0, HIDDEN, 1, [kept(0), 0, 1]),
            ("glm_residual_add", 0, HIDDEN, 2, [kept(1), 0, 1]),
            ("glm_residual_add", 0, HIDDEN, OUTPUT, [kept(2), 0, 1]),
        )
        out = output(num_rows, HIDDEN)
        run = prepare("glm_program", x, count(num_rows), stages, out=out)
        for _ in range(300):
            out[:] = 0
            run()
            if not np.allclose(out, 5 * x):
                return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(add_often, (200, 300)))


def test_an_error_names_the_operator(
    inputs: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    inputs[-1] = count(MAX_ROWS + 1)
    with pytest.raises(KernelRefusedError):
        call("glm_program", *inputs, program(FC1, LAST_FC2), out=output(MAX_ROWS, HIDDEN))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "glm_program: glm_norm_gated_linear_f32: num_rows is 6" in lines[0]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (np.int32([]), "ends within a stage"),
        (np.int32([0, 0]), "no stages"),
        (np.int32([17]), "too many constants"),
        (np.int32([-1]), "too many constants"),
        (np.int32([1, 0, 2, 5]), "ends within a stage"),
        (np.int32([1, 0, -1]), "ends within a stage"),
        (np.int32([1, 0]), "ends within a stage"),
        (program(FC1, LAST_FC2)[:-1], "ends within a stage"),
        (np.append(program(FC1, LAST_FC2), np.int32(0)), "goes on behind its last stage"),
        (program(LAST_FC2), "no stage has left a result in place 0"),
        (program(FC1, (*LAST_FC2[:4], [kept(3), 4, 5])), "left a result in place 3"),
        (program((*FC1[:3], 4, FC1[4]), LAST_FC2), "there is no place 4"),
        (program((*FC1[:3], -2, FC1[4]), LAST_FC2), "there is no place -2"),
        (program(FC1, (*FC2[:3], 0, FC2[4]), ADD), "reads the place that its result goes to"),
        (program(FC1, FC2), "the last stage makes the output"),
        (program((*FC1[:3], OUTPUT, FC1[4]), LAST_FC2), "the last stage makes the output"),
        (program(FC1, (*LAST_FC2[:4], [kept(0), 6, 5])), "names input 6"),
        (
            program(FC1, (*LAST_FC2[:4], [kept(0), 7, 5]), constants=(count(1),)),
            "names input 7",
        ),
        (program(FC1, ("glm_linear_f32", 3, *LAST_FC2[2:])), "does not have"),
        (program(FC1, ("glm_linear_f32", -1, *LAST_FC2[2:])), "does not have"),
        (program(FC1, ("glm_linear_f32", 0, -1, *LAST_FC2[3:])), "negative width"),
        (program((*LAST_FC2[:4], [0] * 17)), "too many operands"),
        (program((*FC1[:3], OUTPUT, FC1[4])), "output has size 40 on axis 1, expected 70"),
        (np.int32([0, 1, -1, 0, HIDDEN, OUTPUT, 0]), "no operator number -1"),
        (np.int32([0, 1, 9999, 0, HIDDEN, OUTPUT, 0]), "no operator number 9999"),
        (program(FC1, LAST_FC2).astype(np.int64), "program has unexpected type"),
    ],
)
def test_a_wrong_program_is_refused_with_a_reason(
    stages: np.ndarray,
    words: str,
    inputs: list[np.ndarray],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KernelRefusedError):
        call("glm_program", *inputs, stages, out=output(MAX_ROWS, HIDDEN))
    assert words in capfd.readouterr().err


def test_unknown_operators_are_not_looked_for_at_run_time() -> None:
    with pytest.raises(ValueError, match="glm_no_such_operator"):
        library.operator_number("glm_no_such_operator")
