"""What to fetch from the Hugging Face hub: asked for in one request, chosen so that no pickle is among it.

Surprising: a repository of Mistral's holds the weights twice (`consolidated*.safetensors` and `model-*.safetensors`);
only the second are chosen. `transfer.py` does the fetching.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint.hub import cache_folder, check_repository_name
from coterie.errors import DownloadError, ResourceError, nearest

__all__ = ["Plan", "RemoteFile", "check_disk", "choose_files", "explain", "is_network_failure", "plan"]

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
_WANTED = re.compile(
    r".*\.safetensors|.*\.json|tokenizer\.model.*|.*\.jinja|merges\.txt|vocab\.txt|README\.md|(LICEN[CS]E|NOTICE)[\w.-]*",
    re.IGNORECASE,
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_PART = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$")
_COMMIT = re.compile(r"[0-9A-Za-z]{1,64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `size` in bytes and `sha256` where the hub tells them."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Plan:
    """What is to be fetched, and what is left out and why (sentences)."""

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(f.size or 0 for f in self.files)

    @property
    def snapshot(self) -> Path:
        """The folder of the Hugging Face cache that the files appear in."""
        return cache_folder(self.repository) / "snapshots" / self.commit


def plan(repository: str, *, file: str | None = None, revision: str | None = None) -> Plan:
    """Ask the hub what `repository` holds and choose what to fetch; one request, nothing is downloaded.

    `file` names a .gguf to fetch in place of the safetensors. Raises `DownloadError`.
    """
    from huggingface_hub import HfApi, constants

    check_repository_name(repository)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise DownloadError(f"{revision!r} is not a revision, expected a branch, a tag or a commit")
    if constants.HF_HUB_OFFLINE:
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is downloaded; unset it to fetch " + repository)
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        found = [
            RemoteFile(s.rfilename, s.lfs.size if s.lfs else s.size, s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or []
        ]
    except Exception as e:
        raise explain(e, repository, revision) from e
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"{constants.ENDPOINT} gives no commit for {repository}; is it a Hugging Face hub?")
    files, left_out = choose_files(repository, found, file)
    try:
        files = [f if f.size is not None else _with_size(repository, f, info.sha) for f in files]
    except Exception as e:
        raise explain(e, repository, revision) from e
    return Plan(repository, revision or "main", info.sha, tuple(files), tuple(left_out))


def _with_size(repository: str, file: RemoteFile, commit: str) -> RemoteFile:
    """The file with the size that its own headers tell; some mirrors of the hub list names alone."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file.name, revision=commit, endpoint=constants.ENDPOINT)
    return RemoteFile(file.name, get_hf_file_metadata(url).size, file.sha256)


def choose_files(repository: str, found: list[RemoteFile], file: str | None) -> tuple[list[RemoteFile], list[str]]:
    """The files worth having of those a repository holds, and a sentence for each kind left out."""
    by_name = {f.name: f for f in found}
    if file is not None and (not file.endswith(".gguf") or file not in by_name):
        known = sorted(name for name in by_name if name.endswith(".gguf"))
        raise DownloadError(
            f"{repository} has no .gguf file {file!r}{nearest(file, known)} (it has {', '.join(known) or 'none'})"
        )
    wanted = [f for f in found if _WANTED.fullmatch(f.name)]  # no folders: `/` matches nowhere above but in `.*`
    wanted = [f for f in wanted if "/" not in f.name and "\\" not in f.name and not f.name.startswith(".")]
    weights = [f.name for f in wanted if f.name.endswith(".safetensors")]
    left_out = []
    if file is not None:
        wanted = [f for f in wanted if ".safetensors" not in f.name] + [by_name[name] for name in _parts(file, by_name)]
    elif not weights:
        raise _no_safetensors(repository, by_name)
    elif any(name.startswith("model") for name in weights):
        twice = [f for f in wanted if f.name.startswith("consolidated") and ".safetensors" in f.name]
        if twice:
            left_out.append(f"{twice[0].name}: the same weights as in the model*.safetensors")
            wanted = [f for f in wanted if f not in twice]
    pickles = [name for name in by_name if name.endswith(_PICKLES)]
    if pickles:
        more = " ..." if len(pickles) > 3 else ""
        left_out.append(f"{', '.join(pickles[:3])}{more}: pickles and their like are never fetched")
    return sorted(wanted, key=lambda f: (f.name.endswith((".safetensors", ".gguf")), f.name)), left_out


def _parts(file: str, names: Iterable[str]) -> list[str]:
    """The file, or all parts of the split model that it is one of: `x-00001-of-00003.gguf` and its like."""
    whole = _PART.sub(r"\1", file)
    return [file] if whole == file else [name for name in names if _PART.sub(r"\1", name) == whole]


def check_disk(plan: Plan, *, free: Callable[[Path], int] | None = None) -> None:
    """`ResourceError` where the disk of the cache has no room for what is still to come."""
    folder = cache_folder(plan.repository)
    left = sum((f.size or 0) for f in plan.files if not (plan.snapshot / f.name).exists())
    left -= sum(p.stat().st_size for p in folder.glob("blobs/*.incomplete"))
    there = next(p for p in (folder, *folder.parents) if p.exists())
    room = free(there) if free else shutil.disk_usage(there).free
    if left > room:
        raise ResourceError(
            f"{plan.repository} needs {left / 1e9:,.1f} GB more and the disk of {there} has {room / 1e9:,.1f} GB free; "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _no_safetensors(repository: str, by_name: dict[str, Any]) -> DownloadError:
    gguf = sorted(name for name in by_name if name.endswith(".gguf"))
    pickles = sorted(name for name in by_name if name.endswith(_PICKLES))
    if gguf:
        return DownloadError(
            f"{repository} has no safetensors; choose one of its GGUF files with --file ({', '.join(gguf[:6])}"
            f"{', ...' if len(gguf) > 6 else ''})"
        )
    has = f"only pickles ({', '.join(pickles[:3])}), which are never fetched" if pickles else "no weights at all"
    return DownloadError(f"{repository} has {has}; look for a repository of the same model with safetensors")


def is_network_failure(error: Exception) -> bool:
    """A failure of the line, not of this machine and not an answer of the hub."""
    if getattr(error, "response", None) is not None:
        return getattr(error.response, "status_code", 0) in (408, 429, 500, 502, 503, 504)  # type: ignore[attr-defined]
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or package.startswith(("httpx", "httpcore", "requests"))


def explain(error: Exception, repository: str, revision: str | None) -> DownloadError:
    """What went wrong at the hub, as one sentence with what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, DownloadError):
        return error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return DownloadError(
            f"{repository} is gated: accept its terms at {constants.ENDPOINT}/{repository}, log in with `hf auth login`"
            " (or set HF_TOKEN), and pull again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{repository} has no revision {revision!r}; see {constants.ENDPOINT}/{repository}/tree/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return DownloadError(
            f"{constants.ENDPOINT} shows no {repository}: check the name, and if it is private or gated log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if status is not None:
        return DownloadError(f"{constants.ENDPOINT} answered {status} for {repository}; try again later")
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if is_network_failure(error):
        return DownloadError(
            f"{constants.ENDPOINT} cannot be reached ({first}); check the connection and pull again, "
            "what has arrived is kept"
        )
    return DownloadError(f"{constants.ENDPOINT} gave an answer for {repository} that makes no sense ({first})")
