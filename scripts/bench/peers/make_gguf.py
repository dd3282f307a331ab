"""Write GGUF files of a folder made by make_slice.py, for llama.cpp.

    /tmp/peers/llama/bin/python scripts/bench/peers/make_gguf.py \
        --model /tmp/slices/9b4 --output /tmp/peers/gguf/9b4

Runs in the environment of build_llama_cpp.sh. Writes BF16.gguf and, from it by llama.cpp's own
quantizer, the other formats. The files hold the vocabulary of the folder's tokenizer.json, which a
server needs to write its answers; the benchmarks feed token ids.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

QUANTIZED = ("Q8_0", "Q4_0", "Q4_K_M")


def write_bf16(model: Path, output: Path) -> None:
    """Write the model as it is; norm weights and biases in float32, as llama.cpp wants them."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(output, "glm4")
    _write_settings(writer, config)
    _write_vocabulary(writer, model / "tokenizer.json", config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4, config["num_hidden_layers"])
    for name, tensor in _read_safetensors(model / "model.safetensors").items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise SystemExit(f"{name} has no name in GGUF's table for glm4")
        if tensor.ndim == 1:
            writer.add_tensor(target, (tensor.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(
                target, tensor.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def quantize(source: Path, output: Path, name: str, threads: int) -> None:
    """Let llama.cpp quantize a GGUF file, with its own choice of types for each tensor."""
    import llama_cpp  # not needed for BF16

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not quantize {source}")


def _write_settings(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["partial_rotary_factor"]))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: gguf.GGUFWriter, path: Path, vocab_size: int) -> None:
    """Write GLM-4's tokens as llama.cpp's own converter does, unused ids by a name of their own."""
    if not path.exists():
        writer.add_tokenizer_model("no_vocab")
        return
    tokenizer = json.loads(path.read_text("utf-8"))
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    texts = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()}
    texts |= {token_id: entry["content"] for token_id, entry in added.items()}
    kinds = []
    for token_id in range(vocab_size):
        if token_id in added:
            is_special = added[token_id]["special"]
            kinds.append(gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL if token_id in texts else gguf.TokenType.UNUSED)
    merges = tokenizer["model"]["merges"]  # "a b", or newer [a, b]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    ends = [i for i, entry in added.items() if entry["content"] == "<|endoftext|>"]
    writer.add_eos_token_id(ends[0])
    writer.add_add_bos_token(False)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Map the bfloat16 tensors of a file as uint16."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
    return {
        name: data[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def main() -> None:
    """Write every format that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for FORMAT.gguf")
    parser.add_argument("--formats", nargs="*", choices=QUANTIZED, default=list(QUANTIZED))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    bf16 = arguments.output / "BF16.gguf"
    unfinished = arguments.output / "unfinished.tmp"
    if not bf16.exists():
        write_bf16(arguments.model, unfinished)
        unfinished.rename(bf16)
    for name in arguments.formats:
        output = arguments.output / f"{name}.gguf"
        if not output.exists():
            quantize(bf16, unfinished, name, arguments.threads)
            unfinished.rename(output)


if __name__ == "__main__":
    main()
