import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.tokenizer import Segment, SpecialToken, chat_writer, load_tokenizer
from tests.unit.tokenizer.conftest import CHAT_TEMPLATE, SPECIAL_TOKENS, Writer, encode_prompt

# What transformers 5 writes beside tokenizer.json and chat_template.jinja.
TRANSFORMERS_5 = {
    "backend": "tokenizers",
    "tokenizer_class": "TokenizersBackend",
    "eos_token": "<|user|>",
    "pad_token": "<|endoftext|>",
    "extra_special_tokens": SPECIAL_TOKENS,
    "is_local": True,
    "model_max_length": 128000,
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
}


def _added(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def test_files_of_transformers_5_and_4_give_the_same_tokenizer(write_folder: Writer) -> None:
    new = load_tokenizer(write_folder(**TRANSFORMERS_5))
    old = load_tokenizer(
        write_folder(
            eos_token=_added("<|user|>"),
            additional_special_tokens=SPECIAL_TOKENS,
            chat_template=CHAT_TEMPLATE,
        )
    )
    assert encode_prompt(new, "Hello <sop>") == encode_prompt(old, "Hello <sop>")
    assert new.eos_token_ids == old.eos_token_ids != ()


def test_code_of_the_folder_is_not_asked_for(write_folder: Writer) -> None:
    folder = write_folder(auto_map={"AutoTokenizer": ["tokenization.Evil", None]})
    (folder / "tokenization.py").write_text("raise SystemExit('ran code of the checkpoint')")
    assert load_tokenizer(folder).encode("Hello")


def test_tokenizer_json_is_enough(write_folder: Writer) -> None:
    folder = write_folder(chat_template=None)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Hello")
    assert tokenizer.eos_token_ids == ()


def test_the_template_file_beats_the_config(write_folder: Writer) -> None:
    folder = write_folder(chat_template="<|user|>{{ messages[0].content }}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for template in ("<sop>", [{"name": "default", "template": "<sop>"}]):
        config["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(folder)
        assert encode_prompt(tokenizer, "Hello") == tokenizer.encode("<|user|>Hello")


_SOP = "<sop>{{ messages[0].content }}"


@pytest.mark.parametrize(
    "template",
    [
        _SOP,
        [{"name": "tools", "template": "x"}, {"name": "default", "template": _SOP}],
        {"tools": "x", "default": _SOP},
    ],
)
def test_the_template_may_stand_in_the_config(write_folder: Writer, template: Any) -> None:
    folder = write_folder(chat_template=None)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(folder)
    assert encode_prompt(tokenizer, "Hello") == tokenizer.encode("<sop>Hello")


def test_a_saved_truncation_is_not_applied(write_folder: Writer) -> None:
    folder = write_folder()
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(load_tokenizer(folder).encode("Hello world 123 123")) > 2


def test_the_special_tokens_map_is_read_where_older_files_have_one(write_folder: Writer) -> None:
    folder = write_folder(eos_token=None)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": _added("<|endoftext|>")})
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_ids == tuple(tokenizer.encode("<|endoftext|>"))


def _remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _truncate(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: len(content) // 2])


def _lfs(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")


def _break_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


def _wrong_eos(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": 5}')


def _wrong_added(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"1": "x"}}')


def _wrong_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": 5}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove, "has no tokenizer.json and no tokenizer.model: download the complete"),
        (_truncate, "tokenizer.json cannot be read as a tokenizer"),
        (_lfs, "tokenizer.json is a Git-LFS pointer"),
        (_break_config, "tokenizer_config.json is not valid JSON"),
        (_wrong_eos, "eos_token must be a text, got 5"),
        (_wrong_added, "added_tokens_decoder must map ids to tokens"),
        (_wrong_template, "chat_template must be a text, or several by name, got 5"),
    ],
)
def test_a_damaged_file_is_one_sentence(write_folder: Writer, damage: Any, message: str) -> None:
    folder = write_folder()
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_byte_level_is_refused(write_folder: Writer) -> None:
    folder = write_folder()
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"] = json.loads(decoders.Metaspace().__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="has a ByteLevel decoder, this one has Metaspace"):
        load_tokenizer(folder)


@pytest.mark.slow
def test_loading_says_nothing(write_folder: Writer) -> None:
    # Also where PyTorch is missing, of which transformers warns at import.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mindformers_glm.tokenizer import load_tokenizer\n"
        "messages = [{'role': 'user', 'content': 'Hello'}]\n"
        f"print(len(load_tokenizer({str(write_folder())!r}).encode_chat(messages)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 3
    assert done.stderr == ""


def test_the_other_kinds_load_without_transformers(
    write_ranks: Writer, write_pieces: Writer
) -> None:
    # Its import takes more than a second, and says things.
    code = (
        "import sys\n"
        "from mindformers_glm.tokenizer import load_tokenizer\n"
        f"for folder in {[str(write_ranks()), str(write_pieces())]!r}:\n"
        "    print(len(load_tokenizer(folder).encode('Hello')))\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2
    assert done.stderr == ""


def test_a_tokenizer_json_wins(write_folder: Writer, write_pieces: Writer) -> None:
    folder = write_folder()
    shutil.copy(write_pieces() / "tokenizer.model", folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocabulary.source == "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"name_or_path": "THUDM/chatglm2-6b"}')
    assert load_tokenizer(folder).vocabulary.source == "tokenizer.model (sentencepiece)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a sentencepiece model (ChatGLM2, ChatGLM3) nor a file of ranks"),
        (b"PK\x03\x04", "neither a sentencepiece model"),
        (b"AAAA x\n", "neither a sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git-LFS pointer"),
        (b"\n\x05hello", "cannot be read as a sentencepiece model"),
        (b"YQ== 0\n", "has no token for 255 of the 256 bytes"),
    ],
)
def test_a_tokenizer_model_that_is_none_is_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"name_or_path": "THUDM/chatglm2-6b"}')
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_choose_the_format_that_is_built_in(
    write_ranks: Writer, write_pieces: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, messages: list[dict[str, str]], *_: object) -> list[Segment]:
        return [SpecialToken("[gMASK]"), name, messages[0]["content"]]

    monkeypatch.setattr(chat_writer, "write_chat", write)
    for name in ("glm4_chat", "chatglm2", "chatglm3"):
        folder = write_ranks() if name == "glm4_chat" else write_pieces(name)
        tokenizer = load_tokenizer(folder)
        assert tokenizer.chat_format == f"{name}, built in"
        expected = tokenizer.encode_segments([SpecialToken("[gMASK]"), name, "sop[gMASK]"])
        assert encode_prompt(tokenizer, "sop[gMASK]") == expected


def test_the_checkpoints_template_wins_over_the_format_that_is_built_in(
    write_ranks: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[Segment]:
        raise AssertionError("the template is there")

    monkeypatch.setattr(chat_writer, "write_chat", refuse)
    tokenizer = load_tokenizer(write_ranks(chat_template="<|user|>{{ messages[0].content }}"))
    assert encode_prompt(tokenizer, "Hello") == tokenizer.encode_segments(
        [SpecialToken("<|user|>"), "Hello"]
    )


def test_a_format_with_a_token_of_another_model_is_refused(write_pieces: Writer) -> None:
    tokenizer = load_tokenizer(write_pieces("chatglm2"))
    with pytest.raises(CheckpointError, match=r"needs the special token <\|user\|>, which the tok"):
        tokenizer.encode_segments([SpecialToken("<|user|>"), "Hello"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"), (" \n", "is empty")],
)
def test_a_chat_template_file_that_is_none_is_refused(
    write_folder: Writer, content: str, message: str
) -> None:
    folder = write_folder()
    (folder / "chat_template.jinja").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)
