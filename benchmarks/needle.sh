#!/bin/sh
# The needle test with the pocket model: what each method keeps of a number hidden anywhere in an hour.
#
#     sh benchmarks/needle.sh [OPTION of omni needle ...]
#
# Durations 100, 600, 1800, 3600 s x depths 0, 0.25, 0.5, 0.75, 1 x 5 needles x both modalities, in a generated film of an
# hour that shows and says no other number. Every token is read up to 600 s; avoc, avoc with identity projections and a
# random choice keep 10,240 tokens (of a clip of 100 s that is all of them), the others their share; avoc-10 and random-10
# keep a tenth. Hours without a GPU: what is answered is in the journal benchmarks/results/needle-pocket.jsonl, and a run
# goes on from it, also with more presets or durations; with --report it only tells what is there. Writes
# benchmarks/results/needle-pocket-DATE.json and docs/images/needle-pocket-DATE.png. matplotlib is needed: pip install 'omnicli[plots]'.
set -eu
cd "$(dirname "$0")/.."
out=benchmarks/results/needle-pocket-$(date +%F)
plot=docs/images/needle-pocket-$(date +%F).png
journal=${JOURNAL:-benchmarks/results/needle-pocket.jsonl}
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
    --preset avoc-10 \
    --preset avoc-10:avoc.scorer=identity \
    --preset random-10:random.tokens=10240 \
    --journal "$journal" --plot "$plot" --json "$@" >"$out.json.part"
mv "$out.json.part" "$out.json"
echo "$out.json"
