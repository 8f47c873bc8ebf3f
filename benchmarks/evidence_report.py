"""What came of `evidence.py`, in words and tables."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from evidence_figures import ALLOWED, SEEN, Evidence, Guard
from evidence_ways import (
    ADAPTIVE,
    BASE,
    BOTH,
    CURVES,
    HEAD,
    NEAREST,
    PAPER,
    REPEATED,
    SELECTORS,
    SIFT,
    trained,
)

from sift_rag import report
from sift_rag.paired import Paired

TARGET = 0.90  # of base


def lines(evidence: Sequence[Evidence]) -> Iterator[str]:
    """The claims, each with its figure, then the tables."""
    yield "\n## Claims\n"
    for one in evidence:
        yield from claims(one)
    for one in evidence:
        asked = f"{len(one.pooled.cases)} passages of {len(set(one.domains))} domains"
        yield f"\n## {one.model}, {one.level}: {asked}\n"
        if one.pooled.unfinished:
            yield f"The run was ended: {one.pooled.unfinished} questions are missing.\n"
        yield from domain_table(one)
        yield from curve_table(one)
        yield from guard_table(one)
        yield from of_the_library(one)


def claims(one: Evidence) -> Iterator[str]:
    """Each claim for one model at one level of redundancy."""
    yield f"{one.model}, {one.level}:\n"
    yield f"All settings of SIFT are shown; {SIFT} was taken beforehand, {PAPER} is the paper's.\n"
    for selector in settings(one):
        pair = one.corrected(trained(NEAREST, HEAD), trained(selector, HEAD))
        yield (
            f"* SIFT below nearest, {HEAD} steps: {said(pair)}. {selector} {pair.mean_b:.3f}, "
            f"nearest {pair.mean_a:.3f} bits a byte, {shift(pair)}, p = {pair.p_holm:.2g} (Holm)."
        )
    yield from overshoots(one)
    yield from longest(one)
    found = one.correlation()
    yield (
        f"* Uncertainty predicts the gain: the less {PAPER} left open, the lower the ratio to "
        f"base; Spearman {found.pooled:+.2f} (p = {found.p:.2g}, {found.n} passages), within "
        f"domains {found.within:+.2f}."
    )
    yield from adaptive(one)
    yield from together(one)
    yield from targets(one)
    yield ""


def adaptive(one: Evidence) -> Iterator[str]:
    """Whether the alpha rule's own numbers of steps do better than the same number for all."""
    if ADAPTIVE not in one.head.ways:
        return
    pair, taken = one.corrected(trained(PAPER, HEAD), ADAPTIVE), one.taken(ADAPTIVE)
    known = taken[~np.isnan(taken)]
    if known.size:
        yield (
            f"* The alpha rule spends steps where they pay: {said(pair)}. {known.min():.0f} to "
            f"{known.max():.0f} steps, {known.mean():.1f} on average: {pair.mean_b:.3f}; {HEAD} "
            f"for all: {pair.mean_a:.3f} bits a byte, {shift(pair)}."
        )


def together(one: Evidence) -> Iterator[str]:
    """Both against the better of its two halves."""
    halves = (f"stuff({SIFT})", trained(SIFT, HEAD))
    if BOTH in one.head.ways:
        better = min(halves, key=lambda way: float(np.nanmean(one.bits(way))))
        pair = one.corrected(better, BOTH)
        verdict = "refuted" if pair.shown and pair.difference > 0 else "not refuted"
        yield (
            f"* Both at or above the better of stuff and train: {verdict}. {BOTH} {pair.mean_b:.3f}"
            f", {better} {pair.mean_a:.3f} bits a byte, {shift(pair)}."
        )


def overshoots(one: Evidence) -> Iterator[str]:
    """Whether more steps did harm."""
    for selector in (NEAREST, REPEATED, SIFT):
        found = one.overshoot(selector)
        if found is None:
            continue
        best, pair = found
        verdict = "overshoots" if pair.low > 0 else "still gains" if pair.high < 0 else "stands"
        yield (
            f"* From {best} steps, its best before, to {one.steps[-1]}, {selector} {verdict}: "
            f"{pair.mean_a:.3f}, then {pair.mean_b:.3f}, {shift(pair)}; {pair.worse} of {pair.n} "
            "passages get worse."
        )


