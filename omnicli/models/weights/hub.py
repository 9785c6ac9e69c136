"""The model hub: `pull` fetches a checkpoint, `cached` finds one that is here, `recorded` tells what its files were.

`pull` is the only function in omni that uses the network. Everything goes into huggingface_hub's own cache and through
its sessions, so that its tokens, proxies, mirrors and environment variables apply and other programs find the files.
Only weights are fetched by a loop of our own: `snapshot_download` throws a file away that it could not finish, here the
next call goes on where the last one stopped. Knows nothing of what is in a checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import Self

from omnicli.errors import ModelError

PARTIAL = ".incomplete"
"""What the name of a file ends in that is not fetched to its end."""
_BLOCK = 1 << 22  # bytes hashed at once


@dataclass(frozen=True)
class Recorded:
    """What the hub said of a file.

    Attributes
    ----------
    size : int or None
        Bytes; None where it was not kept.
    digest : str or None
        SHA-256, or for small files git's SHA-1 of a blob; None where it was not kept.
    """

    size: int | None
    digest: str | None


# ---- what is here ----


def cached(name: str, hub_id: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the folder of a hub id in the local cache and its commit; never uses the network.

    The folder may lack files. ``name`` is what the user calls the model.

    Raises
    ------
    ModelError
        It is not here, or no hub id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except HFValidationError:
        raise ModelError(f"{hub_id!r} is neither a folder nor a hub id") from None
    except IncompleteSnapshotError as error:  # also when all is there that is read here
        folder = Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        begun = any((_storage(hub_id) / "blobs").glob("*" + PARTIAL))
        what = "is only partly in the local hub cache; go on" if begun else "is not in the local hub cache; get it"
        raise ModelError(f"{_called(hub_id, revision)} {what} with: omni models pull {name}") from None
    except OSError as error:
        raise ModelError(f"{hub_id}: the local hub cache cannot be read ({error.strerror or error})") from None
    return folder, folder.name


def recorded(folder: Path) -> dict[str, Recorded]:
    """Return what the hub said of a checkpoint folder's files, as far as it was kept, by name; without the network.

    In the hub cache a file is a link to one that is named by its digest; a folder that was filled with
    ``hf download --local-dir`` has notes beside it. All others have no records. Files that were never fetched are
    among them where the whole list was kept.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    found: dict[str, Recorded] = {}
    storage = folder.parent.parent
    if folder.parent.name == "snapshots" and storage.name.startswith("models--"):
        hub_id = storage.name.removeprefix("models--").replace("--", "/")
        try:
            tree = get_cached_repo_tree(hub_id, revision=folder.name, cache_dir=storage.parent)
        except CachedRepoTreeNotFoundError:
            tree = []
        found = {file.path: Recorded(file.size, None) for file in tree}
        digests = {file.name: Path(os.readlink(file)).name for file in folder.iterdir() if file.is_symlink()}
    else:
        notes = (folder / ".cache" / "huggingface" / "download").glob("*.metadata")
        digests = {note.stem: note.read_text(encoding="utf-8").split("\n")[1] for note in notes}
    for name, digest in digests.items():
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            size = found[name].size if name in found else None
            found[name] = Recorded(size, digest)
    return found


