"""What a comparison's numbers say, in words: which way to take, how sure that is, and what else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sift_rag import quantities
from sift_rag.paired import Paired, Values, fewest

if TYPE_CHECKING:
    from sift_rag.comparison import Comparison
    from sift_rag.metrics import Metric

_FEW = 20  # questions; with fewer, only a huge difference can be shown
_MUCH = 0.8  # of time or money: what is less by a fifth is worth telling
_LONGEST = 160  # characters of an error that is quoted

_ORIGINS = {
    "made": "made from the corpus, not asked by a user",
    "held_out": "first halves of passages that were taken out of the corpus",
    "recorded": "recorded in production",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the numbers say.

    The ways' names and the errors quoted are as they came: who writes them elsewhere escapes them.

    Attributes:
        sentence: The verdict, with its uncertainty.
        details: What else there is to know, a sentence or two each.
        recommended: The way to take: of those shown to be better than the baseline the one with
            the best mean; where there is none, the baseline.
        shown: Whether the recommended way is shown to be better than the baseline.
    """

    sentence: str
    details: tuple[str, ...]
    recommended: str
    shown: bool


def verdict(comparison: Comparison) -> Verdict:
    """Hold every way against the baseline in the main metric, and say what is shown."""
    metric, baseline = comparison.main, comparison.baseline
    pairs = [_seen_from(baseline, pair) for pair in comparison.pairs()]
    against = [pair for pair in pairs if pair.a == baseline and pair.n]
    circumstances = tuple(_circumstances(comparison, metric))
    if metric is None or not against:
        sentence = _nothing(comparison, metric)
        return Verdict(sentence=sentence, details=circumstances, recommended=baseline, shown=False)
    found = [pair for pair in against if pair.shown and _is_better(pair, metric)]
    best = min(found, key=lambda pair: _rank(comparison, metric, pair.b), default=None)
    say = _better(comparison, metric, best) if best else _kept(comparison, metric, against)
    return Verdict(
        sentence=say,
        details=(*_others(comparison, metric, best), *circumstances),
        recommended=best.b if best else baseline,
        shown=best is not None,
    )


def _seen_from(way: str, pair: Paired) -> Paired:
    return pair.swapped() if pair.b == way else pair


def _is_better(pair: Paired, metric: Metric) -> bool:
    return (pair.difference > 0) == metric.higher_is_better


def _rank(comparison: Comparison, metric: Metric, way: str) -> tuple[float, float]:
    """The best mean first; of equal ones, the faster way."""
    mean = float(np.nanmean(comparison.values(metric.name, way)))
    return (-mean if metric.higher_is_better else mean), _pace(comparison, way)


def _better(comparison: Comparison, metric: Metric, pair: Paired) -> str:
    found, times = _against(metric, pair, comparison), _times(comparison, pair.b, pair.a)
    return f"{pair.b} answers better than {pair.a}: {found}{times}."


def _against(metric: Metric, pair: Paired, comparison: Comparison) -> str:
    """Both means, the difference, its interval and the test's p."""
    means = f"{_amount(metric, pair.mean_b)} against {_amount(metric, pair.mean_a)}"
    lower = "" if metric.higher_is_better else "lower is better; "
    evidence = _evidence(metric, pair, comparison)
    return f"{means}{_titled(metric)}, {_change(metric, pair)} ({lower}{evidence})"


def _evidence(metric: Metric, pair: Paired, comparison: Comparison) -> str:
    over = len(comparison.pairs())
    p = quantities.probability(pair.p_holm)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    corrected = "" if over == 1 else f" after Holm over {over} pairs"
    span = quantities.span(pair.low, pair.high, metric.unit)
    return f"95 % interval {span}; {p}{corrected}; {_questions(pair.n)}"


def _amount(metric: Metric, value: float) -> str:
    share = metric.unit == "share"
    return quantities.amount(value, metric.unit) if share else quantities.figure(value)


def _titled(metric: Metric) -> str:
    if metric.unit in ("share", metric.title):
        return f" {metric.title}"
    return f" {metric.unit} ({metric.title})"


