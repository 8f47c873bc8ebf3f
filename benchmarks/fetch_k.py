"""How often do the picks from the nearest fetch_k differ from those from the whole corpus?

    python benchmarks/fetch_k.py --write     # also writes benchmarks/results/fetch_k.md

Vectors of all-MiniLM-L6-v2 and up to 150 single questions of each of the four open sets of
`retrieval_data.py`, from the folder in SIFT_RAG_DATA or ../shared/data, at three levels of
redundancy. The widths of the default kernel are set once a question, from its nearest 100, so that
nothing but the candidates differs. Figures are means over the four sets.

* differ: the share of questions of which the set of picks is another one. Passages with equal
  texts count as one.
* picks: the share of picks that are not among those from the whole corpus.
* gold: the share of the facts that a question needs that the picks tell.

`sift_search` is given a search over the same vectors, for the first 40 of these questions.
"proven" is the share of questions for which it says that the picks are those of the whole corpus,
"equal" the share for which they are (the first pick that differs ends it), and "false" counts
proofs of what was not so. Its fetch_k is 50; a search is made again for up to max_fetch. Vectors
are float64 there: in float32 two of these questions have gains that are equal to a part in 500,000,
a tie, and `sift_search` takes the passage that was fetched first, `sift` the one that comes first.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy reads it

import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from results_file import arguments, machine, show
from retrieval_data import SETS, Corpus, Dataset, Question, corpus, load, vectors

from sift_rag.embeddings import minilm
from sift_rag.kernels import KernelFunction, calibrated, linear
from sift_rag.refetch import Search, sift_search
from sift_rag.selection import sift

HERE = Path(__file__).parent
LEVELS = ("clean", "windows", "copies 80 %")
FETCH_KS, KS = (20, 50, 100, 200), (5, 10)
QUESTIONS, SEARCHED = 150, 40
LIMITS = (50, 1000)  # max_fetch
ADVICE = """\
What to set. With the default kernel, fetch_k = 50 gives the picks of the whole corpus for k up to
10, also where each passage has four near copies. What counts is that k different passages have room
among the candidates, with all their copies: set fetch_k to k times the number of versions that a
passage has, and not below 50. Larger ones cost time and change nothing. Where the number of
versions is not known, `sift_search` proves the picks, and fetches more where it must. The linear
kernel has no such number: a residual of the question points away from what is near to it, so its
picks go on changing with fetch_k, and find less of the gold the more they have to choose from. To
have SIFT over the whole corpus with it, as for training, use `Index.select`, or `sift_search` where
there is only a search.
"""
KERNELS = {"default": "the default kernel", "linear": "the linear kernel"}

Rows = NDArray[np.float32]


class Case(NamedTuple):
    """The questions of one set at one level."""

    corpus: Corpus
    rows: Rows  # (n, d)
    same: list[int]  # (n,) the first passage with the same text
    asked: list[tuple[Question, Rows]]


class Asked(NamedTuple):
    """One question and its picks, 10 of them in order; the first 5 are those of k = 5."""

    gold: list[frozenset[int]]
    whole: list[int]
    held: dict[int, list[int]]  # by fetch_k


def case(data: Dataset, level: str) -> Case:
    made = corpus(data, level)
    texts = [passage.text for passage in made.passages]
    first: dict[str, int] = {}
    same = [first.setdefault(text, i) for i, text in enumerate(texts)]
    queries = vectors([question.text for question in data.single], minilm(), "query")
    chosen = np.linspace(0, len(queries) - 1, min(QUESTIONS, len(queries))).astype(int).tolist()
    asked = [(data.single[i], queries[i]) for i in chosen]
    return Case(made, vectors(texts, minilm(), "passage"), same, asked)


def kernel_for(name: str, query: Rows, rows: NDArray[Any]) -> KernelFunction:
    if name == "linear":
        return linear
    return calibrated(query[None], rows[nearest(query, rows, 100)])


def nearest(query: Rows, rows: NDArray[Any], fetch_k: int) -> NDArray[np.int64]:
    return np.argsort(-(rows @ query), kind="stable")[:fetch_k]


def answers(name: str, made: Case) -> list[Asked]:
    found = []
    for question, query in made.asked:
        kernel = kernel_for(name, query, made.rows)
        held = {}
        for fetch_k in FETCH_KS:
            near = nearest(query, made.rows, fetch_k)
            picks = near[sift(query, made.rows[near], max(KS), kernel=kernel).indices]
            held[fetch_k] = picks.tolist()
        whole = sift(query, made.rows, max(KS), kernel=kernel).indices.tolist()
        found.append(Asked(made.corpus.gold(question), whole, held))
    return found


def told(picks: Sequence[int], gold: list[frozenset[int]]) -> float:
    return statistics.mean(not fact.isdisjoint(picks) for fact in gold)


def figures(made: Case, found: list[Asked], k: int, fetch_k: int | None) -> tuple[float, ...]:
    """Shares of questions and of picks that differ, and of facts told; None for the corpus."""
    differ, other, facts = [], [], []
    for each in found:
        picks = (each.whole if fetch_k is None else each.held[fetch_k])[:k]
        whole = {made.same[i] for i in each.whole[:k]}
        missing = [made.same[i] not in whole for i in picks]
        differ.append(any(missing))
        other.append(statistics.mean(missing))
        facts.append(told(picks, each.gold))
    return statistics.mean(differ), statistics.mean(other), statistics.mean(facts)


def fixed(cases: dict[str, list[Case]], name: str) -> Iterator[str]:
    """The tables of fixed fetch_k, for one kernel."""
    found = {level: [answers(name, made) for made in each] for level, each in cases.items()}
    columns = (*FETCH_KS, None)
    for k in KS:
        yield f"## A fixed fetch_k, k = {k}, {KERNELS[name]}\n"
        yield "Questions that differ / picks that differ / gold found.\n"
        yield "| level | " + " | ".join(f"{c or 'whole corpus'}" for c in columns) + " |"
        yield "|---|" + "---|" * len(columns)
        for level, each in cases.items():
            pairs = list(zip(each, found[level], strict=True))
            cells = []
            for column in columns:
                every = [figures(made, asked, k, column) for made, asked in pairs]
                differ, other, facts = np.mean(every, axis=0).tolist()
                start = "" if column is None else f"{differ:.1%} / {other:.1%} / "
                cells.append(f"{start}{facts:.3f}")
            yield f"| {level} | " + " | ".join(cells) + " |"
        yield ""


def searched(cases: dict[str, list[Case]], name: str) -> Iterator[str]:
    """The table of `sift_search`, for one kernel."""
    yield f"## sift_search, {KERNELS[name]}\n"
    yield (
        "| level | k | max_fetch | proven | equal | false | searches | documents fetched | "
        "of a corpus of |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for level, each in cases.items():
        size = statistics.mean(len(made.rows) for made in each)
        for k in KS:
            for limit in LIMITS:
                every = np.array([runs(made, name, k, limit) for made in each])
                proven, equal, false, searches, fetched = every.mean(axis=0).tolist()
                yield (
                    f"| {level} | {k} | {limit} | {proven:.0%} | {equal:.0%} | "
                    f"{round(false * len(each))} | {searches:.1f} | {fetched:.0f} | {size:.0f} |"
                )
    yield ""


def runs(made: Case, name: str, k: int, limit: int) -> tuple[float, ...]:
    """Shares proven and equal, how many proofs were false, means of searches and documents."""
    rows, outcomes = made.rows.astype(np.float64), []
    for _, query in made.asked[:SEARCHED]:
        kernel = kernel_for(name, query, rows)
        found = sift_search(query, store(rows), k, max_fetch=limit, kernel=kernel)
        whole = sift(query, rows, k, kernel=kernel).indices.tolist()
        ids = [i for i in found.ids if isinstance(i, int)]
        equal = [made.same[i] for i in ids] == [made.same[i] for i in whole]
        outcomes.append((found.exact, equal, found.searches, len(found.fetched)))
    exact, equals, searches, fetched = np.array(outcomes, dtype=float).T
    false = float((exact * (1 - equals)).sum())
    return exact.mean(), equals.mean(), false, searches.mean(), fetched.mean()


def store(rows: NDArray[Any]) -> Search:
    def search(vector: Rows, fetch_k: int) -> tuple[list[int], Any]:
        near = nearest(vector, rows, fetch_k)
        return near.tolist(), rows[near]

    return search


def head() -> Iterator[str]:
    yield "# fetch_k\n"
    yield f"{(__doc__ or '').rstrip()}\n"
    yield from machine("numpy")
    yield "No figure is a time.\n"
    yield ADVICE


def main() -> None:
    write = arguments("fetch_k.md", __doc__).parse_args().write
    folder = Path(os.environ.get("SIFT_RAG_DATA", HERE.parents[1] / "shared" / "data"))
    if not (folder / "qa").is_dir():
        sys.exit(f"{folder} has no folder qa: set SIFT_RAG_DATA to the folder of the open data")
    sets = [load(name, folder) for name in SETS]
    cases = {level: [case(data, level) for data in sets] for level in LEVELS}
    tables = [part(cases, name) for part in (fixed, searched) for name in KERNELS]
    show("fetch_k.md", chain(head(), *tables), write=write)


if __name__ == "__main__":
    main()
