"""Scaling as the models' image processors do it, and that the pipeline's frames are scaled so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omnicli.media import resize as resize_module
from omnicli.media.probe import probe
from omnicli.media.resize import resize
from omnicli.media.video import read_frames
from tests.support.stamped import rotate_mp4, write

SIZES = [
    ((120, 213), (56, 84)),
    ((120, 213), (112, 196)),
    ((50, 32), (140, 98)),
    ((37, 53), (84, 28)),
    ((30, 40), (30, 40)),
]


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    noise = rng.integers(0, 256, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None]
    return np.where(rng.random((height, width, 1)) < 0.5, noise, ramp).astype(np.uint8)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_pixels_are_pillows(old, new):
    frame = picture(*old)
    theirs = np.asarray(Image.fromarray(frame).resize(new[::-1], Image.Resampling.BICUBIC)).astype(int)
    ours = resize(frame, *new, "cpu")
    assert ours.shape == (*new, 3) and ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= 2 and (ours != theirs).mean() < 0.02


def test_a_stock_processor_makes_the_same_patches():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from omnicli.models import layout
    from omnicli.models.facts.base import CLIP_MEAN, CLIP_STD

    frame = picture(120, 213)
    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 12}
    stock = Qwen2VLImageProcessorPil(size=size)(images=frame, return_tensors="pt")
    _, rows, cols = stock["image_grid_thw"][0].tolist()
    ours = torch.from_numpy(resize(frame, rows * 14, cols * 14, "cpu"))[None]
    difference = (layout.patchify(ours, CLIP_MEAN, CLIP_STD) - stock["pixel_values"]).abs()
    assert difference.max() < 2.5 / 255 / min(CLIP_STD) and (difference > 1e-4).float().mean() < 0.02


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_what_a_graphics_card_computes_differs_by_rounding_only(old, new, monkeypatch):
    frame = picture(*old)
    plain = resize(frame, *new, "cpu").astype(int)
    monkeypatch.setattr(resize_module, "EIGHT_BITS", ())
    floats = resize(frame, *new, "cpu").astype(int)
    assert np.abs(floats - plain).max() <= 2 and (floats != plain).mean() < 0.02


def test_frames_of_a_film_are_scaled_so_and_turned_afterwards(tmp_path):
    path = rotate_mp4(write(tmp_path / "film.mp4", 6, sound=False, width=128, height=96), 90)
    info = probe(path)
    whole = list(read_frames(info, info.frames.time_s, 128, 96))  # as large as they are: nothing is scaled
    got = list(read_frames(info, info.frames.time_s, 56, 42, device="cpu"))
    assert [t for t, _ in got] == [t for t, _ in whole] and len(got) == 6
    for (_, small), (_, rgb) in zip(got, whole, strict=True):
        upright = np.ascontiguousarray(np.rot90(rgb, -info.video.rotation // 90))
        assert np.array_equal(small, np.rot90(resize(upright, 42, 56, "cpu"), info.video.rotation // 90))


def test_a_film_that_changes_its_size_keeps_the_size_of_its_frames(tmp_path):
    large = write(tmp_path / "a.h264", 5, sound=False, width=128, height=96, fps=25.0)
    small = write(tmp_path / "b.h264", 5, sound=False, fps=25.0)
    path = tmp_path / "both.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    info = probe(path)
    shapes = {rgb.shape for _, rgb in read_frames(info, info.frames.time_s, 28, 56, device="cpu")}
    assert shapes == {(28, 56, 3)}
