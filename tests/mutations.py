"""Small breakages, one at a time: each must make a test fail. ``python tests/mutations.py`` tells which do not.

The package is copied into temporary folders and broken there; the working tree stays as it is. A breakage names the
test files that should find it: running the whole suite once for each would take days. Exit code 1 if any survives, or
if an entry does not fit the code.

    python tests/mutations.py               all of them, two at a time
    python tests/mutations.py avoc kv       those whose file, text or tests hold one of these words
    python tests/mutations.py --list        only name them
    python tests/mutations.py --skip 100    go on behind the first hundred
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("omnicli", "presets", "tests", "docs", "benchmarks", "README.md", "pyproject.toml", "Makefile", "mkdocs.yml")
LIMIT_S = 900
FAILED = 1
"""pytest's exit code where tests failed; others mean that something else went wrong."""


class Mutation(NamedTuple):
    """``old`` stands once in ``file`` and becomes ``new``; the test files ``tests`` must find it."""

    file: str
    old: str
    new: str
    tests: str

    @property
    def name(self) -> str:
        """Where it is, and what becomes of what."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old:.70} -> {new:.70}"


def copy(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)


def broken(mutation: Mutation, folder: Path) -> str:
    """Break a copy, run the tests, mend it; return an empty string if a test failed, else what is wrong."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutation.old)) != 1:
        return f"stands {count} times in the code, not once"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "",
        *mutation.tests.split(),
    ]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the tests do not end within {LIMIT_S} s"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == FAILED:
        return ""
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    return "SURVIVES" if done.returncode == 0 else f"pytest ends with {done.returncode}: {' '.join(last)}"


