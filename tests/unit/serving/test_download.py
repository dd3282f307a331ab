"""`mindformers-glm download`: huggingface_hub itself against a hub on this machine.

The hub below speaks the part of Hugging Face's HTTP interface that huggingface_hub 0.36 uses here.
ModelScope's library is not among the tests' packages: a module with its names stands in for it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions
from safetensors.numpy import save

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import find_repository
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.cli import main
from mindformers_glm.serving.download import choose_files
from mindformers_glm.serving.hubs import DownloadError, Listing
from mindformers_glm.weights.rules import build_rules
from tests.unit.tiny_config import TINY_CONFIG

ROOT = Path(__file__).resolve().parents[3]
REPO = "zai-org/GLM-4-9B-0414"
COMMIT = "4e38bef4" * 5
CONFIG = TINY_CONFIG | {"eos_token_id": [3], "num_hidden_layers": 1}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


class FakeHub(ThreadingHTTPServer):
    """One repository at one commit.

    files: what it holds. status: answered to every question instead, with X-Error-Code `error`.
    cut: name -> how many of its bytes arrive before the connection breaks.
    stall: the file that never comes; `stalled` is set when it is asked for.
    asked: (file, Range header) of each download.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = files
        self.status, self.error = 200, ""
        self.cut: dict[str, int] = {}
        self.stall = ""
        self.stalled, self.closing = Event(), Event()
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/models/{REPO}"
        known_revisions = (api, f"{api}/revision/{COMMIT}", f"{api}/revision/v1")
        if self.server.status != 200:
            self._send(b"", self.server.status, {"X-Error-Code": self.server.error})
        elif path in known_revisions:
            siblings = [{"rfilename": n, "size": len(c)} for n, c in self.server.files.items()]
            answer = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self._send(json.dumps(answer).encode(), 200, {})
        elif path.startswith(f"{api}/revision/"):
            self._send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._send_file(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        else:
            self._send(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, name: str) -> None:
        content, status = self.server.files[name], 200
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        if self.command == "GET":
            wanted = self.headers.get("Range")
            self.server.asked.append((name, wanted))
            if name == self.server.stall:
                self.server.stalled.set()
                self.server.closing.wait()
            if wanted is not None:
                first = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                content, status = content[first:], 206
        self._send(content, status, headers, self.server.cut.get(name))

    def _send(
        self, content: bytes, status: int, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
            self.close_connection = cut is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A runnable checkpoint as published: with files that no one needs here."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rules = build_rules(GlmConfig.from_hf(folder))
    tensors = {s.name: np.ones(s.shape, np.float16) for rule in rules for s in rule.sources}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b'{"do_sample": false}',
        "LICENSE": b"terms",
        "model.safetensors": save(tensors),
        "modeling_chatglm.py": b"raise SystemExit",
        "pytorch_model.bin": b"the same again",
        "pytorch_model.bin.index.json": b"{}",
        "model.gguf": b"another format",
        "onnx/config.json": b"{}",
    }


WANTED = ["LICENSE", "config.json", "generation_config.json", "model.safetensors"]


@pytest.fixture
def hub(
    checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    server = FakeHub(dict(checkpoint))
    # huggingface_hub reads the environment once, when it is imported.
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template_place = "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE"
    monkeypatch.setattr(template_place, endpoint + template, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def partial_folders(folder: Path) -> list[Path]:
    return list(folder.glob(".*.partial"))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a download that must fail; return its one sentence."""
    assert main(["download", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    sentence = lines[-1]
    assert sentence.startswith("error: ")
    assert "internal error" not in sentence
    assert [line for line in lines[:-1] if not line.startswith("mindformers_glm: ")] == []
    return sentence


@pytest.mark.parametrize("name", ["GLM-4-9B-0414", "glm-4-9b-0414", "THUDM/GLM-4-9B-0414"])
def test_what_a_model_needs_is_downloaded_and_nothing_else(hub, tmp_path, capsys, checkpoint, name):
    assert main(["download", name]) == 0
    assert contents(tmp_path / "GLM-4-9B-0414") == {name: checkpoint[name] for name in WANTED}
    assert partial_folders(tmp_path) == []
    captured = capsys.readouterr()
    assert captured.out == f"{REPO} at {COMMIT}: {tmp_path / 'GLM-4-9B-0414'}\n"
    # No bar where stderr is no terminal.
    assert len(captured.err.splitlines()) == 1


def test_a_download_that_broke_off_goes_on(hub, tmp_path, capsys, checkpoint):
    hub.cut = {"model.safetensors": 4096}
    assert "goes on where it stopped" in fails(capsys, REPO, "--output", "models/glm")
    assert not (tmp_path / "models/glm").exists()
    assert len(partial_folders(tmp_path / "models")) == 1
    hub.cut, hub.asked = {}, []
    assert main(["download", REPO, "--output", "models/glm"]) == 0
    assert contents(tmp_path / "models/glm") == {name: checkpoint[name] for name in WANTED}
    assert hub.asked == [("model.safetensors", "bytes=4096-")]


def test_ctrl_c_ends_a_download_at_once_and_says_so(hub, tmp_path):
    hub.stall = "model.safetensors"
    code = "import sys; from mindformers_glm.serving.cli import main; main(sys.argv[1:])"
    environment = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "download", REPO],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert hub.stalled.wait(timeout=60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("the same command goes on\ninterrupted\n")
    assert len(partial_folders(tmp_path)) == 1
    assert not (tmp_path / "GLM-4-9B-0414").exists()


def test_a_part_is_not_taken_for_the_whole_when_the_connection_is_lost(hub, capsys, monkeypatch):
    """huggingface_hub 0.36 returns the folder as it is when it cannot ask what it should hold."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **options: "it is there")
    assert "did not come whole, LICENSE first" in fails(capsys, REPO)


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_a_revision_can_be_given(hub, capsys, revision):
    assert main(["download", REPO, "--revision", revision]) == 0
    assert COMMIT in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([REPO, "--revision", "v2"], "has no revision v2"),
        (["zai-org/nothing"], "has no repository zai-org/nothing, or it is private"),
        (["a/b/c"], "give OWNER/NAME"),
        (["GLM-4-9B-414"], "did you mean GLM-4-9B-0414?"),
    ],
)
def test_a_wrong_name_is_told(hub, tmp_path, capsys, arguments, sentence):
    assert sentence in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (403, "GatedRepo", "accepted its terms"),
        (403, "", "does not let you read"),
        (401, "RepoNotFound", "or it is private"),
        (503, "", "answered 503"),
    ],
)
def test_a_refusal_is_told(hub, capsys, status, error, sentence):
    hub.status, hub.error = status, error
    assert sentence in fails(capsys, REPO)


