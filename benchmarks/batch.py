"""Time 32 questions at once, search and selection, against activeft's Retriever and others.

    pip install activeft==0.1.1 faiss-cpu torch pyversity==0.2.0
    python benchmarks/batch.py --write      # also writes benchmarks/results/batch.md

32 queries, a corpus of 10,000 unit vectors of 384 dimensions in float32, its exact 100 nearest for
each query, 10 picks of them. One thread. Rounds are interleaved; a time is the median over rounds,
for all 32 queries, less what is made beforehand: the FAISS index, tensors.

activeft starts a worker process for every query, so by the wall clock it waits for more than it
computes. CPU time is of this process and of the workers that it has waited for. On a machine that
others use, the wall clock counts their work too; the ratios are of times taken in the same rounds.

"activeft batch_search" is `Retriever(faiss index).batch_search(queries, N=10, K=100)` with all its
defaults; "activeft search, one by one" is the loop over `search` of its documentation; "activeft
inner loop" is its exact selection alone, with data workers off, from tensors of the candidates.
"a loop of sift" searches and selects question by question; "pyversity dpp" gets its candidates from
one product and a partition in NumPy. The second table is selection alone, from given candidates.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import importlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from results_file import arguments, explained, load_average, machine, show

from sift_rag.batches import sift_batch
from sift_rag.candidates import nearest_each
from sift_rag.selection import sift

PACKAGES = ["activeft", "pyversity", "faiss-cpu", "torch", "numpy"]
BATCH, CORPUS, DIMENSIONS, FETCH_K, K = 32, 10_000, 384, 100, 10
ROUNDS = 7
PAPER: dict[str, Any] = {"kernel": "linear", "noise": 0.01, "distinct": False}
DEFAULT = "sift_batch (default: rbf)"
REPEATS = "sift_batch linear, noise 0.01, repeats (the paper)"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "sift_batch linear": {"kernel": "linear"},
    REPEATS: PAPER,
}

Picks = list[list[int]]  # of each query, positions in the corpus


class Work(NamedTuple):
    queries: NDArray[np.float32]  # (B, d) unit
    rows: NDArray[np.float32]  # (N, d) unit
    near: list[NDArray[np.int64]]  # B of (fetch_k,)


class Selector(NamedTuple):
    run: Callable[[], Any]
    picks: Callable[[Any], Picks]


def work(seed: int = 0) -> Work:
    """A corpus in loose clusters around a common direction, as benchmarks/selection.py has it."""
    rng = np.random.default_rng(seed)
    common = 0.7 * rng.normal(size=DIMENSIONS)
    centres = rng.normal(size=(CORPUS // 5, DIMENSIONS))
    rows = centres[rng.integers(len(centres), size=CORPUS)] + common
    rows += 0.7 * rng.normal(size=rows.shape)
    queries = 0.8 * rng.normal(size=(BATCH, DIMENSIONS)) + common + 0.5 * centres[:BATCH]
    unit = [(each / np.linalg.norm(each, axis=1, keepdims=True)) for each in (queries, rows)]
    vectors, corpus = (each.astype(np.float32) for each in unit)
    near = [found for found, _ in nearest_each(list(vectors[:, None]), corpus, FETCH_K)]
    return Work(vectors, corpus, near)


def listed(selections: Any) -> Picks:
    return [each.indices.tolist() for each in selections]


# With the search: each gives selectors by name, or raises ImportError.


def ours(w: Work) -> dict[str, Selector]:
    def batch(options: dict[str, Any]) -> Callable[[], Any]:
        return lambda: sift_batch(w.queries, w.rows, K, fetch_k=FETCH_K, **options)

    def loop(options: dict[str, Any]) -> Callable[[], Any]:
        def one(query: NDArray[np.float32]) -> Any:
            near, _ = next(nearest_each([query[None]], w.rows, FETCH_K))
            return near[sift(query, w.rows[near], K, **options).indices].tolist()

        return lambda: [one(query) for query in w.queries]

    found = {name: Selector(batch(options), listed) for name, options in SETTINGS.items()}
    found["a loop of sift (default)"] = Selector(loop({}), list)
    return found | {"a loop of sift, the paper": Selector(loop(PAPER), list)}


def activeft(w: Work) -> dict[str, Selector]:
    faiss, torch = importlib.import_module("faiss"), importlib.import_module("torch")
    torch.set_num_threads(1)
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(w.rows)
    retriever = importlib.import_module("activeft.sift").Retriever(index)
    queries = w.queries[:, None]  # (B, 1, d)

    def batch(**threads: int) -> Callable[[], Any]:
        return lambda: retriever.batch_search(queries, N=K, K=FETCH_K, **threads)[1]

    def one_by_one() -> Any:
        return [retriever.search(query, N=K, K=FETCH_K)[1] for query in queries]

    return {
        "activeft batch_search": Selector(batch(), whole_numbers),
        "activeft batch_search, threads=2": Selector(batch(threads=2), whole_numbers),
        "activeft search, one by one": Selector(one_by_one, whole_numbers),
    }


def whole_numbers(found: Any) -> Picks:
    return [[int(i) for i in each] for each in found]


def pyversity(w: Work) -> dict[str, Selector]:
    dpp = importlib.import_module("pyversity").dpp

    def run() -> Any:
        scores = w.queries @ w.rows.T
        near = np.argpartition(-scores, FETCH_K, axis=1)[:, :FETCH_K]
        each = zip(near, scores, strict=True)
        return [those[dpp(w.rows[those], score[those], K).indices] for those, score in each]

    return {"pyversity dpp": Selector(run, whole_numbers)}


# Selection alone


def ours_alone(w: Work) -> dict[str, Selector]:
    sets = [w.rows[near] for near in w.near]

    def batch(options: dict[str, Any]) -> Callable[[], Any]:
        return lambda: sift_batch(w.queries, sets, K, **options)

    def loop(options: dict[str, Any]) -> Callable[[], Any]:
        each = list(zip(w.queries, sets, strict=True))
        return lambda: [sift(query, rows, K, **options) for query, rows in each]

    def in_corpus(found: Any) -> Picks:
        return [near[one.indices].tolist() for near, one in zip(w.near, found, strict=True)]

    found = {name: Selector(batch(options), in_corpus) for name, options in SETTINGS.items()}
    found["a loop of sift (default)"] = Selector(loop({}), in_corpus)
    return found | {"a loop of sift, the paper": Selector(loop(PAPER), in_corpus)}


def activeft_alone(w: Work) -> dict[str, Selector]:
    torch = importlib.import_module("torch")
    loader = importlib.import_module("activeft").ActiveDataLoader
    vtl = importlib.import_module("activeft.acquisition_functions.vtl").VTL
    torch.set_num_threads(1)
    targets = [torch.tensor(query[None]) for query in w.queries]
    sets = [torch.tensor(w.rows[near]) for near in w.near]

    def one(target: Any, rows: Any) -> Any:
        rule = vtl(target=target, num_workers=0, subsample=False, noise_std=0.1)
        return loader(rows, batch_size=K, acquisition_function=rule).next()[0]

    def in_corpus(found: Any) -> Picks:
        each = zip(w.near, found, strict=True)
        return [near[[int(i) for i in picks]].tolist() for near, picks in each]

    def run() -> Any:
        return [one(*each) for each in zip(targets, sets, strict=True)]

    return {"activeft inner loop": Selector(run, in_corpus)}


def pyversity_alone(w: Work) -> dict[str, Selector]:
    dpp = importlib.import_module("pyversity").dpp
    each = [(w.rows[near], w.rows[near] @ q) for near, q in zip(w.near, w.queries, strict=True)]
    return {
        "pyversity dpp": Selector(
            lambda: [dpp(rows, scores, K).indices for rows, scores in each], whole_numbers
        )
    }


class Times(NamedTuple):
    cpu: float
    wall: float


def timed(run: Callable[[], Any]) -> Times:
    wall, cpu = time.perf_counter(), spent()
    run()
    return Times(spent() - cpu, time.perf_counter() - wall)


def spent() -> float:
    """CPU seconds of this process and of the workers that it has waited for."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def measured(selectors: dict[str, Selector]) -> dict[str, Times]:
    """Medians over rounds; in a round, the quick ones run often enough to count as much."""
    taken: dict[str, list[Times]] = {name: [] for name in selectors}
    first = {name: timed(each.run).wall for name, each in selectors.items()}  # not counted
    for _ in range(ROUNDS):
        for name, each in selectors.items():
            for _ in range(max(1, min(10, int(0.2 / first[name])))):
                taken[name].append(timed(each.run))
    return {
        name: Times(*map(statistics.median, zip(*times, strict=True)))
        for name, times in taken.items()
    }


