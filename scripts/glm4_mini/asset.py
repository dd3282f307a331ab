"""Write the folder that ships: weights in two shards, config, tokenizer, held-out questions."""

import json
from pathlib import Path

import torch
import transformers
from transformers import Glm4ForCausalLM, PreTrainedTokenizerFast

from glm4_mini.corpus import heldout_examples, training_examples
from glm4_mini.tokenizer import save_tokenizer

MAX_LEAK_CHECK = 200_000


def write_asset(model: Glm4ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the model in bf16 as a Hugging Face folder with two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    half_bytes = sum(tensor.numel() * 2 for tensor in state.values()) // 2
    shipped = Glm4ForCausalLM(model.config).to(torch.bfloat16)
    shipped.load_state_dict(state)
    # a little more than half: the first shard fills up to this, the second holds the rest
    shipped.save_pretrained(folder, max_shard_size=half_bytes + half_bytes // 8)
    # save_pretrained leaves out what equals its own default, do_sample among it
    generation = {
        "do_sample": False,
        "eos_token_id": model.config.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
        "transformers_version": model.config.transformers_version or transformers.__version__,
    }
    text = json.dumps(generation, indent=2) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    save_tokenizer(tokenizer, folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


def write_heldout(folder: Path, trained_seed: int) -> None:
    """Write heldout.jsonl after asserting that the training stream holds none of its prompts."""
    examples = heldout_examples()
    prompts = {example.prompt_text for example in examples}
    stream = training_examples(trained_seed)
    for _ in range(MAX_LEAK_CHECK):
        assert next(stream).prompt_text not in prompts, (
            "a held-out question is in the training text"
        )
    lines = [example.to_json() for example in examples]
    assert all(json.loads(line) for line in lines)
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
