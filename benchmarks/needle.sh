#!/bin/sh
# The needle test with the pocket model: what each method keeps of a number hidden anywhere in an hour.
#
#     sh benchmarks/needle.sh [OPTION of omni needle ...]
#
# Durations 100, 600, 1800, 3600 s x depths 0, 0.25, 0.5, 0.75, 1 x 5 needles x both modalities, in a generated film of an
# hour that shows and says no other number. Every token is read up to 600 s; avoc and avoc with identity projections keep
# 10,240 tokens (of a clip of 100 s that is all of them), the others their share. Hours without a GPU; a run that was
# stopped goes on from the journal when started again, also with more presets or durations. Writes
# benchmarks/results/needle-pocket-DATE.json and .png; the journal stays in the temporary folder. matplotlib is needed:
# pip install 'omnicli[plots]'.
set -eu
cd "$(dirname "$0")/.."
out=benchmarks/results/needle-pocket-$(date +%F)
journal=${JOURNAL:-${TMPDIR:-/tmp}/omni-needle-pocket.jsonl}
"${PYTHON:-python}" -m omnicli.cli.main needle \
    --model pocket --grid coarse --needles 5 --modality both \
    --preset full --up-to full=600 \
    --preset avoc \
    --preset avoc:avoc.scorer=identity \
    --preset seats-10 \
    --preset omnizip-35 \
    --preset omac-30 \
    --preset divprune-om-10 \
    --preset random-10 \
    --journal "$journal" --plot "$out.png" --json "$@" >"$out.json.part"
mv "$out.json.part" "$out.json"
echo "$out.json"
