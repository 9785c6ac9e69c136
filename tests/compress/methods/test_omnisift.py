from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omnicli.compress.budget import spread
from omnicli.compress.methods.omnisift import SELECTOR_FILE, OmniSIFT
from omnicli.compress.selector import Selector, load_selector
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.testing.methods import MethodTrial
from omnicli.types import MediaTokens, Modality, Selection

CLIPS = MethodTrial(OmniSIFT).clips

MODES = ("clean", "official")


def timed(tokens: MediaTokens, per_second: float = 25) -> MediaTokens:
    """The clip with time positions as models give them."""
    positions = tokens.position_ids.clone()
    positions[0] = (tokens.start_s * per_second).floor().long()
    return dataclasses.replace(tokens, position_ids=positions)


def film(seed: int = 0, pictures: int = 2, blocks: int = 7) -> MediaTokens:
    """Frames and windows of different sizes; one window without pictures, one without sound, sound before and after."""
    tokens = timed(clip(blocks, pictures, audio=6, seed=seed))
    g = torch.Generator().manual_seed(50 + seed)
    keep = (torch.rand(len(tokens), generator=g) < 0.9) | (tokens.window % 2 == 0)
    for window, modality in ((0, 0), (2, 0), (3, 1), (blocks - 1, 0)):
        keep &= (tokens.window != window) | (tokens.modality != modality)
    return tokens.select(Selection(torch.nonzero(keep).flatten()))


class Network(nn.Module):
    """The paper's selector from torch's own layers."""

    def __init__(self, width: int = 16, hidden: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.video_proj, self.audio_proj = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.video_norm, self.audio_norm, self.norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.cross_attn = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden, 7), nn.SiLU(), nn.Linear(7, 1))

    def forward(self, video, audio):
        v, a = self.video_norm(self.video_proj(video)), self.audio_norm(self.audio_proj(audio))
        found = self.cross_attn(a[None], v[None], v[None], need_weights=False)[0][0]
        return torch.sigmoid(self.mlp(self.norm(found + a)))[:, 0]


