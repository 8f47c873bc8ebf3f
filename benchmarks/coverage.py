"""Does `selection.coverage` know which questions the corpus answers? Fit it, and test it.

    python benchmarks/coverage.py --write      # also writes benchmarks/results/coverage.md

Each question is asked twice: of its corpus, and of the corpus without the sources of its gold
passages. Coverage, and beside it the cosine of the best candidate, should be higher for the first.
AUROC: how often it is, over all pairs of an answerable and an unanswerable question. The weights
are fitted on XQuAD and PubMedQA only, so CLAPnq and COVID-QA are new to them.

COVID-QA tells little: a paper says most things twice, so taking one passage out takes little away.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from retrieval_data import LEVELS, SETS, corpus, load, vectors
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sift_rag.coverage import BIAS, NEAREST, WEIGHTS, signs
from sift_rag.embeddings import Embedder, minilm
from sift_rag.selection import Context

RESULTS = Path(__file__).parent / "results" / "coverage.md"
FITTED = ("xquad", "pubmedqa")
QUESTIONS = 400  # of a set at most
RESAMPLES = 2000
Floats = NDArray[np.float64]


class Asked(NamedTuple):
    """Questions of one set at one level, with and without their gold passages."""

    signs: Floats  # (2, questions, 2): without, with
    cosine: Floats  # (2, questions)

    def logits(self) -> Floats:
        return np.asarray(self.signs @ np.array(WEIGHTS) + BIAS)


def asked(name: str, level: str, folder: Path, embedder: Embedder) -> Asked:
    data = load(name, folder)
    passages = corpus(data, level).passages
    rows = vectors([passage.text for passage in passages], embedder, "passage")
    queries = vectors([question.text for question in data.single], embedder, "query")
    sources = np.array([passage.source for passage in passages])
    found: list[list[Floats]] = [[], []]
    cosines: list[list[float]] = [[], []]
    for i in np.random.default_rng(0).permutation(len(queries))[:QUESTIONS]:
        scores = rows @ queries[i]
        order = np.argsort(-scores, kind="stable")
        gold = np.isin(sources[order], [fact.source for fact in data.single[i].facts])
        for there, kept in enumerate((order[~gold], order)):
            nearest = kept[:NEAREST]
            found[there].append(signs(Context(queries[i : i + 1], rows[nearest]))[0])
            cosines[there].append(float(scores[nearest[0]]))
    return Asked(np.array(found), np.array(cosines))


def auroc(values: Floats) -> float:
    """Of (2, questions): unanswerable, answerable."""
    return float(roc_auc_score(np.repeat([0, 1], values.shape[1]), values.ravel()))


def difference(a: Floats, b: Floats) -> tuple[float, float]:
    """Bootstrap 95 % interval of the difference of two AUROCs, by question."""
    random = np.random.default_rng(0)
    n = a.shape[1]
    draws = [random.integers(n, size=n) for _ in range(RESAMPLES)]
    low, high = np.percentile([auroc(a[:, d]) - auroc(b[:, d]) for d in draws], [2.5, 97.5])
    return float(low), float(high)


def fit(all_asked: dict[tuple[str, str], Asked]) -> Iterator[str]:
    chosen = [each for (name, _), each in all_asked.items() if name in FITTED]
    x = np.concatenate([each.signs.reshape(-1, 2) for each in chosen])
    y = np.concatenate([np.repeat([0, 1], each.signs.shape[1]) for each in chosen])
    scale = x.std(axis=0)
    model: Any = LogisticRegression(C=1e6).fit(x / scale, y)
    weights = ", ".join(f"{w:.3f}" for w in model.coef_[0] / scale)
    yield f"Fitted on {' and '.join(FITTED)}: weights {weights}, bias {model.intercept_[0]:.3f}."
    yield f"In the library: weights {WEIGHTS}, bias {BIAS}.\n"


def table(all_asked: dict[tuple[str, str], Asked]) -> Iterator[str]:
    yield (
        "| set | level | coverage | best cosine | difference (95 %) "
        "| mean coverage with | without | right at 0.5 |"
    )
    yield "|---|---|---:|---:|---|---:|---:|---:|"
    for (name, level), each in all_asked.items():
        logits = each.logits()
        low, high = difference(logits, each.cosine)
        gain = auroc(logits) - auroc(each.cosine)
        without, there = (1 / (1 + np.exp(-logits))).mean(axis=1)
        right = np.mean((logits > 0) == np.array([[False], [True]]))
        seen = " (fitted)" if name in FITTED else ""
        yield (
            f"| {name}{seen} | {level} | {auroc(logits):.3f} | {auroc(each.cosine):.3f} "
            f"| {gain:+.3f} ({low:+.3f} to {high:+.3f}) "
            f"| {there:.2f} | {without:.2f} | {right:.2f} |"
        )
    yield ""


def reliability(all_asked: dict[tuple[str, str], Asked]) -> Iterator[str]:
    """Is a coverage of 0.7 right in 70 of 100 cases? On the sets that were not fitted."""
    new = [each for (name, _), each in all_asked.items() if name == "clapnq"]
    p = np.concatenate([1 / (1 + np.exp(-each.logits().ravel())) for each in new])
    y = np.concatenate([np.repeat([0, 1], each.signs.shape[1]) for each in new])
    yield "CLAPnq, all levels: what share of the questions with this coverage had an answer?\n"
    yield "| coverage | questions | answerable |"
    yield "|---|---:|---:|"
    edges = np.linspace(0, 1, 6)
    for low, high in pairwise(edges):
        inside = (p >= low) & (p < high)
        yield f"| {low:.1f} to {high:.1f} | {inside.sum()} | {y[inside].mean():.2f} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write results/{RESULTS.name}")
    write = parser.parse_args().write
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SIFT_RAG_DATA", beside))
    embedder = minilm()
    found = {(s, level): asked(s, level, folder, embedder) for s in SETS for level in LEVELS}
    lines = ["# Coverage\n", "    python benchmarks/coverage.py --write\n"]
    lines.append((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
    for part in (fit(found), table(found), reliability(found)):
        lines += part
    print("\n".join(lines))
    if write:
        RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
