"""A checkpoint quantized layer by layer, each behind those that are quantized already.

    float tensors of layer n -> changed by anti-outlier -> run on the calibration samples: each
    linear's input is looked at, its weight rounded, and its product taken with what both have been
    rounded to -> result on disk -> input of layer n + 1 on disk

One layer's float weights are in memory at a time, beside the activations of one layer's widest
linear. Nothing is run where nothing is calibrated: weights alone, rounded to nearest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.float_layers import FloatNetwork, Multiply
from mindformers_glm.quantizer.float_pass import needs_float_pass, run_float_pass
from mindformers_glm.quantizer.job_checks import check_job
from mindformers_glm.quantizer.kv_scales import KvObserver
from mindformers_glm.quantizer.layer_rounding import LayerRounding
from mindformers_glm.quantizer.levels import choose_widest, measure_widths
from mindformers_glm.quantizer.observers import NUM_LOOKED_AT
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.result import KvScales, LayerResult, QuantizedModule
from mindformers_glm.quantizer.sensitivity import FLOAT_BITS, mix_widths
from mindformers_glm.quantizer.work_folder import WorkFolder, open_work_folder
from mindformers_glm.system.progress import Progress
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.fingerprint import checkpoint_fingerprint
from mindformers_glm.weights.tensor_names import TENSOR_NAMES

# Raise it when the same job would give other bytes, or its files have another form.
_WORK_VERSION = 4
# Streams of activations: what the quantized layers make, and the float ones where those are asked.
_QUANTIZED, _FLOAT = "quantized", "float"


def quantize(
    checkpoint: Checkpoint,
    recipe: Recipe,
    samples: Sequence[Sequence[int]],
    work: Path,
    progress: Progress | None = None,
) -> Iterator[LayerResult]:
    """Quantize a checkpoint; results come layer by layer, then the output layer if it is asked for.

    Args:
        checkpoint: float, a whole one.
        samples: token ids of each calibration prompt; may be none where `needs_samples` says so:
            errors are those of the weights then, and no layer is run.
        work: folder for what is done; a run that finds its own goes on where the last one ended,
            and gives the same bytes. It is the caller's to remove.
        progress: is advanced by one for each layer; None: a bar of its own.
    Raises:
        CheckpointError: the checkpoint is quantized already, a rank's share or broken; a name is
            disabled that it does not have; `work` is another job's, or cannot be written to.
        ConfigError, UnsupportedError: the recipe or the samples cannot be used.
    """
    job = check_job(checkpoint, recipe, samples)
    digest = _digest(checkpoint, job.config, recipe, samples)
    total = job.config.num_hidden_layers + recipe.quantizes_output
    bar = progress or Progress("Quantizing", total, "layers")
    try:
        with open_work_folder(work, digest) as folder:
            for result in _Run(job, recipe, folder).results():
                bar.advance(1)
                yield result
    finally:
        if progress is None:
            bar.close()


class _Run:
    """The layers that are left of a job, and those that an earlier run has made."""

    def __init__(self, network: FloatNetwork, recipe: Recipe, folder: WorkFolder) -> None:
        self._network, self._folder = network, folder
        self._has_float_pass = needs_float_pass(recipe)
        self._is_run = network.has_samples
        recipe = replace(recipe, disable_names=recipe.disable_names | self._find_widest(recipe))
        self._recipe = self._mix_widths(recipe)

    def results(self) -> Iterator[LayerResult]:
        """Of all layers in order."""
        num_layers, first = self._network.config.num_hidden_layers, self._folder.num_finished
        for number in range(first):
            yield self._with_float_tensors(self._folder.load_result(number))
        activations = self._first_activations() if first == 0 else self._folder.load_activations()
        for number in range(first, num_layers):
            result, activations = self._quantize_layer(number, activations)
            self._folder.finish(number + 1, activations)
            yield self._with_float_tensors(result)
        rotation = self._network.rotation
        if rotation is not None and rotation.has_residual:
            yield LayerResult((), self._network.read_embedding())
            yield self._rotated_output(activations)
        elif self._recipe.quantizes_output:
            yield self._quantize_output(activations)

    def _first_activations(self) -> dict[str, np.ndarray]:
        if not self._is_run:
            return {}
        embedded = self._network.embed()
        return {_QUANTIZED: embedded} | ({_FLOAT: embedded} if self._has_float_pass else {})

    def _quantize_layer(
        self, number: int, activations: Mapping[str, np.ndarray]
    ) -> tuple[LayerResult, dict[str, np.ndarray]]:
        """The layer, and the input of the next one."""
        network, recipe = self._network, self._recipe
        tensors, outputs = network.read(number), {}
        changed = {} if network.rotation is None else dict(tensors)
        kv_scales: KvScales | None = None
        if self._has_float_pass:
            seen = run_float_pass(network, recipe, tensors, activations[_FLOAT])
            outputs[_FLOAT], kv_scales = seen.hidden, seen.kv_scales
            changed |= seen.changed
            tensors |= changed
        rounding = LayerRounding(network, recipe, number, tensors)
        kv_observer = KvObserver(network, is_rotated=True)
        if self._is_run:
            multiply: Multiply = rounding.multiply
            if recipe.has_kv_scales and kv_scales is None:
                multiply = kv_observer.watch(multiply)
            outputs[_QUANTIZED] = network.run(tensors, activations[_QUANTIZED], multiply)
        else:
            rounding.round_without_inputs()
        prefix = network.names.layer_prefix(number)
        result = LayerResult(
            modules=rounding.modules,
            float_tensors=_left_float(prefix, changed, rounding.modules),
            kv_prefix=prefix + network.names.kv_module if recipe.has_kv_scales else "",
            kv_scales=kv_scales or kv_observer.scales,
            number=number,
            exchange_scales=rounding.exchange_scales,
        )
        self._folder.save_result(result)
        return result, outputs

    def _quantize_output(self, activations: dict[str, np.ndarray]) -> LayerResult:
        """The output layer behind the final norm."""
        if self._folder.has_result(None):
            return self._folder.load_result(None)
        names = TENSOR_NAMES[self._network.config.model_type]
        tensors = self._network.read_output()
        weight, x = tensors[names.output[0]], None
        if self._is_run:
            norm = tensors[names.final_norm[0]]
            x = self._network.norm(activations[_QUANTIZED], norm)
        module_name = names.output[0].removesuffix(".weight")
        result = LayerRounding.round_output(self._network, self._recipe, module_name, weight, x)
        self._folder.save_result(result)
        return result

    def _rotated_output(self, activations: dict[str, np.ndarray]) -> LayerResult:
        """The final norm and the output layer, which may be quantized."""
        tensors = self._network.read_output()
        if not self._recipe.quantizes_output:
            return LayerResult((), tensors)
        result = self._quantize_output(activations)
        rest = {name: tensors[name] for name in _without_rounded(tensors, result.modules)}
        return replace(result, float_tensors=rest)

    def _with_float_tensors(self, result: LayerResult) -> LayerResult:
        """Add those of the checkpoint that are as they were."""
        assert result.number is not None
        prefix = self._network.names.layer_prefix(result.number)
        names = [prefix + name for name in self._network.list_tensors()]
        stored = {
            name: self._network.read_tensor(name)
            for name in _without_rounded(names, result.modules)
            if name not in result.float_tensors
        }
        return replace(result, float_tensors=stored | dict(result.float_tensors))

    def _find_widest(self, recipe: Recipe) -> frozenset[str]:
        """What `disable_level` keeps float, found in the float network."""
        if not recipe.disable_level:
            return frozenset()
        names = self._folder.load_float_modules()
        if names is None:
            few = self._network.with_samples(NUM_LOOKED_AT)
            # Of these the tool looks at magnitudes alone.
            is_lowbit = recipe.is_sparse and not recipe.is_co_sparse
            widths = measure_widths(few, is_absolute=is_lowbit)
            names = choose_widest(widths, recipe.disable_level, recipe.disable_names)
            self._folder.save_float_modules(names)
        return frozenset(names)

    def _mix_widths(self, recipe: Recipe) -> Recipe:
        """The recipe with the widths that `target_bits` leads to."""
        if recipe.target_bits is None:
            return recipe
        widths = self._folder.load_widths()
        if widths is None:
            widths = mix_widths(self._network.with_samples(NUM_LOOKED_AT), recipe)
            self._folder.save_widths(widths)
        kept = {name for name, bits in widths.items() if bits == FLOAT_BITS}
        bits_of = {
            name: bits
            for name, bits in widths.items()
            if bits not in (FLOAT_BITS, recipe.weight_bits)
        }
        return replace(recipe, disable_names=recipe.disable_names | kept, bits_of=bits_of)


def _left_float(
    prefix: str, changed: Mapping[str, np.ndarray], modules: Sequence[QuantizedModule]
) -> dict[str, np.ndarray]:
    """Changed tensors of a layer by their whole names, without those that were rounded."""
    by_name = {prefix + name: values for name, values in changed.items()}
    return {name: by_name[name] for name in _without_rounded(by_name, modules)}


def _without_rounded(names: Iterable[str], modules: Sequence[QuantizedModule]) -> list[str]:
    rounded = {module.name for module in modules}
    return [name for name in names if name.rpartition(".")[0] not in rounded]


def _digest(
    checkpoint: Checkpoint, config: GlmConfig, recipe: Recipe, samples: Sequence[Sequence[int]]
) -> str:
    """What two runs have in common that give the same bytes."""
    described = asdict(recipe) | {"disable_names": sorted(recipe.disable_names)}
    job = {
        "version": _WORK_VERSION,
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "config": config.to_dict(),
        "recipe": described,
        "samples": [[int(token) for token in sample] for sample in samples],
    }
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