def network(**sizes: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = Network(**sizes).eval()
        for p in made.parameters():
            nn.init.normal_(p, std=0.5)
    return made


def saved(folder, made: Network, prefix: str = "thinker.compressor.", heads: int | None = 3, **more) -> str:
    tensors = {prefix + k: v.detach().clone() for k, v in made.state_dict().items()}
    save_file(tensors | more, folder / "mine.safetensors", None if heads is None else {"heads": str(heads)})
    return str(folder / "mine.safetensors")


def cosine(a, b) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def literal(tokens: MediaTokens, method: OmniSIFT, judge) -> list[int]:
    """Return the kept rows; one chunk, one frame, one token at a time."""
    x = tokens.features.double()
    clock = tokens.start_s.tolist() if method.mode == "clean" else tokens.position_ids[0].tolist()
    rows = {m: tokens.indices(m).tolist() for m in Modality}
    times = sorted({clock[i] for i in rows[Modality.VIDEO]})
    frames = {t: [i for i in rows[Modality.VIDEO] if clock[i] == t] for t in times}
    if method.mode == "clean":
        plan = method.plan(tokens)
        quota = dict(
            zip(times, spread(plan.video, torch.tensor([len(f) for f in frames.values()])).tolist(), strict=True)
        )
        ids = sorted(set(tokens.window.tolist()))
        windows = {w: [t for t in times if int(tokens.window[frames[t][0]]) == w] for w in ids}
        sound = {w: [i for i in rows[Modality.AUDIO] if int(tokens.window[i]) == w] for w in ids}
        sound = {w: s for w, s in sound.items() if s}
        heard = dict(
            zip(sound, spread(plan.audio, torch.tensor([len(s) for s in sound.values()])).tolist(), strict=True)
        )
        chunks = [(windows[w], sound.get(w, []), heard.get(w, 0)) for w in ids]
        kept = []
    else:
        video, audio = (1 - r for r in method.ratios(tokens))
        quota = {t: len(f) - int(len(f) * video + 1e-9) for t, f in frames.items()}
        pairs = [times[i : i + 2] for i in range(0, len(times), 2)]
        for first, second in (pair for pair in pairs if len(pair) == 2):
            if len(frames[first]) != len(frames[second]):
                quota[second] = len(frames[second])
        chunks, kept = [], [i for i in rows[Modality.AUDIO] if not times or clock[i] < times[0]]
        for n, pair in enumerate(pairs):
            end = pairs[n + 1][0] if n + 1 < len(pairs) else float("inf")
            own = [i for i in rows[Modality.AUDIO] if pair[0] <= clock[i] < end]
            chunks.append((pair, own, len(own) - int(len(own) * audio + 1e-9)))
    for own_times, own_sound, k in chunks:
        seen = []
        for n, t in enumerate(own_times):
            frame = frames[t]
            before = frames[own_times[n - 1]] if n else []
            if len(before) == len(frame):
                same = {i: cosine(x[i], x[j]) for i, j in zip(frame, before, strict=True)}
            else:
                same = {i: cosine(x[i], x[frame].mean(0)) for i in frame}
            seen += sorted(frame, key=lambda i: (same[i], i))[: quota[t]]
        kept += seen
        if not seen:
            n = len(own_sound)
            places = (
                range(n)
                if method.mode == "official"
                else [i for i in range(n) if ((i + 1) * k + n // 2) // n > (i * k + n // 2) // n]
            )
            kept += [own_sound[i] for i in places]
        elif method.mode == "official" and len(own_sound) < 2:
            kept += own_sound
        elif own_sound:
            score = dict(zip(own_sound, judge(tokens.features[seen], tokens.features[own_sound]).tolist(), strict=True))
            kept += sorted(own_sound, key=lambda i: (-score[i], i))[:k]
    return sorted(kept)


def nearest_picture(video, audio):
    return torch.tensor([max(cosine(a, v) for v in video) for a in audio])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def test_equals_a_loop_over_chunks_and_tokens(mode, trained, tmp_path):
    made = network()
    selector = saved(tmp_path, made) if trained else "untrained"
    judge = (lambda v, a: made(v, a).detach()) if trained else nearest_picture
    for seed, pictures, retention in ((0, 2, 0.4), (1, 3, 0.25), (2, 1, 0.6)):
        tokens = film(seed, pictures)
        method = OmniSIFT.with_retention(retention, mode=mode, selector=selector)
        selection = method.compress(tokens, query())
        assert selection.indices.tolist() == literal(tokens, method, judge)
        assert selection.report["selector"] == ("mine.safetensors" if trained else "untrained")
        assert [("no selector trained" in note) for note in selection.notes] == ([] if trained else [True])
        if mode == "clean":
            assert selection.report["budget"] == method.plan(tokens).to_dict()


@pytest.mark.parametrize("mode", MODES)
def test_small_batches_change_nothing(mode, monkeypatch, tmp_path):
    tokens, method = film(4, blocks=12), OmniSIFT.with_retention(0.4, mode=mode, selector=saved(tmp_path, network()))
    whole = method.compress(tokens, query()).indices
    monkeypatch.setattr("omnicli.compress.methods.omnisift.MEMORY", 400)
    monkeypatch.setattr("omnicli.compress.methods.omnisift.PIECE", 3)
    assert torch.equal(method.compress(tokens, query()).indices, whole)


def test_official_counts_of_the_released_defaults():
    tokens = timed(clip(blocks=3, frames=2, audio=50, width=4, rows=9, cols=16))
    kept = tokens.select(OmniSIFT(mode="official", retention_video=0.3, retention_audio=0.7).compress(tokens, query(4)))
    pictures = kept.modality == 0
    assert torch.unique(kept.start_s[pictures], return_counts=True)[1].tolist() == [44] * 6
    assert torch.bincount(kept.window[~pictures]).tolist() == [35] * 3
    assert len(kept) / len(tokens) == pytest.approx(0.364, abs=5e-4)


def test_an_official_second_frame_of_another_size_stays_whole():
    tokens = timed(clip(blocks=3, frames=2, audio=0, rows=3, cols=4))
    cut = ~((tokens.window == 1) & (tokens.start_s == 3.0) & (tokens.row == 2))  # the second frame of the second chunk
    tokens = tokens.select(Selection(torch.nonzero(cut).flatten()))
    method = OmniSIFT(mode="official", retention_video=0.5, retention_audio=0.5)
    kept = tokens.select(method.compress(tokens, query()))
    assert torch.unique(kept.start_s, return_counts=True)[1].tolist() == [6, 6, 6, 8, 6, 6]


def test_all_trailing_sound_belongs_to_the_last_official_chunk():
    tokens = timed(clip(blocks=6, frames=2, audio=10))
    cut = (tokens.modality == 1) | (tokens.window < 2)
    tokens = tokens.select(Selection(torch.nonzero(cut).flatten()))
    method = OmniSIFT(mode="official", retention_video=0.5, retention_audio=0.5)
    kept = tokens.select(method.compress(tokens, query()))
    sounds = kept.window[kept.modality == 1]
    assert int((sounds == 0).sum()) == 5 and int((sounds > 0).sum()) == 25
    assert torch.bincount(sounds[sounds > 0])[1:].tolist() != [5] * 5  # ranked together
    clean = tokens.select(dataclasses.replace(method, mode="clean").compress(tokens, query()))
    assert torch.bincount(clean.window[clean.modality == 1]).tolist() == [5] * 6


@pytest.mark.parametrize(("sounds", "left"), [(1, 6), (2, 0)])
def test_official_sound_alone_in_its_chunk_stays(sounds, left):
    tokens = timed(clip(blocks=6, frames=2, audio=sounds))
    method = OmniSIFT(mode="official", retention_video=0.5, retention_audio=0.0)
    assert tokens.select(method.compress(tokens, query())).count(Modality.AUDIO) == left


@pytest.mark.parametrize("kind", list(CLIPS))
@pytest.mark.parametrize("mode", MODES)
def test_every_clip_works_in_both_modes(mode, kind):
    for tokens in (CLIPS[kind], timed(CLIPS[kind])):
        method = OmniSIFT.with_retention(0.3, mode=mode)
        selection = method.compress(tokens, query())
        kept = tokens.select(selection)
        assert len(kept) >= 1 and bool((selection.indices[1:] > selection.indices[:-1]).all())
        assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        assert selection.features is None
        assert torch.equal(method.compress(tokens, query()).indices, selection.indices)
        assert OmniSIFT.with_retention(1.0, mode=mode).compress(tokens, query()).indices.numel() == len(tokens)
    if kind == "audio only" and mode == "official":
        assert len(kept) == len(tokens)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 7.7])
def test_black_frames_keep_their_first_tokens(mode, value):
    tokens = timed(clip(blocks=4, frames=2, audio=4))
    flat = dataclasses.replace(tokens, features=torch.full_like(tokens.features, value))
    selection = OmniSIFT(mode=mode, retention_video=0.5, retention_audio=0.5).compress(flat, query())
    kept = flat.select(selection)
    for window in range(4):
        own = kept.window == window
        cells = (kept.row * 4 + kept.col)[own & (kept.modality == 0)].tolist()
        assert cells == [*range(6), *range(6)]
        assert (kept.start_s[own & (kept.modality == 1)] - 2 * window).tolist() == [0.0, 0.5]


def test_bf16_is_scored_in_fp32(tmp_path):
    tokens = timed(clip(dtype=torch.bfloat16, frames=2))
    wide = dataclasses.replace(tokens, features=tokens.features.float())
    method = OmniSIFT.with_retention(0.4, selector=saved(tmp_path, network()))
    assert torch.equal(method.compress(tokens, query()).indices, method.compress(wide, query()).indices)


def test_heads_follow_from_the_width_where_the_file_does_not_say(tmp_path):
    made = network(hidden=128, heads=2)
    path = saved(tmp_path, made, heads=None)
    loaded = load_selector(tmp_path / "mine.safetensors")
    assert path.endswith("mine.safetensors") and loaded.heads == 2 and loaded.width == 16
    g = torch.Generator().manual_seed(1)
    video, audio = torch.randn(1, 9, 16, generator=g), torch.randn(1, 5, 16, generator=g)
    padding = torch.arange(9)[None] >= 6
    with torch.no_grad():
        expected = made(video[0, :6], audio[0])
        torch.testing.assert_close(torch.sigmoid(loaded(video, audio, padding))[0], expected, rtol=1e-5, atol=1e-5)


def test_tensors_are_told_apart_under_other_names_and_among_others(tmp_path):
    state = network().state_dict()
    expected = Selector.from_dict(state, 3)
    renamed = {}
    for name, tensor in state.items():
        new = name.replace("video_proj", "v_in.0").replace("audio_proj", "a_in.0").replace("video_norm", "norm_visual")
        new = new.replace("audio_norm", "a_in.1").replace("mlp", "audio_scorer").replace("cross_attn", "layers.0.attn")
        renamed[f"thinker.compressor.{new}"] = tensor.clone()
    renamed["thinker.model.norm.weight"] = torch.ones(16)
    save_file(renamed, tmp_path / "shard.safetensors", {"heads": "3"})
    got = load_selector(tmp_path / "shard.safetensors")
    for field in dataclasses.fields(Selector):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        assert a == b if field.name == "heads" else all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_size_is_that_of_the_paper():
    with torch.device("meta"):
        made = Selector.from_dict(network_of_the_paper().state_dict())
    pairs = [getattr(made, f.name) for f in dataclasses.fields(made) if f.name != "heads"]
    assert made.heads == 8 and sum(t.numel() for pair in pairs for t in pair) == 4_856_321


def network_of_the_paper() -> nn.Module:
    made = Network(3584, 512, 8)
    made.mlp = nn.Sequential(nn.Linear(512, 256), nn.SiLU(), nn.Linear(256, 1))
    return made


def test_auto_takes_the_selector_beside_the_model(tmp_path):
    assert OmniSIFT().bind(tmp_path).selector == "untrained"
    assert OmniSIFT.with_retention(0.3).compress(clip(), query()).report["selector"] == "untrained"
    saved(tmp_path, network())
    (tmp_path / "mine.safetensors").rename(tmp_path / SELECTOR_FILE)
    bound = OmniSIFT.with_retention(0.3).bind(tmp_path)
    assert bound.compress(clip(), query()).report["selector"] == SELECTOR_FILE
    assert OmniSIFT(selector="untrained").bind(tmp_path).selector == "untrained"


def test_selector_of_another_width_is_a_config_error(tmp_path):
    method = OmniSIFT.with_retention(0.3, selector=saved(tmp_path, network()))
    with pytest.raises(ConfigError, match=r"width 16, not 8"):
        method.compress(clip(width=8), query(8))


def test_wrong_and_broken_selector_files_are_config_errors(tmp_path):
    state, bad = network().state_dict(), tmp_path / "bad.safetensors"
    for changes in (
        {"norm.bias": None},
        {"norm.weight": None},
        {"cross_attn.in_proj_weight": None},
        {"mlp.2.weight": torch.zeros(2, 7)},
        {"audio_proj.weight": torch.zeros(12, 5)},
        {"video_norm.bias": torch.zeros(3)},
        {"other.weight": torch.zeros(12)},
    ):
        tensors = {k: v for k, v in (state | changes).items() if v is not None}
        save_file({k: v.clone() for k, v in tensors.items()}, bad, {"heads": "3"})
        with pytest.raises(ConfigError, match=r"bad\.safetensors: is no OmniSIFT selector"):
            load_selector(bad)
    for heads in ("5", "many", "0"):
        save_file({k: v.clone() for k, v in state.items()}, bad, {"heads": heads})
        with pytest.raises(ConfigError, match="is no OmniSIFT selector"):
            load_selector(bad)
    bad.write_bytes(b"not tensors at all")
    with pytest.raises(ConfigError, match="is no OmniSIFT selector"):
        load_selector(bad)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_selector(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", [2, 14], ids=["picture", "sound"])
def test_broken_embeddings_are_an_error_not_an_answer(mode, row):
    tokens = timed(clip())
    tokens.features[row, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        OmniSIFT.with_retention(0.3, mode=mode).compress(tokens, query())


def test_impossible_settings_are_config_errors():
    with pytest.raises(ConfigError, match=r"^selector: nowhere"):
        OmniSIFT(selector="nowhere")
