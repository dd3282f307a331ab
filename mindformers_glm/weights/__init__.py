"""Weights: safetensors headers -> rules (names) -> views -> parameters. NumPy only."""
