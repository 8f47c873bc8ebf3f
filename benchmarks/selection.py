"""Time the selectors against every peer that is installed, and compare picks with activeft's.

    pip install activeft==0.1.1 faiss-cpu torch pyversity==0.2.0 langchain-core llama-index-core
    python benchmarks/selection.py --write      # also writes benchmarks/results/selection.md

One thread; float32 unit vectors; every peer gets its favourite input made beforehand (tensors,
lists, relevance scores), while `sift` checks its input and multiplies by the query itself. Repeats
are interleaved. Times are CPU time of this process, median over the repeats, so that others' work
on a busy machine is not counted; the fastest by the wall clock stands beside them.

What each does to its input: sift measures the lengths of float32 rows, finds them unit, and
multiplies in float32 with sums in float64; pyversity normalises a float32 copy and stays in
float32; activeft takes float32 tensors as they are; LangChain and llama-index normalise pair by
pair, from lists or arrays.

"activeft exact" is its inner loop alone, with data workers off. "activeft Retriever" is the way to
exact SIFT that its documentation gives, `Retriever(index).search(...)` on a FAISS index of just
these candidates: it starts a worker process a call, whose time counts by the wall clock only.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from results_file import arguments, explained, machine, show

from sift_rag.rivals import mmr, nearest
from sift_rag.selection import sift

SHAPES = [(50, 200, 384), (50, 200, 1024), (10, 100, 768), (50, 1000, 768)]  # k of n, at d
PACKAGES = [
    "activeft",
    "pyversity",
    "langchain-core",
    "llama-index-core",
    "faiss-cpu",
    "torch",
    "numpy",
]
SECONDS = 1.0  # of CPU for each selector at each shape: at least 3 repeats, at most 300


class Problem(NamedTuple):
    query: NDArray[np.float32]  # (d,) unit
    rows: NDArray[np.float32]  # (n, d) unit
    k: int


Call = Callable[[], Any]


def problem(k: int, n: int, d: int, seed: int = 0) -> Problem:
    """Candidates in n / 5 loose clusters around a common direction, the query near one of them."""
    rng = np.random.default_rng(seed)
    common = 0.7 * rng.normal(size=d)
    centres = rng.normal(size=(n // 5, d))
    rows = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.normal(size=(n, d)) + common
    query = 0.8 * rng.normal(size=d) + common + 0.5 * centres[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Problem((query / np.linalg.norm(query)).astype("f4"), rows.astype("f4"), k)


# Each of these gives the calls of one package, or raises ImportError.


def ours(p: Problem) -> dict[str, Call]:
    q, x, k = p
    return {
        "sift (default: rbf)": lambda: sift(q, x, k),
        "sift linear": lambda: sift(q, x, k, kernel="linear"),
        "sift linear, repeats (the paper)": lambda: sift(
            q, x, k, kernel="linear", noise=0.01, distinct=False
        ),
        "nearest": lambda: nearest(q, x, k),
        "mmr": lambda: mmr(q, x, k),
    }


def activeft(p: Problem) -> dict[str, Call]:
    torch = importlib.import_module("torch")
    loader = importlib.import_module("activeft").ActiveDataLoader
    found = importlib.import_module("activeft.acquisition_functions")
    vtl = importlib.import_module(f"{found.__name__}.vtl").VTL
    lazy = importlib.import_module(f"{found.__name__}.lazy_vtl").LazyVTL
    torch.set_num_threads(1)
    query, rows = torch.tensor(p.query[None]), torch.tensor(p.rows)

    def call(kind: Any) -> Call:
        def picks() -> Any:
            rule = kind(target=query, num_workers=0, subsample=False, noise_std=0.1)
            return loader(rows, batch_size=p.k, acquisition_function=rule).next()[0]

        return picks

    return {"activeft exact": call(vtl), "activeft fast=True": call(lazy)}


def activeft_retriever(p: Problem) -> dict[str, Call]:
    faiss = importlib.import_module("faiss")
    retriever = importlib.import_module("activeft.sift").Retriever
    index = faiss.IndexFlatIP(p.rows.shape[1])
    index.add(p.rows)
    found, query = retriever(index, also_query_opposite=False), p.query[None]
    return {"activeft Retriever": lambda: found.search(query, N=p.k, K=len(p.rows))[1]}


def pyversity(p: Problem) -> dict[str, Call]:
    package = importlib.import_module("pyversity")
    scores = p.rows @ p.query

    def call(name: str) -> Call:
        strategy = getattr(package, name)
        return lambda: strategy(p.rows, scores, p.k)

    return {f"pyversity {name}": call(name) for name in ("dpp", "mmr", "msd", "cover", "ssd")}


def langchain(p: Problem) -> dict[str, Call]:
    utils = importlib.import_module("langchain_core.vectorstores.utils")
    rank, lists = utils.maximal_marginal_relevance, p.rows.tolist()
    return {
        "langchain-core MMR, ndarray": lambda: rank(p.query, p.rows, lambda_mult=0.5, k=p.k),
        "langchain-core MMR, lists": lambda: rank(p.query, lists, lambda_mult=0.5, k=p.k),
    }


def llama_index(p: Problem) -> dict[str, Call]:
    module = importlib.import_module("llama_index.core.indices.query.embedding_utils")
    rank = module.get_top_k_mmr_embeddings
    query, rows, ids = p.query.tolist(), p.rows.tolist(), list(range(len(p.rows)))
    return {
        "llama-index-core MMR, lists": lambda: rank(
            query, rows, similarity_top_k=p.k, embedding_ids=ids, mmr_threshold=0.5
        )
    }


PEERS = {
    "activeft": activeft,
    "activeft with FAISS": activeft_retriever,
    "pyversity": pyversity,
    "langchain-core": langchain,
    "llama-index-core": llama_index,
}


class Times(NamedTuple):
    cpu: list[float]
    wall: list[float]


def measured(calls: dict[str, Call]) -> dict[str, Times]:
    """Seconds of each call, round after round, until each has had its share.

    Quick ones run several times a turn, or they pay for the caches that the slow ones emptied.
    """
    times = {name: Times([], []) for name in calls}
    first = {name: timed(call, 1)[0] for name, call in calls.items()}  # not counted
    loops = {name: 1 + int(0.004 / seconds) for name, seconds in first.items()}
    rounds = {name: max(3, min(300, int(SECONDS / (first[name] * loops[name])))) for name in calls}
    for turn in range(max(rounds.values())):
        waiting = [name for name in calls if turn < rounds[name]]
        start = turn % len(waiting)
        for name in waiting[start:] + waiting[:start]:
            cpu, wall = timed(calls[name], loops[name])
            times[name].cpu.append(cpu)
            times[name].wall.append(wall)
    return times


def timed(call: Call, loops: int) -> tuple[float, float]:
    if loops > 1:
        call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops):
        call()
    return (time.process_time() - cpu) / loops, (time.perf_counter() - wall) / loops


def table(shape: tuple[int, int, int]) -> Iterator[str]:
    k, n, d = shape
    p = problem(*shape)
    calls, missing = ours(p), []
    for name, peer in PEERS.items():
        try:
            calls |= peer(p)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    times = measured(calls)
    default, paper = (statistics.median(times[name].cpu) for name in list(times)[0:3:2])
    yield f"## k={k} of {n}, d={d}\n"
    yield (
        "| selector | median CPU ms | fastest wall ms | repeats "
        "| times sift's default | times sift as the paper |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    for name, each in times.items():
        median = statistics.median(each.cpu)
        figures = f"{1e3 * median:.3f} | {1e3 * min(each.wall):.3f} | {len(each.cpu)}"
        yield f"| {name} | {figures} | {median / default:.2f} | {median / paper:.2f} |"
    yield ""
    if missing:
        yield f"Not installed: {', '.join(missing)}.\n"


def agreement() -> Iterator[str]:
    """Are the ordered picks those of the libraries that compute the same thing?"""
    yield "## Identical picks\n"
    yield "| ordered picks, all equal | problems |"
    yield "|---|---:|"
    pairs = [
        ("sift linear, repeats (the paper)", "activeft exact", activeft, range(20)),
        ("sift linear, repeats (the paper)", "activeft Retriever", activeft_retriever, range(3)),
        ("sift linear, repeats (the paper)", "activeft fast=True", activeft, range(3)),
        ("mmr", "langchain-core MMR, ndarray", langchain, range(5)),
    ]
    for mine, name, peer, seeds in pairs:
        for shape in SHAPES[:3]:
            try:
                same = [
                    ours(p)[mine]().indices.tolist() == [int(i) for i in np.ravel(peer(p)[name]())]
                    for p in (problem(*shape, seed=seed) for seed in seeds)
                ]
            except ImportError as error:
                yield f"| {mine} and {name}: not installed ({error}) | |"
                break
            place = "k={} of {}, d={}".format(*shape)
            yield f"| {mine} and {name}, {place} | {sum(same)} of {len(same)} |"
    yield ""


def head() -> Iterator[str]:
    yield "# Selection\n"
    yield "    python benchmarks/selection.py --write\n"
    yield from machine(*PACKAGES)
    yield ""
    yield explained(__doc__)


def main() -> None:
    write = arguments("selection.md", __doc__).parse_args().write
    show("selection.md", chain(head(), *map(table, SHAPES), agreement()), write=write)


if __name__ == "__main__":
    main()
