"""Linear layers whose columns are cut: ranks multiply their own, and the results are summed."""

from mindformers_glm.backends.cpu.collectives import AllReduce, ShareGroups, ShareScales
from mindformers_glm.backends.cpu.fused_layers import Linear
from mindformers_glm.backends.cpu.trace import Value
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings


class RowParallelLinear(Linear):
    """y = x W^T, of which a rank has some columns; Megatron-Core's name for it.

    Args:
        block: which block of an axis the columns are (core/sharding.py).
        name: of the layer; chooses how the weight is kept.
    """

    def __init__(self, config: GlmConfig, block: str, settings: RunnerSettings, name: str) -> None:
        share_groups = ShareGroups(config, block, settings, name)
        share_scales = ShareScales(share_groups.width, settings, name)
        super().__init__(
            share_groups.width,
            config.hidden_size,
            settings,
            name,
            has_row_maxima=share_scales.is_needed,
        )
        self.share_groups, self.share_scales = share_groups, share_scales
        self.all_reduce = AllReduce(config.hidden_size, settings.tensor_parallel)

    def construct(self, x: Value, row_maxima: Value | None = None) -> Value:
        """float32 [max_rows, own columns] -> [max_rows, hidden_size], the same on every rank."""
        assert row_maxima is None, "the ranks find them here"
        x, row_maxima = self.share_scales(self.share_groups(x))
        return self.all_reduce(super().construct(x, row_maxima))
