"""The hubs that publish checkpoints: what a repository holds, and fetching files of it.

Each through the hub's own library, which resumes what was interrupted and checks what it fetched.
The libraries are optional (pip's extra `download`) and imported when a hub is asked.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mindformers_glm.core.errors import GlmError
from mindformers_glm.version import __version__

_GO_ON = "the same command again goes on where it stopped"


class DownloadError(GlmError):
    """A checkpoint cannot be downloaded, or what came cannot be run."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision.

    commit: what the revision stands for if the hub says so (Hugging Face), else the revision.
    sizes: path -> bytes; None where the hub does not tell.
    """

    repo_id: str
    commit: str
    sizes: dict[str, int | None]


class Hub(Protocol):
    """A place to download from."""

    def list_files(self, repo_id: str, revision: str | None) -> Listing:
        """List a repository, at its newest revision if none is given.

        Raises:
            DownloadError: the library is not installed, or the hub does not answer with a list.
        """
        ...

    def fetch(self, listing: Listing, names: Sequence[str], folder: Path) -> None:
        """Fetch files into `folder`; what is there already, in whole or in part, is used.

        Whether all of them came is the caller's to check.

        Raises:
            DownloadError: the hub or the disk does not go along.
        """
        ...


class HuggingFace:
    """huggingface.co, or the mirror that HF_ENDPOINT names, through huggingface_hub."""

    def list_files(self, repo_id: str, revision: str | None) -> Listing:
        """See `Hub`."""
        with self._sentences(repo_id, revision):
            from huggingface_hub import HfApi

            api = HfApi(library_name="mindformers_glm", library_version=__version__)
            info = api.model_info(repo_id, revision=revision, files_metadata=True)
        assert info.sha is not None
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        return Listing(repo_id, info.sha, sizes)

    def fetch(self, listing: Listing, names: Sequence[str], folder: Path) -> None:
        """See `Hub`."""
        with self._sentences(listing.repo_id, listing.commit), _bars_on_a_terminal_only():
            from huggingface_hub import snapshot_download

            snapshot_download(
                listing.repo_id,
                revision=listing.commit,
                local_dir=folder,
                allow_patterns=list(names),
                library_name="mindformers_glm",
                library_version=__version__,
            )

    @contextmanager
    def _sentences(self, repo_id: str, revision: str | None) -> Iterator[None]:
        """Turn the library's errors into one sentence each."""
        with _require("huggingface_hub"):
            import requests
            from huggingface_hub import errors
        # The first class that fits counts: the later ones are bases of the earlier ones.
        sentences: tuple[tuple[type[Exception], str], ...] = (
            (
                errors.GatedRepoError,
                f"{repo_id} is only for those who have accepted its terms: accept them on its page "
                "on Hugging Face, then set HF_TOKEN to a token of yours.",
            ),
            (
                errors.RevisionNotFoundError,
                f"{repo_id} on Hugging Face has no revision {revision}: give a commit, branch or "
                "tag of it, or leave --revision out.",
            ),
            (
                errors.RepositoryNotFoundError,
                f"Hugging Face has no repository {repo_id}, or it is private: check the name, or "
                "set HF_TOKEN to a token that may read it.",
            ),
            (
                errors.DisabledRepoError,
                f"{repo_id} was disabled on Hugging Face: try --source modelscope.",
            ),
            (
                errors.HFValidationError,
                f"{repo_id!r} is no repository of Hugging Face: give OWNER/NAME.",
            ),
            (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids downloads: unset it."),
        )
        unreachable = (errors.LocalEntryNotFoundError, requests.ConnectionError, requests.Timeout)
        try:
            yield
        except Exception as problem:
            for kind, sentence in sentences:
                if isinstance(problem, kind):
                    raise DownloadError(sentence) from None
            if isinstance(problem, requests.HTTPError) and problem.response is not None:
                raise _refused("Hugging Face", repo_id, problem.response.status_code) from None
            if isinstance(problem, unreachable):
                raise _unreachable("Hugging Face", problem, "modelscope") from None
            # hf_xet, the library's own transport, raises RuntimeError only.
            if isinstance(problem, OSError | RuntimeError):
                raise _stopped(repo_id, problem) from None
            raise


class ModelScope:
    """modelscope.cn through modelscope_hub, its library without those for running models."""

    def list_files(self, repo_id: str, revision: str | None) -> Listing:
        """See `Hub`."""
        revision = revision or "master"
        with self._sentences(repo_id, revision):
            from modelscope_hub import HubApi

            files = HubApi().list_repo_files(repo_id, "model", revision=revision)
        # It tells 0 where it does not know.
        sizes = {file.path: file.size or None for file in files if file.type != "tree"}
        return Listing(repo_id, revision, sizes)

    def fetch(self, listing: Listing, names: Sequence[str], folder: Path) -> None:
        """See `Hub`."""
        with self._sentences(listing.repo_id, listing.commit), _bars_on_a_terminal_only():
            from modelscope_hub import HubApi

            HubApi().download_repo(
                listing.repo_id,
                "model",
                revision=listing.commit,
                local_dir=folder,
                allow_patterns=list(names),
            )

    @contextmanager
    def _sentences(self, repo_id: str, revision: str) -> Iterator[None]:
        with _require("modelscope_hub"):
            import requests
            from modelscope_hub import errors
        try:
            yield
        except errors.NotExistError:
            raise DownloadError(
                f"ModelScope has no repository {repo_id} with a revision {revision}, or it is "
                "private: check both names, or set MODELSCOPE_API_TOKEN."
            ) from None
        except (errors.AuthenticationError, errors.PermissionDeniedError):
            raise _refused("ModelScope", repo_id, 403) from None
        except errors.InvalidParameter:
            raise DownloadError(
                f"{repo_id!r} at {revision!r} is nothing that ModelScope can look for: give "
                "OWNER/NAME and a branch, tag or commit."
            ) from None
        except (errors.NetworkError, requests.ConnectionError, requests.Timeout) as problem:
            raise _unreachable("ModelScope", problem, "huggingface") from None
        except (errors.HubError, OSError) as problem:
            raise _stopped(repo_id, problem) from None


HUBS: dict[str, type[Hub]] = {"huggingface": HuggingFace, "modelscope": ModelScope}


@contextmanager
def _require(library: str) -> Iterator[None]:
    try:
        yield
    except ImportError as problem:
        raise DownloadError(
            f"Downloading needs {library}, which cannot be imported ({problem}): "
            "run `pip install 'mindformers_glm[download]'`."
        ) from None


@contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """Let the libraries draw their bars and write their log where someone watches."""
    if sys.stderr.isatty():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def _refused(hub: str, repo_id: str, status: int) -> DownloadError:
    if status in (401, 403):
        return DownloadError(
            f"{hub} does not let you read {repo_id}: log in with an account that may "
            f"(it answered {status})."
        )
    return DownloadError(f"{hub} answered {status} for {repo_id}: {_GO_ON}, try it later.")


def _unreachable(hub: str, problem: Exception, other: str) -> DownloadError:
    return DownloadError(
        f"Cannot reach {hub} ({type(problem).__name__}): check the connection or try --source "
        f"{other}; {_GO_ON}."
    )


def _stopped(repo_id: str, problem: Exception) -> DownloadError:
    reason = problem.strerror if isinstance(problem, OSError) else None
    reason = reason or (str(problem).strip() or type(problem).__name__).splitlines()[0]
    return DownloadError(f"The download of {repo_id} stopped, {reason}: {_GO_ON}.")
