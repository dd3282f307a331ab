"""Writes quantized layers as folders of the formats that other tools read."""
