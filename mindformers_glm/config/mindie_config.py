"""MindIE Service's config.json, read as a config file of `serve`.

Read: the keys of MindIE 1.0 and 2.0's mindie-service/conf/config.json. What has the same meaning
here becomes the setting; what would change answers and cannot is refused; the rest (ports of
management, inter-node links, scheduling times) changes nothing, and one line names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.system.files import read_json_object
from mindformers_glm.system.log import note

# Dotted key of the file -> setting. ModelConfig is the first, and only, one of its list.
_SETTINGS = {
    "ServerConfig.ipAddress": "serve.host",
    "ServerConfig.port": "serve.port",
    "ServerConfig.maxLinkNum": "serve.max_queued_requests",
    "ServerConfig.e2eTimeout": "serve.request_timeout_s",
    "ServerConfig.tlsCert": "serve.ssl_certfile",
    "ServerConfig.tlsPk": "serve.ssl_keyfile",
    "BackendConfig.ModelDeployConfig.maxSeqLen": "max_model_len",
    "BackendConfig.ModelDeployConfig.ModelConfig.modelName": "serve.served_model_name",
    "BackendConfig.ModelDeployConfig.ModelConfig.modelWeightPath": "pretrained_model_dir",
    "BackendConfig.ModelDeployConfig.ModelConfig.worldSize": "parallel_config.model_parallel",
    "BackendConfig.ScheduleConfig.cacheBlockSize": "model.model_config.block_size",
    "BackendConfig.ScheduleConfig.maxBatchSize": "serve.max_num_seqs",
    "BackendConfig.ScheduleConfig.maxPrefillTokens": "serve.max_num_batched_tokens",
    "BackendConfig.ScheduleConfig.maxIterTimes": "max_new_tokens",
}
_TLS = ("ServerConfig.tlsCert", "ServerConfig.tlsPk")
# Key -> the value at which it asks for nothing that is not done.
_NEUTRAL = {
    "BackendConfig.ModelDeployConfig.truncation": (False, 0),
    "BackendConfig.modelInstanceNumber": (1,),
    "BackendConfig.multiNodesInferEnabled": (False,),
    "ServerConfig.inferMode": ("standard",),
}
_BLOCKS = ("ServerConfig", "BackendConfig")


def read_mindie_config(path: Path) -> dict[str, Any]:
    """The settings in such a file, by their dotted names.

    Raises:
        ConfigError: the file is no such config, or cannot be read.
        UnsupportedError: it asks for something that changes the answers and is not done.
    """
    raw = read_json_object(path, ConfigError, "mend it")
    if not all(isinstance(raw.get(block), dict) for block in _BLOCKS):
        raise ConfigError(
            f"{path} must be a config.json of MindIE Service, with {' and '.join(_BLOCKS)}, or a "
            "YAML file (.yaml)."
        )
    found = _flatten({name: raw[name] for name in _BLOCKS}, path)
    for key, neutral in _NEUTRAL.items():
        if key in found and found[key] not in neutral:
            raise UnsupportedError(
                f"{path}: {key}={found[key]!r} is not supported: set it to {neutral[0]}."
            )
    if _take_switch(found, "ServerConfig.httpsEnabled", path):
        if not all(found.get(key) for key in _TLS):
            raise ConfigError(
                f"{path}: httpsEnabled true needs tlsCert and tlsPk, or nothing would be "
                "encrypted: give both, or set it to false."
            )
    else:
        for key in _TLS:
            found.pop(key, None)
    all_addresses = _take_switch(found, "ServerConfig.allowAllZeroIpListening", path)
    if found.get("ServerConfig.ipAddress") in ("0.0.0.0", "::") and not all_addresses:
        raise ConfigError(
            f"{path}: ipAddress listens on all addresses, which allowAllZeroIpListening false "
            "forbids: set it to true, or give one address."
        )
    settings = {name: found[key] for key, name in _SETTINGS.items() if key in found}
    match found.get("BackendConfig.npuDeviceIds"):
        case [[int(device_id)]]:
            settings["context.device_id"] = device_id
            del found["BackendConfig.npuDeviceIds"]
    num_ranks = settings.get("parallel_config.model_parallel")
    if isinstance(num_ranks, int) and num_ranks > 1:  # what is none is told with all settings
        settings["use_parallel"] = True
    if idle := sorted(found.keys() - _SETTINGS.keys() - _NEUTRAL.keys()):
        names = ", ".join(key.rpartition(".")[2] for key in idle)
        note(f"{path} has keys that change nothing here: {names}")
    return settings


def _take_switch(found: dict[str, Any], key: str, path: Path) -> bool:
    value = found.pop(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key} must be true or false, got {value!r:.80}.")
    return value


def _flatten(tree: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key == "ModelConfig":
            if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
                raise ConfigError(f"{path}: {name} must be a list of one model.")
            value = value[0]
        if isinstance(value, dict):
            leaves |= _flatten(value, path, f"{name}.")
        else:
            leaves[name] = value
    return leaves