def longest(one: Evidence) -> Iterator[str]:
    """SIFT against nearest where most steps are taken; each pair by itself."""
    last = one.steps[-1]
    for selector in (PAPER, SIFT) if last > HEAD else ():
        ways = trained(NEAREST, last), trained(selector, last)
        if set(ways) <= set(one.pooled.ways):
            pair = one.paired(*ways)
            verdict = "below" if pair.high < 0 else "above" if pair.low > 0 else "level with"
            yield (
                f"* {last} steps: {selector} is {verdict} nearest, {pair.mean_b:.3f} and "
                f"{pair.mean_a:.3f} bits a byte, {shift(pair)}, {pair.n} passages; one claim by "
                "itself."
            )


def targets(one: Evidence) -> Iterator[str]:
    """What training on SIFT's picks gains, and whether the guard keeps it from doing harm."""
    for selector in settings(one):
        way = trained(selector, HEAD)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in one.by_domain(way).items())
        met = "met" if one.target(way) <= TARGET else "missed"
        yield (
            f"* {way}, of base: {shares}; mean of domains new to the model {one.target(way):.3f}, "
            f"at most {TARGET:.2f} is {met}. {guard(one.guarded(way, new=True))}."
        )
    if not one.new.all():
        found = one.guarded(*one.trained, new=False)
        yield f"* All trained ways, on what the model was trained on: {guard(found)}."
    yield f"* All trained ways, on new domains: {guard(one.guarded(*one.trained, new=True))}."


def guard(found: Guard) -> str:
    """What it did."""
    return (
        f"The guard undid {found.undone} of {found.trainings}; after it the worst passage has "
        f"{found.worst:.3f} of base, and {found.above} have more than {ALLOWED}"
    )


def settings(one: Evidence) -> list[str]:
    """The settings of SIFT that were asked."""
    names = [name for name in SELECTORS if name.startswith("SIFT")]
    return [name for name in names if trained(name, HEAD) in one.head.ways]


def domain_table(one: Evidence) -> Iterator[str]:
    """The ways without training and those of the main table, by domain."""
    names = list(one.by_domain(BASE))
    base = {name: one.bits(BASE)[one.domains == name].mean() for name in names}
    yield f"Bits a byte of base, then of each way as a share of it; {HEAD} steps:\n"
    yield from heading(["way", *names, "mean of new ones"])
    yield row([BASE, *(f"{base[name]:.3f} bits" for name in names), ""])
    for way in one.head.ways:
        if way != BASE:
            shares = one.by_domain(way)
            cells = [f"{shares[name]:.3f}" if name in shares else "" for name in names]
            yield row([way, *cells, f"{one.target(way):.3f}"])
    if any((one.model, name) in SEEN for name in names):
        yield f"\nNot new to {one.model}: {', '.join(n for n in names if (one.model, n) in SEEN)}."


def curve_table(one: Evidence) -> Iterator[str]:
    """Mean bits a byte after each number of steps."""
    asked = [name for name in CURVES if trained(name, one.steps[-1]) in one.pooled.ways]
    if len(one.steps) < 2 or not asked:
        return
    yield "\nBits a byte, mean of the passages that were asked at every number of steps:\n"
    yield from heading(["trained on", "0", *map(str, one.steps)])
    for name, means in one.curves(asked).items():
        yield row([name, *(f"{mean:.3f}" for mean in means)])


def guard_table(one: Evidence) -> Iterator[str]:
    """What the guard undid."""
    yield "\nThe guard; ratios are to base, passage by passage, after it:\n"
    yield from heading(["way", "trainings", "undone", f"above {ALLOWED}", "largest ratio"])
    for way in one.trained:
        *counts, worst = one.guarded(way)
        yield row([way, *map(str, counts), f"{worst:.3f}"])


def of_the_library(one: Evidence) -> Iterator[str]:
    """The table of ways that `sift_rag.report` makes."""
    parts = report.markdown(one.head).split("\n## ")
    ways = next(part for part in parts if part.startswith("Ways"))
    yield "\nThe same ways in the library's report:\n"
    yield ways.partition("\n")[2].strip()


def said(pair: Paired) -> str:
    """The claim's fate: b is to be below a."""
    if not pair.shown:
        return "not shown"
    return "confirmed" if pair.difference < 0 else "refuted"


def shift(pair: Paired) -> str:
    """The difference with its interval."""
    if math.isnan(pair.difference):
        return "no difference known"
    return f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"


def heading(names: Iterable[str]) -> Iterator[str]:
    """The two lines that begin a table; the first column is text."""
    first, *others = names
    yield row([first, *others])
    yield "|---|" + "---:|" * len(others)


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"
