"""A folder appears whole or not at all, beside what is there, with all that its model needs."""

import json
import pickle
import resource
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from mindformers_glm.core.errors import CheckpointError, ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.export.layout import FORMATS, ExportSettings
from mindformers_glm.quantizer.export.write_folder import Written, write_folder
from mindformers_glm.quantizer.result import LayerResult
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.unit.quantization.float_folder import write_float_folder
from tests.unit.quantizer.rounded_layers import round_layers

_SPARSE_LABELS = {"gptq": "W4A16", "awq": "W4A16"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_float_folder(tmp_path_factory.mktemp("source") / "float", "glm4")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("x")
    (folder / "modeling_chatglm.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("x")
    (folder / "model.safetensors.index.json.bak").write_text("x")
    return folder


def _write(
    source: Path,
    output: Path,
    settings: ExportSettings | None = None,
    label: str = "W8A8",
    results: list[LayerResult] | None = None,
) -> Written:
    settings = settings or ExportSettings()
    with Checkpoint.open(source) as checkpoint:
        layers = results or round_layers(source, label, 32 if label.startswith("W4") else None)
        return write_folder(checkpoint, layers, output, settings)


def test_folder_has_what_the_model_needs(source: Path, tmp_path: Path) -> None:
    written = _write(source, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "tokenizer.json", "chat_template.jinja", "modeling_chatglm.py"),
        *("quant_model_description.json", "quant_model_weight_w8a8.safetensors"),
    }
    assert (tmp_path / "out/config.json").read_bytes() == (source / "config.json").read_bytes()
    assert written.labels == {"W8A8": 10, "FLOAT": 3}
    assert written.num_bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_folder_is_for_its_owner_and_group(source: Path, tmp_path: Path) -> None:
    _write(source, tmp_path / "new" / "out")
    assert stat.S_IMODE((tmp_path / "new" / "out").stat().st_mode) == 0o750


@pytest.mark.parametrize("place", [".", "inside", "other/../."])
def test_the_source_is_never_written_to(place: str, source: Path, tmp_path: Path) -> None:
    before = sorted(source.rglob("*"))
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ConfigError, match="own folder"):
        _write(source, tmp_path / "link" / place)
    assert sorted(source.rglob("*")) == before


def test_what_is_finished_is_not_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        _write(source, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="a file"):
        _write(source, tmp_path / "file")


