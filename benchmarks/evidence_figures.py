"""What came of `evidence.py`, as numbers: pooled over domains, question by question."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from evidence_ways import BASE, HEAD, PAPER, trained
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from sift_rag.comparison import Comparison
from sift_rag.paired import Paired, compare_pairs

BITS = "bits_per_byte"
UNDONE = "Training was undone"  # how the engine's note begins, see `answering`
ALLOWED = 1.005  # of base, after the guard
SEEN = {("stories260K", "tinystories")}  # domains that a model was trained on
Values = NDArray[np.float64]


class Correlation(NamedTuple):
    """Spearman's, of the uncertainty left and the ratio to base."""

    pooled: float
    p: float
    within: float  # domains: ranks are taken in each by itself
    n: int


class Guard(NamedTuple):
    """What the guard did to one way, or to several."""

    trainings: int
    undone: int
    above: int  # answers worse than base by more than 0.5 %
    worst: float  # ratio to base


@dataclass(frozen=True)
class Evidence:
    """One model at one level of redundancy: the comparisons of all domains and numbers of steps."""

    model: str
    level: str
    parts: Sequence[Comparison]

    @cached_property
    def pooled(self) -> Comparison:
        """All as one comparison; where a way was not asked yet, its value is missing."""
        cases = {case.id: case for part in self.parts for case in part.cases}
        ways = dict.fromkeys(way for part in self.parts for way in part.ways)
        rows = {(row.case, row.way): row for part in self.parts for row in part.rows}
        told = {way: about for part in self.parts for way, about in part.settings["ways"].items()}
        settings = {**self.parts[0].settings, "ways": told}
        return replace(
            self.parts[0],
            cases=tuple(cases.values()),
            ways=tuple(ways),
            rows=tuple(rows.values()),
            settings=settings,
            unfinished=sum(part.unfinished for part in self.parts),
        )

    @cached_property
    def head(self) -> Comparison:
        """The ways of the main table only: those of 20 steps, and those without training."""
        ways = tuple(way for way in self.pooled.ways if _steps(way) in (None, HEAD))
        rows = tuple(row for row in self.pooled.rows if row.way in ways)
        told = {way: self.pooled.settings["ways"][way] for way in ways}
        settings = {**self.pooled.settings, "ways": told}
        return replace(self.pooled, ways=ways, rows=rows, settings=settings)

    @cached_property
    def domains(self) -> NDArray[np.str_]:
        """(n,) of each case."""
        names = [str(case.metadata["passage"]).rpartition("-")[0] for case in self.pooled.cases]
        return np.array(names)

    @property
    def steps(self) -> list[int]:
        """At which something was trained."""
        return sorted({n for way in self.pooled.ways if (n := _steps(way))})

    def bits(self, way: str) -> Values:
        """(n,) bits a byte; NaN where not asked, or where it failed."""
        return self.pooled.values(BITS, way)

    def ratio(self, way: str) -> Values:
        """(n,) bits a byte as a share of those of base."""
        return self.bits(way) / self.bits(BASE)

    def by_domain(self, way: str) -> dict[str, float]:
        """Mean bits a byte of each domain as a share of base's, over the same passages."""
        found = {}
        for domain in sorted(set(self.domains)):
            inside = (self.domains == domain) & ~np.isnan(self.ratio(way))
            if inside.any():
                means = (self.bits(each)[inside].mean() for each in (way, BASE))
                found[domain] = float(next(means) / next(means))
        return found

    def target(self, way: str) -> float:
        """The mean over the domains that are new to the model."""
        shares = [v for d, v in self.by_domain(way).items() if (self.model, d) not in SEEN]
        return float(np.mean(shares)) if shares else math.nan

    def paired(self, a: str, b: str) -> Paired:
        """Way b against way a, by itself: no correction for other pairs."""
        columns = {way: self.bits(way) for way in (a, b)}
        return compare_pairs(self.pooled.metric(BITS), columns)[0]

    def corrected(self, a: str, b: str) -> Paired:
        """The same among all pairs of the main table, with Holm's correction."""
        for pair in self.head.pairs():
            if {pair.a, pair.b} == {a, b}:
                return pair if pair.a == a else pair.swapped()
        raise ValueError(f"There is no pair of {a!r} and {b!r}.")

    def overshoot(self, selector: str) -> tuple[int, Paired] | None:
        """The best number of steps but the last, and the last against it."""
        last = self.steps[-1]
        rows = self.curves((selector,))
        means = dict(zip(self.steps[:-1], rows[selector][1:], strict=False))
        if not means or math.isnan(rows[selector][0]):
            return None
        best = min(means, key=lambda n: means[n])
        return best, self.paired(trained(selector, best), trained(selector, last))

    def curves(self, selectors: Sequence[str]) -> dict[str, list[float]]:
        """Mean bits a byte at 0 and at each number of steps, of what was asked at all of them."""
        names = {name: [BASE, *(trained(name, n) for n in self.steps)] for name in selectors}
        values = {name: np.stack([self.bits(w) for w in ways]) for name, ways in names.items()}
        known = ~np.isnan(np.concatenate(list(values.values()))).any(axis=0)
        if not known.any():
            return {name: [math.nan] * len(ways) for name, ways in names.items()}
        return {name: rows[:, known].mean(axis=1).tolist() for name, rows in values.items()}

    def left(self, way: str) -> Values:
        """(n,) uncertainty that the picks left, as a share; NaN where not known."""
        rows = (self.pooled.row(case.id, way) for case in self.pooled.cases)
        shares = (row.reply.uncertainty if row and row.reply else None for row in rows)
        return np.array([math.nan if v is None else v for v in shares], dtype=np.float64)

    def correlation(self, selector: str = PAPER, steps: int = HEAD) -> Correlation:
        """Of the uncertainty left with bits a byte as a share of base's: above 0, as it should be,
        the less is left, the more is gained."""
        way = trained(selector, steps)
        known = ~np.isnan(self.left(way)) & ~np.isnan(self.ratio(way))
        left, ratio, domains = self.left(way)[known], self.ratio(way)[known], self.domains[known]
        if known.sum() < 3:
            return Correlation(math.nan, math.nan, math.nan, int(known.sum()))
        found = spearmanr(left, ratio)
        ranks = np.zeros((2, len(left)))
        for domain in set(domains):
            inside = domains == domain
            for row, values in zip(ranks, (left, ratio), strict=True):
                places = rankdata(values[inside])
                row[inside] = (places - places.mean()) / max(1, inside.sum() - 1)
        spread = float(ranks.std(axis=1).prod())
        within = float((ranks[0] * ranks[1]).mean() / spread) if spread else math.nan
        return Correlation(float(found.statistic), float(found.pvalue), within, len(left))

    def taken(self, way: str) -> Values:
        """(n,) steps of a way that takes one for each passage; NaN where it was undone."""
        rows = (self.pooled.row(case.id, way) for case in self.pooled.cases)
        found = [row.reply.documents if row and row.reply else None for row in rows]
        return np.array([len(each) if each else math.nan for each in found], dtype=np.float64)

    @cached_property
    def new(self) -> NDArray[np.bool_]:
        """(n,) whether a case is of a domain that the model was not trained on."""
        return np.array([(self.model, domain) not in SEEN for domain in self.domains])

    def guarded(self, *ways: str, new: bool | None = None) -> Guard:
        """What was undone, and what got worse all the same; of new domains, known ones, or all."""
        inside = np.ones_like(self.new) if new is None else self.new == new
        cases = {case.id for case, i in zip(self.pooled.cases, inside, strict=True) if i}
        undone = sum(
            row.reply.note.startswith(UNDONE)
            for row in self.pooled.rows
            if row.reply and row.way in ways and row.case in cases
        )
        ratios = np.concatenate([self.ratio(way)[inside] for way in ways])
        ratios = ratios[~np.isnan(ratios)]
        worst = float(ratios.max(initial=0.0))
        return Guard(len(ratios), undone, int((ratios > ALLOWED).sum()), worst)

    @property
    def trained(self) -> list[str]:
        """The ways that train, by steps."""
        ways = [way for way in self.pooled.ways if _steps(way)]
        return sorted(ways, key=lambda way: _steps(way) or 0)


def _steps(way: str) -> int | None:
    """Of a way's name; None for those without training."""
    last = way.rpartition(") ")[2]
    return int(last) if last.isdigit() else None
