"""The main job, in several processes and in one."""

import subprocess
import sys
from pathlib import Path

from tests.tp.launched import REPO

RESULT = "text_generation_result.txt"
PREDICT = "run_mindformer.py --config configs/glm4/predict_glm4.yaml --run_mode predict"
SPLIT = (
    f"{PREDICT} --use_parallel True --auto_trans_ckpt True "
    "--parallel_config.data_parallel 1 --parallel_config.model_parallel 2"
)
FLOAT32 = "--model.model_config.params_dtype float32 --model.model_config.compute_dtype float32"


def answer_alone(folder: Path, settings: str) -> str:
    """Run the job in one process and return the result file it writes."""
    alone = folder / "alone"
    alone.mkdir()
    command = f"{REPO}/{PREDICT} --use_parallel False {settings}"
    subprocess.run(
        ["bash", "-c", f"{sys.executable} {command}"], cwd=alone, check=True, capture_output=True
    )
    return (alone / RESULT).read_text(encoding="utf-8")
