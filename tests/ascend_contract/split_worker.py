"""One rank of upstream's network under the references: what it answers, and what it computes.

split_worker.py SIZE FOLDER...: writes FOLDER's name, SIZE and rank .npz into the working folder,
and answers the prompts once more as run_mindformer.py does.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference import parallel_state

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.config.environment import launched_rank
from tests.ascend_contract.card import card_of_references
from tests.conftest import REPO

PROMPTS = ["hello", "a longer prompt than the others", "请介绍一下北京", "hello hello hello hello"]
_GREEDY = SamplingParams(do_sample=False, max_new_tokens=6, ignore_eos=True)
PROMPT = list(range(5, 42))
NUM_GUESSES = 2


@contextmanager
def ascend_in_a_job(size: int) -> Iterator[None]:
    """Let device_target Ascend run on a CPU; several ranks exchange by MindSpore's CPU group."""
    initialize = parallel_state.initialize_model_parallel

    def take_world_group(**sizes: int) -> None:
        # A CPU knows the group of all processes only, which has the same ranks.
        initialize(**sizes)
        parallel_state._TENSOR_MODEL_PARALLEL_GROUP = parallel_state._WORLD_GROUP

    world_group = "mccl_world_group" if size > 1 else None
    with (
        card_of_references(world_group),
        mock.patch.object(parallel_state, "create_group"),
        mock.patch.object(parallel_state, "initialize_model_parallel", take_world_group),
    ):
        yield


def run(folder: Path, size: int) -> dict[str, np.ndarray]:
    """The tokens of a batch in chunks, and the logits of a prompt longer than a step."""
    sampled_rows: list[int] = []
    with LLM(
        folder,
        model_parallel=size,
        device_target="Ascend",
        device_options={"mode": "PYNATIVE_MODE"},
        params_dtype="float32",
        compute_dtype="float32",
        max_num_seqs=3,
        max_num_batched_tokens=16,
        max_model_len=128,
        block_size=16,
        prompt_lookup_num_tokens=NUM_GUESSES,
    ) as llm:
        output_layer = llm.engine.runner.network.model.output_layer
        construct = output_layer.construct

        def count(rows: ms.Tensor, *others: object) -> ms.Tensor:
            sampled_rows.append(rows.shape[0])
            return construct(rows, *others)

        with mock.patch.object(output_layer, "construct", count):
            outputs = llm.generate(PROMPTS, _GREEDY)
        return {
            "tokens": np.array([output.token_ids for output in outputs]),
            "texts": np.array([output.text for output in outputs]),
            "sampled_rows": np.array(sampled_rows),
            "logits": llm.logits(PROMPT),
            "num_blocks": np.array(llm.engine.config.num_blocks),
        }


def predict(folder: Path, size: int) -> None:
    """run_mindformer.py, to the end of the process; rank 0 writes the result."""
    words = f"--config configs/glm4/predict_glm4.yaml --run_mode predict --use_parallel {size > 1}"
    words += f" --parallel_config.model_parallel {size} --pretrained_model_dir {folder}"
    words += " --device_target Ascend --mode 1 --auto_trans_ckpt True --max_new_tokens 6"
    for name in ("params_dtype", "compute_dtype"):
        words += f" --model.model_config.{name} float32"
    sys.argv = [str(REPO / "run_mindformer.py"), *words.split(), "--predict_data", *PROMPTS]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    size = int(sys.argv[1])
    rank = launched_rank(size)
    with ascend_in_a_job(size):
        for name in sys.argv[2:]:
            found = run(Path(name), size)
            np.savez(f"{Path(name).name}-{size}-{rank}.npz", **found)
        predict(Path(sys.argv[2]), size)
