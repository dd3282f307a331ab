"""Worker of bench_generate.py: Hugging Face transformers on torch, eager or compiled.

Variants: "bf16" and "bf16-compiled" (torch.compile with a static KV cache; needs g++).
"""

import argparse

import torch
import transformers
from protocol import serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


class HuggingFaceRunner:
    """Calls the model's forward; only the last position's logits are computed."""

    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(
            arguments.model, torch_dtype=torch.bfloat16
        ).eval()
        self._is_compiled = arguments.variant == "bf16-compiled"
        # dynamic=False: a graph for each number of rows.
        self._forward = (
            torch.compile(self._model, dynamic=False) if self._is_compiled else self._model
        )
        self._max_model_len = arguments.max_model_len
        self.version = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, "
            f"{self._model.config._attn_implementation} attention"
        )
        all_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        embedding = self._model.get_input_embeddings().weight
        self.weight_bytes_per_token = all_bytes - embedding.numel() * embedding.element_size()

    def start(self, prompts: list[list[int]]) -> None:
        self._cache = self._new_cache(len(prompts))
        self._length = 0
        self._run(torch.tensor(prompts))

    def step(self) -> None:
        self._run(self._next_tokens)

    def prefill(self, prompt: list[int]) -> int:
        self.start([prompt])
        return int(self._next_tokens)

    def _new_cache(self, sequences: int) -> DynamicCache | StaticCache:
        if not self._is_compiled:
            return DynamicCache()
        return StaticCache(
            config=self._model.config,
            max_batch_size=sequences,
            max_cache_len=self._max_model_len,
            dtype=torch.bfloat16,
        )

    def _run(self, token_ids: torch.Tensor) -> None:
        """Feed token_ids [sequences, tokens] and choose the next [sequences, 1]."""
        end = self._length + token_ids.shape[1]
        logits = self._forward(
            token_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            cache_position=torch.arange(self._length, end),
        ).logits
        self._length = end
        self._next_tokens = logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(HuggingFaceRunner)
