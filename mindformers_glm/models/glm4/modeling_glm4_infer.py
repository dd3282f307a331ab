"""The inference class of GLM-4-0414."""

from mindformers_glm.models.family import GlmInferenceModel
from mindformers_glm.models.glm4.utils import Glm4PreTrainedModel


class InferenceGlm4ForCausalLM(Glm4PreTrainedModel, GlmInferenceModel):
    """GLM-4-0414 for inference, on the device that `device_target` of the config names.

    A door: the network is the backend's, on a CPU `backends.cpu.network.GPTModel`.
    `load_weights(DIR)` builds and fills it, `construct` runs one step on a paged KV cache,
    `generate` answers prompts of token ids through the engine.
    """
