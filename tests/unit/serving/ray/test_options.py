"""What --ray takes, and how machines are shared between replicas and ingresses."""

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.ray.options import RaySettings, read_ray_option, share_machines


def test_replicas_alone_are_a_fixed_number() -> None:
    settings = read_ray_option(["replicas=3"])
    assert (settings.replicas, settings.min, settings.max) == (3, 3, 3)
    assert not settings.is_scaled


def test_a_range_makes_the_number_follow_the_load() -> None:
    settings = read_ray_option(["replicas=2,min=1", "max=4,ingresses=3"])
    assert settings == RaySettings(replicas=2, min=1, max=4, ingresses=3)
    assert settings.is_scaled


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2", "takes replicas="),
        ("replica=2", "takes replicas="),
        ("replicas=0", "whole number from 1"),
        ("replicas=-1", "whole number from 1"),
        ("replicas=1.5", "whole number from 1"),
        ("replicas=2,replicas=3", "given twice"),
        ("replicas=2,max=1", "min <= replicas <= max"),
        ("replicas=2,min=3,max=4", "min <= replicas <= max"),
        ("ingresses=1", "at least 2"),
        ("cpus=0", "a number above 0"),
        ("address=", "is empty"),
        ("replicas=x", "whole number from 1"),
        ("replicas", "takes replicas="),
        ("downscale_delay_s=0", "whole number from 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        read_ray_option([text])


def test_replicas_share_what_ingresses_leave() -> None:
    shares = share_machines(RaySettings(replicas=2), [2.0])  # 2 ingresses of 0.5
    assert (shares.cpus, shares.most_on_a_machine, shares.num_threads) == (0.5, 2, 1)


def test_a_replica_has_its_machine_and_never_the_ingresses_share() -> None:
    shares = share_machines(RaySettings(replicas=2), [32.0, 32.0])
    assert (shares.cpus, shares.most_on_a_machine, shares.num_threads) == (31.0, 1, 31)


def test_a_small_replica_does_not_crowd_ingresses_out() -> None:
    # 4 - 1 for ingresses leaves room for 3 replicas of 1, whatever is lost elsewhere.
    shares = share_machines(RaySettings(replicas=8, cpus=1.0), [4.0, 16.0])
    assert shares.most_on_a_machine == 3


def test_a_head_without_cpus_holds_no_replica() -> None:
    assert share_machines(RaySettings(replicas=2), [0.0, 4.0, 4.0]).cpus == 3.0
    with pytest.raises(ConfigError, match="No machine of the cluster has CPUs"):
        share_machines(RaySettings(), [0.0])


def test_a_machine_without_room_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="no room for 2 ingresses"):
        share_machines(RaySettings(), [1.0])
