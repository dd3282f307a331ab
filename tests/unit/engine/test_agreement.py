"""engine/agreement.py: ranks with other files, settings or prompts are told, by what differs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine import agreement
from mindformers_glm.engine.agreement import check_model_is_shared, check_requests_are_shared
from mindformers_glm.engine.generation_defaults import from_generation_config
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.share_writer import write_shares
from tests.unit.engine.run_ranks import run_ranks

SETTINGS: dict[str, Any] = {"seed": 0, "prompt_lookup_num_tokens": 7, "enable_prefix_caching": True}


@pytest.fixture
def folders(written_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """Copies on two machines, with times of change of their own."""
    copies = [tmp_path / f"host{number}" for number in range(2)]
    for copy in copies:
        shutil.copytree(written_checkpoint, copy, copy_function=shutil.copyfile)
    return copies


def told(work: Callable[[ProcessGroup], None]) -> list[str | None]:
    """What each of two ranks says."""

    def catch(group: ProcessGroup) -> str | None:
        try:
            work(group)
        except ConfigError as problem:
            return str(problem)
        return None

    return run_ranks(2, catch)


def open_on(group: ProcessGroup, folder: Path, engine: dict[str, Any], **given: Any) -> None:
    rank = TensorParallel(group.size, group.rank)
    config = GlmConfig.from_hf(folder)
    settings = RunnerSettings.with_defaults(
        "float32", 128, model_parallel=rank.size, model_parallel_rank=rank.rank, **given
    )
    with Checkpoint.open(folder, rank) as checkpoint:
        defaults = from_generation_config(folder)
        check_model_is_shared(group, checkpoint, config, defaults, settings, engine)


def told_of(folders: list[Path]) -> list[str | None]:
    return told(lambda group: open_on(group, folders[group.rank], SETTINGS))


def edit_json(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | entries, indent=1))


def change_weight(folder: Path, name_end: str) -> None:
    """Change one value in the middle of a tensor, as another fine-tune of the model would all."""
    file = next(f for f in sorted(folder.glob("*.safetensors"))
                if any(n.endswith(name_end) for n in load_file(f)))  # fmt: skip
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(name_end))
    tensors[name].reshape(-1)[tensors[name].size // 2] += 1
    save_file(tensors, file, {"format": "pt"})


def make_vocabulary_even(folder: Path) -> None:
    """Give the network a token more, so that two ranks can share it."""
    edit_json(folder / "config.json", vocab_size=258)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if len(tensor) == 257:
                tensors[name] = np.concatenate([tensor, tensor[:1]])
        save_file(tensors, file, {"format": "pt"})


def test_copies_of_one_checkpoint_agree(folders: list[Path]) -> None:
    edit_json(folders[1] / "config.json")  # written anew, with other blanks
    assert told_of(folders) == [None, None]


def test_a_single_rank_reads_nothing(
    written_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> str:
        raise AssertionError("a single rank reads for nobody")

    for reader in ("checkpoint_fingerprint", "tokenizer_digest"):
        monkeypatch.setattr(agreement, reader, refuse)
    checkpoint = Checkpoint(written_checkpoint / "no such folder", {}, {}, "")
    config, defaults = (
        GlmConfig.from_hf(written_checkpoint),
        from_generation_config(written_checkpoint),
    )
    settings = RunnerSettings.with_defaults("float32", 128)
    group = ProcessGroup(TensorParallel())
    check_model_is_shared(group, checkpoint, config, defaults, settings, SETTINGS)


@pytest.mark.parametrize(
    "tensor", ["layers.0.input_layernorm.weight", "layers.0.mlp.down_proj.weight"]
)
def test_other_weights_of_the_same_shapes_are_told(folders: list[Path], tensor: str) -> None:
    change_weight(folders[1], tensor)
    first, second = told_of(folders)
    assert first is not None
    assert "rank 1 has other weights than rank 0" in first
    assert "\n" not in first
    assert second == first


@pytest.mark.parametrize(
    ("name", "entries", "named"),
    [
        ("config.json", {"rms_norm_eps": 0.5}, "config.json"),
        ("generation_config.json", {"temperature": 0.25}, "generation_config.json"),
        ("tokenizer.json", {"comment": 1}, "tokenizer files"),
        ("tokenizer_config.json", {"chat_template": "{{ x }}"}, "tokenizer files"),
    ],
)
def test_another_small_file_is_told(
    folders: list[Path], name: str, entries: dict[str, Any], named: str
) -> None:
    edit_json(folders[1] / name, **entries)
    for message in told_of(folders):
        assert message is not None
        assert f"rank 1 has other {named} than rank 0" in message


def test_shares_of_different_cuts_are_told(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        make_vocabulary_even(folder)
    change_weight(folders[1], "norm.weight")
    cuts = [tmp_path / "cut0", tmp_path / "cut1"]
    for folder, cut in zip(folders, cuts, strict=True):
        write_shares(folder, cut, 2)
    assert told_of([cuts[0], cuts[0]]) == [None, None]
    for message in told_of(cuts):
        assert message is not None
        assert "rank 1 has other weights than rank 0" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", 64),
        ("max_num_seqs", 3),
        ("max_num_batched_tokens", 16),
        ("block_size", 16),
        ("quantization", "w8a16"),
        ("seed", 1),
        ("prompt_lookup_num_tokens", 0),
        ("enable_prefix_caching", False),
    ],
)
def test_another_setting_is_told_by_its_name(
    written_checkpoint: Path, name: str, value: Any
) -> None:
    def work(group: ProcessGroup) -> None:
        given = {name: value} if group.rank else {}
        engine = SETTINGS | {key: given.pop(key) for key in list(given) if key in SETTINGS}
        open_on(group, written_checkpoint, engine, **given)

    for message in told(work):
        assert message is not None
        assert f"rank 1 has other {name} than rank 0" in message


def test_every_rank_that_differs_is_named(written_checkpoint: Path) -> None:
    def work(group: ProcessGroup) -> None:
        with pytest.raises(ConfigError, match="rank 1 has other seed; rank 3 has other seed than"):
            open_on(group, written_checkpoint, SETTINGS | {"seed": group.rank % 2})

    run_ranks(4, work)


def test_requests_must_be_the_same() -> None:
    greedy = SamplingParams(do_sample=False, max_new_tokens=8)

    def ask(*others: tuple[list[int], SamplingParams]) -> list[str | None]:
        """Rank 0 is asked one thing, rank 1 the others."""
        return told(
            lambda group: check_requests_are_shared(
                group, others if group.rank else [([1, 2], greedy)], {}
            )
        )

    assert ask(([1, 2], greedy)) == [None, None]
    assert ask((list(np.array([1, 2])), greedy)) == [None, None]
    for others in ([([12], greedy)], [([1], greedy), ([2], greedy)], []):
        for message in ask(*others):
            assert message is not None
            assert "rank 1 has other prompts" in message
    for message in ask(([1, 2], replace(greedy, max_new_tokens=9))):
        assert message is not None
        assert "rank 1 has other sampling settings than rank 0" in message


def test_a_stream_that_one_rank_left_is_told_at_the_next_call() -> None:
    def work(group: ProcessGroup) -> None:
        under_way = {"0": 7} | ({"1": 9} if group.rank == 0 else {})
        check_requests_are_shared(group, [([1], SamplingParams())], under_way)

    for message in told(work):
        assert message is not None
        assert "rank 1 has other requests under way than rank 0" in message
