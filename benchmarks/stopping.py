"""How many tokens does a stopping rule save at 99 % of the recall of fixed k = 10?

    python benchmarks/stopping.py --write      # also writes benchmarks/results/stopping.md

Questions, the 100 candidates of each, and tokens are those of `retrieval.py`, by all-MiniLM-L6-v2.
`sift(query, candidates, 10)` puts ten in order, and a rule keeps the first of them, up to the first
pick after which its value reaches a threshold. Recall is the share found of the facts that a
question needs. Recall and tokens are means over the questions of a set at a level, divided by those
of a reference: all ten picks of SIFT, or the ten nearest passages. Shown are means of these ratios
over the four sets and the redundant levels, all but clean. Of a rule's thresholds, in steps of
0.001, the one is shown that keeps 99 % of the recall with the fewest tokens: chosen in hindsight,
on these very questions, for each kind and each reference.

* fixed k: the same number of SIFT's picks for every question.
* gain_share(s): the library's rule. The picks bring a share s of the gains of all ten.
* gain^2 share, cosine softmax share: the same of squared gains, of exp(cos / 0.1 / `spread_of`).
* relative distance: the next pick's cosine has fallen by this share of the way from the first
  pick's to the mean of the candidates, near copies counting once.
* logistic regression, boosted trees: the probability, from ten signals, that the picks to come find
  nothing new. Fitted on the redundant levels of the three other sets.
* oracle: knows the gold, and stops when all that the ten find is found.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy reads it

import argparse
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from retrieval import sources
from retrieval_data import LEVELS
from retrieval_metrics import Flags, Floats, found
from retrieval_report import CLEAN, machine, table
from retrieval_selectors import costs
from retrieval_tasks import Minilm, Setup, Task, minilm_tokens, task
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from sklearn.linear_model import LogisticRegression

from sift_rag.batches import sift_batch
from sift_rag.kernels import calibrated, spread_of
from sift_rag.problem import NOISE
from sift_rag.selection import Selection

RESULTS = Path(__file__).parent / "results" / "stopping.md"
K = 10
CHUNK = 200  # questions whose candidates are in memory together
KEPT, SAVED = 0.99, 0.30  # wanted
OWN, NEAREST = "SIFT's own 10", "the nearest 10"
KINDS = {"single questions": (False,), "pairs": (True,), "both": (False, True)}
FIXED, GAIN_SHARE, ORACLE = "fixed k", "gain_share(s)", "oracle"


class Cell(NamedTuple):
    """The B questions of one set at one level; t is the number of picks made, 1 to K."""

    name: str
    level: str
    pairs: Flags  # (B,)
    found: Floats  # (B, K) share of the facts after t picks
    tokens: Floats  # (B, K) of the first t picks together
    near: Floats  # (B, K) found by the t nearest
    paid: Floats  # (B, K) tokens of the t nearest
    gains: Floats  # (B, K)
    weights: Floats  # (B, K) of the softmax
    distances: Floats  # (B, K) of pick t + 1; 1 after the last
    signals: Floats  # (B, K - 1, 10) after t < K picks

    def among(self, chosen: Flags) -> "Cell":
        return self._replace(**{name: getattr(self, name)[chosen] for name in self._fields[2:]})


class Choice(NamedTuple):
    threshold: float
    saved: float
    recall: float

    def __str__(self) -> str:
        return f"{self.saved:.1%} / {self.recall:.3f}"


Ruled = list[tuple[Cell, Floats]]  # with a rule's values (B, K), the last at any threshold


def cell(asked: Task, level: str) -> Cell:
    seen: list[tuple[Any, ...]] = []
    for start in range(0, len(asked), CHUNK):
        part = slice(start, start + CHUNK)
        rows = asked.rows[asked.candidates[part]]  # (CHUNK, n, d)
        seen += map(look, sift_batch(asked.queries[part], rows, K))
    order, *arrays = (np.array(each) for each in zip(*seen, strict=True))  # (B, K)
    first = np.broadcast_to(np.arange(K), order.shape)  # candidates come nearest first
    told, near = (found(asked.tells, asked.needs, each) for each in (order, first))
    tokens, paid = (costs(asked, each).cumsum(axis=1) for each in (order, first))
    return Cell(asked.name, level, asked.pairs, told, tokens, near, paid, *arrays)


def look(selection: Selection) -> tuple[Any, ...]:
    """Picks, gains, weights, distances, all (K,), and signals (K - 1, 10) of one question."""
    query, rows = selection.context.queries, selection.context.rows
    cosines = (query @ rows.T)[0].astype(np.float64)  # (n,)
    kernel, spread = calibrated(query, rows), spread_of(cosines)
    alike, about = kernel(rows, rows), kernel.cross(query, rows)[0]  # (n, n), (n,)
    # What all candidates together would tell: the gains of a selection of n.
    everything = about @ np.linalg.solve(alike + NOISE * np.eye(len(rows)), about)
    once = 1.0 / alike.sum(axis=1)  # (n,) near copies count once
    mean = np.average(cosines, weights=once)
    deviation = np.sqrt(np.average((cosines - mean) ** 2, weights=once))
    picked, gains = cosines[selection.indices], selection.gains  # (K,)
    best, after = picked[0], picked[1:]
    left = 1 - gains.cumsum()[:-1] / everything  # (K - 1,)
    question = [1 - (1 - best) / spread, 1 - (1 - mean) / spread, np.log(everything)]
    falls = [(best - after) / spread, (picked[:-1] - after) / spread, (after - mean) / deviation]
    told = [left, np.log(gains[1:] / gains[0]), np.log(gains[1:] / everything)]
    signals = np.broadcast_arrays(np.log(np.arange(1, K)), *question, *falls, *told)
    weights = np.exp((picked - best) / (0.1 * spread))
    distances = np.append((best - after) / (best - mean), 1.0)
    return selection.indices, gains, weights, distances, np.stack(signals, axis=1)


def rules(cells: Sequence[Cell]) -> dict[str, Ruled]:
    values = {
        FIXED: [np.broadcast_to(np.arange(1, K + 1) / K, c.gains.shape) for c in cells],
        GAIN_SHARE: [share(c.gains) for c in cells],
        "gain^2 share": [share(c.gains**2) for c in cells],
        "cosine softmax share": [share(c.weights) for c in cells],
        "relative distance": [c.distances for c in cells],
        "logistic regression": learned(cells, LogisticRegression(max_iter=1000)),
        "boosted trees": learned(cells, Trees(max_depth=4, random_state=0)),
        ORACLE: [complete(c).astype(np.float64) for c in cells],
    }
    return {rule: list(zip(cells, each, strict=True)) for rule, each in values.items()}


def share(parts: Floats) -> Floats:
    told = parts.cumsum(axis=1)  # (B, K)
    return np.asarray(told / told[:, -1:])


def complete(cell: Cell) -> Flags:
    """Whether the picks so far found all that K find, (B, K)."""
    return np.asarray(cell.found >= cell.found[:, -1:] - 1e-9)


def learned(cells: Sequence[Cell], model: Any) -> list[Floats]:
    """Probability of `complete`, each set's by a model that has not seen that set."""
    values = []
    for c in cells:
        others = [o for o in cells if o.name != c.name and o.level != CLEAN]
        x = np.concatenate([o.signals.reshape(-1, o.signals.shape[2]) for o in others])
        y = np.concatenate([complete(o)[:, :-1].ravel() for o in others])
        sizes = [o.signals.shape[0] * (K - 1) for o in others]
        weights = np.repeat(np.mean(sizes) / sizes, sizes)  # every cell counts the same
        mean, scale = x.mean(axis=0), x.std(axis=0)
        model.fit((x - mean) / scale, y, sample_weight=weights)
        done = model.predict_proba((c.signals.reshape(-1, x.shape[1]) - mean) / scale)[:, 1]
        values.append(np.pad(done.reshape(-1, K - 1), ((0, 0), (0, 1)), constant_values=1.0))
    return values


