"""A rank's part of the network as upstream cuts it."""

from dataclasses import replace

from mindformers_glm.core.sharding import TensorParallel


def upstream_part(tensor_parallel: TensorParallel) -> TensorParallel:
    """The part that a rank holds, in the shares that upstream's layers divide every size into.

    Source: `divide` in mindformers 1.7.0, parallel_core/inference/tensor_parallel/layers.py.
    """
    return replace(tensor_parallel, has_equal_parts=True)
