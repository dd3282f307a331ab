import json
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.mindie_config import read_mindie_config
from mindformers_glm.core.errors import GlmError

MODEL = {"modelName": "glm", "modelWeightPath": "/models/glm", "worldSize": 1}


def _write(folder: Path, server: dict[str, Any], **backend: Any) -> Path:
    deploy = {"maxSeqLen": 2560, "truncation": False, "ModelConfig": [MODEL]}
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                "Version": "1.0.0",
                "ServerConfig": server,
                "BackendConfig": {"ModelDeployConfig": deploy} | backend,
            }
        )
    )
    return path


def test_keys_become_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = {
        "ipAddress": "127.0.0.1",
        "port": 1025,
        "managementPort": 1026,
        "httpsEnabled": False,
        "tlsCert": "server.pem",
    }
    schedule = {"maxBatchSize": 200, "maxPrefillTokens": 8192, "cacheBlockSize": 128}
    path = _write(tmp_path, server, npuDeviceIds=[[3]], ScheduleConfig=schedule)
    assert read_mindie_config(path) == {
        "serve.host": "127.0.0.1",
        "serve.port": 1025,
        "max_model_len": 2560,
        "serve.served_model_name": "glm",
        "pretrained_model_dir": "/models/glm",
        "parallel_config.model_parallel": 1,
        "model.model_config.block_size": 128,
        "serve.max_num_seqs": 200,
        "serve.max_num_batched_tokens": 8192,
        "context.device_id": 3,
    }
    assert "change nothing here: managementPort" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("server", "backend", "part"),
    [
        ({"ipAddress": "0.0.0.0"}, {}, "allowAllZeroIpListening"),
        ({"ipAddress": "::", "allowAllZeroIpListening": "no"}, {}, "must be true or false"),
        ({"httpsEnabled": True}, {}, "needs tlsCert and tlsPk"),
        ({"httpsEnabled": True, "tlsCert": "server.pem", "tlsPk": ""}, {}, "tlsCert and tlsPk"),
        ({"httpsEnabled": "yes"}, {}, "httpsEnabled must be true or false"),
        ({}, {"modelInstanceNumber": 2}, "modelInstanceNumber=2"),
        ({}, {"ModelDeployConfig": {"truncation": True}}, "truncation=True"),
        ({}, {"ModelDeployConfig": {"ModelConfig": [MODEL, MODEL]}}, "a list of one model"),
    ],
)
def test_what_would_change_answers_is_refused(
    tmp_path: Path, server: dict[str, Any], backend: dict[str, Any], part: str
) -> None:
    with pytest.raises(GlmError, match=part):
        read_mindie_config(_write(tmp_path, server, **backend))


@pytest.mark.parametrize("size", ["2", None, [2], 2.0])
def test_a_size_that_is_no_number_is_left_to_who_reads_settings(tmp_path: Path, size: Any) -> None:
    models = [MODEL | {"worldSize": size}]
    settings = read_mindie_config(_write(tmp_path, {}, ModelDeployConfig={"ModelConfig": models}))
    assert settings["parallel_config.model_parallel"] == size
    assert "use_parallel" not in settings


def test_devices_that_are_not_taken_over_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_mindie_config(_write(tmp_path, {}, npuDeviceIds=[[0, 1]]))
    assert "context.device_id" not in settings
    assert "change nothing here: npuDeviceIds" in capsys.readouterr().err


def test_another_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "glm4"}')
    with pytest.raises(GlmError, match="ServerConfig and BackendConfig"):
        read_mindie_config(path)
