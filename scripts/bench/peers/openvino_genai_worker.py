"""Worker of bench_generate.py: OpenVINO GenAI's continuous batching pipeline.

The model is a folder that `optimum-cli export openvino` wrote. Its KV cache is 1 GiB.
"""

import argparse
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from protocol import serve

_EMBEDDING = "embed_tokens"
_CACHE_GIB = 1
_MAX_BATCH = 512


class OpenVinoRunner:
    """Adds requests of token ids and steps the pipeline."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
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
        self._handles: list[openvino_genai.GenerationHandle] = []
        self._num_requests = 0
        self._max_new_tokens = arguments.max_model_len
        self.version = f"openvino-genai {openvino_genai.__version__}"
        self.weight_bytes_per_token = _count_weight_bytes(Path(arguments.model))

    def start(self, prompts: list[list[int]]) -> None:
        self._forget()
        for prompt in prompts:
            self._add(prompt)
        waiting = list(self._handles)
        while waiting:
            self._pipeline.step()
            waiting = [handle for handle in waiting if not handle.can_read()]

    def step(self) -> None:
        self._pipeline.step()

    def prefill(self, prompt: list[int]) -> int:
        self.start([prompt])
        (output,) = self._handles[0].read().values()
        return int(output.generated_ids[0])

    def _add(self, prompt: list[int]) -> None:
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens = self._max_new_tokens
        greedy.ignore_eos = True
        greedy.do_sample = False
        token_ids = openvino.Tensor(np.array([prompt], np.int64))
        self._handles.append(self._pipeline.add_request(self._num_requests, token_ids, greedy))
        self._num_requests += 1

    def _forget(self) -> None:
        for handle in self._handles:
            handle.stop()
        self._handles.clear()
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