def test_an_empty_folder_will_do(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _write(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """Writing more fails, as on a disk that is full; Python lets no signal come of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("layout", FORMATS)
def test_a_full_disk_leaves_nothing(layout: str, source: Path, tmp_path: Path) -> None:
    label = _SPARSE_LABELS.get(layout, "W8A8")
    with _largest_file(30_000), pytest.raises(CheckpointError, match=r"Cannot write .*/out: File"):
        _write(source, tmp_path / "out", ExportSettings(layout), label)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_layer_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def results() -> Iterator[LayerResult]:
        yield from list(round_layers(source, "W8A8"))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(source, tmp_path / "out", results=results())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_parts_are_no_larger_than_asked_and_indexed(source: Path, tmp_path: Path) -> None:
    _write(source, tmp_path / "whole")
    _write(source, tmp_path / "out", ExportSettings(part_bytes=30_000))
    index = json.loads(
        (tmp_path / "out/quant_model_weight_w8a8.safetensors.index.json").read_text()
    )
    expected = load_file(tmp_path / "whole/quant_model_weight_w8a8.safetensors")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"quant_model_weight_w8a8-{number:05d}-of-{len(files):05d}.safetensors"
        for number in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    for file in files:
        part = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in part)
        assert sum(value.nbytes for value in part.values()) <= 30_000 or len(part) == 1
        for name, value in part.items():
            np.testing.assert_array_equal(value, expected[name])


def test_tensors_begin_where_torch_can_look_at_them(tmp_path: Path) -> None:
    """An int8 matrix of an odd number of bytes must not move what follows."""
    source = write_float_folder(tmp_path / "odd", "glm4", hidden_size=33, intermediate_size=33)
    _write(source, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    size = struct.unpack("<Q", file.read_bytes()[:8])[0]
    header = json.loads(file.read_bytes()[8 : 8 + size])
    widths = {"F32": 4, "I32": 4, "I64": 8, "I8": 1}
    del header["__metadata__"]
    for name, entry in header.items():
        assert entry["data_offsets"][0] % widths[entry["dtype"]] == 0, name
    with safe_open(file, framework="pt") as opened:
        loaded = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, value in load_file(file).items():
        np.testing.assert_array_equal(loaded[name].numpy(), value, name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float_tensors_keep_the_dtype_of_the_source(
    dtype: str, source: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    half = tmp_path / "half"
    half.mkdir()
    raw = json.loads((source / "config.json").read_text()) | {"torch_dtype": dtype}
    (half / "config.json").write_text(json.dumps(raw))
    tensors = load(source / "model.safetensors")
    halves = {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}
    save(halves, half / "model.safetensors")
    results = [
        LayerResult(
            layer.modules,
            {name: halves[name].float().numpy() for name in layer.float_tensors},
        )
        for layer in round_layers(source, "W8A8")
    ]
    _write(half, tmp_path / "out", results=results)
    found = load(tmp_path / "out/quant_model_weight_w8a8.safetensors")
    quantized = {module.name for layer in results for module in layer.modules}
    for name, value in halves.items():
        if name.removesuffix(".weight") not in quantized:
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
    deq = found["model.layers.0.self_attn.o_proj.deq_scale"]
    assert deq.dtype == (torch.float32 if dtype == "bfloat16" else torch.int64)


def test_torch_reads_the_npy_files(source: Path, tmp_path: Path) -> None:
    results = list(round_layers(source, "W8A8"))
    _write(source, tmp_path / "out", ExportSettings("numpy"), results=results)
    stems = {file.stem for file in (tmp_path / "out").iterdir()}
    assert stems == {
        *("quant_weight", "weight_scale", "weight_offset", "input_scale", "input_offset"),
        *("quant_bias", "deq_scale", "fp_bias"),
    }
    read = {
        stem: np.load(tmp_path / "out" / f"{stem}.npy", allow_pickle=True).item() for stem in stems
    }
    for module in (module for layer in results for module in layer.modules):
        weight = read["quant_weight"][module.name]
        assert (weight.dtype, weight.is_contiguous()) == (torch.int8, True)
        np.testing.assert_array_equal(weight.numpy(), module.rows.codes)
        np.testing.assert_array_equal(read["weight_scale"][module.name], module.rows.scales)
        assert read["deq_scale"][module.name].dtype == torch.int64
        assert read["quant_bias"][module.name].dtype == torch.int32
        if module.bias is not None:
            np.testing.assert_array_equal(read["fp_bias"][module.name], module.bias)
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(read["quant_weight"]["lm_head"], head)


def test_npy_files_say_nothing_but_tensors(source: Path, tmp_path: Path) -> None:
    """What a pickle calls is what NumPy and torch themselves would write."""
    import pickletools

    _write(source, tmp_path / "out", ExportSettings("numpy"))
    content = (tmp_path / "out/input_scale.npy").read_bytes()
    begin = content.index(b"\n") + 1
    called = {arg for op, arg, _ in pickletools.genops(content[begin:]) if op.name == "GLOBAL"}
    assert called == {
        *("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"),
        *("torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes"),
        "collections OrderedDict",
    }
    assert pickle.loads(content[begin:]).shape == ()


def test_kv_scales_go_with_the_first_format_only(source: Path, tmp_path: Path) -> None:
    results = list(round_layers(source, "W8A8_DYNAMIC", has_kv_scales=True))
    _write(source, tmp_path / "out", results=results)
    described = json.loads((tmp_path / "out/quant_model_description.json").read_text())
    assert described["kv_cache_type"] == "C8"
    assert described["model.layers.1.self_attn.v_proj.kv_cache_offset"] == "C8"
    with pytest.raises(UnsupportedError, match="KV cache"):
        _write(source, tmp_path / "ct", ExportSettings("compressed-tensors"), results=results)
    assert not (tmp_path / "ct").exists()


def _with_norm_bias(layer: LayerResult, value: float) -> LayerResult:
    name = next(name for name in layer.float_tensors if name.endswith("input_layernorm.weight"))
    bias = np.full_like(layer.float_tensors[name], value)
    named = {f"{name.removesuffix('weight')}bias": bias}
    return replace(layer, float_tensors=dict(layer.float_tensors) | named)


@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq", "awq"])
def test_a_bias_behind_a_norm_has_a_place_in_one_format(
    layout: str, source: Path, tmp_path: Path
) -> None:
    zeros = [_with_norm_bias(layer, 0) for layer in round_layers(source, "W4A16", 32)]
    _write(source, tmp_path / "zeros", ExportSettings(layout), results=zeros)
    names = load_file(tmp_path / "zeros/model.safetensors").keys()
    assert not any(name.endswith("norm.bias") for name in names)
    shifted = [_with_norm_bias(layer, 1) for layer in round_layers(source, "W4A16", 32)]
    with pytest.raises(UnsupportedError, match="input_layernorm has got a bias"):
        _write(source, tmp_path / "out", ExportSettings(layout), results=shifted)
    _write(source, tmp_path / "slim", results=shifted)


def test_scales_that_float16_cannot_hold_are_refused(source: Path, tmp_path: Path) -> None:
    first, *others = round_layers(source, "W4A16", 32)
    module = first.modules[0]
    tiny = module.rows.scales * np.float32(1e-7)
    rows = QuantizedRows(module.rows.codes, tiny, None, module.rows.groups)
    changed = replace(first, modules=(replace(module, rows=rows), *first.modules[1:]))
    with pytest.raises(UnsupportedError, match="float16"):
        _write(source, tmp_path / "out", ExportSettings("gptq"), results=[changed, *others])


@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("label", ["W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC"])
def test_schemes_that_a_format_lacks_are_refused(
    layout: str, label: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=label):
        _write(source, tmp_path / "out", ExportSettings(layout), label)
    assert not (tmp_path / "out").exists()


def test_a_broken_config_is_told_before_the_work(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        _write(broken, tmp_path / "out", results=[])
