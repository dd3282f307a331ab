"""The application of Ray Serve: ingresses, and replicas that are complete engines.

`build` is an application builder, for `serve run`, `serve deploy` and `mindformers-glm serve --ray`
(Ray Serve 2.60: "Pass arguments to applications", "Serve config files"):

    applications:
      - name: glm
        route_prefix: /
        import_path: mindformers_glm.serving.ray.app:build
        args: {model: /models/glm-4-9b, replicas: 2, max: 4, settings: {max_num_seqs: 16}}
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mindformers_glm.config.environment import api_keys
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.predict import check_folder
from mindformers_glm.serving.ray.cluster import machine_cpus
from mindformers_glm.serving.ray.engine import QUEUE, Engine
from mindformers_glm.serving.ray.gate import Ingress
from mindformers_glm.serving.ray.options import (
    INGRESS_CPUS,
    RaySettings,
    ray_settings,
    share_machines,
)
from mindformers_glm.serving.ray.words import read_words, words_of

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.config import AutoscalingContext

ENGINE_NAME, INGRESS_NAME = "Engine", "Ingress"
_HEALTH_S = 2.0  # between two looks at a replica
_STARTS = 2  # that may fail before the first replica answers; later ones are tried for ever
_END_S = 40.0  # for a replica's end beside its answers
_MOST_AT_AN_INGRESS = 10_000  # requests; replicas have their own limits
_IN_YAML = ("model", "settings", "words")


def build(arguments: Mapping[str, Any]) -> "Application":
    """Build the application; of its arguments none is needed.

    Args:
        arguments: `model`, a checkpoint folder on every machine (none: glm4-mini); `settings`, of
            `mindformers-glm serve` by their names; the words of `--ray` (options.py).
    Raises:
        ConfigError: an argument is unknown or out of range, or the machines are too small.
    """
    given = dict(arguments)
    words = list(given.pop("words", ())) + words_of(given.pop("settings", {}))
    if (model := given.pop("model", None)) is not None:
        words.append(f"--pretrained_model_dir={model}")
    if unknown := set(given) - set(RaySettings.__dataclass_fields__) | ({"address"} & set(given)):
        known = ", ".join([*_IN_YAML[:2], *RaySettings.__dataclass_fields__])
        raise ConfigError(f"{min(unknown)} is no argument here: there are {known}, and no address.")
    check_for_ray(read_words(words))
    return create_application(ray_settings(given), words)


def create_application(
    settings: RaySettings, words: Sequence[str], host: str = ""
) -> "Application":
    """The application of these settings.

    Args:
        words: of `serve`, which have been checked (`check_for_ray`).
        host: where replicas listen; "": the address by which the cluster knows their machine.
    Raises:
        ConfigError: the machines are too small.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    config = read_words(words)
    shares = share_machines(settings, machine_cpus())
    own = [f"--num_threads={shares.num_threads}"] if config.llm["num_threads"] is None else []
    number: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.is_scaled:
        policy = AutoscalingPolicy(policy_function=follow_queue)
        number = {
            "autoscaling_config": AutoscalingConfig(
                initial_replicas=settings.replicas,
                min_replicas=settings.min,
                max_replicas=settings.max,
                target_ongoing_requests=settings.queue,
                policy=policy,
                metrics_interval_s=_HEALTH_S,
                look_back_period_s=10.0,
                upscale_delay_s=10.0,
                downscale_delay_s=settings.downscale_delay_s,
            )
        }
    engine = serve.deployment(
        name=ENGINE_NAME,
        ray_actor_options={"num_cpus": shares.cpus},
        max_replicas_per_node=shares.most_on_a_machine,
        max_constructor_retry_count=_STARTS,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=config.server["drain_timeout_s"] + _END_S,
        **number,
    )(Engine)
    ingress = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=settings.ingresses,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=_MOST_AT_AN_INGRESS,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=config.server["drain_timeout_s"] + _END_S,
    )(serve.ingress(_make_ingress(words))())
    return ingress.bind(engine.bind([*own, *words], host))


def check_for_ray(config: Any) -> None:
    """Refuse what several replicas cannot do.

    Raises:
        ConfigError: with the reason; or the checkpoint is missing.
    """
    server = config.server
    if config.llm["model_parallel"] > 1:
        refuse_ranks(config.llm["model_parallel"])
    if server["ssl_certfile"] is not None or server["ssl_keyfile"] is not None:
        raise ConfigError(
            "Ray Serve's ingress speaks plain HTTP: leave ssl_certfile and ssl_keyfile out, and "
            "let a balancer in front of it speak https."
        )
    check_folder(config)
    if not config.pretrained_model_dir.is_dir():
        raise ConfigError(
            f"There is no checkpoint folder {config.pretrained_model_dir}: it must be at that "
            "place on every machine."
        )


def refuse_ranks(num_ranks: int) -> NoReturn:
    """A replica is one process.

    Raises:
        ConfigError: says so.
    """
    raise ConfigError(
        f"--ray runs replicas of one process each: leave model_parallel={num_ranks} and the "
        "launcher out, or serve without --ray."
    )


def check_keys(config: Any) -> None:
    """Find out whether the processes of a running cluster know the API keys of this one.

    Raises:
        ConfigError: they do not: their environment is another one.
    """
    given, file = config.server["api_key"], config.server["api_key_file"]
    if api_keys(given, file) != api_keys(given, file, environ={}):
        raise ConfigError(
            "The API key of MINDFORMERS_GLM_API_KEY would not reach the processes of a running "
            "cluster: give --api_key_file, a file at that place on every machine."
        )


def follow_queue(context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
    """How many replicas their queues ask for, as the servers themselves count requests.

    Ray's own count knows nothing of requests that come to a replica by another balancer.
    """
    lengths = (context.aggregated_metrics or {}).get(QUEUE, {})
    target = context.config.target_ongoing_requests if context.config else 1
    if not lengths:
        return context.target_num_replicas, {}
    return math.ceil(sum(lengths.values()) / target), {}


def _make_ingress(words: Sequence[str]) -> Any:
    def make() -> Ingress:
        return Ingress(words)

    return make
