"""The inference network of the family: what its dialects differ in is in their configs."""

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindformers_glm.backends import select_backend
from mindformers_glm.backends.cpu.weighted_cell import LoadInto, WeightedCell
from mindformers_glm.models.family_config import GlmFamilyConfig
from mindformers_glm.models.gpt_layer_specs import get_layer_spec
from mindformers_glm.models.gpt_model import GPTModel, LogitsHead
from mindformers_glm.models.network_graph import NetworkGraphs
from mindformers_glm.models.pretrained_model import GlmFamilyPreTrainedModel
from mindformers_glm.system.interrupts import restore_interrupt_handler
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.packed_cache import PackedCache, PackedCacheSettings
from mindformers_glm.weights.rules import build_rules


class GlmInferenceModel(GlmFamilyPreTrainedModel):
    """A GLM network over a paged KV cache: `model` and `logits_head`.

    The engine's runner runs `graphs`, so that a prefill chunk which samples nothing skips the head.
    Weights come by `load_weights`, the KV cache by `allocate_kv_cache`.
    """

    def __init__(self, config: GlmFamilyConfig, device_target: str = "CPU") -> None:
        backend = select_backend(device_target)
        settings = config.to_runner_settings()
        group = backend.connect(settings.tensor_parallel)
        super().__init__(config, auto_prefix=False)
        self.group = group
        self._weight_layout = backend.weight_layout()
        self._map_file = backend.file_mapper()
        self.mapped_weight_bytes = 0
        self.read_weight_bytes = 0
        self.glm_config = config.to_glm_config()
        self.settings = settings
        operators = backend.operators()
        self.model = GPTModel(
            self.glm_config,
            self.settings,
            get_layer_spec(self.glm_config, operators),
            operators,
        )
        self.logits_head = LogitsHead(self.glm_config, self.settings, operators)
        self.graphs = NetworkGraphs(self.model, self.logits_head, operators)
        # Made by the first `generate` and kept from call to call, and with it the KV cache.
        self.engine: Any = None
        self.has_weights = False
        # Megatron-Core counts the final norm to the decoder.
        self.logits_head.final_layernorm.update_parameters_name("decoder.final_layernorm.")

    def construct(
        self,
        token_ids: Tensor,
        num_rows: Tensor,
        attn_metadata: Tensor,
        sample_rows: Tensor,
        num_samples: Tensor,
    ) -> Tensor:
        """One step; see NetworkGraph for the shapes."""
        for graph in self.graphs.hidden_states[:-1]:
            token_ids = graph(token_ids, num_rows, attn_metadata)
        return self.graphs.last_with_logits(
            token_ids, num_rows, attn_metadata, sample_rows, num_samples
        )

    def weighted_cells(self) -> dict[str, WeightedCell]:
        """The Cells that hold weights, by their Megatron-Core names."""
        cells = {
            name: cell
            for name, cell in self.model.cells_and_names()
            if isinstance(cell, WeightedCell)
        }
        cells["decoder.final_layernorm"] = self.logits_head.final_layernorm
        cells["output_layer"] = self.logits_head.output_layer
        return cells

    def weight_targets(self) -> dict[str, LoadInto]:
        """Every parameter that a checkpoint fills, by its Megatron-Core name."""
        return {
            f"{cell_name}.{name}": target
            for cell_name, cell in self.weighted_cells().items()
            for name, target in cell.weight_targets().items()
        }

    def weight_arrays(self) -> dict[str, np.ndarray]:
        """The memory of every Parameter that holds weights, by its Megatron-Core name."""
        return {
            f"{cell_name}.{name}": array
            for cell_name, cell in self.weighted_cells().items()
            for name, array in cell.weight_arrays().items()
        }

    def num_weight_bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(cell.num_weight_bytes() for cell in self.weighted_cells().values())

    def load_weights(
        self,
        weights: str | Path | Checkpoint,
        packed_cache: PackedCacheSettings | None = None,
    ) -> None:
        """Fill every parameter from a Hugging Face folder; all names and shapes are checked first.

        `mapped_weight_bytes` and `read_weight_bytes` say afterwards how much is a mapped cache file
        and how much was read from the checkpoint.

        Args:
            packed_cache: how an earlier start's result is used; None: not at all.
        Raises:
            CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
        """
        rank = self.settings.tensor_parallel
        checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint.open(weights, rank)
        for cell in self.weighted_cells().values():
            cell.place_weights()
        cache = None
        if packed_cache is not None and packed_cache.mode != "off":
            weight_format = self.settings.weight_format | {"layout": self._weight_layout}
            cache = PackedCache(
                packed_cache, checkpoint, weight_format, self.weight_arrays(), self._map_file
            )
        rules = build_rules(self.glm_config, checkpoint.cuts(self.glm_config, rank))
        self.read_weight_bytes = load_weights(checkpoint, rules, self.weight_targets(), cache=cache)
        self.mapped_weight_bytes = cache.mapped_bytes if cache is not None else 0
        self.has_weights = True
        restore_interrupt_handler()

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Give every layer a KV cache of `num_blocks` blocks; once, before the first step."""
        for layer in self.model.decoder.layers:
            layer.self_attention.core_attention.allocate_kv_cache(num_blocks)

    def kv_cache_arrays(self) -> list[np.ndarray]:
        """The memory of every layer's keys and values; no bytes before `allocate_kv_cache`."""
        attention = [layer.self_attention.core_attention for layer in self.model.decoder.layers]
        return [
            parameter.asnumpy()
            for cell in attention
            for parameter in cell.parameters_dict().values()
        ]

    def generate(
        self,
        input_ids: list[int] | list[list[int]] | np.ndarray | Tensor,
        generation_config: Any = None,
        seed: int | None = None,
        attention_mask: list[int] | list[list[int]] | np.ndarray | Tensor | None = None,
        **kwargs: Any,
    ) -> list[np.ndarray]:
        """Generate as upstream's `generate` does, through this project's engine.

        Args:
            input_ids: one prompt [S] or several, int32 or int64 [B, S] or lists of any lengths.
            generation_config: a GenerationConfig of transformers or MindSpore Transformers, or a
                dict, read as a generation_config.json is: what would change the answer and is not
                supported is refused. None: the generation_config.json of the folder given to
                `from_pretrained`.
            attention_mask: of the shape of `input_ids`, bool, int or float: 1 for a token, 0 for
                padding before or behind the tokens. Padding is dropped, and every prompt runs at
                its own length. None: there is no padding.
            kwargs: single settings (do_sample, top_k, max_new_tokens, ...), which win.
        Returns:
            For each prompt its token ids, without padding, followed by the generated ones: int32,
            each of its own length.
        Raises:
            GlmError: there are no weights, or a setting or a prompt is wrong; in one sentence.
        """
        # The engine stands above the models; only this entry, which upstream's API fixes, looks up.
        from mindformers_glm.engine.network_generate import generate

        return generate(self, input_ids, generation_config, seed, attention_mask, **kwargs)
