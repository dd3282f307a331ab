"""`mindformers-glm download`: a published checkpoint into a folder that is whole or not there.

Files arrive in a hidden folder beside the target, which gets the target's name once it has been
checked. What an interrupted download leaves there is where the same command goes on.
"""

import argparse
import fcntl
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from mindformers_glm.config.adapter import ADAPTER_CONFIG
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import default_folder, find_repository
from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.serving.hubs import HUBS, DownloadError, Hub, Listing
from mindformers_glm.serving.inspect.command import inspect_checkpoint
from mindformers_glm.system.files import MORE_TEMPLATES
from mindformers_glm.system.log import note
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.shards import WEIGHT_FORMATS

# Beside the weights: config, tokenizer, templates, and the terms under which all is given.
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*", "MODEL_LICENSE*")
_INDEX = "*.index.json"
_LOCK = ".lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to download, and where from and to."""
    parser.add_argument("name", metavar="NAME", help="GLM-4-9B-0414, ... or OWNER/NAME")
    parser.add_argument(
        "--revision", metavar="COMMIT", help="commit, branch or tag; the newest unless given"
    )
    parser.add_argument("--source", choices=tuple(HUBS), default="huggingface")
    parser.add_argument("--output", metavar="DIR", help="folder to make; ./NAME unless given")


def run(arguments: argparse.Namespace) -> int:
    """Do what `download NAME` asks for and return the exit code.

    Raises:
        ConfigError: there is no such model, or the folder cannot be made.
        DownloadError: the hub, the disk or what the repository holds does not go along.
    """
    source = arguments.source
    repo_id = find_repository(arguments.name, source)
    target = Path(arguments.output or default_folder(repo_id)).expanduser().resolve()
    _check_target(target)
    hub = HUBS[source]()
    listing = hub.list_files(repo_id, arguments.revision)
    small_files, weights = choose_files(listing)
    # Of its own for each revision: shards of two must never lie in one folder.
    version = f"{source}-{listing.commit[:12]}".replace("/", "-")
    partial = target.parent / f".{target.name}.{version}.partial"
    with _hold(partial):
        _check_space(listing, small_files + weights, partial)
        note(
            f"downloading {repo_id} at {listing.commit} to {target}; if it is interrupted, the "
            "same command goes on"
        )
        _fetch(hub, listing, small_files, partial)
        _check_config(listing, partial)
        _fetch(hub, listing, weights, partial)
        _check(listing, partial)
        _remove_all_but(small_files + weights, partial)
        try:
            partial.rename(target)
        except OSError as problem:
            raise DownloadError(
                f"{partial} is complete, but cannot be renamed to {target}: {problem.strerror}."
            ) from None
    print(f"{repo_id} at {listing.commit}: {target}")
    return 0


def choose_files(listing: Listing) -> tuple[list[str], list[str]]:
    """Choose the files that running the model needs: (small ones, weights).

    Only of the repository's own folder and of named chat templates: what else lies below it is the
    model in other formats. Never its Python files; of its weights, the first format that this
    project prefers.

    Raises:
        DownloadError: the repository has no config.json or no weights that can be read.
    """
    templates = _matching(sorted(listing.sizes), [f"{MORE_TEMPLATES}/*.jinja"])
    names = sorted(name for name in listing.sizes if "/" not in name)
    if "config.json" not in names and ADAPTER_CONFIG in names:
        raise DownloadError(
            f"{listing.repo_id} holds an adapter (LoRA), which is not supported: download a "
            "repository that it has been merged into."
        )
    if "config.json" not in names:
        raise DownloadError(f"{listing.repo_id} has no config.json: it holds no model to run.")
    for kind in WEIGHT_FORMATS:
        if weights := _matching(names, [kind.pattern]):
            break
    else:
        patterns = " and no ".join(kind.pattern for kind in WEIGHT_FORMATS)
        raise DownloadError(f"{listing.repo_id} has no {patterns}: give a repository with them.")
    other_indexes = set(_matching(names, [_INDEX])) - set(_matching(names, [kind.index_pattern]))
    small = set(_matching(names, _SMALL_FILES)) - other_indexes
    return sorted(small.union(templates)), weights


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and next(target.iterdir(), None) is None):
        raise ConfigError(f"{target} is there already: remove it, or give another --output.")


@contextmanager
def _hold(partial: Path) -> Iterator[None]:
    """Make the folder of the unfinished download, and keep other processes out of it."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / _LOCK, "w")  # noqa: SIM115  closed below
    except OSError as problem:
        raise ConfigError(f"Cannot make {partial}: {problem.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"Another process is downloading into {partial}: wait for it."
            ) from None
        yield


def _check_space(listing: Listing, names: Sequence[str], partial: Path) -> None:
    here = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    needed = sum(listing.sizes[name] or 0 for name in names) - here
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise DownloadError(
            f"{listing.repo_id} needs {format_bytes(needed)} more, {partial.parent} has "
            f"{format_bytes(free)} free: make room or give another --output."
        )


def _fetch(hub: Hub, listing: Listing, names: Sequence[str], partial: Path) -> None:
    hub.fetch(listing, names, partial)
    # huggingface_hub 0.36 returns a folder as it is when the connection is lost at the start.
    incomplete = [name for name in names if not _is_whole(partial / name, listing.sizes[name])]
    if incomplete:
        raise DownloadError(
            f"{len(incomplete)} of {len(names)} files of {listing.repo_id} did not come whole, "
            f"{incomplete[0]} first: the same command again goes on where it stopped."
        )


def _is_whole(file: Path, size: int | None) -> bool:
    return file.is_file() and size in (None, file.stat().st_size)


def _check_config(listing: Listing, partial: Path) -> None:
    """Refuse a model of another family before its weights are fetched."""
    try:
        GlmConfig.from_hf(partial)
    except GlmError as problem:
        shutil.rmtree(partial)
        raise DownloadError(
            f"The weights of {listing.repo_id} were not downloaded, it cannot be run: {problem}"
        ) from None


def _check(listing: Listing, partial: Path) -> None:
    try:
        inspect_checkpoint(partial)
    except GlmError as problem:
        raise DownloadError(
            f"{listing.repo_id} at {listing.commit} is in {partial} as published, but it cannot "
            f"be run: {problem}"
        ) from None


def _remove_all_but(names: Sequence[str], partial: Path) -> None:
    """Remove the libraries' own records and our lock."""
    kept = {name.split("/")[0] for name in names}
    for path in partial.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
