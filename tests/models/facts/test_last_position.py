"""Where a plan says that positions end, and where they do."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import tiny, tiny_minicpm, tiny_qwen3

FAMILIES = {"qwen2_5_omni": tiny, "qwen3_omni_moe": tiny_qwen3, "minicpm_o": tiny_minicpm}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("frames", "seconds"), [(12, None), (0, 7.3)])
def test_the_last_position_of_one_modality_is_exact(family, frames, seconds):
    model = FAMILIES[family].model()
    pictures = tiny.frames(frames, 4 * model.facts.pixel_unit, 4 * model.facts.pixel_unit) if frames else None
    times = np.arange(float(frames))
    clip = tiny.encode(model, pictures, times, tiny.sound(seconds) if seconds else None)
    text = model.prompt("", video=clip.video, audio=clip.audio).before.numel()
    last_s = float(times[:: model.frame_group][-1]) if frames else None
    tokens = len(clip.tokens)
    assert model.facts.last_position(text, last_s, 0 if frames else tokens, tokens) == clip.max_position
