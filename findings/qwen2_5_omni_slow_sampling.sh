#!/bin/sh
# transformers 5.23.0, Qwen2.5-Omni's processor: frames that are further apart than one chunk are torn into pieces.
#
# With use_audio_in_video=True the processor cuts the picture tokens into chunks of seconds_per_chunk (2 s: 50 positions
# at 25 a second) and puts the sound of each chunk behind its pictures. get_chunked_index says of itself that chunk n
# holds the tokens whose values fall into the n-th range. It counts its chunks up by one at every border it meets,
# however far the values have jumped, so that after a jump of several ranges every following token starts a chunk of its
# own until the count has caught up. A video of one frame every 2 s has a pair every 4 s, 100 positions apart: valid
# input, and what 320 frames of an hour come to. One grid's tokens then lie in several chunks, with sound between them.
#
# Input: the temporal positions of 4 frame pairs of 6 tokens each, at 2, 1 and 0.5 frames a second.
# Expected: each pair's 6 tokens in one chunk. Found: so at 2 and 1 frames a second; at 0.5 every pair but the first is
# cut in two: one token alone, then five. Exits with 1 if that changes. Needs no torch and no weights.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import transformers
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

PAIRS, TOKENS, PER_SECOND, CHUNK_S = 4, 6, 25, 2.0


def chunks(fps: float) -> list[tuple[int, int]]:
    times = np.arange(PAIRS) * 2 / fps  # seconds at which the pairs begin
    positions = np.repeat(np.floor(times * PER_SECOND), TOKENS)
    return Qwen2_5OmniProcessor.get_chunked_index(None, positions, int(PER_SECOND * CHUNK_S))


def torn(found: list[tuple[int, int]]) -> list[int]:
    """Pairs that have a chunk's border inside them."""
    return sorted({begin // TOKENS for begin, _ in found if begin % TOKENS})


print("transformers", transformers.__version__)
for fps, expected in ((2.0, []), (1.0, []), (0.5, [1, 2, 3])):
    found = chunks(fps)
    print(f"{fps:g} frames a second: chunks {found}; torn pairs: expected [], found {torn(found)}")
    if torn(found) != expected:
        sys.exit("no longer so")
print("as described")
EOF
