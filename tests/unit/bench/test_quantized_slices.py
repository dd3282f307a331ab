"""Random folders of make_slice.py are what the formats' readers read."""

from pathlib import Path

import numpy as np
import pytest
from make_slice import write_random_checkpoint
from quantized_slices import DEVIATION, FORMS
from released_models import MODELS

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules

_GLM = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 80,
}
_CHATGLM = {
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_layers": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "kv_channels": 32,
    "padded_vocab_size": 80,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_layer_is_read_and_deviates_as_float_weights_do(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    keys = MODELS["glm-4-9b-chat"] | _CHATGLM if form.models else MODELS["9b"] | _GLM
    write_random_checkpoint(tmp_path / "slice", name, keys, DEVIATION, 0, form)
    config = GlmConfig.from_hf(tmp_path / "slice")
    with Checkpoint.open(tmp_path / "slice", find_format=find_format) as checkpoint:
        rules = build_rules(config, quantized=checkpoint.quantized)
        check_rules(rules, checkpoint)
        sources = [s for rule in rules for s in rule.sources if s.linear is not None]
        assert len(sources) == (4 if form.models else 6)
        for source in sources:
            assert source.linear is not None
            view = checkpoint.quantized_view(source.name, source.linear, source.pieces[0])
            assert view.linear.scheme is not None
            assert view.linear.scheme.weight_bits == form.bits
            weight = np.concatenate([rows for _, rows in view.row_chunks()])
            assert 0.5 * DEVIATION < weight.std() < 2.5 * DEVIATION