def cut(cell: Cell, values: Floats, threshold: float, reference: str) -> Choice:
    """What is saved and kept, as shares of the reference's."""
    last = (values >= threshold).argmax(axis=1)[:, None]  # (B, 1)
    recall, tokens = (np.take_along_axis(a, last, 1).mean() for a in (cell.found, cell.tokens))
    whole = (cell.found, cell.tokens) if reference == OWN else (cell.near, cell.paid)
    all_found, all_tokens = (each[:, -1].mean() for each in whole)
    return Choice(threshold, float(1 - tokens / all_tokens), float(recall / all_found))


def mean_cut(ruled: Ruled, threshold: float, reference: str) -> Choice:
    """Over the redundant levels."""
    every = [cut(c, v, threshold, reference) for c, v in ruled if c.level != CLEAN]
    return Choice(*np.mean(every, axis=0).tolist())


def best(ruled: Ruled, reference: str) -> Choice:
    """The lowest threshold that keeps the recall: prefixes are nested, so it grows with tokens."""
    steps = np.linspace(0.0, 1.0, 1001).tolist()
    last = bisect_left(steps[:-1], KEPT, key=lambda each: mean_cut(ruled, each, reference).recall)
    return mean_cut(ruled, steps[last], reference)


def summary(chosen: dict[str, list[Choice]], reference: str) -> Iterator[str]:
    yield f"## Against {reference}\n\nTokens saved / recall kept (threshold).\n"
    rows = [[rule, *(f"{c}{shown(rule, c)}" for c in row)] for rule, row in chosen.items()]
    yield from table(["rule", *KINDS], rows)
    for i, kind in enumerate(KINDS):
        saved = {rule: row[i].saved for rule, row in chosen.items() if rule != ORACLE}
        top = max(saved, key=lambda rule: saved[rule])
        no = "" if saved[top] >= SAVED else "not "
        yield f"* {kind}: {no}reached; {top}, the best, saves {saved[top]:.1%}."
    yield ""


