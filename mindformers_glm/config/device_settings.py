"""How MindSpore is set up on a device: the rows of the settings table that are handed to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.core.errors import ConfigError

_ROWS = {row.name: row for row in SETTINGS if row.use == "device"}
_MODES = {"GRAPH_MODE": 0, "PYNATIVE_MODE": 1}


@dataclass(frozen=True)
class DeviceSettings:
    """MindSpore's own names and values (docs/configuration.md, "Device and graph").

    mode: 0, GRAPH_MODE, or 1, PYNATIVE_MODE, which runs operator by operator.
    device_id: of the card, among those that this process sees; 0 leaves the choice open.
    max_device_memory: bytes; None: no cap.
    """

    mode: int = 0
    device_id: int = 0
    precision_mode: str = "must_keep_origin_dtype"
    infer_boost: str = "on"
    max_call_depth: int = 10000
    deterministic: str = "OFF"
    infer_precision_sync: bool = False
    use_flash_attention: bool = True
    max_device_memory: int | None = None

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any] | None, max_device_memory: int | None
    ) -> "DeviceSettings":
        """Read options as YAML gives them.

        Args:
            options: by the last part of their names, `{"device_id": 1}`; None stands for a default.
        Raises:
            ConfigError: there is no such option, or its value is of the wrong type or out of range.
        """
        if not isinstance(options, Mapping | None):
            raise ConfigError(
                f"device_options must be a dict of names and values, got {options!r}: say "
                '{"device_id": 1}.'
            )
        # With it comes PyYAML, which --version has no need of.
        from mindformers_glm.config.settings_reader import read_value

        known = {field.name for field in fields(cls)} - {"max_device_memory"}
        given = {}
        for name, value in (options or {}).items():
            if name not in known:
                raise ConfigError(
                    f"device_options has no {name!r}: it takes {', '.join(sorted(known))}."
                )
            if value is not None:
                where = "in device_options"
                given[name] = read_value(_ROWS[name], value, name, where, from_text=False)
        values = {name: one.value for name, one in given.items()}
        if values.get("mode") in _MODES:
            values["mode"] = _MODES[values["mode"]]
        return cls(**values, max_device_memory=max_device_memory)

    def idle_values(self, device_target: str) -> Iterator[str]:
        """A sentence for each value that is not the default and changes nothing on this device."""
        for name, row in _ROWS.items():
            value, reason = getattr(self, name), row.idle_reason(device_target)
            if reason and value != row.default:
                yield f"{name} {value} changes nothing here: {reason}"
