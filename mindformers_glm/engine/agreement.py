"""What every rank of a job must have alike, since no rank tells another what to do.

Each rank reads its own disk and its own command line. A rank with another checkpoint, setting or
prompt would do its part of another computation, and all answers would be wrong without a sign of
it. So the ranks compare digests once after they have met and once for each call, never in a step.
"""

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict
from typing import Any

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.tokenizer import tokenizer_digest
from mindformers_glm.version import __version__
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.fingerprint import checkpoint_fingerprint


def check_model_is_shared(
    group: ProcessGroup,
    checkpoint: Checkpoint,
    config: GlmConfig,
    defaults: GenerationDefaults,
    settings: RunnerSettings,
    engine_settings: Mapping[str, Any],
) -> None:
    """Check that all ranks opened the same checkpoint with the same settings.

    Args:
        engine_settings: what answers depend on besides `settings`, by the names users give.
    Raises:
        ConfigError: they did not; on every rank.
    """
    if group.size == 1:
        return
    own = {
        "version of mindformers_glm": __version__,
        "weights": checkpoint_fingerprint(checkpoint),
        "config.json": repr(config),
        "generation_config.json": repr(defaults),
        "tokenizer files": tokenizer_digest(checkpoint.folder),
    }
    shared = asdict(settings) | dict(engine_settings)
    del shared["model_parallel_rank"]
    own |= {name: repr(value) for name, value in shared.items()}
    _compare(
        group,
        own,
        "give every process the same command and the same files (pretrained_model_dir is read "
        "from each machine's own disk)",
    )


def check_requests_are_shared(
    group: ProcessGroup,
    requests: Iterable[tuple[Items[object], object]],
    num_tokens_under_way: Mapping[str, int],
) -> None:
    """Check that all ranks were asked the same in this call.

    Args:
        requests: token ids of each, and what else answers depend on: sampling settings, the form.
        num_tokens_under_way: of earlier requests that are not finished, by their ids: a rank that
            left a `stream` early computes other batches than the rest.
    Raises:
        ConfigError: they were not; on every rank.
    """
    if group.size == 1:
        return
    prompts, params = [], []
    for token_ids, own_params in requests:
        prompts.append(" ".join(map(str, token_ids)))
        params.append(repr(own_params))
    own = {"prompts": "\n".join(prompts), "sampling settings": "\n".join(params)}
    own["requests under way"] = repr(sorted(num_tokens_under_way.items()))
    _compare(group, own, "every process must make the same calls with the same arguments")


def _compare(group: ProcessGroup, own: Mapping[str, str], advice: str) -> None:
    rows = group.gather([_digest(value) for value in own.values()])
    differing = [
        f"rank {rank} has other {', '.join(names)}"
        for rank, row in enumerate(rows)
        if (
            names := [
                name for name, mine, first in zip(own, row, rows[0], strict=True) if mine != first
            ]
        )
    ]
    if differing:
        raise ConfigError(
            f"The ranks of this job do not agree: {'; '.join(differing)} than rank 0: {advice}."
        )


def _digest(text: str) -> int:
    """An int64 that another text has once in 2**64."""
    return int.from_bytes(
        hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little", signed=True
    )
