"""Cells of the decoder, independent of device: every operator comes in through the ModuleSpec."""

# Before any module here is half imported: importing mindformers registers our classes, which
# imports them (plugin.py).
import mindformers  # noqa: F401
