"""The application from a file of Ray Serve, whose number of replicas follows their queues."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.ray_server import Program, addresses, ask, environment, start

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

_FILE = """
proxy_location: EveryNode
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: glm
    route_prefix: /glm
    import_path: mindformers_glm.serving.ray.app:build
    args: {{replicas: 1, max: 2, queue: 2, downscale_delay_s: 5, settings: {{max_num_seqs: 4}}}}
"""


def test_the_number_of_replicas_follows_the_load(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "glm.yaml").write_text(_FILE.format(port=port))
    words = ("ray.serve.scripts", "run", "--address", "local", "glm.yaml")
    url = f"http://127.0.0.1:{port}/glm"
    run = start(
        lambda: Program(tmp_path, *words, environ=environment()),
        lambda _: len(addresses(url)) == 1,
    )
    try:
        is_enough = False

        def ask_on(client: int) -> list[str]:
            became = []
            while not is_enough:
                became.append(ask(url, client, stream=client % 2 == 0, max_tokens=200))
            return became

        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask_on, client) for client in range(12)]
            try:
                run.wait_for(lambda: len(addresses(url)) == 2)
            finally:
                is_enough = True
            assert {text for one in asked for text in one.result()} == {"whole"}
        run.wait_for(lambda: len(addresses(url)) == 1)
        assert ask(url, 0) == "whole"
        run.end()
    finally:
        run.kill()
