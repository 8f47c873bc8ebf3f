"""Time `SIFTRetriever` against LangChain's own retrievers on the same store, and count embeddings.

    pip install langchain-core langchain-community faiss-cpu
    python benchmarks/langchain.py --write      # also writes benchmarks/results/langchain.md

A FAISS store of langchain-community on a flat L2 index: 100,000 unit vectors of 384 dimensions in
loose clusters, short texts. 5 passages a question, picked from the 50 nearest where there is
something to pick. One thread. Embedding costs next to nothing: questions' vectors are looked up, so
that what is timed is the retriever and its store; each call of the embeddings is counted.

Each question goes through all retrievers in turn, several rounds of all questions. CPU time is of
this process, all its threads, so that others' work on a busy machine is not counted; wall time
stands beside it. "Over as_retriever" is the median of the differences, question by question, to
`store.as_retriever` called the same way in the same turn.

- as_retriever: `store.as_retriever(search_kwargs={"k": 5})`
- as_retriever, 50: the same with k=50, for what fetching 50 documents costs by itself
- mmr: `store.as_retriever(search_type="mmr", search_kwargs={"k": 5, "fetch_k": 50})`
- SIFTRetriever: `SIFTRetriever(vectorstore=store, k=5, fetch_k=50)`
- SIFTRetriever, long way: the same, made to search by the store's own method and to ask for vectors
  by the documents' ids, as it does with a filter, and in other stores

A flat search reads all vectors, 154 MB, and with them fills the processor's caches, so that what
comes after it starts cold. The last table is of a small store, where it does not.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and FAISS read it

import asyncio
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from results_file import arguments, explained, load_average, machine, show

if __name__ == "__main__":  # whoever looks for the package `langchain` must not find this file
    sys.path.remove(str(Path(__file__).resolve().parent))

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_sift import SIFTCallbackHandler, SIFTRetriever
from numpy.typing import NDArray

from sift_rag import sift
from sift_rag.events import Control, Event

PACKAGES = ["langchain-core", "langchain-community", "faiss-cpu", "numpy"]
CORPUS, SMALL, DIMENSIONS, FETCH_K, K = 100_000, 2_000, 384, 50, 5
QUESTIONS, ROUNDS = 120, 5
PLAIN, MANY, MMR = "as_retriever", "as_retriever, 50", "mmr"
SIFT, LONG = "SIFTRetriever", "SIFTRetriever, long way"

Retrieve = Callable[[str], list[Document]]


class LookUp(Embeddings):
    """Vectors made beforehand, by text; counts the texts it is asked for."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors
        self.questions = self.passages = 0

    def embed_query(self, text: str) -> list[float]:
        self.questions += 1
        return self.vectors[text]

    async def aembed_query(self, text: str) -> list[float]:  # the default hops to a thread
        return self.embed_query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.passages += len(texts)
        return [self.vectors[text] for text in texts]


class Work(NamedTuple):
    store: VectorStore
    embeddings: LookUp
    rows: NDArray[np.float32]  # (N, d) unit
    questions: dict[str, NDArray[np.float32]]  # (d,) each, unit


