"""Scales of an int8 KV cache (msModelSlim's C8), by their names."""

import re
from collections.abc import Iterable

_KV_SCALE = re.compile(r".+\.kv_cache_(scale|offset)")


def list_kv_scales(names: Iterable[str]) -> dict[str, str]:
    """Those among some tensors: name -> what it is."""
    return {name: "scales of an int8 KV cache" for name in names if _KV_SCALE.fullmatch(name)}
