"""Fill parameters from a checkpoint: every one exactly once, in the order the bytes lie on disk."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mindformers_glm.core.sharding import Piece
from mindformers_glm.system.progress import Progress
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCache
from mindformers_glm.weights.quantized_view import QuantizedView
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import SourceTensor, WeightRule, count_bytes
from mindformers_glm.weights.surplus import check_repeats, tell_surplus
from mindformers_glm.weights.tensor_view import TensorView


class WeightTarget(Protocol):
    """A parameter that can be filled."""

    def load(self, views: Sequence[Any]) -> None:
        """Take the pieces of one rule's tensors, to be stacked on axis 0; convert or pack them.

        Args:
            views: TensorView, or QuantizedView of a layer that is quantized in the checkpoint.
        """
        ...


def load_weights(
    checkpoint: Checkpoint,
    rules: Sequence[WeightRule],
    targets: Mapping[str, WeightTarget],
    *,
    cache: PackedCache | None = None,
    label: str = "Loading weights",
) -> int:
    """Load the pieces of every rule's tensors into its target.

    The pages of a tensor are dropped once its target has it, so no second copy of the weights
    builds up. A target may keep a view (it then reads the file's pages again when needed).

    Args:
        targets: by parameter name; exactly the rules' parameters.
        cache: asked first for what an earlier start made of this checkpoint, and given the result.
        label: what the progress bar calls it.
    Returns:
        The bytes read from the checkpoint; none where the cache had everything.
    Raises:
        CheckpointError: tensors are missing, unknown or of another shape (before any byte is
            read), two that should be the same are not, or a file changes meanwhile.
        UnsupportedError: the weights are quantized.
    """
    parameters = [rule.parameter for rule in rules]
    assert len(set(parameters)) == len(parameters)
    assert set(parameters) == set(targets), set(parameters) ^ set(targets)
    check_rules(rules, checkpoint)
    is_cached = cache is not None and cache.read()
    if not is_cached:  # compared before the cache was written
        check_repeats(rules, checkpoint)
    tell_surplus(rules, checkpoint)
    if is_cached:
        return 0

    def position(rule: WeightRule) -> tuple[str, int]:
        entry = checkpoint.entries[rule.sources[0].first_tensor]
        return str(entry.file), entry.begin

    total = sum(count_bytes(source, checkpoint) for rule in rules for source in rule.sources)
    with Progress(label, total, "B") as bar:
        for rule in sorted(rules, key=position):
            views = [
                _view(checkpoint, source, piece)
                for source in rule.sources
                for piece in source.pieces
            ]
            targets[rule.parameter].load(views)
            for view in views:
                for name in view.tensors:
                    checkpoint.release(name)
                bar.advance(view.num_bytes)
    if cache is not None:
        cache.write()
    return total


def _view(checkpoint: Checkpoint, source: SourceTensor, piece: Piece) -> TensorView | QuantizedView:
    if source.linear is None:
        return checkpoint.view(source.name, piece)
    return checkpoint.quantized_view(source.name, source.linear, piece)
