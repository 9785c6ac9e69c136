"""The cache of encoded films: what hits and what misses, what a kill, a full disk and a flipped bit leave behind."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.config.settings import MediaConfig
from omnicli.encode import cache as room
from omnicli.encode import film as film_module
from omnicli.encode import tokenfile
from omnicli.encode.cache import Cache
from omnicli.encode.encode import Encoded
from omnicli.encode.film import load_film
from omnicli.errors import MediaError
from omnicli.media.frames import FrameTable
from omnicli.media.probe import AudioStream, MediaInfo, SubtitleStream, VideoStream, probe
from omnicli.models import identity
from omnicli.models.loading import load_model
from omnicli.models.parts import EncodedClip
from omnicli.types import MediaTokens, MediaUsed
from omnicli.utils import fingerprint
from omnicli.utils.timing import StageClock
from tests.support import tiny
from tests.test_pipeline import stable, write

QUESTION = "What number is shown?"
CPU = torch.device("cpu")
SHORT = 400  # tokens of the clips that are stored often


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.fixture
def film(original, tmp_path) -> Path:
    return Path(shutil.copy2(original, tmp_path / "film.mp4"))


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path, told) -> Cache:
    return Cache(tmp_path / "cache", tell=told.append)


@pytest.fixture
def encodings(monkeypatch) -> list[str]:
    """Return the list that every probe and every encode adds itself to."""
    calls: list[str] = []

    def noting(name):
        real = getattr(film_module, name)

        def call(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("probe", "encode"):
        monkeypatch.setattr(film_module, name, noting(name))
    return calls


def ask(film, model, cache, *settings, preset="full"):
    config = load_config(preset, ["media.fps=2", "generate.max_new_tokens=4", *settings])
    return pipeline.ask(film, [QUESTION], config, model, cache=cache)[0]


def content(answer):
    return {key: value for key, value in stable(answer).items() if key != "cached"}


def clip(n: int = 7, d: int = 6, *, dtype=torch.bfloat16, full: bool = True, seed: int = 0) -> Encoded:
    """Return an encoded clip of random tokens, with every optional field or with none."""
    torch.manual_seed(seed)
    tokens = MediaTokens(
        features=torch.randn(n, d).to(dtype),
        modality=torch.randint(0, 2, (n,)).to(torch.int8),
        start_s=torch.rand(n, dtype=torch.float64).sort().values,
        end_s=torch.rand(n, dtype=torch.float64),
        window=torch.arange(n),
        row=torch.arange(n, dtype=torch.int32),
        col=torch.arange(n, dtype=torch.int32) - 1,
        position_ids=torch.arange(n).expand(3, -1),  # shares memory, as a closed form may
        saliency=torch.rand(n) if full else None,
        keys=torch.randn(n, 5).to(dtype) if full else None,
        layer_features=torch.randn(3, n, d).to(dtype) if full else None,
    )
    used = MediaUsed(4.0, 3.96, 4.0, 4.01, 8, 2.0, 196, 112)
    return Encoded(
        EncodedClip(tokens, n + 3, n + 1, True, full), used, ("a.mp4: odd", "a.mp4: audio used 1.0 of 2.0 s")
    )


def media_info(path: Path, *, full: bool = True) -> MediaInfo:
    video = VideoStream(0, "h264", 196, 112, 90, 24.97, None, "yuv420p", 112, 196, 16 / 15)
    table = FrameTable(
        pts=np.arange(4) * 512,
        time_s=np.arange(4) / 25 + 1e-9,
        duration_s=np.full(4, 0.04),
        is_key=np.array([True, False, True, False]),
        packet=np.array([0, 2, 1, 3]),
        entry=np.array([0, 2]),
        packets=4,
        time_base=Fraction(1, 12_800),
        shifts=((0, 0), (2, int(np.int64(77)))),
        ordered=False,
    )
    return MediaInfo(
        path=path,
        container="mov,mp4",
        origin_s=-0.1,
        duration_s=1 / 3,
        video=video if full else None,
        audio=AudioStream(1, "aac", 44_100, 2, 3.5, "deu", ((0, 5),)),
        frames=table if full else None,
        audio_span=(0.0, 1 / 3),
        subtitles=(SubtitleStream(2, "subrip", None, True),) if full else (),
        problems=("odd",),
        status="damaged",
        stamp=(12, 34),
    )


def differences(a, b, path="value"):
    """Yield where two values differ, in type, number format, shape or content."""
    if type(a) is not type(b) and not (isinstance(a, Path) and isinstance(b, Path)):
        yield f"{path}: {type(a)} {type(b)}"
    elif dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            yield from differences(getattr(a, f.name), getattr(b, f.name), f"{path}.{f.name}")
    elif isinstance(a, tuple):
        if len(a) != len(b):
            yield f"{path}: {len(a)} {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{path}.{i}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        same = (torch.equal if isinstance(a, torch.Tensor) else np.array_equal)(a, b)
        if a.dtype != b.dtype or a.shape != b.shape or not same:
            yield path
    elif a != b:
        yield f"{path}: {a} {b}"


def written(path: Path, value, about=None) -> Path:
    with path.open("wb") as file:
        packed = tokenfile.pack(value, about or {})
        packed.write(file)
    assert path.stat().st_size == packed.size
    return path


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False], ids=["everything", "nothing optional"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n", [0, 1, 501])
def test_every_field_comes_back_as_it_was(tmp_path, dtype, full, n):
    value = (media_info(tmp_path / "ü.mp4", full=full), clip(n, dtype=dtype, full=full))
    path = written(tmp_path / "a.safetensors", value, {"film": "ü.mp4"})
    back = tokenfile.read(path, CPU)
    assert list(differences(value, back)) == []
    assert not list(differences(value[1].clip.tokens.position_ids, back[1].clip.tokens.position_ids))
    assert tokenfile.about(path) == {"film": "ü.mp4"}


def test_the_comparison_notices_what_differs(tmp_path):
    a, b = clip(), clip(seed=1)
    assert len(list(differences(a, b))) >= 5
    assert list(differences(a, clip(dtype=torch.float16)))
    assert list(differences(media_info(tmp_path), dataclasses.replace(media_info(tmp_path), stamp=None)))


def test_it_is_a_plain_safetensors_file_with_aligned_tensors(tmp_path):
    made = clip()
    path = written(tmp_path / "a.safetensors", made)
    tensors = load_file(path)
    assert torch.equal(tensors["value.clip.tokens.features"], made.clip.tokens.features)
    for name, tensor in tensors.items():
        assert tensor.data_ptr() % tensor.element_size() == 0, name


def test_what_has_no_place_in_a_file_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"value\.1"):
        tokenfile.pack((1, {"a": 1}), {})


def test_a_flipped_bit_anywhere_a_cut_and_an_addition_are_noticed(tmp_path):
    path = written(tmp_path / "a.safetensors", clip(60))
    good = path.read_bytes()
    tokenfile.check(path)
    rng = random.Random(0)
    head = 8 + int.from_bytes(good[:8], "little")
    places = {*range(40), *range(head - 20, head + 20), *range(len(good) - 20, len(good))}
    places |= {rng.randrange(len(good)) for _ in range(400)}
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(tokenfile.DamagedError):
            tokenfile.check(path)
    for bad in (b"", good[:3], good[:-1], good[: len(good) // 2], good + b"\0", b"\0" * len(good)):
        path.write_bytes(bad)
        with pytest.raises(tokenfile.DamagedError):
            tokenfile.check(path)


@pytest.mark.parametrize("bad", [b"", b"\xff" * 30, b"\x02" + b"\0" * 7 + b"{}", b"\x04" + b"\0" * 7 + b"null"])
def test_a_header_that_is_none(tmp_path, bad):
    (tmp_path / "a").write_bytes(bad)
    with pytest.raises(tokenfile.DamagedError):
        tokenfile.about(tmp_path / "a")


def test_writing_into_what_was_read_changes_no_file(tmp_path):
    value = (media_info(tmp_path / "a.mp4"), clip(300))
    path = written(tmp_path / "a.safetensors", value)
    before = path.read_bytes()
    info, media = tokenfile.read(path, CPU)
    with torch.inference_mode():
        media.clip.tokens.features.fill_(7)
        media.clip.tokens.start_s[3] = 9.0
    info.frames.pts[:] = 0
    assert path.read_bytes() == before
    assert list(differences(value, tokenfile.read(path, CPU))) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    size = 96 << 20
    path = written(tmp_path / "a.safetensors", clip(size // 4096, 1024, dtype=torch.float32, full=False))
    before = anonymous()
    media = tokenfile.read(path, CPU)
    assert float(media.clip.tokens.features.sum()) != 0
    assert anonymous() - before < size // 4


# --- what hits ------------------------------------------------------------------------------------------------------


def key(film, model, *, settings=None, capture=frozenset(), folder="/nowhere"):
    entry = Cache(Path(folder)).entry(film, settings or MediaConfig(), capture, model, StageClock())
    return entry.path.name


def test_a_film_keeps_its_tokens_under_another_name_and_in_another_place(film, model, tmp_path):
    first = key(film, model)
    assert key(probe(film), model) == first
    assert key(str(film), model) == first
    moved = film.rename(tmp_path / "other name.mp4")
    assert key(moved, model) == first
    (tmp_path / "deep").mkdir()
    assert key(moved.rename(tmp_path / "deep" / "film.MP4"), model) == first


def test_a_touched_or_changed_film_is_another_film(film, model, tmp_path):
    seen = {key(film, model)}
    facts = film.stat()
    good = film.read_bytes()

    def rewritten(data, *, suffix=".mp4", mtime=facts.st_mtime_ns):
        film.with_suffix(suffix).write_bytes(data)
        os.utime(film.with_suffix(suffix), ns=(mtime, mtime))
        return key(film.with_suffix(suffix), model)

    assert rewritten(good) in seen
    for changed in (
        rewritten(good, mtime=facts.st_mtime_ns + 1),
        rewritten(b"\1" + good[1:]),
        rewritten(good[: len(good) // 2] + b"\1\2\3" + good[len(good) // 2 + 3 :]),
        rewritten(good[:-1] + b"\1"),
        rewritten(good + b"\0"),
        rewritten(good, suffix=".mkv"),
    ):
        assert changed not in seen
        seen.add(changed)


def test_of_a_large_file_head_tail_and_places_between_are_looked_at(tmp_path):
    path = tmp_path / "large.mp4"
    data = bytearray(os.urandom(8 << 20))

    def known() -> str:
        path.write_bytes(data)
        return fingerprint.file(path, (len(data), 0))

    seen = {known()}
    for place in (0, len(data) - 1, (len(data) - (1 << 16)) * 7 // 15):
        data[place] ^= 1
        assert known() not in seen
        seen.add(known())
    assert len(seen) == 4


OTHER = {
    "fps": 0.5,
    "max_frames": 3,
    "sampling": "linspace",
    "min_pixels": 100,
    "max_pixels": 10_000,
    "total_pixels": 30_000,
    "start": 0.5,
    "end": 3.0,
    "audio": "off",
    "require_audio": True,
    "exact_mel": False,
    "audio_limit": 2.0,
    "clock": "nominal",
    "decoder": "cpu",
}


def test_every_media_setting_but_those_of_the_prompt_is_in_the_key(film, model):
    late = {"subtitles": "auto", "subtitle_tokens": 7, "time_scale": 0.5}
    assert {*OTHER, *late} == {f.name for f in dataclasses.fields(MediaConfig)}
    assert key(film, model, settings=MediaConfig(**late)) == key(film, model)
    keys = [key(film, model)] + [key(film, model, settings=MediaConfig(**{k: v})) for k, v in OTHER.items()]
    assert len(set(keys)) == len(keys)


def test_captures_number_format_code_and_versions_are_in_the_key(film, model, checkpoint, monkeypatch):
    keys = [key(film, model), *(key(film, model, capture=frozenset(c)) for c in (["keys"], ["keys", "saliency"]))]
    keys.append(key(film, load_model(checkpoint, "cpu", "bfloat16")))
    for owner, name, value in (
        (room, "CACHE_VERSION", room.CACHE_VERSION + 1),
        (room, "_CODE", "0"),
        (identity, "__version__", "99.0"),
        (model, "device", torch.device("cuda")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(key(film, model))
    assert len(set(keys)) == len(keys)
    assert key(film, model) == keys[0]


def test_the_code_of_the_encoders_is_what_the_key_holds(tmp_path):
    sources = {path.name for path in fingerprint.encoders()}
    assert {"encode.py", "types.py", "video.py", "probe.py", "qwen2_5_omni.py", "mel.py", "base.py"} <= sources
    file = tmp_path / "a.py"
    file.write_text("a = 1\n")
    before = fingerprint.source([file])
    file.write_text("a = 2\n")
    assert fingerprint.source([file]) != before != fingerprint.source([])


def test_a_checkpoint_is_known_by_its_content(film, model, checkpoint, tmp_path):
    other = tmp_path / "another name"
    shutil.copytree(checkpoint, other)
    assert key(film, load_model(other, "cpu", "float32")) == key(film, model)
    (other / "card.json").write_text("{}")
    assert key(film, load_model(other, "cpu", "float32")) == key(film, model)
    seen = {model.fingerprint}
    for name in ("config.json", "tokenizer.json"):
        (other / name).write_text((other / name).read_text() + "\n")
        assert fingerprint.checkpoint(other) not in seen
        seen.add(fingerprint.checkpoint(other))
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    stamp = (other / "model.safetensors").stat().st_mtime_ns
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    os.utime(other / "model.safetensors", ns=(stamp, stamp))
    assert fingerprint.checkpoint(other) not in seen


def test_random_weights_are_not_kept(film, cache):
    answer = ask(film, tiny.model(), cache)
    assert not answer.cached and not cache.folder.exists()


# --- through the pipeline -------------------------------------------------------------------------------------------


def test_the_second_look_neither_probes_nor_encodes_and_answers_the_same(film, model, cache, told, encodings):
    cold = ask(film, model, None)
    first = ask(film, model, cache)
    del encodings[:]
    second = ask(film, model, Cache(cache.folder, tell=told.append))
    assert encodings == [] and told == []
    assert (cold.cached, first.cached, second.cached) == (False, False, True)
    assert content(cold) == content(first) == content(second)
    assert second.stages["decode_video"] == second.stages["encode_video"] == 0 < second.stages["cache"]
    other = ask(film, model, cache, "method=random", "random.retention=0.5", "generate.seed=3")
    assert other.cached and encodings == []
    assert not ask(film, model, cache, "media.fps=1").cached


@pytest.mark.parametrize("preset", ["avoc-10", "visionzip-25", "seats-35"])
def test_captures_come_back_and_methods_choose_the_same(film, model, cache, preset):
    first, second = ask(film, model, cache, preset=preset), ask(film, model, cache, preset=preset)
    assert second.cached and content(first) == content(second)


def test_a_renamed_film_is_told_of_under_its_new_name(tmp_path, model, cache):
    silent = write(tmp_path / "silent.mp4", sound=False)
    ask(silent, model, cache)
    renamed = silent.rename(tmp_path / "renamed.mp4")
    answer, cold = ask(renamed, model, cache), ask(renamed, model, None)
    assert answer.cached and content(answer) == content(cold)
    assert any(line.startswith("renamed.mp4: no sound track") for line in answer.warnings)
    assert answer.media == str(renamed)


def test_what_probe_found_comes_back(film, model, cache):
    config = load_config("full")
    first, second = (load_film(film, config.media, frozenset(), model, cache=cache) for _ in range(2))
    assert second.cached and list(differences((first.info, first.media), (second.info, second.media))) == []


def test_a_film_that_changes_while_it_is_looked_at_is_not_kept(film, model, cache, monkeypatch):
    real = film_module.encode

    def encode(*args, **kwargs):
        os.utime(film)
        return real(*args, **kwargs)

    monkeypatch.setattr(film_module, "encode", encode)
    ask(film, model, cache)
    assert cache.items() == []
    monkeypatch.undo()
    info = probe(film)
    os.utime(film)  # between probing and looking
    ask(info, model, cache)
    assert cache.items() == []
    ask(probe(film), model, cache)
    assert len(cache.items()) == 1


def test_a_damaged_entry_is_told_of_and_made_anew(film, model, cache, told, encodings):
    first = ask(film, model, cache)
    (item,) = cache.items()
    good = item.path.read_bytes()
    for place in (3, 200, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 16
        item.path.write_bytes(bad)
        del told[:], encodings[:]
        answer = ask(film, model, cache)
        assert not answer.cached and content(answer) == content(first)
        assert encodings == ["probe", "encode"]
        assert len(told) == 1 and "damaged" in told[0] and item.path.name in told[0]
        tokenfile.check(item.path)
        assert ask(film, model, cache).cached


def test_a_film_that_is_not_there_is_probes_business(tmp_path, model, cache):
    with pytest.raises(MediaError, match="no such file"):
        ask(tmp_path / "none.mp4", model, cache)
    assert not cache.knows(tmp_path / "none.mp4")


def test_the_cache_knows_which_films_it_has_seen(film, original, model, cache):
    assert not cache.knows(film)
    ask(film, model, cache)
    assert cache.knows(film)
    film.write_bytes(film.read_bytes() + b"\0")
    assert not cache.knows(film)


# --- room -----------------------------------------------------------------------------------------------------------


def names(cache: Cache) -> list[str]:
    return [item.path.name[:1] for item in cache.items()]


def store(cache: Cache, digit: str, used_s: float | None = None) -> Path:
    path = cache.folder / f"{digit * 32}-{'0' * 32}.safetensors"
    cache.store(path, tokenfile.pack(clip(SHORT), {}))
    if used_s is not None:
        os.utime(path, (used_s, used_s))
    return path


def test_the_least_recently_used_goes_first(tmp_path):
    size = tokenfile.pack(clip(SHORT), {}).size
    cache = Cache(tmp_path / "cache", 3 * size + 10)
    for i, digit in enumerate("abc"):
        store(cache, digit, 1000.0 + i)
    assert names(cache) == ["a", "b", "c"]
    store(cache, "d", 1003.0)
    assert names(cache) == ["b", "c", "d"]
    os.utime(cache.folder / f"{'b' * 32}-{'0' * 32}.safetensors", (2000, 2000))
    store(cache, "e", 1004.0)
    assert names(cache) == ["d", "e", "b"]
    assert cache.size() <= cache.limit
    Cache(cache.folder, size).make_room(0)
    assert names(cache) == ["b"]


def test_a_read_counts_as_use(film, model, cache):
    ask(film, model, cache)
    (item,) = cache.items()
    os.utime(item.path, (1000, 1000))
    assert ask(film, model, cache).cached
    assert cache.items()[0].used_s > 1e9


def test_what_is_larger_than_the_whole_cache_is_not_kept_and_drives_nothing_out(film, model, tmp_path, told):
    folder = tmp_path / "cache"
    store(Cache(folder), "a")
    small = Cache(folder, Cache(folder).size() + 10, told.append)
    need = tokenfile.pack(load_film(film, MediaConfig(fps=2.0), frozenset(), model).media, {}).size
    assert need > small.limit
    assert not ask(film, model, small).cached
    assert names(small) == ["a"] and told == []
    assert not ask(film, model, Cache(tmp_path / "off", 0, told.append)).cached
    assert not (tmp_path / "off").exists() and told == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    folder = tmp_path / "cache"
    store(Cache(folder), "a")
    for name in ("model.safetensors", "notes.txt", ".hidden"):
        (folder / name).write_bytes(b"x" * 1000)
    Cache(folder, 1).make_room(0)
    Cache(folder, 1).sweep()
    assert sorted(p.name for p in folder.iterdir()) == [".hidden", "model.safetensors", "notes.txt"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_warning_and_the_answer_comes(film, model, cache, told, monkeypatch):
    def write(self, file):
        file.write(self.head)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cold = ask(film, model, None)
    with monkeypatch.context() as patch:
        patch.setattr(tokenfile.Packed, "write", write)
        answers = [ask(film, model, cache) for _ in range(2)]
    assert [content(a) for a in answers] == [content(cold)] * 2
    assert len(told) == 1 and "No space left" in told[0] and str(cache.folder) in told[0]
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to drop root's rights")
def test_a_folder_that_cannot_be_written_is_still_read(film, model, told):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be closed to others
        os.chmod(folder, 0o755)
        ask(film, model, Cache(Path(folder)), "media.fps=1")
        shutil.copy2(film, f"{folder}/film.mp4")
        os.chmod(f"{folder}/film.mp4", 0o644)
        for item in Cache(Path(folder)).items():
            os.chmod(item.path, 0o644)
        cache = Cache(Path(folder), tell=told.append)
        try:
            os.seteuid(65_534)
            kept = ask(Path(folder) / "film.mp4", model, cache, "media.fps=1")
            assert kept.cached and told == []
            anew = [ask(Path(folder) / "film.mp4", model, cache) for _ in range(2)]
        finally:
            os.seteuid(0)
    assert not any(a.cached for a in anew) and len(told) == 1 and "Permission denied" in told[0]


def test_a_place_that_can_be_no_folder_is_one_warning(film, model, tmp_path, told):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", tell=told.append)
    assert ask(film, model, cache).answer == ask(film, model, cache).answer == ask(film, model, None).answer
    assert len(told) == 1
    assert not cache.knows(film)


@pytest.fixture
def unsynced(monkeypatch) -> None:
    """Do not wait for the disk, which a killed process's files need not: they are in the system's memory."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def child(work) -> int:
    """Run ``work`` in a forked process and return its id; it exits with 0 or, if ``work`` raises, with 1."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


@pytest.mark.parametrize(
    "before", [pytest.param(False, id="empty", marks=pytest.mark.slow), pytest.param(True, id="replacing")]
)
@pytest.mark.slow
def test_a_kill_at_any_byte_leaves_the_right_entry_or_none(tmp_path, monkeypatch, unsynced, before):
    """The writer kills itself at a byte, or around fsync and rename; what was there stays until it is replaced."""
    cache = Cache(tmp_path / "cache")
    path = cache.folder / f"{'a' * 32}-{'0' * 32}.safetensors"
    old, new = clip(SHORT, seed=1), clip(SHORT, seed=2)
    packed = tokenfile.pack(new, {})
    rng = random.Random(before)
    places = [0, 1, packed.size - 1, packed.size, *(rng.randrange(packed.size) for _ in range(16))]
    seen = set()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def up_to(place):
        def write(self, file):
            whole = b"".join([self.head, *map(bytes, self._chunks())])
            file.write(whole[:place])
            file.flush()
            die()

        return write

    real = os.replace
    moments = [(tokenfile.Packed, "write", up_to(place)) for place in places]
    moments += [(os, "fsync", die), (os, "replace", die), (os, "replace", lambda *a: (real(*a), die()))]
    for owner, name, value in moments:
        shutil.rmtree(cache.folder, ignore_errors=True)
        if before:
            cache.store(path, tokenfile.pack(old, {}))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            pid = child(lambda: cache.store(path, packed))
            _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert len(parts(cache.folder)) <= 1
        if path.exists():
            back = tokenfile.read(path, CPU)
            which = [i for i, made in enumerate((old, new)) if not list(differences(made, back))]
            assert len(which) == 1
            seen.add(which[0])
        else:
            assert not before
            seen.add(None)
    assert seen == ({0, 1} if before else {None, 1})


@pytest.mark.slow
def test_a_kill_from_outside_at_any_moment(tmp_path, unsynced):
    cache = Cache(tmp_path / "cache", 40 * tokenfile.pack(clip(SHORT), {}).size)
    made = {digit: clip(SHORT, seed=i) for i, digit in enumerate("abcdef")}
    paths = {digit: cache.folder / f"{digit * 32}-{'0' * 32}.safetensors" for digit in made}

    begun = os.pipe()

    def fill():
        for turn, digit in enumerate(itertools.cycle(made)):
            cache.store(paths[digit], tokenfile.pack(made[digit], {}))
            if turn == 0:
                os.write(begun[1], b".")

    rng = random.Random(5)
    for _ in range(20):
        pid = child(fill)
        os.read(begun[0], 1)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for digit, path in paths.items():
            if path.exists():
                assert list(differences(made[digit], tokenfile.read(path, CPU))) == []
    assert paths["a"].exists()
    for part in parts(cache.folder):
        os.utime(part, (1000, 1000))
    store(cache, "9")
    assert parts(cache.folder) == []


def test_what_a_living_writer_is_at_work_on_is_not_swept(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    store(cache, "a")
    begun, go_on = os.pipe(), os.pipe()
    real = tokenfile.Packed.write

    def slow(self, file):
        file.write(b"")
        os.write(begun[1], b".")
        os.read(go_on[0], 1)
        real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(tokenfile.Packed, "write", slow)
        pid = child(lambda: store(cache, "b"))
    os.read(begun[0], 1)
    (part,) = parts(cache.folder)
    os.utime(part, (1000, 1000))
    cache.sweep()
    there = part.exists()
    os.write(go_on[1], b".")
    assert (there, os.waitpid(pid, 0)[1]) == (True, 0)
    assert names(cache) == ["a", "b"] or names(cache) == ["b", "a"]
    (cache.folder / ".young.part").write_bytes(b"x")
    cache.sweep()
    assert [p.name for p in parts(cache.folder)] == [".young.part"]


def test_two_writers_at_once_are_both_right(tmp_path, unsynced):
    size = tokenfile.pack(clip(SHORT), {}).size
    cache = Cache(tmp_path / "cache", 5 * size + 10)
    digits = "0123456789abcdef"

    def fill(seed):
        rng = random.Random(seed)
        for _ in range(25):
            digit = rng.choice(digits)
            path = cache.folder / f"{digit * 32}-{'0' * 32}.safetensors"
            made = clip(SHORT, seed=int(digit, 16))
            cache.store(path, tokenfile.pack(made, {}))
            try:
                back = tokenfile.read(path, CPU)
            except FileNotFoundError:
                continue  # the other one needed the room
            assert list(differences(made, back)) == []

    running = [child(lambda seed=seed: fill(seed)) for seed in (1, 2)]
    assert [os.waitpid(pid, 0)[1] for pid in running] == [0, 0]
    assert parts(cache.folder) == []
    assert 0 < cache.size() <= cache.limit
    for item in cache.items():
        assert list(differences(clip(SHORT, seed=int(item.path.name[0], 16)), tokenfile.read(item.path, CPU))) == []


def test_subtitles_do_not_matter(film, tmp_path, model):
    cache = Cache(tmp_path / "cache")
    plain, auto = (load_config("full", [f"media.subtitles={s}"]).media for s in ("off", "auto"))
    path = tmp_path / "copy.mp4"
    path.write_bytes(film.read_bytes())
    first = load_film(path, plain, frozenset(), model, cache=cache)
    path.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nout of the blue\n")
    second = load_film(path, auto, frozenset(), model, cache=cache)
    assert not first.cached and second.cached
    assert (first.preface, second.preface) == ("", "Subtitles:\n[00:00] out of the blue\n")
    path.with_suffix(".srt").unlink()
    third = load_film(path, auto, frozenset(), model, cache=cache)
    assert third.cached and third.preface == ""
    assert third.media.warnings == (*first.media.warnings, "copy.mp4: subtitles: none in the film, none beside it")
