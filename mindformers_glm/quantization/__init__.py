"""Readers of quantized checkpoints: what each tool stores, and what it means."""
