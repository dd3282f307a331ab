"""How many cards a model needs, and why fewer are not enough."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from mindformers_glm.backends import BACKENDS
from mindformers_glm.backends.backend import Backend
from mindformers_glm.config.cards import CARDS
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.engine.memory_plan import MemoryDemand
from mindformers_glm.system.sizes import format_bytes

_CARDS_OF_A_HOST = (1, 2, 4, 8)


@dataclass(frozen=True)
class CardsNeeded:
    """The least number of cards of one kind that hold a model with one sequence.

    num_cards: None where 8 do not, or none of them runs what the checkpoint brings.
    bytes_of_a_card: what each of them holds; of 8, or as many as can split the model, where there
        is no such number. bytes_of_fewer: what each of the next smaller number would hold.
    refused: the sentence that a run there would end with; nothing is counted then.
    """

    device_target: str
    memory: str
    usable_bytes: int
    num_cards: int | None = None
    bytes_of_a_card: int | None = None
    fewer: int | None = None
    bytes_of_fewer: int | None = None
    refused: str | None = None

    def line(self) -> tuple[str, str]:
        """The same for people."""
        name = f"{self.device_target}, {self.memory} a card"
        if self.refused is not None:
            return name, f"refused there: {self.refused}"
        usable, held = format_bytes(self.usable_bytes), format_bytes(self.bytes_of_a_card or 0)
        if self.num_cards is None:
            return name, f"too large: each of 8 would hold {held}, and can give {usable}"
        if self.bytes_of_fewer is None:
            return name, f"1 card holds {held} and can give {usable}"
        fewer = "1 would hold" if self.fewer == 1 else f"{self.fewer} would hold each"
        return name, (
            f"{self.num_cards} cards hold {held} each; {fewer} "
            f"{format_bytes(self.bytes_of_fewer)}, and a card can give {usable}"
        )


def count_cards(
    config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes
) -> Iterator[CardsNeeded]:
    """Count for each kind of card, from the config alone, with one sequence of max_model_len.

    Args:
        settings: as a run without further settings would have them.
        stored: how the checkpoint is quantized.
    """
    for card in CARDS:
        kind = (card.device_target, card.memory, card.usable_bytes)
        backend = BACKENDS[card.device_target]
        if (refused := _find_refusal(backend, config, settings, stored)) is not None:
            yield CardsNeeded(*kind, refused=refused)
            continue
        held = {}
        for size in filter(partial(can_split, config), _CARDS_OF_A_HOST):
            split = replace(settings, model_parallel=size)
            if _find_refusal(backend, config, split, stored) is None:
                held[size] = MemoryDemand(backend.memory_need(config, split), split).least_bytes
        enough = [size for size, num_bytes in held.items() if num_bytes <= card.usable_bytes]
        most = enough[0] if enough else max(held)
        fewer = max((size for size in held if size < most), default=None)
        yield CardsNeeded(
            *kind,
            num_cards=enough[0] if enough else None,
            bytes_of_a_card=held[most],
            fewer=fewer,
            bytes_of_fewer=None if fewer is None else held[fewer],
        )


def _find_refusal(
    backend: Backend, config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes
) -> str | None:
    try:
        backend.check_checkpoint(config, settings, stored)
    except UnsupportedError as problem:
        return str(problem)
    return None
