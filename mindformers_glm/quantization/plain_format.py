"""What most formats have in common: float tensors are there once, and all of them are needed."""

from collections.abc import Mapping


class PlainFormat:
    """Base of formats: what they say of float tensors, unless they know more."""

    @property
    def has_kv_scales(self) -> bool:
        """See CheckpointFormat."""
        return False

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        return {}

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        return {}

    def repeats(self, name: str) -> tuple[str, ...]:
        """See CheckpointFormat."""
        return ()

    def norm_bias(self, name: str) -> str | None:
        """See CheckpointFormat."""
        return None
