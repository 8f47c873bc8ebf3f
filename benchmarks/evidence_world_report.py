"""What came of `evidence_world.py`, in words and tables."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from evidence_report import heading, row, shift
from evidence_world_figures import LINEAR, Cell, Fate, Figure, Values, slope
from evidence_world_items import BOTH, MIX, STUFF, TRAIN, Asked

from sift_rag.paired import Paired

TARGET = 0.80  # of what stuff reaches
FEWEST = 20  # questions, below which nothing is decided
CLAIMED = (MIX, 3)  # passages, of which the target is told


def lines(cells: Sequence[Cell]) -> Iterator[str]:
    """The claims, each with its figure, then the tables."""
    yield "\n## Claims\n"
    apart = [cell for cell in cells if cell.condition.apart]
    cells = [cell for cell in cells if not cell.condition.apart]
    yield from claims(cells)
    yield from guarded([*cells, *apart])
    once = [cell for cell in cells if cell.condition.told == 1]
    yield "\n## Modes and objectives, by number of passages\n"
    for cell in [*cells, *apart]:
        if cell.comparison.unfinished:
            yield f"{cell.condition.name}: {cell.comparison.unfinished} questions are missing.\n"
    yield from ways_table(once)
    if apart:
        yield "\nThe objectives, by the number of passages, on the first of the same questions:\n"
        yield from ways_table(apart)
    yield from beyond_table(once)
    yield from copies_table(cells)
    yield from cost_table(once)


def claims(cells: Sequence[Cell]) -> Iterator[str]:
    """Each claim, with what came of it."""
    once = [cell for cell in cells if cell.condition.told == 1]
    for cell in once:
        if cell.condition.devices in CLAIMED:
            yield from target(cell)
    for cell in once:
        pair = cell.against(STUFF, BOTH)
        found = fate(cell, _of(pair).above(0.0))
        yield f"* Both at or above stuff, {cell.condition}: {found}. {told(pair)}."
    for cell in once:
        gain = cell.gain_of_both()
        yield (
            f"* Both at or above the better of stuff and train, {cell.condition}: "
            f"{fate(cell, gain.above(0.0))}. {BOTH} {mean(cell, BOTH)}, {STUFF} "
            f"{mean(cell, STUFF)}, {TRAIN} {mean(cell, TRAIN)}, {signed(gain)}."
        )
    yield from linear([cell for cell in once if cell.condition.devices != MIX])
    yield from beyond([cell for cell in once if cell.left_out.any()])


def target(cell: Cell) -> Iterator[str]:
    """Whether the weights alone hold most of what the prompt does."""
    for way in (way for way in cell.condition.ways if way.mode == "train"):
        ratio, alone = cell.ratio(way), cell.ratio(way, weights_only=True)
        yield (
            f"* Train reaches at least {TARGET:.0%} of stuff, {cell.condition}, {way}: "
            f"{fate(cell, alone.above(TARGET))}. {mean(cell, way)} of {mean(cell, STUFF)}, "
            f"a ratio of {plain(ratio)}; {plain(alone)} with the "
            f"{cell.undone(way).sum()} answers counted as wrong whose training was undone; "
            f"{cell.n} questions."
        )


def linear(cells: Sequence[Cell]) -> Iterator[str]:
    """How cost grows with passages, where training sees all and where the prompt holds all."""
    whole = [cell for cell in cells if not cell.left_out.any()]
    for what, cost in (("FLOPs", Cell.training_flops), ("seconds", Cell.training_seconds)):
        found = slope(cells, cost)
        if found is not None:
            span, fewest = f"{passages(cells)} passages", min(cells, key=lambda cell: cell.n)
            yield (
                f"* Cost of training linear in passages, {what}: "
                f"{fate(fewest, found.within(*LINEAR))}. The "
                f"log-log slope over {span} is {plain(found)}; linear is {LINEAR[0]} to "
                f"{LINEAR[1]}."
            )
    for what, cost in (("FLOPs", Cell.prefill_flops), ("seconds", Cell.prefill_seconds)):
        found = slope(whole, cost)
        if found is not None:
            yield (
                f"* The same of reading the prompt when stuffing, {what}, over "
                f"{passages(whole)} passages, where all fit: {plain(found)}."
            )


def beyond(cells: Sequence[Cell]) -> Iterator[str]:
    """Whether training wins where the prompt cannot hold all."""
    if not cells:
        yield "* Training wins beyond the window: not shown, as every prompt held all passages."
    for cell in cells:
        for way in (way for way in cell.condition.ways if way.mode in ("train", "both")):
            pair = cell.against(STUFF, way)
            found = fate(cell, _of(pair).over(0.0))
            yield f"* {way} wins beyond the window, {cell.condition}: {found}. {told(pair)}."
        pair = cell.against(STUFF, TRAIN, cell.unread)
        if pair.n:
            yield (
                f"* Of these, where the answering passage did not fit: {told(pair)}; {pair.n} of "
                f"{cell.n} questions."
            )


def guarded(cells: Sequence[Cell]) -> Iterator[str]:
    """How often a training was undone, by what was learnt."""
    counts: dict[str, list[int]] = {}
    for cell in cells:
        for way in (way for way in cell.condition.ways if way.mode in ("train", "both")):
            count = counts.setdefault(way.objective, [0, 0])
            count[0] += int(cell.undone(way).sum())
            count[1] += cell.n
    shares = ", ".join(f"{name} {undone} of {n}" for name, (undone, n) in counts.items())
    yield f"* The guard undid, of all answers with training, by objective: {shares}."


def ways_table(cells: Sequence[Cell]) -> Iterator[str]:
    """Exact match of every way in every condition, against stuff."""
    yield (
        "Exact match with its interval; the difference to stuff with its interval, questions on "
        "which the way is better and worse, and p. Weights alone: exact match where the guard let "
        "the training stand.\n"
    )
    names = ["passages", "way", "n", "exact match", "against stuff", "better", "worse", "p"]
    yield from heading([*names, "undone", "weights alone"])
    for cell in cells:
        for way in cell.condition.ways:
            yield row([str(cell.condition), str(way), str(cell.n), *_cells(cell, way)])


def beyond_table(cells: Sequence[Cell]) -> Iterator[str]:
    """What did not fit into the prompt."""
    yield "\n## The window\n"
    yield "Passages that stuffing left out, and questions whose answering passage was among them.\n"
    yield from heading(["passages", "left out, mean", "most", "answer left out", "of"])
    for cell in cells:
        gone = cell.left_out
        unread = str(int(cell.unread.sum())) if cell.condition.devices != MIX else ""
        counts = [f"{gone.mean():.1f}", f"{gone.max():.0f}", unread, str(cell.n)]
        yield row([str(cell.condition), *counts])


def copies_table(cells: Sequence[Cell]) -> Iterator[str]:
    """Passages told several times against the same told once, on the same questions."""
    known = {cell.condition.devices: cell for cell in cells if cell.condition.told == 1}
    copied = [c for c in cells if c.condition.told > 1 and c.condition.devices in known]
    if not copied:
        return
    yield "\n## Near copies\n"
    yield "Each passage told several times in other words, all shuffled, against told once.\n"
    yield from heading(["passages", "way", "n", "once", "copied", "difference", "p"])
    for cell in copied:
        for way in cell.condition.ways:
            pair = cell.against_once(known[cell.condition.devices], way)
            means = [f"{pair.mean_a:.2f}", f"{pair.mean_b:.2f}", shift(pair), f"{pair.p:.2g}"]
            yield row([str(cell.condition), str(way), str(pair.n), *means])
    yield "\nThe same against stuff, which reads the copies too:\n"
    yield from ways_table(copied)


def cost_table(cells: Sequence[Cell]) -> Iterator[str]:
    """Medians of training and of stuffing."""
    yield "\n## Cost\n"
    yield "Medians. Training is without the answer, reading is the prompt of stuff until the first"
    yield "token. FLOPs are estimates by `sift_rag.sizes`.\n"
    names = ["passages", "training, s", "GFLOPs", "reading, s", "GFLOPs"]
    yield from heading([*names, "ratio of FLOPs"])
    for cell in cells:
        work = [median(cell.training_flops()), median(cell.prefill_flops())]
        seconds = [median(cell.training_seconds()), median(cell.prefill_seconds())]
        pairs = zip(seconds, work, strict=True)
        shown = [text for s, w in pairs for text in (f"{s:.3f}", f"{w / 1e9:.2f}")]
        yield row([str(cell.condition), *shown, f"{work[0] / work[1]:.0f}"])


def _cells(cell: Cell, way: Asked) -> Iterator[str]:
    yield plain(cell.share(way))
    if way == STUFF:
        yield from [""] * 4
    else:
        pair, p = cell.against_stuff[str(way)]
        yield from (shift(pair), str(pair.better), str(pair.worse), f"{p:.2g}")
    if way.mode not in ("train", "both"):
        yield from [""] * 2
        return
    undone = cell.undone(way)
    alone = cell.right(way)[~undone]
    yield str(int(undone.sum()))
    yield f"{alone.mean():.2f}" if way.mode == "train" and len(alone) else ""


def told(pair: Paired) -> str:
    """Both means and the difference."""
    means = f"{pair.b} {pair.mean_b:.2f}, {pair.a} {pair.mean_a:.2f}"
    return f"{means}, {shift(pair)}, p = {pair.p:.2g}"


def fate(cell: Cell, found: Fate) -> Fate:
    """The same, but where so few questions were asked that an interval tells little."""
    return found if cell.n >= FEWEST else "not shown"


def plain(figure: Figure) -> str:
    """A figure with its interval."""
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def signed(figure: Figure) -> str:
    """A difference with its interval."""
    return f"{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})"


def mean(cell: Cell, way: Asked) -> str:
    """Of exact match."""
    return f"{cell.right(way).mean():.2f}"


def median(values: Values) -> float:
    """NaN where there is none."""
    return float(np.median(values)) if len(values) else math.nan


def passages(cells: Sequence[Cell]) -> str:
    """The numbers of passages, such as "1 to 40"."""
    numbers = [cell.condition.devices for cell in cells]
    return f"{min(numbers)} to {max(numbers)}"


def _of(pair: Paired) -> Figure:
    return Figure(pair.difference, pair.low, pair.high)
