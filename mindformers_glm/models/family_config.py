"""Configuration of a GLM network as MindSpore Transformers sees it."""

from typing import Any

from mindformers.models.configuration_utils import PretrainedConfig

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import SETTING_NAMES, RunnerSettings


class GlmFamilyConfig(PretrainedConfig):
    """The keys of a config.json, plus the run's types and sizes; one subclass for each dialect.

    Every architecture key must come from the checkpoint: unlike upstream's classes these have no
    defaults, which would be those of another model. `to_glm_config` checks the keys.

    Args:
        kwargs: keys of config.json as the dialect calls them; and optionally params_dtype,
            compute_dtype, rotary_dtype, quantization, quantization_group_size, block_size,
            max_model_len, max_num_seqs and max_num_batched_tokens (see config/runner_settings.py).
    """

    # Upstream compares with an instance made without arguments otherwise; there is none.
    is_composition = True

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        super().__init__(**kwargs)

    @classmethod
    def from_glm_config(cls, config: GlmConfig, settings: RunnerSettings) -> "GlmFamilyConfig":
        """Put an architecture and the run's settings together."""
        run = {key: getattr(settings, key) for key in SETTING_NAMES}
        return cls(**config.to_dict(), **run)

    def to_glm_config(self) -> GlmConfig:
        """The checked architecture; raises ConfigError where a key is missing or wrong."""
        return GlmConfig.from_dict(
            {key: value for key, value in self.to_dict().items() if key not in SETTING_NAMES},
            source=self.name_or_path or type(self).__name__,
        )

    def to_runner_settings(self) -> RunnerSettings:
        """The run's types and sizes; what is not set follows the checkpoint."""
        config = self.to_glm_config()
        given = {key: self.__dict__.get(key) for key in SETTING_NAMES}
        return RunnerSettings.for_config(config, "float32", **given)
