"""Where one tensor of a checkpoint lies: what every file format's reader gives."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in row-major order; begin and end are absolute byte positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin
