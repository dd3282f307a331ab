"""Worker of bench_generate.py: OpenVINO GenAI's continuous batching pipeline.

The model is a folder that `optimum-cli export openvino` wrote. Its KV cache is 1 GiB.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from protocol import serve
from request_runner import RequestRunner

_EMBEDDING = "embed_tokens"
_CACHE_GIB = 1
_MAX_BATCH = 512


class OpenVinoRunner(RequestRunner):
    """Adds requests of token ids and steps the pipeline."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.max_num_batched_tokens = _MAX_BATCH
        scheduler.max_num_seqs = arguments.max_sequences
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            arguments.model,
            scheduler_config=scheduler,
            device="CPU",
            properties={"INFERENCE_NUM_THREADS": arguments.threads},
        )
        self._handles: dict[int, openvino_genai.GenerationHandle] = {}
        self._max_new_tokens = arguments.max_model_len
        self.version = f"openvino-genai {openvino_genai.__version__}"
        self.weight_bytes_per_token = _count_weight_bytes(Path(arguments.model))

    def _add(self, request_id: int, prompt: list[int]) -> None:
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens = self._max_new_tokens
        greedy.ignore_eos = True
        greedy.do_sample = False
        token_ids = openvino.Tensor(np.array([prompt], np.int64))
        self._handles[request_id] = self._pipeline.add_request(request_id, token_ids, greedy)

    def _step(self) -> Iterable[tuple[int, int]]:
        self._pipeline.step()
        for request_id, handle in self._handles.items():
            if handle.can_read():
                (output,) = handle.read().values()
                yield request_id, int(output.generated_ids[-1])

    def _end(self, request_ids: list[int]) -> None:
        for request_id in request_ids:
            self._handles.pop(request_id).stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


def _count_weight_bytes(folder: Path) -> int:
    """All constants of the network except the embedding and its scales."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    return sum(
        op.get_byte_size()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and _EMBEDDING not in op.get_friendly_name()
    )


if __name__ == "__main__":
    serve(OpenVinoRunner)
