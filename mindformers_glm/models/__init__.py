"""The classes that MindSpore Transformers finds for a GLM folder: doors to a backend's network."""

# Before any module here is half imported: importing mindformers registers our classes, which
# imports them (plugin.py).
import mindformers  # noqa: F401