def shown(rule: str, choice: Choice) -> str:
    if rule == FIXED:
        return f" (k = {math.ceil(choice.threshold * K)})"
    return "" if rule == ORACLE else f" ({choice.threshold:.3f})"


def details(ruled: Ruled, chosen: float, reference: str) -> Iterator[str]:
    yield f"### gain_share against {reference}, single questions and pairs together\n"
    yield "Tokens saved / recall kept; the first column at the threshold chosen above.\n"
    shares = (chosen, 0.9, 0.75)  # beside those that the docstring of `gain_share` advises
    cuts = [(c, [cut(c, v, s, reference) for s in shares]) for c, v in ruled]
    rows = [[f"{c.level}, {c.name}", *map(str, choices)] for c, choices in cuts]
    rows.append(["mean of the redundant", *(f"{mean_cut(ruled, s, reference)}" for s in shares)])
    kept = [[x.recall >= KEPT for x in choices] for c, choices in cuts if c.level != CLEAN]
    rows.append([f"that keep 99 %, of {len(kept)} redundant", *map(str, np.sum(kept, axis=0))])
    yield from table(["level, set", *(f"s = {s:g}" for s in shares)], rows)
    yield "Chosen for one level alone, as a mean may rest on one:\n"
    for level in LEVELS[1:]:
        alone = best([(c, v) for c, v in ruled if c.level == level], reference)
        yield f"* {level}: {alone} at s = {alone.threshold:g}"
    yield ""


def page(cells: Sequence[Cell]) -> Iterator[str]:
    yield f"# Stopping\n\n{__doc__}"
    yield from machine()
    yield f"scikit-learn {version('scikit-learn')}. No figure is a time.\n"
    yield "Wanted: 30 % fewer tokens at 99 % of the recall of fixed k = 10 on the redundant sets.\n"
    made = [rules([c.among(np.isin(c.pairs, kind)) for c in cells]) for kind in KINDS.values()]
    for reference in (OWN, NEAREST):
        chosen = {rule: [best(each[rule], reference) for each in made] for rule in made[0]}
        yield from summary(chosen, reference)
        yield from details(made[-1][GAIN_SHARE], chosen[GAIN_SHARE][-1].threshold, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write results/{RESULTS.name}")
    write = parser.parse_args().write
    setup, sets = Setup(Minilm(), minilm_tokens()), sources()
    text = "\n".join(page([cell(task(d, level, setup), level) for level in LEVELS for d in sets]))
    print(text)
    if write:
        RESULTS.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
