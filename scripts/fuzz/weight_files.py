"""Damaged weight files, indexes, manifests and packed caches, and what reads them."""

import hashlib
import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from mutations import damage_bytes, damage_json

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.generation_defaults import from_generation_config
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCache, PackedCacheSettings, list_caches
from mindformers_glm.weights.packed_file import verify_file
from mindformers_glm.weights.packed_header import HUGE_PAGE, PackedFileError

_CONFIG: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "attention_bias": False,
    "eos_token_id": [3, 4],
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 33,
}
_CHATGLM_CONFIG: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "kv_channels": 16,
    "num_layers": 1,
    "ffn_hidden_size": 40,
    "padded_vocab_size": 33,
    "seq_length": 128,
    "layernorm_epsilon": 1e-5,
    "rope_ratio": 1,
    "torch_dtype": "float32",
}
_GENERATION: dict[str, Any] = {
    "do_sample": True,
    "eos_token_id": [1, 2],
    "max_length": 100,
    "num_beams": 1,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.8,
    "stop_strings": ["a"],
    "sequence_bias": {},
}
_HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c.weight": {"dtype": "F16", "shape": [], "data_offsets": [32, 34]},
    "d": {"dtype": "I64", "shape": [0, 5], "data_offsets": [34, 34]},
}
_DATA = bytes(range(34))


def read_safetensors(rng: random.Random, folder: Path) -> None:
    """Damage the header, or the whole file."""
    header = damage_json(_HEADER, rng) if rng.random() < 0.7 else json.dumps(_HEADER).encode()
    content = len(header).to_bytes(8, "little") + header + _DATA
    if rng.random() < 0.4:
        content = damage_bytes(content, rng)
    (folder / "model.safetensors").write_bytes(content)
    _look_at_all(folder)


