"""The selectors of `retrieval.py` measured on the questions of all sets at one level."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from retrieval_metrics import (
    KS,
    Flags,
    Floats,
    Integers,
    Interval,
    at,
    bootstrap,
    distinct,
    found,
    mean,
    near_duplicates,
    over_ks,
    within,
)
from retrieval_selectors import DEFAULT, MMR, NEAREST, PAPER, Selector, budgeted, costs, orders
from retrieval_tasks import Task

BUDGETS = (256, 512, 1024, 2048)  # tokens


class Columns(NamedTuple):
    """One row of a table, each a mean over `KS` but for `at_ks`."""

    found: float
    at_ks: list[float]
    complete: float
    sources: float
    duplicates: float
    tokens: float


class Level:
    """All sets at one level; values a question, (B,), are those of the sets one after another."""

    def __init__(self, name: str, tasks: Sequence[Task], selectors: Sequence[Selector]) -> None:
        self.name, self.tasks, self.selectors = name, tasks, selectors
        self.sets = np.repeat(np.arange(len(tasks)), [len(task) for task in tasks])  # (B,)
        self.pairs: Flags = np.concatenate([task.pairs for task in tasks])  # (B,)
        most = max(KS)
        self._found: dict[Selector, Floats] = {
            selector: np.concatenate(
                [found(task.tells, task.needs, orders(task, selector, most)) for task in tasks]
            )
            for selector in selectors
        }

    @cached_property
    def families(self) -> list[str]:
        """The rivals' names, in the order of the tables."""
        return list(dict.fromkeys(each.family for each in self.selectors if each.rival))

    def curve(self, selector: Selector) -> Floats:
        """Share of facts found by each question after each pick, (B, t)."""
        return self._found[selector]

    def values(self, selector: Selector) -> Floats:
        """Share of facts found by each question, mean over `KS`, (B,)."""
        return over_ks(self.curve(selector))

    def score(self, selector: Selector, among: Flags | None = None) -> float:
        """Mean over the sets; of some of the questions (B,), if given."""
        values = self.values(selector)
        if among is None:
            return mean(values, self.sets)
        return mean(values[among], self.sets[among])

    def only(self, family: str) -> Selector:
        """The selector of a family that has no settings."""
        (selector,) = (each for each in self.selectors if each.family == family)
        return selector

    def best(self, family: str) -> Selector:
        """The setting of a family that finds most here: chosen in hindsight."""
        return max((s for s in self.selectors if s.family == family), key=self.score)

    def shown(self, *, all_mmr: bool = False) -> list[Selector]:
        """A row each: nearest, the rivals at their best, SIFT; every setting of MMR on request."""
        rows = [self.only(NEAREST)]
        for family in self.families:
            if family == MMR and all_mmr:
                rows += [each for each in self.selectors if each.family == MMR]
            else:
                rows.append(self.best(family))
        return [*rows, self.only(DEFAULT), self.only(PAPER)]

    def difference(self, other: Selector) -> Interval:
        """SIFT's default minus another, question by question."""
        return bootstrap(self.values(self.only(DEFAULT)) - self.values(other), self.sets)

    def columns(self, selector: Selector) -> Columns:
        sources, duplicates, tokens = self.spread(selector)
        told, t = self.curve(selector), np.arange(1, sources.shape[1] + 1)
        return Columns(
            found=self.score(selector),
            at_ks=[mean(at(told, k), self.sets) for k in KS],
            complete=self._mean((told > 1 - 1e-9).astype(float)),
            sources=self._mean(sources),
            duplicates=self._mean(duplicates.cumsum(axis=1) / t),
            tokens=self._mean(tokens.cumsum(axis=1)),
        )

    def spread(self, selector: Selector) -> tuple[Floats, Floats, Floats]:
        """Share of different sources, near-duplicates, and tokens of each pick; all (B, t)."""
        parts: list[tuple[Floats, Floats, Floats]] = []
        for task in self.tasks:
            order = orders(task, selector, max(KS))
            passages = np.take_along_axis(task.candidates, order, axis=1)  # (B, t)
            picks = [[task.pieces[p] for p in row] for row in passages]
            sources = np.array([[source for source, _ in row] for row in picks])
            copies = np.array([near_duplicates(row) for row in picks], dtype=float)
            parts.append((distinct(sources), copies, costs(task, order)))
        sources, copies, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
        return sources, copies, tokens

    def at_budget(self, selector: Selector, budget: int) -> float:
        """Facts found when the order is cut to a budget, passing over what does not fit."""
        return self._told([self._cut(task, selector, budget) for task in self.tasks])

    def with_costs(self, budget: int) -> float:
        """Facts found by `sift(..., costs=, budget=)`."""
        return self._told([_filled(budgeted(task, budget)) for task in self.tasks])

    def _cut(self, task: Task, selector: Selector, budget: int) -> tuple[Integers, Flags]:
        order = orders(task, selector, task.candidates.shape[1])
        return order, within(costs(task, order), budget)

    def _told(self, picks: Sequence[tuple[Integers, Flags]]) -> float:
        values = [
            found(task.tells, task.needs, order, taken)[:, -1]
            for task, (order, taken) in zip(self.tasks, picks, strict=True)
        ]
        return mean(np.concatenate(values), self.sets)

    def _mean(self, values: Floats) -> float:
        return mean(over_ks(values), self.sets)


def _filled(order: Integers) -> tuple[Integers, Flags]:
    """An order that ends in -1, and which of its places are picks."""
    return np.maximum(order, 0), order >= 0


def one_for_all(levels: Sequence[Level], family: str) -> Selector:
    """The setting of a family that finds most over all levels, chosen in hindsight."""
    settings = [each for each in levels[0].selectors if each.family == family]
    return max(settings, key=lambda each: sum(level.score(each) for level in levels))