def table(title: str, makers: list[Callable[[Work], dict[str, Selector]]]) -> Iterator[str]:
    w = work()
    selectors: dict[str, Selector] = {}
    missing = []
    for make in makers:
        try:
            selectors |= make(w)
        except ImportError as error:
            missing.append(str(error))
    paper = selectors[REPEATS].picks(selectors[REPEATS].run())
    times = measured(selectors)
    yield f"## {title}\n"
    yield (
        "| 32 queries | wall ms | CPU ms | wall, times sift_batch | times sift_batch, the paper "
        "| CPU, times sift_batch | times sift_batch, the paper | picks as the paper's |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, (cpu, wall) in times.items():
        figures = [f"{1e3 * wall:.1f}", f"{1e3 * cpu:.1f}"]
        figures += [f"{wall / times[each].wall:.2f}" for each in (DEFAULT, REPEATS)]
        figures += [f"{cpu / times[each].cpu:.2f}" for each in (DEFAULT, REPEATS)]
        found = selectors[name].picks(selectors[name].run())
        same = sum(a == b for a, b in zip(paper, found, strict=True))
        computes_it = "activeft" in name or "paper" in name
        yield f"| {name} | {' | '.join(figures)} | {f'{same} of {BATCH}' if computes_it else ''} |"
    yield ""
    if missing:
        yield f"Not installed: {', '.join(missing)}.\n"


def head() -> Iterator[str]:
    yield "# Batches\n"
    yield "    python benchmarks/batch.py --write\n"
    yield from machine(*PACKAGES)
    yield load_average() + "\n"
    yield explained(__doc__)
    yield (
        '"picks as the paper\'s" counts the queries whose ordered picks are all identical; a\n'
        "selection that stands in another query's place is not.\n"
    )


def main() -> None:
    write = arguments("batch.md", __doc__).parse_args().write
    whole = table("Search and selection", [ours, activeft, pyversity])
    alone = table("Selection alone", [ours_alone, activeft_alone, pyversity_alone])
    show("batch.md", chain(head(), whole, alone), write=write)


if __name__ == "__main__":
    main()
