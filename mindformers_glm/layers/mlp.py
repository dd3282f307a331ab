"""The gated feed-forward network."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings


@dataclass(frozen=True)
class MLPSubmodules:
    """The operators of one MLP; `linear_fc1` includes the norm before it and SwiGLU after it."""

    linear_fc1: ModuleSpec
    linear_fc2: ModuleSpec
    all_reduce: ModuleSpec


class MLP(nn.Cell):
    """SwiGLU feed-forward: fc2(silu(gate(norm(x))) * up(norm(x))).

    Its operators make float32 [max_rows, hidden_size] of the residual stream; the layer adds it to
    the stream. A rank has its own inner columns; its part is summed with the other ranks'.
    Source: transformers 4.51.3 `Glm4MLP`.
    """

    def __init__(
        self, config: GlmConfig, settings: RunnerSettings, submodules: MLPSubmodules, name: str
    ) -> None:
        super().__init__()
        sizes = partition(config, settings.tensor_parallel)
        self.linear_fc1 = build_module(
            submodules.linear_fc1,
            config.hidden_size,
            sizes.intermediate_size_per_partition,
            eps=config.rms_norm_eps,
            settings=settings,
            name=f"{name}.linear_fc1",
        )
        self.linear_fc2 = build_module(
            submodules.linear_fc2,
            sizes.intermediate_size_per_partition,
            config.hidden_size,
            settings=settings,
            name=f"{name}.linear_fc2",
        )
        self.all_reduce = build_module(submodules.all_reduce, settings.tensor_parallel)

    def operators(self) -> list[nn.Cell]:
        """In the order in which each takes the one before's result."""
        return [self.linear_fc1, self.linear_fc2, self.all_reduce]
