"""Fetching the files of a `Plan` into the Hugging Face cache: resumed where a transfer broke, checked, then linked.

huggingface-hub says where a file lies and who may have it; the bytes are streamed here, because its own download throws
a half-fetched file away when the process ends. `blobs/HASH.incomplete` in the cache is such a half; the next try goes
on from its length. A file gets its name only when its length and sha256 agree with the hub's.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from coterie.checkpoint.download import Plan, RemoteFile, explain, is_network_failure
from coterie.checkpoint.hub import cache_folder
from coterie.errors import DownloadError

__all__ = ["fetch"]

_TRIES = 5  # in a row without a new byte
_PIECE = 1 << 20
_BLOB = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,127}")


def fetch(plan: Plan, report: Callable[[int, int], None] | None = None) -> Path:
    """Download and check every file of the plan; the folder that holds them. `report(bytes done, bytes in all)`.

    What is there already is checked too, and fetched again where its sha256 is wrong. Raises `DownloadError`; what has
    arrived by then stays for the next try.
    """
    done = 0
    for file in plan.files:
        before = done

        def advance(n: int, before: int = before) -> None:
            if report:
                report(before + n, plan.nbytes)

        try:
            path = _fetch_file(plan, file, advance)
        except Exception as e:
            if isinstance(e, OSError) and not is_network_failure(e) and getattr(e, "response", None) is None:
                raise  # the disk's, and it says so itself
            raise explain(e, plan.repository, plan.revision) from e
        done += path.stat().st_size
    if plan.revision != plan.commit:
        ref = cache_folder(plan.repository) / "refs" / plan.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(plan.commit, encoding="utf-8")
    return plan.snapshot


def _fetch_file(plan: Plan, file: RemoteFile, advance: Callable[[int], None]) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    target = plan.snapshot / file.name
    if target.exists():
        if _is_sound(target, file.size, file.sha256):
            advance(target.stat().st_size)
            return target
        target.resolve().unlink()
        target.unlink(missing_ok=True)
    url = hf_hub_url(plan.repository, file.name, revision=plan.commit, endpoint=constants.ENDPOINT)
    about = get_hf_file_metadata(url, retry_on_errors=True)
    size = file.size if file.size is not None else about.size
    sha256 = file.sha256 or (about.etag if about.etag and re.fullmatch("[0-9a-f]{64}", about.etag) else None)
    blob = cache_folder(plan.repository) / "blobs" / _blob_name(about.etag, sha256, file.name)
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = blob.parent.parent.parent / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not (blob.exists() and _is_sound(blob, size, sha256)):
            partial = blob.with_name(blob.name + ".incomplete")
            _stream(about.location, url, partial, size, advance)
            if not _is_sound(partial, size, sha256):
                found = partial.stat().st_size
                partial.unlink()
                raise DownloadError(
                    f"{file.name} of {plan.repository} arrived damaged and was thrown away ({found:,} bytes, expected "
                    f"{size}, sha256 expected {sha256}); pull again, and if it recurs do not trust the source"
                )
            os.replace(partial, blob)
        _link(blob, target)
    return target


def _stream(location: str, asked: str, partial: Path, size: int | None, advance: Callable[[int], None]) -> None:
    """Append to `partial` from where it ends until it has `size` bytes, taking up a broken transfer again."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    tries = 0
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        if size is not None and have > size:  # of another file, or of a server that sends too much
            partial.unlink()
            have = 0
        if size is not None and have == size > 0:
            return
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if urlsplit(location).netloc != urlsplit(asked).netloc:
            headers.pop("authorization", None)  # a storage server has no business with the user's token
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with get_session().stream("GET", location, headers=headers, follow_redirects=True, timeout=30) as response:
                hf_raise_for_status(response)
                is_rest = response.status_code == 206 and _starts_at(response.headers.get("Content-Range"), have)
                with open(partial, "ab" if is_rest else "wb") as f:
                    for piece in response.iter_bytes():
                        f.write(piece)
                        advance(f.tell())
            if size is None or partial.stat().st_size >= size:
                return
        except Exception as e:
            tries = 0 if partial.exists() and partial.stat().st_size > have else tries + 1
            if not is_network_failure(e) or tries >= _TRIES:
                raise
        else:
            tries = 0 if partial.stat().st_size > have else tries + 1
            if tries >= _TRIES:
                return
        time.sleep(0.2 * 2**tries)


def _starts_at(content_range: str | None, first: int) -> bool:
    return bool(content_range and re.match(rf"bytes {first}-", content_range))


def _is_sound(path: Path, size: int | None, sha256: str | None) -> bool:
    if size is not None and path.stat().st_size != size:
        return False
    if sha256 is None:
        return True
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == sha256


def _blob_name(etag: str | None, sha256: str | None, file: str) -> str:
    name = sha256 or etag or ""
    if not _BLOB.fullmatch(name):
        raise DownloadError(f"the hub gives no usable ETag for {file}; is HF_ENDPOINT a Hugging Face hub?")
    return name


def _link(blob: Path, target: Path) -> None:
    """The name in the snapshot: a relative link, or the file itself where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(blob, target.parent), target)
    except (NotImplementedError, PermissionError):
        os.replace(blob, target)
