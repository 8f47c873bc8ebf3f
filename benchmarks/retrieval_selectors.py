"""The selectors that `retrieval.py` compares, and a cache on disk of the orders they give."""

import hashlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import retrieval_data
from retrieval_metrics import Floats, Integers
from retrieval_tasks import Rows, Task

from sift_rag import kernels, problem, rivals, selection

Order = Callable[[Rows, Rows, Rows, int], Any]
"""Query (d,), candidates (n, d), their cosines (n,), k: positions in the order of selection."""

NEAREST, DEFAULT, PAPER = "nearest", "SIFT default", "SIFT paper"
MMR, DPP = "MMR", "DPP"  # of this library
LAMBDAS = (0.5, 0.6, 0.7, 0.8, 0.9)
WEIGHTS = (0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)  # pyversity's diversity ends at weight 1
DIVERSITIES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STRATEGIES = ("dpp", "mmr", "msd", "cover", "ssd")


def _version(*modules: ModuleType) -> str:
    files = [Path(str(module.__file__)) for module in modules]
    return f"sift_rag {hashlib.sha256(b''.join([file.read_bytes() for file in files])).hexdigest()}"


# Of the modules that decide, as they were loaded: a changed constant gives new orders of SIFT only.
SIFT = _version(kernels, problem, selection)
RIVALS = _version(problem, rivals)


class Selector(NamedTuple):
    """A family, such as MMR, at one of its settings; `version` names the code behind it."""

    family: str
    setting: float | None
    version: str
    order: Order

    @property
    def label(self) -> str:
        return self.family if self.setting is None else f"{self.family} {self.setting:g}"

    @property
    def rival(self) -> bool:
        return self.family not in (NEAREST, DEFAULT, PAPER)


def selectors() -> Iterator[Selector]:
    """All of them; pyversity's only where it is installed."""
    yield Selector(NEAREST, None, RIVALS, lambda q, x, s, k: rivals.nearest(q, x, k).indices)
    for weight in LAMBDAS:
        yield Selector(MMR, weight, RIVALS, _mmr(weight))
    for weight in WEIGHTS:
        yield Selector(DPP, weight, RIVALS, _dpp(weight))
    yield from _pyversity()
    yield Selector(DEFAULT, None, SIFT, lambda q, x, s, k: selection.sift(q, x, k).indices)
    yield Selector(PAPER, None, SIFT, _paper)


def installed() -> bool:
    """Is pyversity?"""
    try:
        version("pyversity")
    except PackageNotFoundError:
        return False
    return True


def _mmr(weight: float) -> Order:
    return lambda q, x, s, k: rivals.mmr(q, x, k, lambda_mult=weight).indices


def _dpp(weight: float) -> Order:
    return lambda q, x, s, k: rivals.dpp(q, x, k, relevance_weight=weight).indices


def _paper(q: Rows, x: Rows, s: Rows, k: int) -> Integers:
    return selection.sift(q, x, k, kernel="linear", noise=0.01).indices


def _pyversity() -> Iterator[Selector]:
    if not installed():
        return
    package = importlib.import_module("pyversity")
    code = f"pyversity {version('pyversity')}"

    def order(name: str, diversity: float) -> Order:
        strategy = getattr(package, name)
        return lambda q, x, s, k: strategy(x, s, k, diversity=diversity).indices

    for name in STRATEGIES:
        # Its coverage is a sum over all candidates: small shares of it already count much.
        for diversity in (0.003, *DIVERSITIES) if name == "cover" else DIVERSITIES:
            yield Selector(f"pyversity {name}", diversity, code, order(name, diversity))


def orders(task: Task, selector: Selector, k: int) -> Integers:
    """Positions among the candidates, (B, k); all selectors are greedy, so prefixes are shared."""
    k = min(k, task.candidates.shape[1])

    def each(b: int) -> Any:
        return selector.order(task.queries[b], task.rows[task.candidates[b]], task.scores[b], k)

    order = _cached(task, f"{selector.version} {selector.label} {k}", selector.label, each, k)
    if order.min() < 0:
        raise ValueError(f"{selector.label} gave fewer than {k} picks for a question")
    return order


def budgeted(task: Task, budget: int) -> Integers:
    """Positions that `sift(..., costs=, budget=)` takes, (B, n), filled up with -1."""

    def each(b: int) -> Any:
        mine = task.candidates[b]
        costs = task.tokens[mine]
        if costs.min() > budget:
            return ()
        return selection.sift(task.queries[b], task.rows[mine], costs=costs, budget=budget).indices

    label = f"SIFT default, {budget} tokens"
    return _cached(task, f"{SIFT} {label}", label, each, task.candidates.shape[1])


def _cached(task: Task, key: str, label: str, each: Callable[[int], Any], width: int) -> Integers:
    name = hashlib.sha256(f"{task.digest} {key}".encode()).hexdigest()[:32]
    path = retrieval_data.CACHE / "orders" / f"{name}.npy"
    if not path.exists():
        began = time.perf_counter()
        found = np.full((len(task), width), -1, dtype=np.int16)
        for b in range(len(task)):
            picks = each(b)
            found[b, : len(picks)] = picks
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, found)
        part.replace(path)
        took = time.perf_counter() - began
        print(f"{task.name}: {label}, {took:.1f} s", file=sys.stderr, flush=True)
    order: Integers = np.load(path, allow_pickle=False).astype(np.int64)
    return order


def costs(task: Task, order: Integers) -> Floats:
    """Tokens of the picks, (B, t)."""
    passages = np.take_along_axis(task.candidates, order, axis=1)
    return task.tokens[passages].astype(np.float64)