def _look_at_all(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        _ = checkpoint.identity, checkpoint.num_bytes_by_dtype
        for name, entry in checkpoint.entries.items():
            if entry.dtype in ("float32", "float16", "bfloat16"):
                for _, rows in checkpoint.view(name).row_chunks() if entry.shape else ():
                    rows.tobytes()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _tensor(key: str, sizes: tuple[int, ...] = (4,)) -> bytes:
    """The pickle of one tensor, as torch.save writes it."""
    strides = [int(np.prod(sizes[place + 1 :])) for place in range(len(sizes))]
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu")
    shapes = b"".join(b"(" + b"".join(map(_number, numbers)) + b"t" for numbers in (sizes, strides))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage[1:] + _number(4) + b"tQ" + _number(0)
        + shapes + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


_PIECES = [
    *(b"(", b"t", b"R", b"s", b"u", b"}", b"]", b")", b"Q", b"q\0", b"h\0", b"0", b".", b"\x85"),
    *(b"a", b"e", b"b", b"\x94", b"\x87", b"N", b"cos\nsystem\n", b"ccollections\nOrderedDict\n"),
    *(_text("a"), _text("0"), _number(-1), _number(4), _tensor("0"), b"\x8a\xff" + b"\1" * 255),
]


def read_pytorch(rng: random.Random, folder: Path) -> None:
    """Damage the pickle, the members, or the whole archive."""
    pickle = (
        b"\x80\x02}q\0(" + _text("w") + _tensor("0") + _text("v") + _tensor("0", (2, 2)) + b"u."
    )
    if rng.random() < 0.4:
        pickle = damage_bytes(pickle, rng)
    for _ in range(rng.choice([0, 0, 1, 3, 40])):
        place = rng.randrange(len(pickle) + 1)
        pickle = pickle[:place] + rng.choice(_PIECES) * rng.choice([1, 1, 9]) + pickle[place:]
    members = {"a/data.pkl": pickle, "a/data/0": bytes(16), "a/version": b"3\n"}
    if rng.random() < 0.2:
        members[rng.choice(["a/byteorder", "b/data.pkl", "a/data/1", "../x", "a/data/0"])] = b"big"
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = stored.getvalue()
    if rng.random() < 0.2:  # the older form
        magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
        system = b"\x80\x02}q\0" + _text("little_endian") + b"\x88s."
        keys = b"\x80\x02]" + _text("0") + b"a."
        content = magic + b"\x80\x02M\xe9\x03." + system + pickle + keys + struct.pack("<Q", 4)
        content += bytes(16)
    if rng.random() < 0.5:
        content = damage_bytes(content, rng)
    (folder / "pytorch_model.bin").write_bytes(content)
    _look_at_all(folder)


def read_json(rng: random.Random, folder: Path) -> None:
    """Damage config.json, generation_config.json, an index or a manifest."""
    kind = rng.randrange(4)
    if kind == 0:
        config = rng.choice([_CONFIG, _CHATGLM_CONFIG])
        (folder / "config.json").write_bytes(damage_json(config, rng))
        found = GlmConfig.from_hf(folder)
        _ = found.to_dict(), found.kv_bytes_per_token("float32"), found.rotary_dim
    elif kind == 1:
        (folder / "generation_config.json").write_bytes(damage_json(_GENERATION, rng))
        from_generation_config(folder).resolve(SamplingParams())
    else:
        header = json.dumps(_HEADER).encode()
        content = len(header).to_bytes(8, "little") + header + _DATA
        names = [f"model-rank-{rank:02d}-of-02.safetensors" for rank in range(2)]
        for name in names:
            (folder / name).write_bytes(content)
        if kind == 2:
            weight_map = dict.fromkeys(_HEADER, names[0])
            (folder / "model.safetensors.index.json").write_bytes(
                damage_json({"metadata": {"total_size": 34}, "weight_map": weight_map}, rng)
            )
        else:
            digest = hashlib.sha256(content[: 8 + len(header)]).hexdigest()
            files = [
                {"name": name, "num_bytes": len(content), "header_sha256": digest} for name in names
            ]
            manifest = {"format_version": 1, "model_parallel": 2, "source": "x", "files": files}
            (folder / "model.shares.json").write_bytes(damage_json(manifest, rng))
        with Checkpoint.open(folder, TensorParallel(2, rng.randrange(2))) as checkpoint:
            _ = checkpoint.identity


_ARRAYS = {"a": np.arange(9000, dtype=np.uint16), "b": np.ones((3, 5), np.float32)}


def read_cache(rng: random.Random, folder: Path) -> None:
    """Damage the header of a packed cache, whose digest fits, or the whole file."""
    header = json.dumps(_HEADER).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + _DATA)
    (folder / "config.json").write_text("{}")
    arrays = {name: array.copy() for name, array in _ARRAYS.items()}
    settings = PackedCacheSettings(rng.choice(["on", "verify"]))
    checkpoint = Checkpoint.open(folder)
    cache = PackedCache(settings, checkpoint, {"type": "fuzz"}, arrays)
    if not cache.file.exists():
        PackedCache(PackedCacheSettings("on"), checkpoint, {"type": "fuzz"}, arrays).write()
    with cache.file.open("rb") as file:
        start = file.read(2**14)
        file.seek(HUGE_PAGE)
        data = file.read()
    length = int.from_bytes(start[8:16], "little")
    encoded = start[48 : 48 + length]
    if rng.random() < 0.8:
        encoded = damage_json(json.loads(encoded), rng)
    prefix = start[:8] + len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest()
    beginning = prefix + encoded
    if rng.random() < 0.3:
        beginning = damage_bytes(beginning, rng)
    original = cache.file.rename(folder / "original")
    with cache.file.open("wb") as file:
        file.write(beginning)
        if len(beginning) <= HUGE_PAGE:
            file.seek(HUGE_PAGE)
        file.write(data if rng.random() < 0.9 else damage_bytes(data, rng))
    cache.file.chmod(rng.choice([0o600, 0o600, 0o600, 0o644, 0o666]))
    try:
        cache.read()
        for found, _ in list_caches(cache.file.parent):
            verify_file(found)
    except PackedFileError:
        pass
    finally:
        original.rename(cache.file)


READERS = {
    "safetensors": (300_000, read_safetensors),
    "pytorch": (220_000, read_pytorch),
    "json": (200_000, read_json),
    "cache": (150_000, read_cache),
}
