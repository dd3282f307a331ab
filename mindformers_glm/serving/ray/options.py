"""What `--ray` is told: how many replicas and ingresses, and what of a machine each may have."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mindformers_glm.core.errors import ConfigError

INGRESS_CPUS = 0.5  # reserved for each ingress
_NUMBERS = ("replicas", "min", "max", "ingresses", "queue", "downscale_delay_s", "cpus")
_WHOLE = re.compile(r"[1-9]\d{0,5}", re.ASCII)
_DECIMAL = re.compile(r"\d{1,6}(\.\d{1,4})?", re.ASCII)


@dataclass(frozen=True)
class RaySettings:
    """Replicas of an engine, and the ingresses in front of them.

    Attributes:
        replicas: at the start; all the time where `min` and `max` are equal.
        min, max: between which the number of replicas follows their queues.
        ingresses: processes that take requests and choose a replica.
        queue: requests for each replica, running and waiting, that the number of replicas aims at.
        downscale_delay_s: for how long fewer must be enough before one is ended.
        cpus: that Ray reserves for a replica; None: what a machine has, shared evenly.
        address: of a running cluster; "": one of this process's own, on this machine.
    """

    replicas: int = 1
    min: int = 0
    max: int = 0
    ingresses: int = 2
    queue: int = 16
    downscale_delay_s: int = 600
    cpus: float | None = None
    address: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "min", self.min or min(self.replicas, self.max or self.replicas))
        object.__setattr__(self, "max", self.max or max(self.replicas, self.min))
        if not self.min <= self.replicas <= self.max:
            raise ConfigError(
                f"--ray needs min <= replicas <= max, got min={self.min}, "
                f"replicas={self.replicas}, max={self.max}."
            )
        if self.ingresses < 2:
            raise ConfigError(
                f"--ray ingresses={self.ingresses} would leave nobody to answer when one is lost: "
                "give at least 2."
            )

    @property
    def is_scaled(self) -> bool:
        """Whether the number of replicas follows the load."""
        return self.min < self.max


def read_ray_option(texts: Sequence[str]) -> RaySettings:
    """Read `replicas=2,max=4` ..., in one word or several.

    Raises:
        ConfigError: it is no list of name=value, or a value is out of range.
    """
    given: dict[str, Any] = {}
    for part in ",".join(texts).split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or name not in {field.name for field in fields(RaySettings)}:
            known = ", ".join(f"{field.name}=" for field in fields(RaySettings))
            raise ConfigError(f"--ray takes {known} with commas between them, got {part!r}.")
        if name in given:
            raise ConfigError(f"--ray {name} is given twice: give it once.")
        given[name] = value
    return ray_settings(given)


def ray_settings(given: Mapping[str, Any]) -> RaySettings:
    """Settings of texts or numbers by their names.

    Raises:
        ConfigError: see `read_ray_option`.
    """
    values = {name: _number(name, value) for name, value in given.items() if name in _NUMBERS}
    if "address" in given:
        if not given["address"]:
            raise ConfigError("--ray address= is empty: name a cluster, or auto for the one here.")
        values["address"] = str(given["address"])
    return RaySettings(**values)


def _number(name: str, value: Any) -> Any:
    form, kind, said = (
        (_DECIMAL, float, "a number above 0, such as 0.5")
        if name == "cpus"
        else (_WHOLE, int, "a whole number from 1")
    )
    if isinstance(value, bool) or not form.fullmatch(str(value)) or not float(value):
        raise ConfigError(f"--ray {name}= takes {said}, got {value!r}.")
    return kind(value)


@dataclass(frozen=True)
class Shares:
    """What each replica has of a machine.

    Attributes:
        cpus: that Ray counts for it.
        most_on_a_machine: so many that every machine has room for all ingresses besides.
    """

    cpus: float
    most_on_a_machine: int

    @property
    def num_threads(self) -> int:
        """Threads of its engine."""
        return max(1, int(self.cpus))


def share_machines(settings: RaySettings, machine_cpus: Sequence[float]) -> Shares:
    """Divide the machines of a cluster between replicas; ingresses keep theirs.

    A replica whose machine is lost waits for another one: it never takes what an ingress needs, so
    that ingresses come back on whatever machine is left.

    Args:
        machine_cpus: how many CPUs Ray counts on each; those without any hold no replica.
    Raises:
        ConfigError: there is no room.
    """
    machine_cpus = [cpus for cpus in machine_cpus if cpus > 0]
    if not machine_cpus:
        raise ConfigError("No machine of the cluster has CPUs to give (ray start --num-cpus=N).")
    reserved = settings.ingresses * INGRESS_CPUS
    room = min(machine_cpus) - reserved
    cpus = settings.cpus
    if cpus is None:
        on_each = math.ceil(settings.max / len(machine_cpus))
        cpus = max(room, 0) / on_each
        cpus = float(int(cpus)) if cpus >= 1 else int(cpus * 100) / 100
    if cpus <= 0 or cpus > room:
        raise ConfigError(
            f"A machine of {min(machine_cpus):g} CPUs has no room for {settings.ingresses} "
            f"ingresses ({reserved:g}) and a replica ({cpus:g}): give fewer ingresses, smaller "
            "cpus=, or machines with more CPUs (ray start --num-cpus)."
        )
    return Shares(cpus, int(room / cpus + 1e-9))