def main(arguments: list[str]) -> int:
    """Run the chosen breakages and report each; return 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out so many of the first, which an earlier run told of"
    )
    args = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if not args.words or any(word in " ".join(m) for word in args.words)]
    chosen = chosen[args.skip :]
    if args.list:
        print("\n".join(m.name for m in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations") as top, ThreadPoolExecutor(args.jobs) as pool:
        free: Queue[Path] = Queue()
        for number in range(args.jobs):
            folder = Path(top) / str(number)
            folder.mkdir()
            copy(folder)
            free.put(folder)

        def one(mutation: Mutation) -> str:
            folder = free.get()
            try:
                return broken(mutation, folder)
            finally:
                free.put(folder)

        wrong = 0
        for mutation, problem in zip(chosen, pool.map(one, chosen), strict=True):
            wrong += bool(problem)
            print(f"{problem or 'found':10} {mutation.name}", flush=True)
    print(f"{len(chosen)} breakages, {len(chosen) - wrong} found by the tests, {wrong} not")
    return 1 if wrong else 0


MUTATIONS = [
    Mutation(
        "omnicli/models/parts.py",
        "times = tokens.position_ids - (tokens.position_ids[0].min() - begin)",
        "times = tokens.position_ids + 0",
        "tests/llm/test_stretches.py",
    ),
    Mutation("omnicli/llm/stretches.py", "first=held,", "first=0,", "tests/llm/test_stretches.py"),
    Mutation(
        "omnicli/llm/stretches.py",
        "extra=extra_features(part.tokens),",
        "extra=None,",
        "tests/llm/test_stretches.py",
    ),
    Mutation(
        "omnicli/compress/methods/avoc.py",
        "score += zscore(attention, tokens.modality == kind)",
        "score += attention * (tokens.modality == kind)",
        "tests/compress/methods/test_avoc.py",
    ),
    Mutation(
        "omnicli/compress/groups.py",
        "pieces = -(-size // most)",
        "pieces = size // most + 1",
        "tests/llm/test_stretches.py",
    ),
    Mutation(
        "omnicli/compress/budget.py",
        "shares[i] - exact[i], i))",
        "exact[i] - shares[i], i))",
        "tests/compress/test_budget.py",
    ),
    Mutation(
        "omnicli/compress/budget.py",
        "math.floor(retention * n + 0.5)",
        "math.floor(retention * n)",
        "tests/compress/test_contract.py",
    ),
    Mutation(
        "omnicli/compress/budget.py",
        "video, audio = n_video, k - n_video",
        "video, audio = n_video, audio",
        "tests/compress/test_budget.py",
    ),
    Mutation(
        "omnicli/compress/budget.py",
        "base = size.clamp(max=1)",
        "base = torch.zeros_like(size)",
        "tests/compress/test_budget.py",
    ),
    Mutation(
        "omnicli/compress/groups.py",
        "tokens.window[rows])",
        "tokens.window[rows] // 2)",
        "tests/compress/methods/test_seats.py",
    ),
    Mutation(
        "omnicli/compress/groups.py",
        "for cell in (tokens.row, tokens.col):",
        "for cell in (tokens.row,):",
        "tests/compress/methods/test_dycoke.py",
    ),
    Mutation(
        "omnicli/compress/groups.py",
        "scores.argsort(descending=True, stable=True)[:k].sort()",
        "scores.flip(0).argsort(descending=True, stable=True)[:k].neg().add(scores.numel() - 1).sort()",
        "tests/testing/test_methods.py",
    ),
    Mutation(
        "omnicli/compress/ops.py",
        "centred.square().sum() / count",
        "centred.square().sum() / (count - 1)",
        "tests/compress/methods/test_avoc.py",
    ),
    Mutation(
        "omnicli/compress/max_min.py",
        "out.mul_(scale[:, :, None] * scale[:, None, :])",
        "out.mul_(scale[:, :, None]).mul_(scale[:, None, :])",
        "tests/compress/methods/test_divprune.py",
    ),
    Mutation(
        "omnicli/compress/max_min.py",
        "torch.threshold_(out, SAME, 0.0)",
        "torch.threshold_(out, -1.0, 0.0)",
        "tests/compress/methods/test_divprune.py",
    ),
    Mutation(
        "omnicli/compress/published.py",
        "floor: ClassVar[float] = 0.05",
        "floor: ClassVar[float] = 0.06",
        "tests/compress/methods/test_divprune.py",
    ),
    Mutation(
        "omnicli/compress/schedule.py",
        "(2 * part * depth + _GRID) // (2 * _GRID)",
        "part * depth // _GRID",
        "tests/compress/test_schedule.py",
    ),
    Mutation(
        "omnicli/compress/chain.py",
        "encoded=None",
        "encoded=view.entered",
        "tests/compress/test_presets.py",
    ),
    Mutation(
        "omnicli/compress/top_score.py",
        "standings(score, tokens.modality)",
        "(1.0, 1.0)",
        "tests/testing/test_methods.py",
    ),
    Mutation(
        "omnicli/compress/ops.py",
        "float(best.mean()) / deviation - NOISE",
        "float(best.mean()) / deviation",
        "tests/compress/test_adaptive.py",
    ),
    Mutation(
        "omnicli/compress/budget.py",
        "video * n_video, audio * n_audio",
        "video, audio",
        "tests/compress/test_retention.py",
    ),
    Mutation(
        "omnicli/compress/base.py",
        "getattr(method, field.name) != field.default",
        "getattr(method, field.name) == ()",
        "tests/compress/test_settings_act.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "clamp_min(0).cummax(0).values",
        "clamp_min(0)",
        "tests/models/test_blocks.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "following - group > 2 * typical",
        "following - group > 20 * typical",
        "tests/models/test_blocks.py",
    ),
    Mutation(
        "omnicli/compress/top_score.py",
        ("    own = tokens.indices(kind)\n            kept.append(own[best(score[own], getattr(budget, name))])"),
        ("    own = tokens.indices(kind)\n            kept.append(own[best(-score[own], getattr(budget, name))])"),
        "tests/testing/test_methods.py",
    ),
    Mutation(
        "omnicli/compress/methods/avoc.py",
        "other = group ^ 1",
        "other = group",
        "tests/compress/methods/test_avoc.py",
    ),
    Mutation(
        "omnicli/compress/methods/avoc.py",
        "score = (score + zscore(to_other, both)) / (1 + parts[0])",
        "score = score + zscore(to_other, both)",
        "tests/compress/methods/test_avoc.py",
    ),
    Mutation(
        "omnicli/compress/tammr.py",
        "blocks + radius, right=True",
        "blocks + radius, right=False",
        "tests/compress/test_tammr.py",
    ),
    Mutation(
        "omnicli/compress/streaming.py",
        "SLACK = 1.5",
        "SLACK = 1.0",
        "tests/compress/methods/test_avoc_stream.py",
    ),
    Mutation(
        "omnicli/compress/methods/divprune.py",
        "spread(plan.audio, audio_groups.sizes)",
        "spread(plan.audio - 1, audio_groups.sizes)",
        "tests/compress/test_contract.py",
    ),
    Mutation(
        "omnicli/compress/methods/evs.py",
        "pruned = 1 - share\n    return min(n, max(first, int(n * (1 - pruned))))",
        "return min(n, max(first, int(n * share)))",
        "tests/compress/methods/test_evs.py",
    ),
    Mutation(
        "omnicli/compress/methods/evs.py",
        "new.numel() > k:",
        "new.numel() > k + 64:",
        "tests/compress/methods/test_evs.py",
    ),
    Mutation(
        "omnicli/compress/methods/vidcom2.py",
        "near[places] = to_all + nearness(x, means[groups, None])",
        "near[places] = to_all",
        "tests/compress/methods/test_vidcom2.py",
    ),
    Mutation(
        "omnicli/compress/outliers.py",
        "square.argsort(stable=True)[:k]",
        "square.argsort(stable=True, descending=True)[:k]",
        "tests/compress/methods/test_vidcom2.py",
    ),
    Mutation(
        "omnicli/compress/methods/omniscope.py",
        "factor = torch.where(near, factor.clamp_min(1 + 0.5 * 0.5**away), factor)",
        "factor = torch.where(near, 1 + 0.5 * 0.5**away, factor)",
        "tests/compress/methods/test_omniscope.py",
    ),
    Mutation(
        "omnicli/compress/tome.py",
        "weight = torch.ones_like(self.count) if self._released else self.count",
        "weight = torch.ones_like(self.count)",
        "tests/compress/methods/test_omniscope.py",
    ),
    Mutation(
        "omnicli/compress/methods/cdpruner.py",
        "n - n // 2 if rear else n // 2",
        "n // 2 if rear else n - n // 2",
        "tests/compress/methods/test_cdpruner.py",
    ),
    Mutation(
        "omnicli/compress/dpp.py",
        "gain = (gain - new.square())",
        "gain = (gain - new.abs())",
        "tests/compress/methods/test_cdpruner.py",
    ),
    Mutation(
        "omnicli/compress/methods/dash.py",
        "begin = torch.cat([change.new_ones(1), ",
        "begin = torch.cat([change.new_zeros(1), ",
        "tests/compress/methods/test_dash.py",
    ),
    Mutation(
        "omnicli/compress/released/dash.py",
        "short = (sizes < 2 * cells)[segment]",
        "short = (sizes < cells)[segment]",
        "tests/compress/methods/test_dash.py",
    ),
    Mutation(
        "omnicli/compress/methods/dycoke.py",
        "_BACK = (0, 1, 2, 1)",
        "_BACK = (0, 1, 2, 3)",
        "tests/compress/methods/test_dycoke.py",
    ),
    Mutation(
        "omnicli/compress/methods/dycoke.py",
        "if n > _GROUP and n % 2:",
        "if n % 2:",
        "tests/compress/methods/test_dycoke.py",
    ),
    Mutation(
        "omnicli/compress/methods/fastv.py",
        "return (self.layer - 1,)",
        "return (self.layer,)",
        "tests/compress/methods/test_fastv.py",
    ),
    Mutation(
        "omnicli/compress/methods/fastv.py",
        "average * depth - read * n",
        "average * depth - (read - 1) * n",
        "tests/compress/test_depths.py",
    ),
    Mutation(
        "omnicli/compress/methods/fastvid.py",
        "math.floor(total * context + 1e-9)",
        "math.ceil(total * context)",
        "tests/compress/methods/test_fastvid.py",
    ),
    Mutation(
        "omnicli/compress/segments.py",
        "valid & (left % step == 0)",
        "valid & (place % step == 0)",
        "tests/compress/methods/test_fastvid.py",
    ),
    Mutation(
        "omnicli/compress/segments.py",
        "(1 / (count + 1)).clamp_min(keep_weight)",
        "(1 / (count + 1)).clamp_max(keep_weight)",
        "tests/compress/methods/test_fastvid.py",
    ),
    Mutation(
        "omnicli/compress/released/fastvid.py",
        "later < merged % anchors",
        "_anchors_before(layout) < merged % anchors",
        "tests/compress/methods/test_fastvid.py",
    ),
    Mutation(
        "omnicli/compress/methods/omac.py",
        "order[(~winner[order]).long().argsort(stable=True)]",
        "order",
        "tests/compress/methods/test_omac.py",
    ),
    Mutation(
        "omnicli/compress/methods/omac.py",
        "nearer = (anchor_time[after] - time).abs() < ",
        "nearer = (anchor_time[after] - time).abs() <= ",
        "tests/compress/methods/test_omac.py",
    ),
    Mutation(
        "omnicli/compress/methods/omnisift.py",
        "(at[1:] == at[:-1]) & (sizes[1:] == sizes[:-1])",
        "sizes[1:] == sizes[:-1]",
        "tests/compress/methods/test_omnisift.py",
    ),
    Mutation(
        "omnicli/compress/methods/omnisift.py",
        "right=True) - 1",
        "right=False) - 1",
        "tests/compress/methods/test_omnisift.py",
    ),
    Mutation(
        "omnicli/compress/methods/omnizip.py",
        "(2 * place + 1) * pool.numel() // (2 * anchors)",
        "place * pool.numel() // anchors",
        "tests/compress/methods/test_omnizip.py",
    ),
    Mutation(
        "omnicli/compress/methods/omnizip.py",
        "torch.where(turn % 2 == 1, order - 1, -1)",
        "torch.where(turn % 2 == 0, order - 1, -1)",
        "tests/compress/methods/test_omnizip.py",
    ),
    Mutation(
        "omnicli/compress/redundancy.py",
        "/ 2).to(x.dtype)",
        ").to(x.dtype)",
        "tests/compress/methods/test_omnizip.py",
    ),
    Mutation(
        "omnicli/compress/released/omnizip.py",
        "free[int(discard.argmin())] = ",
        "",
        "tests/compress/methods/test_omnizip.py",
    ),
    Mutation(
        "omnicli/compress/methods/random.py",
        "manual_seed(self.seed)",
        "manual_seed(0)",
        "tests/compress/test_floors.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        "round(encoder * average)",
        "int(encoder * average)",
        "tests/compress/methods/test_seats.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        "zscore(sums / sizes.clamp_min(1), sizes > 0)",
        "(sums / sizes.clamp_min(1))",
        "tests/compress/methods/test_seats.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        ".keep[: step + 1]",
        ".keep[:step]",
        "tests/compress/test_depths.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        "first = torch.ones_like(joint) if",
        "first = joint if",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        "late, encoder, self._growth).keep",
        "late, encoder).keep",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/compress/methods/seats.py",
        "return schedule.solve(depth, drops, late).encoder",
        "return self.encoder",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/compress/methods/avoc.py",
        "/ (1 + parts[0])",
        "/ 2",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/compress/mmr.py",
        "if int(key[top]) <= bound:",
        "if not picked and int(key[top]) <= bound:",
        "tests/compress/test_tammr.py",
    ),
    Mutation(
        "omnicli/compress/methods/omac.py",
        "return score.clamp_min(self.floor * float(score.mean()))",
        "return score",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/compress/methods/omnizip.py",
        '(n_audio > 0) & (self.guidance == "audio")',
        "(n_audio > 0)",
        "tests/compress/methods/test_ablations.py",
    ),
    Mutation(
        "omnicli/bench/rows.py",
        ", convention=PAPERS)",
        ")",
        "tests/cli/commands/test_bench.py",
    ),
    Mutation(
        "omnicli/compress/released/seats.py",
        "2 * cells), stretches",
        "cells), stretches",
        "tests/compress/methods/test_seats.py",
    ),
    Mutation(
        "omnicli/compress/released/seats.py",
        "v = torch.minimum(n_v, shares - a)  # what",
        "v = v  # what",
        "tests/compress/released/test_seats.py",
    ),
    Mutation(
        "omnicli/compress/methods/uniform.py",
        "mixed = row ^ col",
        "mixed = row",
        "tests/compress/test_floors.py",
    ),
    Mutation(
        "omnicli/compress/methods/visionzip.py",
        "(left // contextual.clamp_min(1)).clamp_min(1)[group]",
        "contextual.clamp_min(1)[group]",
        "tests/compress/methods/test_visionzip.py",
    ),
    Mutation(
        "omnicli/compress/methods/visionzip.py",
        "sizes * (ratio - self.contextual)",
        "sizes * ratio",
        "tests/compress/methods/test_visionzip.py",
    ),
    Mutation(
        "presets/seats-35.yaml",
        "retention: 0.35",
        "retention: 0.40",
        "tests/compress/test_retention.py",
    ),
    Mutation(
        "presets/parity/fastv-25.yaml",
        "mode: official",
        "mode: clean",
        "tests/compress/test_presets.py",
    ),
    Mutation(
        "omnicli/compress/methods/visionzip.py",
        "features = tokens.features[indices]\n        features[",
        "features = tokens.features\n        features[",
        "tests/compress/test_contract.py",
    ),
    Mutation(
        "omnicli/compress/methods/uniform.py",
        "Selection(torch.cat(kept).sort().values,",
        "Selection(torch.cat(kept),",
        "tests/compress/test_contract.py",
    ),
    Mutation(
        "omnicli/pipeline.py",
        "    if length + options.max_new_tokens > model.max_position:",
        "    if length + options.max_new_tokens > model.max_position + 1:",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/pipeline.py",
        "asked(question, last=i == ends, on_text=partial(tell, i))",
        "asked(question, last=i == ends, on_text=partial(tell, 0))",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/pipeline.py",
        "    return answers[0] if isinstance(questions, str) else answers",
        "    return answers[0] if len(answers) == 1 else answers",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/answer/result.py",
        "time_to_first_token_s=round(film.times.wall_s + run.first_s, 4)",
        "time_to_first_token_s=round(film.times.wall_s + times.wall_s, 4)",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/answer/result.py",
        "run.film.times + run.context.clock.report()",
        "run.context.clock.report()",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/answer/result.py",
        "    around = run.length - len(kept)",
        "    around = run.length - len(kept) - 1",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/session.py",
        "                del history[0]",
        "                del history[-1]",
        "tests/test_session.py",
    ),
    Mutation(
        "omnicli/session.py",
        "        self.history = [*history, (question, answer.answer)]",
        "        self.history = [*self.history, (question, answer.answer)]",
        "tests/test_session.py",
    ),
    Mutation(
        "omnicli/answer/evidence.py",
        "        if out and step - out[-1][1] <= 2:",
        "        if out and step - out[-1][1] <= 1:",
        "tests/answer/test_evidence.py",
    ),
    Mutation(
        "omnicli/answer/show.py",
        '{text(answer["question"])}',
        '{answer["question"]}',
        "tests/answer/test_show.py",
    ),
    Mutation(
        "omnicli/answer/show.py",
        "100 * seconds / longest",
        "100 * seconds",
        "tests/answer/test_show.py",
    ),
    Mutation(
        "omnicli/utils/display.py",
        "{clock_time(math.ceil(end_s))}",
        "{clock_time(end_s)}",
        "tests/answer/test_show.py",
    ),
    Mutation(
        "omnicli/__init__.py",
        "from omnicli.version import __version__",
        "from omnicli.config.config import Config\nfrom omnicli.version import __version__",
        "tests/test_front_door.py",
    ),
    Mutation(
        "omnicli/encode/encode.py",
        "for place in sorted(self._done)]",
        "for place in self._done]",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/encode/encode.py",
        "return len(self.sources) > 1 and bool(",
        "return len(self.sources) > 2 and not bool(",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/encode/encode.py",
        "start + i / model.nominal_fps",
        "start + i / settings.fps",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/encode/encode.py",
        "min(span[1], span[0] + limit)",
        "min(span[1], span[0] + limit + 1)",
        "tests/test_pipeline.py",
    ),
    Mutation(
        "omnicli/encode/cache.py",
        "if not self.cache.writes or not info.stamp == self.stamp == fingerprint.stamp(self.film):",
        "if not self.cache.writes:",
        "tests/encode/test_cache.py",
    ),
    Mutation(
        "omnicli/encode/cache.py",
        "sorted(self._files(_ENTRY), key=lambda item: (item.used_s, item.path))",
        "sorted(self._files(_ENTRY), key=lambda item: (-item.used_s, item.path))",
        "tests/encode/test_cache.py",
    ),
    Mutation(
        "omnicli/encode/tokenfile.py",
        "            check = zlib.crc32(piece, check)",
        "            check = zlib.crc32(piece)",
        "tests/encode/test_cache.py",
    ),
    Mutation(
        "omnicli/encode/prefetch.py",
        "threading.Semaphore(size)",
        "threading.Semaphore(size + 1)",
        "tests/encode/test_prefetch.py",
    ),
    Mutation(
        "omnicli/utils/timing.py",
        "                self._add(self.stages if own else self.busy, name, seconds - inner)",
        "                self._add(self.stages if own else self.busy, name, seconds)",
        "tests/utils/test_timing.py",
    ),
    Mutation(
        "omnicli/utils/jsonl.py",
        "            if self._cut:\n                os.ftruncate(self._fd, self._end)",
        "            if self._cut:\n                pass",
        "tests/utils/test_jsonl.py",
    ),
    Mutation(
        "omnicli/utils/jsonl.py",
        '                    self._open_line = not line.endswith(b"\\n")\n',
        "                    self._open_line = False\n",
        "tests/utils/test_jsonl.py",
    ),
    Mutation(
        "omnicli/planning/plan.py",
        "pairs = -(-media.frames // facts.frame_group)",
        "pairs = media.frames // facts.frame_group",
        "tests/planning/test_plan.py",
    ),
    Mutation(
        "omnicli/planning/peaks.py",
        "layers + 4 * rows if quantize",
        "layers + 2 * rows if quantize",
        "tests/planning/test_plan.py",
    ),
    Mutation(
        "omnicli/planning/peaks.py",
        '"kv": 2 * d.depth',
        '"kv": d.depth',
        "tests/planning/test_plan.py",
    ),
    Mutation(
        "omnicli/planning/flops.py",
        "met = length * (length + 1) // 2 if causal",
        "met = length * (length - 1) // 2 if causal",
        "tests/planning/test_flops.py",
    ),
    Mutation(
        "omnicli/planning/fit.py",
        "half = max(1, value // 2)",
        "half = max(1, value * 2)",
        "tests/planning/test_plan.py",
    ),
    Mutation(
        "omnicli/config/settings.py",
        "if not 0 < self.top_p <= 1:",
        "if not 0 < self.top_p < 1:",
        "tests/config/test_config.py",
    ),
    Mutation(
        "omnicli/config/config.py",
        "values = {k: v for k, v in values.items() if k not in others}",
        "values = dict(values)",
        "tests/config/test_config.py",
    ),
    Mutation(
        "omnicli/config/schema.py",
        '("int", r"[-+]?[0-9]+", list("-+0123456789")),',
        '("int", r"[-+]?[0-9:]+", list("-+0123456789")),',
        "tests/config/test_config.py",
    ),
    Mutation(
        "omnicli/media/frames.py",
        "value = pts[packet]",
        "value = np.roll(pts[packet], 1)",
        "tests/media/test_video.py",
    ),
    Mutation(
        "omnicli/media/sampling.py",
        "return times[index > before]",
        "return times[index >= before]",
        "tests/media/test_sampling.py",
    ),
    Mutation(
        "omnicli/media/sampling.py",
        'shown = max(0, int(np.searchsorted(times, start, side="right")) - 1)',
        'shown = max(0, int(np.searchsorted(times, start, side="right")))',
        "tests/media/test_sampling.py",
    ),
    Mutation(
        "omnicli/media/sampling.py",
        "many = max(total if rate is None else total / rate * fps, _LEAST)",
        "many = total if rate is None else total / rate * fps",
        "tests/media/test_sampling.py",
    ),
    Mutation(
        "omnicli/media/sampling.py",
        "<= 2 * CLOCK_TOLERANCE_S else rate",
        "<= 0 else rate",
        "tests/media/test_sampling.py",
    ),
    Mutation(
        "omnicli/media/video.py",
        'group = np.searchsorted(table.entry, places, side="right") - 1',
        'group = np.searchsorted(table.entry, places, side="left") - 1',
        "tests/media/test_video.py",
    ),
    Mutation(
        "omnicli/media/audio.py",
        "self.out = round((second - self.start_s) * SAMPLE_RATE)",
        ("self.out = round(second * SAMPLE_RATE) if not self.start_s else self.out if hasattr(self, 'out') else 0"),
        "tests/media/test_audio.py",
    ),
    Mutation(
        "omnicli/media/audio.py",
        "abs(second - self.expected_s) > TOLERANCE_S",
        "abs(second - self.expected_s) > 1e9",
        "tests/media/test_clock.py",
    ),
    Mutation(
        "omnicli/media/probe.py",
        (
            '        truncated = True\n        problems.append(f"the header promises {container_s:.2f} s'
            ', the data end after {end:.2f} s")'
        ),
        ('        problems.append(f"the header promises {container_s:.2f} s, the data end after {end:.2f} s")'),
        "tests/media/test_probe.py",
    ),
    Mutation(
        "omnicli/media/probe.py",
        "origin_s = origin_of(header.start_s, video, audio, logs)",
        "origin_s = 0.0",
        "tests/media/test_probe.py",
    ),
    Mutation(
        "omnicli/media/probe.py",
        "others = len(container.streams) > bool(video_ids) + bool(audio_ids)",
        "others = True",
        "tests/media/test_probe.py",
    ),
    Mutation(
        "omnicli/media/streams.py",
        ("            if decoded:\n                return _known(out, stream, decoded[0]), None\n        try:"),
        (
            "            if decoded and sent > 100:\n                return _known(out, stream, decoded["
            "0]), None\n        try:"
        ),
        "tests/media/test_probe.py",
    ),
    Mutation(
        "omnicli/batch/attempt.py",
        "        lost = self.left if len(self.left) == len(self.job.items) else self.left[:1]",
        "        lost = self.left[:1]",
        "tests/batch/test_limit.py",
    ),
    Mutation(
        "omnicli/batch/isolate.py",
        "yield self.failed(item, gone.code, f",
        "yield self.failed(item, 1, f",
        "tests/batch/test_limit.py",
    ),
    Mutation(
        "omnicli/batch/journal.py",
        '        self.status[key] = row["status"]\n        self._count += 1',
        "        self._count += 1",
        "tests/cli/commands/test_batch.py",
    ),
    Mutation(
        "omnicli/batch/runner.py",
        "        items = tuple(i for i in job.items if force or sink.status.get(i.key) not in done)",
        "        items = tuple(job.items)",
        "tests/cli/commands/test_batch.py",
    ),
    Mutation(
        "omnicli/batch/decoders.py",
        "for item in itertools.islice(stream.read(), skip, None):",
        "for item in itertools.islice(stream.read(), max(0, skip - 1), None):",
        "tests/batch/test_ray.py",
    ),
    Mutation(
        "omnicli/batch/decoders.py",
        "_generator_backpressure_num_objects=PARCELS",
        "_generator_backpressure_num_objects=PARCELS * 50",
        "tests/batch/test_ray.py",
    ),
    Mutation(
        "omnicli/bench/needle_audio.py",
        "        if maximum != audio.maximum:\n",
        "        if False:\n",
        "tests/bench/test_needle.py",
    ),
    Mutation(
        "omnicli/bench/needle_film.py",
        "first = begin // hay.model.frame_group * self._cells",
        "first = begin * self._cells",
        "tests/bench/test_needle.py",
    ),
    Mutation(
        "omnicli/bench/needle_film.py",
        (
            "            for target, axis, rows, old in reversed(undo):\n                target.index_co"
            "py_(axis, rows, old)"
        ),
        "            pass",
        "tests/bench/test_needle.py",
    ),
    Mutation(
        "omnicli/bench/needle_run.py",
        ("                and (which, c.label, c.settings, modality, duration_s, depth, number) not in self.journal\n"),
        "",
        "tests/bench/test_needle.py",
    ),
    Mutation(
        "omnicli/bench/measure.py",
        "bench.run(members, capture, partial(_labelled, tell, label), counts=number >= 0,",
        "bench.run(members, capture, partial(_labelled, tell, label), counts=True,",
        "tests/bench/test_measure.py",
    ),
    Mutation(
        "omnicli/bench/measure.py",
        "                one.error = (text, found[1])",
        "                one.error = (text, 1)",
        "tests/bench/test_measure.py",
    ),
    Mutation(
        "omnicli/cli/main.py",
        "        return _fail(str(error), error.exit_code, error)",
        "        return _fail(str(error), 1, error)",
        "tests/cli/test_exit_codes.py",
    ),
    Mutation(
        "omnicli/cli/registry.py",
        ("        except (Exception, SystemExit) as error:  # whatever a stray file raises while it is imported"),
        "        except TypeError as error:",
        "tests/cli/test_registry.py",
    ),
    Mutation(
        "omnicli/cli/commands/chat.py",
        "            except KeyboardInterrupt:\n",
        "            except ZeroDivisionError:\n",
        "tests/cli/commands/test_chat.py",
    ),
    Mutation(
        "omnicli/models/weights/hub.py",
        'ref = _storage(hub_id) / "refs" / (revision or constants.DEFAULT_REVISION)',
        'ref = _storage(hub_id) / "refs" / constants.DEFAULT_REVISION',
        "tests/cli/commands/test_models_pull.py",
    ),
    Mutation(
        "omnicli/report/draw.py",
        "        if out and values[out[-1][0]] == value:",
        "        if out and values[out[-1][0]] is not None:",
        "tests/report/test_report.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "torch.floor((start_s + _TIME_EPSILON) / window_s)",
        "torch.floor((start_s + _TIME_EPSILON) / window_s + 0.5)",
        "tests/testing/test_families.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "key = torch.cat([video_time // block * 2, audio_time // block * 2 + 1])",
        "key = torch.cat([video_time // block * 2 + 1, audio_time // block * 2])",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "return torch.stack([t, row, col]).reshape(3, -1)",
        "return torch.stack([t, col, row]).reshape(3, -1)",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "rows.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)",
        "rows.permute(0, 2, 5, 3, 6, 8, 1, 7, 4)",
        "tests/models/test_layout.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "    starts = frame_times[::temporal]\n",
        "    starts = frame_times[temporal - 1 :: temporal]\n",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "end = ((step + 1).double() * clock.audio_hop_s).clamp(max=1.0)",
        "end = (step + 1).double() * clock.audio_hop_s",
        "tests/models/families/test_qwen3_omni_moe.py",
    ),
    Mutation(
        "omnicli/models/layout.py",
        "next_position=positions[:, -last_run:].max().item() + 1,",
        "next_position=positions[0, -last_run:].max().item() + 1,",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/parts.py",
        "next_position=positions[:, -self.last_run :].max().item() + 1,",
        "next_position=positions.max().item() + 1,",
        "tests/models/test_timescale.py",
    ),
    Mutation(
        "omnicli/models/base.py",
        "            before[-1] -= 1\n            after[1:] -= 1\n",
        "            before[-1] -= 1\n",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/decoder.py",
        "last = _queries(attn, x[-1:]), _keys(attn, x), [part[:, -1:] for part in rope]",
        "last = _queries(attn, x[-1:]), _keys(attn, x), [part[:, :1] for part in rope]",
        "tests/testing/test_families.py",
    ),
    Mutation(
        "omnicli/models/decoder.py",
        'return _by_head(attn, attn.k_proj(x), getattr(attn, "k_norm", None))',
        "return _by_head(attn, attn.k_proj(x))",
        "tests/testing/test_families.py",
    ),
    Mutation(
        "omnicli/models/mel.py",
        "mirrored = self._buffer[_REACH:0:-1]",
        "mirrored = self._buffer[_REACH - 1 :: -1]",
        "tests/models/test_mel.py",
    ),
    Mutation(
        "omnicli/models/mel.py",
        "frames.clamp(min=maximum - DYNAMIC_RANGE)",
        "frames.clamp(min=maximum - 80.0)",
        "tests/models/test_mel.py",
    ),
    Mutation(
        "omnicli/models/attention.py",
        "weight = torch.sigmoid(past_lse - own_lse)",
        "weight = torch.sigmoid(own_lse - past_lse)",
        "tests/models/test_layout.py",
    ),
    Mutation(
        "omnicli/models/attention.py",
        "packed = query[0, :, -1].reshape(kv_heads, query.shape[1] // kv_heads, -1).float()",
        "packed = query[0, :, 0].reshape(kv_heads, query.shape[1] // kv_heads, -1).float()",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/models/components/towers.py",
        "return values.view(groups, size // unit, unit, -1).mean(2)[:, cells].flatten(0, 1)",
        "return values.view(groups, size // unit, unit, -1).mean(2).flatten(0, 1)",
        "tests/models/families/test_qwen2_5_omni.py",
    ),
    Mutation(
        "omnicli/models/components/minicpm_o_towers.py",
        "angle = torch.arange(max(rows, cols), dtype=torch.float64)",
        "angle = 1 + torch.arange(max(rows, cols), dtype=torch.float64)",
        "tests/models/families/test_minicpm_o.py",
    ),
    Mutation(
        "omnicli/models/components/minicpm_o_towers.py",
        "return torch.cat([col.expand(rows, -1, -1), row.expand(-1, cols, -1)], 2).flatten(0, 1)",
        "return torch.cat([row.expand(-1, cols, -1), col.expand(rows, -1, -1)], 2).flatten(0, 1)",
        "tests/models/families/test_minicpm_o.py",
    ),
    Mutation(
        "omnicli/models/facts/qwen3_omni_moe.py",
        "return TOKENS_PER_SECOND * seconds + rest",
        "return TOKENS_PER_SECOND * seconds + min(rest, 12)",
        "tests/models/families/test_qwen3_omni_moe.py",
    ),
    Mutation(
        "omnicli/models/facts/minicpm_o.py",
        "(rest + 1) // 2 // self.pool",
        "rest // 2 // self.pool",
        "tests/models/families/test_minicpm_o.py",
    ),
    Mutation(
        "omnicli/models/facts/base.py",
        "        return text + max(video, audio - 1)",
        "        return text + max(video, audio)",
        "tests/models/facts",
    ),
    Mutation(
        "omnicli/models/timescale.py",
        '1.0 if wanted == "off" or last <= limit else (limit - origin) / (last - origin)',
        '1.0 if wanted == "off" or last <= limit else limit / last',
        "tests/models/test_timescale.py",
    ),
    Mutation(
        "omnicli/models/weights/devices.py",
        "ends[-1] = layers\n",
        "ends[-1] = layers - 1\n",
        "tests/models/test_spread.py",
    ),
    Mutation(
        "omnicli/models/weights/quantize.py",
        "abs().amax(-1).float() / 127)",
        "abs().amax(-1).float() / 128)",
        "tests/models/weights/test_quantize.py",
    ),
    Mutation(
        "omnicli/llm/prefix.py",
        ("    hidden[first - begin : last - begin] += features[first - span.start : last - span.start].to(hidden)"),
        "    hidden[first - begin : last - begin] += features[: last - first].to(hidden)",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/prefix.py",
        "and (mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs)))",
        "",
        "tests/llm/test_prefix_cache.py",
    ),
    Mutation(
        "omnicli/llm/prefix.py",
        "and torch.equal(embeds[: self.rows], self.embeds)",
        "",
        "tests/llm/test_prefix_cache.py",
    ),
    Mutation(
        "omnicli/llm/prefix.py",
        "return min(stops(model, media, pruner), default=model.depth - 1) + 1",
        "return min(stops(model, media, pruner), default=model.depth - 1)",
        "tests/llm/test_prefix_cache.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "attention = attention[rows.begin : rows.end]",
        "attention = attention[rows.begin - 1 : rows.end - 1]",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "self.levels.append((layer + 1, *counts(self.media)))",
        "self.levels.append((layer, *counts(self.media)))",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "self._extra = None if self._extra is None else self._extra[:, keep]",
        "pass",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "border -= dropped if border else 0",
        "pass",
        "tests/llm/test_prefix_cache.py tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        ("index = _around(rows.begin, torch.searchsorted(rows.kept, survivors), rows.end, self._cache.lengths[layer])"),
        "index = _around(rows.begin, survivors, rows.end, self._cache.lengths[layer])",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "recorder.held = [self.kept[:0]] * len(self._in_cache)",
        "recorder.held = [rows.kept for rows in self._in_cache]",
        "tests/llm/test_attention_recorder.py tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/pruned_prefill.py",
        "part = self._model.slice_rope(rope, slice(first + begin, first + end))",
        "part = self._model.slice_rope(rope, slice(begin, end))",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/llm/kv.py",
        "k[:, :, start:stop] = keys\n",
        "k[:, :, start:stop] = keys.roll(1, 2)\n",
        "tests/llm/test_kv.py",
    ),
    Mutation(
        "omnicli/llm/kv.py",
        "return self._rows[layer] <= self._last[layer]",
        "return self._rows[layer] < self._last[layer]",
        "tests/llm/test_steps.py",
    ),
    Mutation(
        "omnicli/llm/kv.py",
        "self._last.copy_(torch.tensor(self._cache.lengths) - 1)",
        "self._last.copy_(torch.tensor(self._cache.lengths))",
        "tests/llm/test_steps.py",
    ),
    Mutation(
        "omnicli/llm/decode.py",
        "ordered.masked_fill(ordered.cumsum(0) - ordered >= top_p, 0)",
        "ordered.masked_fill(ordered.cumsum(0) >= top_p, 0)",
        "tests/llm/test_decode.py",
    ),
    Mutation(
        "omnicli/llm/decode.py",
        "            self.next_position += 1\n",
        "            self.next_position += 2\n",
        "tests/llm/test_prefill.py",
    ),
    Mutation(
        "omnicli/utils/attention_recorder.py",
        "attention[self.first : self.first + media.numel()]",
        "attention[self.first + 1 : self.first + 1 + media.numel()]",
        "tests/llm/test_attention_recorder.py",
    ),
    Mutation(
        "omnicli/models/chat.py",
        "begin = text.rfind(wanted)",
        "begin = text.find(wanted)",
        "tests/testing/test_families.py",
    ),
    Mutation(
        "omnicli/models/placement.py",
        "            if other != part:\n                weights.to_host()\n",
        "            pass\n",
        "tests/models/weights/test_quantize.py",
    ),
]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
