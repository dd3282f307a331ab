"""The application of Ray Serve, without a cluster."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.ray.app import build, follow_queue
from mindformers_glm.serving.ray.words import read_words, words_of


def _context(lengths: dict[str, float]) -> Any:
    return SimpleNamespace(
        aggregated_metrics={"queue": lengths} if lengths else {},
        config=SimpleNamespace(target_ongoing_requests=16),
        target_num_replicas=3,
    )


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [({"a": 16.0, "b": 17.0}, 3), ({"a": 16.0, "b": 16.0}, 2), ({"a": 0.0}, 0), ({}, 3)],
)
def test_the_number_of_replicas_follows_their_queues(
    lengths: dict[str, float], wanted: int
) -> None:
    assert follow_queue(_context(lengths))[0] == wanted


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"replica": 2}, "replica is no argument"),
        ({"replicas": "two"}, "whole number"),
        ({"address": "auto"}, "address is no argument"),
        ({"settings": {"max_num_seqs": "many"}}, "max_num_seqs"),
        ({"settings": {"serve": {"port": 1}}}, "is a block"),
        ({"settings": {"ssl_certfile": "cert.pem"}}, "plain HTTP"),
        ({"settings": {"parallel_config.model_parallel": 2}}, "needs processes"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_a_config_file_of_ray_serve_cannot_say_is_a_sentence(
    arguments: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(Exception, match=wanted) as caught:
        build(arguments)
    assert isinstance(caught.value, ConfigError)


def test_settings_go_to_another_process_as_they_are() -> None:
    words = words_of({"max_num_seqs": 3, "served_model_name": ["a", "b"], "access_log": False})
    config = read_words(words)
    assert config.server["served_model_name"] == ("a", "b")
    assert (config.server_llm["max_num_seqs"], config.server["access_log"]) == (3, False)


def test_ray_is_imported_by_nobody_who_did_not_ask() -> None:
    names = ("serve", "predict", "ray.app", "ray.predict", "ray.gate", "ray.engine", "ray.serve")
    imports = "; ".join(f"import mindformers_glm.serving.{name}" for name in names)
    code = f"import sys; {imports}; print({{'ray', 'mindspore'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
