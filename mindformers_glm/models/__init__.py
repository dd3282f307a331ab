"""The networks: model classes, their layer specs, and how they are put together."""

# Before any module here is half imported: importing mindformers registers our classes, which
# imports them (plugin.py).
import mindformers  # noqa: F401
