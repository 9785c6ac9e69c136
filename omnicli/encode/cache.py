"""The cache of encoded films on disk: a second look at a film neither probes, decodes nor encodes it.

One file per film and way of encoding it. Its name says what it was made from: the film's content (not its name), media
settings, captures, checkpoint, number format, kind of device, libraries and source code. Questions, methods and
generation settings are not in it. Files appear whole or not at all, are checked when read, and the least recently used
ones go when all together would be larger than the limit. Nothing here knows what a token means.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import inspect
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omnicli.encode import tokenfile
from omnicli.utils import fingerprint

if TYPE_CHECKING:
    from omnicli.config.settings import MediaConfig
    from omnicli.encode.encode import Encoded
    from omnicli.media.probe import MediaInfo
    from omnicli.models.base import OmniModel
    from omnicli.utils.timing import StageClock

CACHE_VERSION = 1
"""Goes up when the same film, settings and source would be kept in another way."""

LIMIT = 20 * 10**9
"""Bytes that all entries together may take, unless told otherwise."""

_CODE = fingerprint.source(fingerprint.encoders())  # now: what runs is what was there when it was imported
_ENTRY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.safetensors")
_PART = re.compile(r"\.[^/]+\.part")
_PART_OLD_S = 60.0  # a file that is not locked may be one whose writer is about to lock it


@dataclass(frozen=True)
class Item:
    """A file of the cache: its size in bytes and when it was last used, in seconds since the epoch."""

    path: Path
    size: int
    used_s: float


class Cache:
    """A folder of encoded films.

    Parameters
    ----------
    folder : Path
        Made when the first entry is written. Other files in it are left alone.
    limit : int
        Bytes; a film whose tokens alone are larger is not kept.
    tell : callable
        Called with one line when an entry is damaged or cannot be written. After a failed write the object goes on
        reading and writes no more.
    """

    def __init__(self, folder: Path, limit: int = LIMIT, tell: Callable[[str], None] = warnings.warn) -> None:
        self.folder, self.limit, self.tell = folder, limit, tell
        self.writes = limit > 0

    def knows(self, path: Path) -> bool:
        """Tell whether a film was looked at before, with whatever settings; so that it is known to be readable."""
        try:
            film = fingerprint.file(path, fingerprint.stamp(path))
            return any(item.path.name.startswith(film) for item in self.items())
        except OSError:
            return False

    def entry(
        self,
        source: str | Path | MediaInfo,
        settings: MediaConfig,
        capture: frozenset[str],
        model: OmniModel,
        clock: StageClock,
    ) -> Entry | None:
        """Return the place of a film's tokens, there or not. None: random weights, or the film cannot be read."""
        if model.fingerprint is None:
            return None
        path = Path(source) if isinstance(source, str | Path) else source.path
        with clock.stage("cache"):
            try:
                stamp = fingerprint.stamp(path)
                film = fingerprint.file(path, stamp)
            except OSError:
                return None
            name = f"{film}-{_way(settings, capture, model)}.safetensors"
            return Entry(self, self.folder / name, path, stamp, settings, capture, model, clock)

    def items(self) -> list[Item]:
        """Return all entries, the least recently used first; none if the folder does not exist yet."""
        return sorted(self._files(_ENTRY), key=lambda item: (item.used_s, item.path))

    def size(self) -> int:
        """Return the bytes that all entries take."""
        return sum(item.size for item in self.items())

    def make_room(self, size: int) -> None:
        """Remove the least recently used entries until ``size`` more bytes stay below the limit."""
        found = self.items()
        excess = sum(item.size for item in found) + size - self.limit
        for item in found:
            if excess <= 0:
                return
            item.path.unlink(missing_ok=True)
            excess -= item.size

    def sweep(self) -> None:
        """Remove what killed writers left: unfinished files that are some time old and that no process holds."""
        for item in self._files(_PART):
            if time.time() - item.used_s >= _PART_OLD_S:
                with suppress(OSError), item.path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                    item.path.unlink(missing_ok=True)

    def store(self, path: Path, packed: tokenfile.Packed) -> None:
        """Write an entry so that whatever happens either all of it is there or nothing; OSError if it cannot be."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()
        self.make_room(packed.size)
        handle, part = tempfile.mkstemp(".part", ".", self.folder)
        try:
            with open(handle, "wb") as file:
                with suppress(OSError):  # not every file system has locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                packed.write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        with suppress(OSError):  # not every file system syncs folders; an entry lost or damaged is found out on reading
            _sync(self.folder)
        self.make_room(0)  # another process may have written meanwhile

    def give_up(self, error: OSError) -> None:
        """Tell once why the cache cannot be used, and write no more."""
        if self.writes:
            self.writes = False
            reason = error.strerror or str(error)
            self.tell(f"cache: no films can be kept in {self.folder} ({reason}); omni cache info, or --no-cache")

    def _files(self, pattern: re.Pattern[str]) -> list[Item]:
        found = []
        try:
            with os.scandir(self.folder) as listing:
                for file in listing:
                    if pattern.fullmatch(file.name):
                        with suppress(FileNotFoundError):  # removed by another process
                            facts = file.stat()
                            found.append(Item(Path(file.path), facts.st_size, facts.st_mtime))
        except FileNotFoundError:
            return []
        return found


@dataclass(frozen=True)
class Entry:
    """The place of one film's tokens in a cache. ``stamp``: the film's `fingerprint.stamp` when it was asked for."""

    cache: Cache
    path: Path
    film: Path
    stamp: tuple[int, int]
    settings: MediaConfig
    capture: frozenset[str]
    model: OmniModel
    clock: StageClock

    def read(self) -> tuple[MediaInfo, Encoded] | None:
        """Return what is kept, under the film's present name; None if nothing is. What is damaged is removed."""
        with self.clock.stage("cache"):
            try:
                info, media = tokenfile.read(self.path, self.model.device)
            except FileNotFoundError:
                return None
            except tokenfile.DamagedError as error:
                self.cache.tell(f"cache: {self.path.name} is damaged ({error}); the film is encoded anew")
                with suppress(OSError):
                    self.path.unlink()
                return None
            except OSError as error:
                self.cache.give_up(error)
                return None
            with suppress(OSError):  # a folder that cannot be written can still be read
                os.utime(self.path)
            before, now = f"{info.path.name}: ", f"{self.film.name}: "
            told = tuple(now + text[len(before) :] if text.startswith(before) else text for text in media.warnings)
            info = dataclasses.replace(info, path=self.film, stamp=self.stamp)
            return info, dataclasses.replace(media, warnings=told)

    def write(self, info: MediaInfo, media: Encoded) -> None:
        """Keep a film's tokens, unless the file changed while it was read or they are larger than the whole cache."""
        with self.clock.stage("cache"):
            try:
                if not self.cache.writes or not info.stamp == self.stamp == fingerprint.stamp(self.film):
                    return
                packed = tokenfile.pack((info, media), self._about(info, media))
                if packed.size <= self.cache.limit:
                    self.cache.store(self.path, packed)
            except OSError as error:
                self.cache.give_up(error)

    def _about(self, info: MediaInfo, media: Encoded) -> dict[str, object]:
        from omnicli.models import identity
        from omnicli.types import Modality

        return {
            "film": info.path.name,
            "path": os.path.abspath(info.path),
            "duration_s": round(info.duration_s, 3),
            "model": {
                k: v for k, v in identity.of_model(self.model).items() if k != "quantize"
            },  # tokens do not depend on it
            "tokens": {m.name.lower(): media.clip.tokens.count(m) for m in Modality},
            "media": self.settings.encoding(),
            "capture": sorted(self.capture),
            "versions": identity.versions(),
        }


def _way(settings: MediaConfig, capture: frozenset[str], model: OmniModel) -> str:
    """Return 32 hex digits of everything but the film that its tokens depend on."""
    from omnicli.models import identity

    family = Path(inspect.getfile(type(model)))  # may come from another package
    way = [
        CACHE_VERSION,
        _CODE,
        fingerprint.source([family]),
        identity.versions(),
        model.fingerprint,
        str(model.dtype),
        model.device.type,
        settings.encoding(),
        sorted(capture),
    ]
    return hashlib.blake2b(json.dumps(way, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sync(folder: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
