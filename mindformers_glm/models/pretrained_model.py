"""Loading from a Hugging Face folder as downloaded, for the classes of every dialect."""

from typing import Any

from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from mindformers_glm.config.environment import launched_rank
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import resolve_attention_bias


class GlmFamilyPreTrainedModel(PreTrainedModel):
    """`from_pretrained`; a subclass names its configuration class."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_dir: str, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Build the inference network and fill it from the folder's weight files.

        Args:
            pretrained_model_name_or_dir: a Hugging Face folder.
            kwargs: run settings, the fields of RunnerSettings without `float_layers`, which is
                config.json's; others are refused.
        Raises:
            ConfigError, CheckpointError: the folder is not a usable GLM checkpoint, or a
                setting is unknown or wrong.

        The memory is checked by the first `generate`, which makes the KV cache, and not before
        the weights are loaded as `LLM` does: the planner is part of the engine, above the models.
        """
        kwargs.pop("config", None)  # AutoModel passes the one it read from the same folder
        size = kwargs.get("model_parallel", 1)
        rank = launched_rank(size)
        checkpoint = Checkpoint.open(pretrained_model_name_or_dir, TensorParallel(size, rank))
        config = GlmConfig.from_hf(pretrained_model_name_or_dir)
        config = resolve_attention_bias(config, checkpoint)
        settings = RunnerSettings.for_config(
            config, checkpoint.dtype, **(kwargs | {"model_parallel_rank": rank})
        )
        network = build_network(config, settings)
        network.name_or_path = str(pretrained_model_name_or_dir)
        network.load_weights(checkpoint)
        return network

    # AutoModel calls this name for a folder that has a config.json and no YAML.
    from_pretrained_experimental_mode = from_pretrained


def build_network(config: GlmConfig, settings: RunnerSettings) -> Any:
    """The network that MindSpore Transformers' registry names for this architecture."""
    network_class = MindFormerRegister.get_cls(MindFormerModuleType.MODELS, config.architecture)
    return network_class(network_class.config_class.from_glm_config(config, settings))