def work(corpus: int, seed: int = 0) -> Work:
    """Clusters of about 5 around a common direction, as benchmarks/batch.py has them."""
    rng = np.random.default_rng(seed)
    common = 0.7 * rng.normal(size=DIMENSIONS)
    centres = rng.normal(size=(corpus // 5, DIMENSIONS))
    rows = unit(
        centres[rng.integers(len(centres), size=corpus)]
        + common
        + 0.7 * rng.standard_normal((corpus, DIMENSIONS), dtype=np.float32)
    )
    asked = unit(
        0.8 * rng.normal(size=(QUESTIONS, DIMENSIONS)) + common + 0.5 * centres[:QUESTIONS]
    )
    questions = {f"What does cluster {i} tell?": row for i, row in enumerate(asked)}
    embeddings = LookUp({text: row.tolist() for text, row in questions.items()})
    return Work(filled(rows, embeddings), embeddings, rows, questions)


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    units: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    return units


def filled(rows: NDArray[np.float32], embeddings: Embeddings) -> VectorStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of langchain-community, as a whole
        from langchain_community.vectorstores import FAISS
    texts = (f"Passage {i} tells a little about its cluster." for i in range(len(rows)))
    ids = [f"passage-{i}" for i in range(len(rows))]
    store: VectorStore = FAISS.from_embeddings(zip(texts, rows, strict=True), embeddings, ids=ids)
    return store


def retrievers(store: VectorStore) -> dict[str, BaseRetriever]:
    mmr = {"k": K, "fetch_k": FETCH_K}
    return {
        PLAIN: store.as_retriever(search_kwargs={"k": K}),
        MANY: store.as_retriever(search_kwargs={"k": FETCH_K}),
        MMR: store.as_retriever(search_type="mmr", search_kwargs=mmr),
        SIFT: SIFTRetriever(vectorstore=store, k=K, fetch_k=FETCH_K),
        LONG: SIFTRetriever(vectorstore=store, k=K, fetch_k=FETCH_K, vector_key="none"),
    }


class Times(NamedTuple):
    cpu: float
    wall: float


class Measured(NamedTuple):
    times: list[Times]  # in the same order for every retriever
    questions: int  # embedded
    passages: int


def timed(run: Callable[[], Any]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Times(time.process_time() - cpu, time.perf_counter() - wall)


def measured(w: Work, calls: dict[str, Retrieve]) -> dict[str, Measured]:
    taken: dict[str, list[Times]] = {name: [] for name in calls}
    asked = dict.fromkeys(calls, 0)
    embedded = dict.fromkeys(calls, 0)
    for call in calls.values():  # not counted
        call(next(iter(w.questions)))
    turn = 0
    names = list(calls)
    for _ in range(ROUNDS):
        for question in w.questions:
            turn += 1
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                w.embeddings.questions = w.embeddings.passages = 0
                taken[name].append(timed(partial(calls[name], question)))
                asked[name] += w.embeddings.questions
                embedded[name] += w.embeddings.passages
    return {name: Measured(taken[name], asked[name], embedded[name]) for name in names}


def table(title: str, w: Work, calls: dict[str, Retrieve]) -> Iterator[str]:
    found = measured(w, calls)
    plain, sifted = found[PLAIN].times, middle(found[SIFT].times)
    yield f"## {title}\n"
    yield (
        "| retriever | CPU ms | wall ms | over as_retriever, CPU ms | wall ms "
        "| times SIFTRetriever, CPU | wall | questions embedded | passages embedded |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, (times, questions, passages) in found.items():
        own = middle(times)
        over = middle([difference(a, b) for a, b in zip(times, plain, strict=True)])
        figures = [*own, *over]
        cells = [f"{1e3 * seconds:.2f}" for seconds in figures]
        cells += [f"{own.cpu / sifted.cpu:.2f}", f"{own.wall / sifted.wall:.2f}"]
        cells += [f"{questions} of {len(times)}", str(passages)]
        yield f"| {name} | {' | '.join(cells)} |"
    quicker = sum(a.cpu < b.cpu for a, b in zip(found[SIFT].times, found[MMR].times, strict=True))
    yield f"\nSIFTRetriever took less CPU time than mmr in {quicker} of {len(plain)} turns.\n"


def middle(times: list[Times]) -> Times:
    return Times(*map(statistics.median, zip(*times, strict=True)))


def difference(a: Times, b: Times) -> Times:
    return Times(a.cpu - b.cpu, a.wall - b.wall)


class Stages(SIFTCallbackHandler):
    """Keeps the seconds of each selection's stages."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[dict[str, float]] = []

    def on_selection(self, event: Event, control: Control) -> None:
        self.seconds.append(event["seconds"])


def profile(w: Work, retriever: BaseRetriever) -> Iterator[str]:
    """Where SIFT's time goes, by its own events, wall clock; the rest is callbacks and copies."""
    stages = Stages()
    watched = retriever.with_config(callbacks=[stages])
    whole = [timed(partial(watched.invoke, question)).wall for question in w.questions]
    parts = {name: statistics.median(s[name] for s in stages.seconds) for name in stages.seconds[0]}
    told = [sum(seconds.values()) for seconds in stages.seconds]
    parts["callbacks, documents"] = statistics.median(
        a - b for a, b in zip(whole, told, strict=True)
    )
    yield "## Where the time goes\n"
    line = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in parts.items())
    yield "SIFTRetriever.invoke, wall ms by its own selection event, with one handler listening; a"
    yield "search that brings the vectors along leaves none to be fetched:"
    yield f"{line}; in all {1e3 * statistics.median(whole):.2f}.\n"


def check(w: Work, retriever: BaseRetriever) -> Iterator[str]:
    same = 0
    for question, query in w.questions.items():
        near = np.argsort(-(w.rows @ query), kind="stable")[:FETCH_K]
        wanted = near[sift(query, w.rows[near], K).indices]
        picks = [document.id for document in retriever.invoke(question)]
        same += picks == [f"passage-{i}" for i in wanted]
    yield f"Picks as `sift` of the exact {FETCH_K} nearest gives them: {same} of {QUESTIONS}.\n"


def head() -> Iterator[str]:
    yield "# LangChain\n"
    yield "    python benchmarks/langchain.py --write\n"
    yield from machine(*PACKAGES)
    yield load_average() + "\n"
    yield explained(__doc__)
    yield f"{QUESTIONS} questions, {ROUNDS} rounds.\n"


def everything() -> Iterator[str]:
    w = work(CORPUS)
    each = retrievers(w.store)
    yield from head()
    yield from table("invoke", w, {name: found.invoke for name, found in each.items()})
    loop = asyncio.new_event_loop()

    def awaited(found: BaseRetriever) -> Retrieve:
        return lambda question: loop.run_until_complete(found.ainvoke(question))

    yield from table("ainvoke", w, {name: awaited(found) for name, found in each.items()})
    loop.close()
    yield from profile(w, each[SIFT])
    yield from check(w, each[SIFT])
    w = work(SMALL)
    each = retrievers(w.store)
    title = f"invoke, {SMALL:,} passages"
    yield from table(title, w, {name: found.invoke for name, found in each.items()})


def main() -> None:
    write = arguments("langchain.md", __doc__).parse_args().write
    show("langchain.md", everything(), write=write)


if __name__ == "__main__":
    main()