def digest(file: Path, like: str, report: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of a file's content of the same kind as ``like``; ``report`` is told the bytes as they go."""
    state = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            state.update(block)
            report(len(block))
    return state.hexdigest()


# ---- fetching ----


@dataclass(frozen=True)
class Pulled:
    """What `pull` did: the folder, the commit in it, and how many bytes of weights came over the network."""

    folder: Path
    commit: str
    fetched: int


def pull(
    hub_id: str,
    revision: str | None,
    wanted: Callable[[str], bool],
    check: Callable[[Path], None],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Fetch the files of a checkpoint that are not here yet; what an interrupted call has fetched is kept and used.

    Parameters
    ----------
    revision : str or None
        Branch, tag or commit; None: ``main``.
    wanted : callable
        Whether a file of that name is to be fetched. Files in folders are not.
    check : callable
        Is given the folder when all but the weights is there, and raises if they need not be fetched.
    report : callable
        Is told the bytes of weights that are here, and all.

    Raises
    ------
    ModelError
        In one line: gated, not found, no network, no safetensors, no room on the disk.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    with _told(hub_id, revision):
        commit = str(HfApi().repo_info(hub_id, revision=revision).sha)
        tree = HfApi().list_repo_tree(hub_id, revision=commit)
        files = [f for f in tree if isinstance(f, RepoFile) and "/" not in f.path and wanted(f.path)]
        weights = [f for f in files if f.path.endswith(".safetensors")]
        if not weights:
            raise ModelError(f"{_called(hub_id, revision)} holds no safetensors; other weight files are not read")
        small = [f.path for f in files if f not in weights]
        if "config.json" not in small:
            raise ModelError(f"{_called(hub_id, revision)} holds no config.json")
        folder = Path(snapshot_download(hub_id, revision=commit, allow_patterns=small, max_workers=4))
        check(folder)
        parts = [_Part(hub_id, commit, f) for f in weights]
        missing = sum(part.size - part.here for part in parts)
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise ModelError(
                f"{hub_id} needs {missing / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free in "
                f"{constants.HF_HUB_CACHE}; make room, or set HF_HOME to a folder on another disk"
            )
        total, done = sum(part.size for part in parts), sum(part.here for part in parts)

        def count(size: float | None) -> None:
            nonlocal done
            done += int(size or 0)
            report(done, total)

        report(done, total)
        for part in parts:
            part.fetch(count)
        snapshot_download(hub_id, revision=commit, allow_patterns=[*small, *(f.path for f in weights)])  # links
        ref = _storage(hub_id) / "refs" / (revision or constants.DEFAULT_REVISION)
        if ref.name != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")
    return Pulled(folder, commit, missing)


class _Part:
    """A file of weights on its way into the cache's ``blobs``."""

    def __init__(self, hub_id: str, commit: str, file: Any) -> None:
        self.hub_id, self.commit, self.path, self.size = hub_id, commit, file.path, int(file.size)
        self.digest = str(file.lfs.sha256 if file.lfs else file.blob_id)
        self.blob = _storage(hub_id) / "blobs" / self.digest
        self.begun = self.blob.with_name(self.digest + PARTIAL)

    @property
    def here(self) -> int:
        """Bytes that need not be fetched."""
        if self.blob.exists():
            return self.size
        return min(self.size, self.begun.stat().st_size) if self.begun.exists() else 0

    def fetch(self, count: Callable[[float | None], None]) -> None:
        """Fetch what is missing, check it against its digest, and give it its name."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        lock = Path(constants.HF_HUB_CACHE) / ".locks" / _storage(self.hub_id).name / f"{self.digest}.lock"
        for folder in (lock.parent, self.blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if self.blob.exists():
                return
            with self.begun.open("ab") as handle:
                handle.truncate(self.here)
                http_get(
                    hf_hub_url(self.hub_id, self.path, revision=self.commit),
                    handle,
                    resume_size=self.here,
                    headers=build_hf_headers(headers={"Accept-Encoding": "identity"}),
                    expected_size=self.size,
                    tqdm_class=partial(_Bar, count),  # type: ignore[arg-type]
                )
            if digest(self.begun, self.digest) != self.digest:
                self.begun.unlink()
                raise ModelError(f"{self.hub_id}: {self.path} came damaged and was thrown away; pull again")
            self.begun.replace(self.blob)


class _Bar:
    """The part of a tqdm bar that `http_get` uses: tells how many bytes have come."""

    def __init__(self, count: Callable[[float | None], None], **_: Any) -> None:
        self.update = count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def _storage(hub_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")


def _called(hub_id: str, revision: str | None) -> str:
    return f"{hub_id}@{revision}" if revision else hub_id


@contextmanager
def _told(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub, the network and the disk may answer into one line."""
    from huggingface_hub import constants, errors, get_token

    site = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        login = "" if get_token() else ", then log in with: hf auth login (or set HF_TOKEN)"
        raise ModelError(f"{hub_id} is gated: ask for access at {site}/{hub_id}{login}") from None
    except errors.RepositoryNotFoundError:
        login = "your token does not see it" if get_token() else "log in with: hf auth login (or set HF_TOKEN)"
        raise ModelError(f"{hub_id} is not on {site}; if it is private, {login}") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{hub_id} has no revision {revision!r}") from None
    except errors.HFValidationError:
        raise ModelError(f"{hub_id!r} is no hub id; write OWNER/NAME") from None
    except errors.OfflineModeIsEnabled:
        raise ModelError(f"HF_HUB_OFFLINE is set: {hub_id} cannot be fetched; unset it for this command") from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"{site} answered {error.response.status_code} about {hub_id}; try again later") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # the transport; what is fetched stays
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        raise ModelError(f"{site} cannot be reached ({reason}); pull again to go on") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(
                f"the disk of {constants.HF_HUB_CACHE} is full; make room and pull again to go on"
            ) from None
        where = f"{error.filename}: " if error.filename else ""
        raise ModelError(f"{hub_id}: {where}{error.strerror or ' '.join(str(error).split())[:160]}") from None
