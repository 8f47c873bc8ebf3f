"""Time SIFT over a whole corpus against one exact FAISS search of the same vectors, and its memory.

    pip install faiss-cpu torch
    python benchmarks/whole_corpus.py --write     # also writes benchmarks/results/whole_corpus.md
    python benchmarks/whole_corpus.py --n 50000   # a smaller one, in seconds

One thread. The vectors are unit float32 rows in 5,000 clusters around a common direction; FAISS
holds them, and SIFT reads them where they lie. Each repeat asks another question, of all rows in
turn. Times are CPU time of this process, medians over the repeats; the ratio is that of the
medians. Memory is what tracemalloc counts in one call at most: every array of NumPy, also where
torch works on it, the vectors themselves aside.
"Equal" says for how many questions the ordered picks are those of `sift` on all vectors, with the
same kernel.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results_file import arguments, explained, machine, show

from sift_rag.blocks import sift_corpus
from sift_rag.kernels import calibrated
from sift_rag.selection import Selection, sift

CLUSTERS, GENERATED = 5_000, 20_000  # rows generated at a time

Rows = NDArray[np.float32]
Call = Callable[[Rows, Rows, int], Selection]  # query (d,), rows (n, d), k


def filled(n: int, d: int, questions: int) -> tuple[Any, Rows, Rows]:
    """A FAISS index, its vectors (n, d) as it holds them, and questions (questions, d)."""
    import faiss

    rng = np.random.default_rng(0)
    common, centres = 0.7 * rng.normal(size=d), rng.normal(size=(CLUSTERS, d))
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(d)
    for start in range(0, n, GENERATED):
        of = rng.integers(CLUSTERS, size=min(GENERATED, n - start))
        index.add(unit(centres[of] + 0.8 * rng.normal(size=(len(of), d)) + common))
    asked = 0.8 * rng.normal(size=(questions, d)) + common + 0.5 * centres[:questions]
    return index, faiss.rev_swig_ptr(index.get_xb(), n * d).reshape(n, d), unit(asked)


def unit(rows: NDArray[np.float64]) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def on_all(query: Rows, rows: Rows, k: int) -> Selection:
    """`sift` itself, its default kernel calibrated as `sift_corpus` does."""
    nearest = np.argsort(-(rows @ query), kind="stable")[:100]
    return sift(query, rows, k, kernel=calibrated(query[None], rows[nearest]))


CALLS: dict[str, Call] = {
    "default (rbf)": sift_corpus,
    "linear": lambda q, x, k: sift_corpus(q, x, k, kernel="linear"),
    "linear, noise 0.01, repeats (the paper)": lambda q, x, k: sift_corpus(
        q, x, k, kernel="linear", noise=0.01, distinct=False
    ),
    "default (rbf), torch on the CPU": lambda q, x, k: sift_corpus(q, x, k, device="cpu"),
    "`sift` on all vectors, linear": lambda q, x, k: sift(q, x, k, kernel="linear"),
}
REFERENCES: dict[str, Call] = {
    "default (rbf)": on_all,
    "linear": CALLS["`sift` on all vectors, linear"],
    "linear, noise 0.01, repeats (the paper)": lambda q, x, k: sift(
        q, x, k, kernel="linear", noise=0.01, distinct=False
    ),
    "default (rbf), torch on the CPU": on_all,
}


def cpu(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def growth(call: Callable[[], Any]) -> int:
    """Bytes of the arrays that are alive at most, by Python's own count."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def equal(name: str, questions: Rows, rows: Rows, k: int) -> str:
    if name not in REFERENCES:
        return ""
    same = [
        np.array_equal(CALLS[name](q, rows, k).indices, REFERENCES[name](q, rows, k).indices)
        for q in questions
    ]
    return f"{sum(same)} of {len(same)}"


def measured(n: int, d: int, k: int, repeats: int) -> Iterator[str]:
    index, rows, questions = filled(n, d, repeats)
    for call in CALLS.values():
        call(questions[0], rows, k)  # not counted
    search, times = list[float](), {name: list[float]() for name in CALLS}
    for q in questions:
        for name, call in CALLS.items():
            search.append(cpu(lambda q=q: index.search(q[None], k)))  # type: ignore[misc]
            times[name].append(cpu(lambda q=q, call=call: call(q, rows, k)))  # type: ignore[misc]
    once = statistics.median(search)
    yield f"## k={k} of {n:,}, d={d}, {repeats} questions\n"
    yield f"One exact search with FAISS: {1e3 * once:.1f} ms."
    yield f"The vectors: {rows.nbytes / 1e6:.0f} MB."
    yield ""
    yield "| | CPU ms | times one search | memory MB | of the vectors | equal |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, each in times.items():
        median, call = statistics.median(each), CALLS[name]
        more = growth(lambda call=call: call(questions[0], rows, k))  # type: ignore[misc]
        yield (
            f"| {name} | {1e3 * median:.0f} | {median / once:.1f} | {more / 1e6:.0f} "
            f"| {more / rows.nbytes:.1%} | {equal(name, questions, rows, k)} |"
        )
    yield ""


def head() -> Iterator[str]:
    yield "# SIFT over a whole corpus\n"
    yield "    python benchmarks/whole_corpus.py --write\n"
    yield from machine(*PACKAGES)
    yield ""
    yield explained(__doc__)
    yield "Wanted: at most 12 times one search, and at most 25 % more memory.\n"


PACKAGES = ("faiss-cpu", "numpy", "torch")


def main() -> None:
    parser = arguments("whole_corpus.md", __doc__)
    for name, default in (("n", 1_000_000), ("d", 384), ("k", 10), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    lines = chain(head(), measured(given.n, given.d, given.k, given.repeats))
    show("whole_corpus.md", lines, write=given.write)


if __name__ == "__main__":
    main()
