"""Tiny random checkpoints in the layout of each dialect."""

from pathlib import Path
from typing import Any

from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm


def save_dialect(
    folder: Path, dialect: str, dtype: str = "float32", **changes: Any
) -> tuple[Path, Path]:
    """Write a checkpoint of "glm4", "glm" or "chatglm".

    Returns:
        Its folder, and that of the same weights as Hugging Face reads them.
    """
    model_type = "glm" if dialect == "chatglm" else dialect
    source = hf_oracle.save_random_checkpoint(
        folder / "hf", dtype, model_type=model_type, **changes
    )
    return (to_chatglm(source, folder / "chatglm") if dialect == "chatglm" else source), source
