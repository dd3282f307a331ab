"""Worker of bench_generate.py: vLLM's engine for CPUs, in this process (build_vllm.sh).

The model is a Hugging Face folder, float or quantized as vLLM reads it. Its KV cache is 1 GiB.
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from protocol import serve
from request_runner import RequestRunner

_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")
_MAX_BATCH = 512


class VllmRunner(RequestRunner):
    """Adds requests of token ids and steps the engine."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps are taken here
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": _list_processors(arguments.threads),
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        import vllm

        self._params = vllm.SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=arguments.max_model_len,
            detokenize=False,
        )
        self._engine = vllm.LLM(
            arguments.model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_num_seqs=arguments.max_sequences,
            max_model_len=arguments.max_model_len,
            max_num_batched_tokens=max(_MAX_BATCH, arguments.max_model_len),
            enable_prefix_caching=False,
        ).llm_engine
        self.version = f"vllm {vllm.__version__}"
        self.weight_bytes_per_token = count_weight_bytes(Path(arguments.model))

    def _add(self, request_id: int, prompt: list[int]) -> None:
        self._engine.add_request(str(request_id), {"prompt_token_ids": prompt}, self._params)

    def _step(self) -> Iterable[tuple[int, int]]:
        for one in self._engine.step():
            yield int(one.request_id), int(one.outputs[0].token_ids[-1])

    def _end(self, request_ids: list[int]) -> None:
        self._engine.abort_request([str(request_id) for request_id in request_ids])
        while self._engine.has_unfinished_requests():
            self._engine.step()


def count_weight_bytes(folder: Path) -> int:
    """All tensors of a folder's safetensors files except the embedding."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and not name.endswith(_EMBEDDINGS):
                begin, end = entry["data_offsets"]
                found += end - begin
    return found


def _list_processors(count: int) -> str:
    """The first ones that this process may use, as vLLM wants them: "0,1"."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))[:count]))


if __name__ == "__main__":
    serve(VllmRunner)