def test_no_connection_is_told(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "Cannot reach Hugging Face" in fails(capsys, REPO)


def test_offline_mode_is_told(hub, capsys, monkeypatch):
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        reset_sessions()  # this thread's was made online
        assert "HF_HUB_OFFLINE forbids downloads" in fails(capsys, REPO)
    reset_sessions()


def test_a_missing_library_is_told(hub, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'mindformers_glm[download]'" in fails(capsys, REPO)


def test_another_network_is_refused_before_its_weights_are_fetched(hub, tmp_path, capsys):
    hub.files["config.json"] = json.dumps(CONFIG | {"model_type": "llama"}).encode()
    assert "were not downloaded" in fails(capsys, REPO)
    assert "model.safetensors" not in [name for name, _ in hub.asked]
    assert partial_folders(tmp_path) == []


@pytest.mark.parametrize("content", [LFS_POINTER, b"\x08\0\0\0\0\0\0\0{}      "])
def test_weights_that_cannot_be_read_get_no_name(hub, tmp_path, capsys, content):
    hub.files["model.safetensors"] = content
    sentence = fails(capsys, REPO)
    assert "cannot be run" in sentence
    assert ("Git-LFS pointer" in sentence) == (content == LFS_POINTER)
    assert not (tmp_path / "GLM-4-9B-0414").exists()


def test_a_full_disk_is_told_before_the_download(hub, capsys, monkeypatch):
    usage = SimpleNamespace(free=2000)
    monkeypatch.setattr("mindformers_glm.serving.download.shutil.disk_usage", lambda _: usage)
    assert "has 2.0 KB free" in fails(capsys, REPO)
    assert hub.asked == []


def test_a_folder_that_is_there_is_not_touched(hub, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "is there already" in fails(capsys, REPO, "--output", "mine")
    assert contents(tmp_path / "mine") == {"notes.txt": b"mine"}
    (tmp_path / "mine/notes.txt").unlink()
    assert main(["download", REPO, "--output", "mine"]) == 0


@pytest.mark.parametrize("arguments", [[], [REPO, "--source", "gitee"], [REPO, "--revision"]])
def test_a_wrong_command_line_is_told(capsys, arguments):
    assert main(["download", *arguments]) == 2
    assert "The command line is wrong" in capsys.readouterr().err


def test_bin_files_are_taken_where_there_is_nothing_better():
    names = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    extra = ["training_args.bin", "consolidated.00.pth", "tokenizer.model", "quantization.py"]
    small, weights = choose_files(Listing("a/b", "main", dict.fromkeys(names + extra)))
    assert small == ["config.json", "pytorch_model.bin.index.json", "tokenizer.model"]
    assert weights == ["pytorch_model-00001-of-00001.bin"]


@pytest.mark.parametrize("names", [["config.json", "model.gguf"], ["model.safetensors"]])
def test_a_repository_without_a_model_is_refused(names):
    with pytest.raises(DownloadError, match=r"a/b has no "):
        choose_files(Listing("a/b", "main", dict.fromkeys(names)))


def test_a_repository_of_an_adapter_alone_is_called_so():
    names = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    with pytest.raises(DownloadError, match=r"a/b holds an adapter \(LoRA\)"):
        choose_files(Listing("a/b", "main", dict.fromkeys(names)))


@pytest.mark.parametrize(
    ("name", "source", "repo_id"),
    [
        ("glm-4-9b-chat", "huggingface", "zai-org/glm-4-9b-chat"),
        ("THUDM/chatglm3-6b", "huggingface", "zai-org/chatglm3-6b"),
        ("ZhipuAI/chatglm3-6b", "huggingface", "zai-org/chatglm3-6b"),
        ("CodeGeeX4-ALL-9B", "modelscope", "ZhipuAI/codegeex4-all-9b"),
        ("zai-org/GLM-Z1-32B-0414", "modelscope", "ZhipuAI/GLM-Z1-32B-0414"),
        ("someone/glm-4-9b-chat", "modelscope", "someone/glm-4-9b-chat"),
        ("THUDM/something-else", "huggingface", "THUDM/something-else"),
    ],
)
def test_names_mean_repositories(name, source, repo_id):
    assert find_repository(name, source) == repo_id


def test_a_name_without_owner_must_be_known():
    with pytest.raises(ConfigError, match=r"did you mean chatglm3-6b\?"):
        find_repository("chatglm3", "huggingface")


@pytest.fixture
def modelscope(checkpoint, tmp_path, monkeypatch) -> SimpleNamespace:
    """The names of modelscope_hub 0.5 that are used, over a dictionary of files.

    error: raised by every question; kinds: its exceptions by name.
    """

    class HubError(Exception):
        pass

    kinds = {"HubError": HubError}
    for name in (
        "NotExistError",
        "AuthenticationError",
        "PermissionDeniedError",
        "InvalidParameter",
        "NetworkError",
    ):
        kinds[name] = type(name, (HubError,), {})
    state = SimpleNamespace(kinds=kinds, error=None, repo=None)

    class HubApi:
        def list_repo_files(self, repo_id: str, repo_type: str, *, revision: str) -> list:
            if state.error is not None:
                raise state.error
            state.repo = (repo_id, repo_type, revision)
            return [SimpleNamespace(path="onnx", size=0, type="tree")] + [
                SimpleNamespace(path=name, size=len(content), type="blob")
                for name, content in checkpoint.items()
            ]

        def download_repo(self, repo_id, repo_type, *, revision, local_dir, allow_patterns) -> Path:
            print("a bar", file=sys.stderr)
            assert state.repo == (repo_id, repo_type, revision)
            for name in allow_patterns:
                (local_dir / name).write_bytes(checkpoint[name])
            return local_dir

    module, errors = ModuleType("modelscope_hub"), ModuleType("modelscope_hub.errors")
    module.HubApi, module.errors = HubApi, errors
    vars(errors).update(kinds)
    monkeypatch.setitem(sys.modules, "modelscope_hub", module)
    monkeypatch.setitem(sys.modules, "modelscope_hub.errors", errors)
    monkeypatch.chdir(tmp_path)
    return state


def test_modelscope_gives_the_same_folder(modelscope, tmp_path, capsys, checkpoint):
    assert main(["download", REPO, "--source", "modelscope"]) == 0
    assert modelscope.repo == ("ZhipuAI/GLM-4-9B-0414", "model", "master")
    assert contents(tmp_path / "GLM-4-9B-0414") == {name: checkpoint[name] for name in WANTED}
    assert "a bar" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("NotExistError", "has no repository ZhipuAI/GLM-4-9B-0414 with a revision v2"),
        ("PermissionDeniedError", "does not let you read"),
        ("AuthenticationError", "does not let you read"),
        ("InvalidParameter", "give OWNER/NAME"),
        ("NetworkError", "Cannot reach ModelScope"),
        ("HubError", "stopped, because"),
    ],
)
def test_modelscope_errors_are_told(modelscope, capsys, kind, sentence):
    modelscope.error = modelscope.kinds[kind]("because\nof it")
    assert sentence in fails(capsys, REPO, "--source", "modelscope", "--revision", "v2")


def test_a_missing_modelscope_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    assert "needs modelscope_hub" in fails(capsys, REPO, "--source", "modelscope")