def _change(metric: Metric, pair: Paired) -> str:
    if metric.unit == "share":
        return quantities.change(pair.difference, metric.unit)
    return quantities.change(pair.difference, "")


def _questions(n: int) -> str:
    return f"{n:,} question{'' if n == 1 else 's'}"


def _median(values: Values) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _pace(comparison: Comparison, way: str) -> float:
    return _median(comparison.seconds(way))


def _times(comparison: Comparison, way: str, other: str) -> str:
    ours, theirs = _pace(comparison, way), _pace(comparison, other)
    if math.isnan(ours + theirs):
        return ""
    return f", at {quantities.seconds(ours)} a question against {quantities.seconds(theirs)}"


def _kept(comparison: Comparison, metric: Metric, against: Sequence[Paired]) -> str:
    """The baseline stays: nothing is better, or all is worse."""
    baseline, open_ = comparison.baseline, [pair for pair in against if not pair.shown]
    if not open_:
        rival = min(against, key=lambda pair: _rank(comparison, metric, pair.b))
        every = "" if len(against) == 1 else "every other way; than the best of them, "
        found = _against(metric, rival.swapped(), comparison)
        times = _times(comparison, baseline, rival.b)
        return f"{baseline} answers better than {every}{rival.b}: {found}{times}. Keep {baseline}."
    known = f"({_power(comparison, metric, open_)}): keep {baseline}."
    if len(open_) < len(against):
        return f"No way is shown to be better than {baseline} in {metric.title} {known}"
    other = open_[0].b if len(open_) == 1 else "any other way"
    return f"No difference shown between {baseline} and {other} in {metric.title} {known}"


def _power(comparison: Comparison, metric: Metric, pairs: Sequence[Paired]) -> str:
    """How many questions there were, and what these would have shown."""
    sizes = sorted({pair.n for pair in pairs})
    asked = _questions(sizes[-1]) if len(sizes) == 1 else f"{sizes[0]:,} to {_questions(sizes[-1])}"
    smallest = [pair.smallest for pair in pairs if pair.smallest is not None]
    if len(smallest) < len(pairs):
        too_few = sizes[0] < fewest(pairs[0].level / len(comparison.pairs()))
        return f"{asked}, too few to show even a total difference" if too_few else asked
    found = quantities.change(max(smallest), metric.unit).removeprefix("+")
    return f"{asked}; a difference of {found} would have been shown with 80 % probability"


def _others(comparison: Comparison, metric: Metric, best: Paired | None) -> Iterator[str]:
    """Each other way against the one to take."""
    taken = best.b if best else comparison.baseline
    for pair in (_seen_from(taken, pair) for pair in comparison.pairs()):
        if pair.a != taken or not pair.n or (best and pair.b == best.a):
            continue
        if pair.shown:
            way = "better" if _is_better(pair, metric) else "worse"
            found = _against(metric, pair, comparison)
            yield f"{pair.b} is shown to be {way} than {taken}: {found}."
        elif pair.better == pair.worse == 0:
            same = f"{pair.b} came out the same as {taken} on all {_questions(pair.n)}"
            yield f"{same}{_saved(comparison, pair)}."
        else:
            yield _undecided(comparison, metric, pair)


def _undecided(comparison: Comparison, metric: Metric, pair: Paired) -> str:
    saved = _saved(comparison, pair)
    worst = -pair.low if metric.higher_is_better else pair.high
    bound = quantities.change(worst, metric.unit).removeprefix("+")
    risk = f"; it may be worse by up to {bound}" if worst > 0 else ""
    seen = f"{_change(metric, pair)}; {_evidence(metric, pair, comparison)}"
    what = "be worse than" if saved else "differ from"
    return f"{pair.b} is not shown to {what} {pair.a} ({seen}){risk}{saved}."


