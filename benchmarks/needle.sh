#!/bin/sh
# The needle test with the pocket model at equal budgets: what each method keeps of a number hidden anywhere in a film.
#
#     sh benchmarks/needle.sh short|hour [OPTION of omni needle ...]
#
# short: 600 s, every method keeps a tenth of the tokens, averaged over the layers. hour: 3600 s, 10,240 tokens, for the
# methods that could be the default. Depths 0, 0.25, 0.5, 0.75, 1 x 5 needles x both senses, in a generated film that
# shows and says no other number. Hours without a GPU: what is answered is in the journal
# benchmarks/results/needle-equal.jsonl, and a run goes on from it, also with more presets; with --report it only tells
# what is there. Writes benchmarks/results/needle-equal-short|hour-DATE.json and docs/images/ of the same name. matplotlib
# is needed: pip install 'omnicli[plots]'.
set -eu
cd "$(dirname "$0")/.."
what=${1:?short or hour}
shift
out=benchmarks/results/needle-equal-$what-$(date +%F)
plot=docs/images/needle-equal-$what-$(date +%F).png
journal=${JOURNAL:-benchmarks/results/needle-equal.jsonl}
case $what in
short)
    set -- --durations 600 \
        --preset avoc-10 \
        --preset avoc-10:avoc.scorer=backbone \
        --preset avoc-10:avoc.scorer=identity \
        --preset seats-10 \
        --preset divprune-om-10 \
        --preset visionzip-om-10 \
        --preset omniscope-10 \
        --preset dash-10 \
        --preset omnizip-35:omnizip.retention=0.1 \
        --preset omac-30:omac.retention=0.1 \
        --preset omnisift-36:omnisift.retention=0.1 \
        --preset cdpruner-10 \
        --preset vidcom2-10 \
        --preset evs-10 \
        --preset random-10 \
        --preset random-10:random.split=proportional \
        "$@"
    ;;
hour)
    set -- --durations 3600 \
        --preset avoc \
        --preset avoc:avoc.scorer=backbone \
        --preset avoc:avoc.scorer=identity \
        --preset seats-10:seats.tokens=10240 \
        --preset divprune-om-10:divprune-om.tokens=10240 \
        --preset omniscope-10:omniscope.tokens=10240 \
        --preset dash-10:dash.tokens=10240 \
        --preset omnizip-35:omnizip.tokens=10240 \
        --preset omac-30:omac.tokens=10240 \
        --preset random-10:random.tokens=10240 \
        "$@"
    ;;
*)
    echo "short or hour, not $what" >&2
    exit 2
    ;;
esac
"${PYTHON:-python}" -m omnicli.cli.main needle \
    --model pocket --grid coarse --needles 5 --modality both --journal "$journal" --plot "$plot" --json "$@" >"$out.json.part"
mv "$out.json.part" "$out.json"
echo "$out.json"
