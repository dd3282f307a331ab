"""Our msModelSlim folders are the tool's, tensor by tensor, and its readers' rules hold on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindformers_glm.quantizer.export.layout import ExportSettings
from mindformers_glm.quantizer.export.write_folder import write_folder
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.unit.quantizer.tool_layers import read_layers

# Folder of the tool, and what our own settings are for it.
_TOOL = ExportSettings(has_float32=True)
_CASES = {
    "chatglm_w8a8": _TOOL,
    "chatglm_w8a8_m1": _TOOL,
    "chatglm_w8a8c8": _TOOL,
    "glm_w8a8": _TOOL,
    "glm_w8a8c8": _TOOL,
    "glm4_w8a8": _TOOL,
    "glm4_w8a8_bf16": _TOOL,
    "glm4_w8a8_dynamic": _TOOL,
    "glm4_w8a8_safe_tensor": ExportSettings(has_float32=True, mindie_keys={}),
    "glm4_w8a8s_lowbit": _TOOL,
    "glm4_w8a16": _TOOL,
    "glm4_w8a16_sharded": ExportSettings(has_float32=True, part_bytes=2**30),
    "glm4_w4a16_pc": _TOOL,
    "glm4_w4a16_g64": _TOOL,
}


@pytest.mark.parametrize("name", _CASES)
def test_folder_is_the_tools(name: str, shared_fixtures: Path, tmp_path: Path) -> None:
    tool, output = shared_fixtures / "msmodelslim" / name, tmp_path / "out"
    source = tool.with_name(f"{name.partition('_')[0]}_float")
    if name.endswith("bf16"):
        source = _as_bfloat16(source, tmp_path / "source")
    with Checkpoint.open(source) as checkpoint:
        write_folder(checkpoint, read_layers(source, tool), output, _CASES[name])

    assert _describe(output) == _describe(tool)
    assert sorted(file.name for file in output.glob("quant_*")) == sorted(
        file.name for file in tool.glob("quant_*")
    )
    found, expected = _load(output), _load(tool)
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert found[tensor].dtype == expected[tensor].dtype, tensor
        np.testing.assert_array_equal(found[tensor], expected[tensor], tensor)


def _as_bfloat16(source: Path, folder: Path) -> Path:
    """The tool ran on the same values, in a model that calls itself bfloat16."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"torch_dtype": "bfloat16"}))
    return folder


def _load(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def _describe(folder: Path) -> dict[str, object]:
    found = {}
    for file in folder.glob("quant_*.json"):
        found[file.name] = json.loads(file.read_text())
    return found