def _saved(comparison: Comparison, pair: Paired) -> str:
    """What the second way takes less of than the first, where that is worth telling."""
    currency = comparison.prices.currency if comparison.prices else ""
    found = []
    for verb, medians, write in (
        ("takes", [_pace(comparison, way) for way in (pair.b, pair.a)], quantities.seconds),
        (
            "costs",
            [_median(comparison.money(way)) for way in (pair.b, pair.a)],
            lambda value: quantities.money(value, currency),
        ),
    ):
        less, more = medians
        if less < _MUCH * more:
            found.append(f"{verb} {write(less)} a question instead of {write(more)}")
    return f"; it {' and '.join(found)}" if found else ""


def _nothing(comparison: Comparison, metric: Metric | None) -> str:
    """What can be said where no quality can be compared: time."""
    if len(comparison.ways) < 2:
        return f"Only one way was asked, {comparison.ways[0]}: there is nothing to hold it against."
    if metric is None:
        why = "No metric of quality was measured"
    else:
        why = (
            f"No question has a value of {metric.title} from both {comparison.baseline} and another"
        )
    paces = {way: _pace(comparison, way) for way in comparison.ways}
    known = [f"{way} {quantities.seconds(pace)}" for way, pace in paces.items() if pace >= 0]
    times = f" Median time of a question: {', '.join(known)}." if known else ""
    return f"{why}: nothing tells which way answers best.{times}"


def _circumstances(comparison: Comparison, metric: Metric | None) -> Iterator[str]:
    """Of the run: ended early, few questions, where they came from, failures."""
    if comparison.unfinished:
        asked = len(comparison.cases)
        total = _questions(asked + comparison.unfinished)
        yield f"The run was ended early: {asked:,} of {total} were asked of every way."
    yield from _too_few(comparison)
    origins: Counter[str] = Counter(case.origin for case in comparison.cases)
    for origin, about in _ORIGINS.items():
        if origins[origin]:
            yield f"{origins[origin]:,} of {_questions(len(comparison.cases))}: {about}."
    for way in comparison.ways:
        yield from _failures(comparison, metric, way)
    for each in comparison.metrics:
        yield from _unmeasured(comparison, each)


def _too_few(comparison: Comparison) -> Iterator[str]:
    pairs = comparison.pairs()
    n = max((pair.n for pair in pairs), default=0)
    if not 0 < n < _FEW:
        return
    needed = fewest(pairs[0].level / len(pairs))
    over = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of ways"
    if needed > n:
        yield (
            f"{_questions(n)} cannot show any difference between {over}, not even a total one: "
            f"that takes at least {needed}."
        )
    else:
        yield (
            f"{_questions(n)} are few: with {over}, at least {needed} of them must come out "
            "differently, all in one direction, to show any difference."
        )


def _failures(comparison: Comparison, metric: Metric | None, way: str) -> Iterator[str]:
    errors = [row.error for row in comparison.errors(way)]
    if not errors:
        return
    counted = ""
    if metric is not None and metric.failed is None:
        counted = f", which are left out in {metric.title}"
    elif metric is not None:
        counted = f", which count as {quantities.amount(metric.failed, metric.unit)}"
        counted += f" {metric.title}" if metric.unit == "share" else ""
    asked = _questions(len(comparison.cases))
    yield f"{way} failed on {len(errors):,} of {asked}{counted}. {_commonest(errors)}"


def _unmeasured(comparison: Comparison, metric: Metric) -> Iterator[str]:
    """Replies of which a metric's function raised: missing in it, and perhaps the bad ones."""
    errors = [e for row in comparison.rows if (e := row.unmeasured.get(metric.name))]
    if errors:
        yield (
            f"{metric.title} could not be measured on {len(errors):,} of {len(comparison.rows):,} "
            f"replies, which are left out in it. {_commonest(errors)}"
        )


def _commonest(errors: Sequence[str]) -> str:
    most, times = Counter(errors).most_common(1)[0]
    quoted = " ".join(most.split())
    quoted = quoted if len(quoted) <= _LONGEST else f"{quoted[:_LONGEST]}..."
    cause = "The error" if times == len(errors) else f"Most often ({times:,} times)"
    return f"{cause}: {quoted}"
