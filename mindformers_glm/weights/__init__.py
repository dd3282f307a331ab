"""Weights: headers of the files -> rules (names) -> views -> parameters. NumPy only."""
