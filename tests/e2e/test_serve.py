"""`mindformers-glm serve` as a process: a MindIE config, TLS, a key, a signal under load."""

import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import MINI
from tests.e2e.run_process import Starter, finish

PROGRAM = ("-m", "mindformers_glm", "serve")
KEY = {"authorization": "Bearer filed-key", "content-type": "application/json"}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*command, "-out", cert, "-keyout", key], check=True, capture_output=True)
    return cert, key


def _mindie_config(folder: Path, cert: Path, key: Path) -> Path:
    config = {
        "ServerConfig": {
            "ipAddress": "127.0.0.1",
            "port": 0,
            "maxLinkNum": 1000,
            "httpsEnabled": True,
            "tlsCert": str(cert),
            "tlsPk": str(key),
            "inferMode": "standard",
        },
        "BackendConfig": {
            "npuDeviceIds": [[0]],
            "ModelDeployConfig": {
                "maxSeqLen": 600,
                "truncation": False,
                "ModelConfig": [
                    {"modelName": "glm4", "modelWeightPath": str(MINI), "worldSize": 1}
                ],
            },
            "ScheduleConfig": {"maxBatchSize": 4, "cacheBlockSize": 32, "maxIterTimes": 512},
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_serve_by_mindies_config_answers_over_tls_and_ends_after_its_answers(
    start: Starter, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("filed-key\n")
    config = _mindie_config(tmp_path, *certificate)
    process = start("--config", str(config), "--api-key-file", str(keys), program=PROGRAM)
    assert process.stderr is not None
    line = next(text for text in process.stderr if " at https://" in text)
    port = int(re.search(r":(\d+)/v1", line)[1])  # type: ignore[index]
    assert "serving glm4 at" in line
    assert "4 answers together, up to 600 tokens" in line
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.check_hostname = False

    def ask(method: str, path: str, body: str = "") -> tuple[int, bytes]:
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        client.request(method, path, body, KEY)
        response = client.getresponse()
        return response.status, response.read()

    def num_taken() -> int:
        words = "(?:num_requests_running|num_requests_waiting|request_success_total)"
        text = ask("GET", "/metrics")[1].decode()
        return sum(int(float(n)) for n in re.findall(rf"^vllm:{words}{{.*}} (.+)$", text, re.M))

    answers: list[tuple[int, bytes]] = []
    long = json.dumps({"prompt": "北京", "max_tokens": 500, "ignore_eos": True, "stream": True})

    def ask_long() -> None:
        answers.append(ask("POST", "/v1/completions", long))

    threads = [threading.Thread(target=ask_long) for _ in range(6)]
    for thread in threads:
        thread.start()
    while num_taken() < 6:  # a request after the signal would be refused
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert [status for status, _ in answers] == [200] * 6
    assert all(content.rstrip().endswith(b"data: [DONE]") for _, content in answers)
    rest = process.stderr.read()
    assert process.wait(60) == 0
    assert "Traceback" not in rest
    assert rest.count('"POST /v1/completions" 200') == 6


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--port", "TAKEN"], "another program has it"),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid"),
        (["--ssl_certfile", "/nowhere.pem"], "Cannot use ssl_certfile /nowhere.pem"),
        (["--api_key_file", "/nowhere"], "Cannot read api_key_file /nowhere"),
        (["--tensor-parallel-size", "2", "--use_parallel", "False"], "processes that a launcher"),
        (["--tensor-parallel-size", "0"], "model_parallel"),
        (["--predict_data", "x"], "setting of predict, not of serve"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    start: Starter, argv: list[str], sentence: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        run = finish(start(*[port if a == "TAKEN" else a for a in argv], program=PROGRAM))
    assert run.exit_code in (1, 2)
    (line,) = run.errors
    assert line.startswith("error: ")
    assert sentence in line
