"""An answer as a run gives it, without a run."""

from __future__ import annotations

from omnicli.answer.answer import Answer
from omnicli.types import MediaUsed


def make_answer(answer="yes", wall=2.0, **stages):
    return Answer(
        id="x",
        media="film.mp4",
        question="why?",
        answer=answer,
        model={"name": "tiny", "revision": "local", "dtype": "float32", "device": "cpu"},
        preset="avoc",
        config={},
        media_used=MediaUsed(5.0, 4.0, 6.0, 6.0, 5, 1.0, 196, 112),
        tokens={
            "video": {"encoded": 100, "kept": 10},
            "audio": {"encoded": 50, "kept": 20},
            "text": 9,
            "generated": 2,
            "by_layer": [[0, 30]],
            "retention": 0.2,
        },
        positions={"largest": 163, "trained": 131072, "time_scale": 1.0},
        stages={"decode_video": 1.0, "prefill": 0.5, "generate": 0.25, "other": 0.25, "compress": 0.0, **stages},
        busy={},
        wall_s=wall,
        time_to_first_token_s=1.5,
        peak_memory={"host_bytes": 2**30, "device_bytes": None},
        flops={"prefill": None, "full_prefill": None, "compress": None},
        warnings=("sound ends at 4 s",),
    )
