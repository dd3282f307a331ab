"""Write GGUF files of a folder made by make_slice.py, for llama.cpp.

    /tmp/peers/llama/bin/python scripts/bench/peers/make_gguf.py \
        --model /tmp/slices/9b4 --output /tmp/peers/gguf/9b4

Runs in the environment of build_llama_cpp.sh. Writes BF16.gguf and, from it by llama.cpp's own
quantizer, the other formats. The files hold no vocabulary: the benchmark feeds token ids.
"""

import argparse
import json
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

QUANTIZED = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def write_bf16(model: Path, output: Path) -> None:
    """Write the model as it is; norm weights and biases in float32, as llama.cpp wants them."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(output, "glm4")
    _write_settings(writer, config)
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


def quantize(source: Path, output: Path, file_type: int, threads: int) -> None:
    """Let llama.cpp quantize a GGUF file, with its own choice of types for each tensor."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
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
    writer.add_tokenizer_model("no_vocab")


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
    parser.add_argument("--formats", nargs="+", choices=QUANTIZED, default=list(QUANTIZED))
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
            quantize(bf16, unfinished, QUANTIZED[name], arguments.threads)
            unfinished.rename(output)


if __name__ == "__main__":
    main()
