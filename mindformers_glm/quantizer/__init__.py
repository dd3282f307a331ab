"""Makes quantized checkpoints of float ones: calibration, rounding, export, report."""
