"""Which way to answer a question: by what the passages know, whether they fit, and what it costs.

Without a calibration these are the rules, in their order:

1. Coverage below a threshold: the corpus does not cover the question. Of 1,036 questions on CLAPnq
   with a coverage below 0.2, 9 % had an answer (benchmarks/results/coverage.md).
2. All passages fit into the prompt: stuff. Of 200 questions of facts it gets 94 % right, training
   81 % and both 95 %, at ten times the arithmetic (benchmarks/EVIDENCE.md, as what follows).
3. Some do not fit: training learns these as well, but of ten passages, and of twenty, it keeps
   about half of what reading gives. So train where those that fit hold less than half of the
   selection's gain, and what is won, times the coverage, is worth the time; else stuff what fits.
   Both is not chosen here: of twenty passages it knew what did not fit in 1 case of 14, training in
   6, and what did fit less often than stuffing.

With a calibration, `Router.fit(comparison)`, measured qualities and times decide.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sift_rag.calibration import Calibration, Cell
from sift_rag.compared import Compared
from sift_rag.quantities import amount, seconds
from sift_rag.situation import Situation

if TYPE_CHECKING:
    from typing_extensions import Self

Choice = Literal["closed_book", "stuff", "train", "both", "not_covered"]
"""A mode of the engine, or that it is not asked at all."""

_KEPT = 0.5  # of what reading gives, by training on many passages: 54 % (EVIDENCE.md), rounded down
_UNLIKELY = 0.5  # coverage: above it an answer is more likely there than not
_HOPELESS = 0.25  # of the usual quality: below it, most of what is written is not from the corpus
_FORMAT = 1  # of the JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was chosen, and why.

    Attributes:
        mode: The way to answer.
        reason: A sentence or two, with the figures that decided.
        numbers: These and others, plain data: those of `Situation`; by the rules also what
            training is expected to gain and to take; with a calibration the questions it rests on,
            those of them that are alike, and quality, seconds and value by mode.
    """

    mode: Choice
    reason: str
    numbers: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Chooses how a question is answered. Plain data: pickle it, or keep it as JSON.

    Attributes:
        covered: Coverage below which the corpus does not cover a question; 0 answers them all.
        below: What is done then: "not_covered", the model is not asked; or "closed_book", it
            answers from what it knows, and the answer's note says so.
        not_covered: The text of the answer where the model is not asked.
        price: What a second is worth, in the metric of the comparison. 0.02 of a share: ten
            seconds, about what readers bear, for twenty more right answers of a hundred.
        speed: Operations a second of the machine, which tell times where none were measured: the
            bundled model trains at 2e10 on two CPU cores, a GPU at a thousand times as much.
        calibration: What a comparison taught; see `fit`.

    Raises:
        ValueError: A value out of range.
    """

    covered: float = 0.2
    below: Literal["not_covered", "closed_book"] = "not_covered"
    not_covered: str = ""
    price: float = 0.02
    speed: float = 2e10
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("covered", 0, 1), ("price", 0, 1e6), ("speed", 1, 1e30)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be a number, {low} to {high:g}.")
        if self.below not in ("not_covered", "closed_book"):
            raise ValueError(f"below is {self.below!r}; it must be not_covered or closed_book.")
        if not isinstance(self.not_covered, str):
            raise ValueError(f"not_covered is {self.not_covered!r}; it must be a text.")

    @classmethod
    def fit(
        cls,
        comparison: Compared,
        *,
        metric: str | None = None,
        ways: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Self:
        """A router that chooses by what a comparison measured.

        It takes the mode of the best expected quality less the price of its time, by coverage and
        by whether the passages fit; never one that the comparison shows to be worse than its
        baseline. Of a kind of question that was not measured, the rules decide.

        Args:
            comparison: A `Comparison` of some of our own ways, with references. It should have
                questions that the corpus does not answer, and passages beyond the window, where
                such will come.
            metric: What quality is; by default the comparison's main metric.
            ways: The way that stands for each mode; see `Calibration.fit`.
            settings: The router's others, such as `price`.

        Raises:
            ValueError: As `Calibration.fit`.
        """
        return cls(calibration=Calibration.fit(comparison, metric=metric, ways=ways), **settings)

    def decide(self, situation: Situation) -> Decision:
        """Choose."""
        coverage, known = situation.coverage, self.calibration
        cell = known.at(coverage, fits=situation.fits) if known else None
        if not situation.passages:
            return self._uncovered("No passage was selected.", situation)
        if coverage < self.covered and (cell is None or coverage < cell.low):
            why = f"A coverage of {coverage:.2f} is below {self.covered:g}"
            return self._uncovered(f"{why}: the passages hardly hold an answer.", situation)
        if known is None or cell is None:
            return self._permitted(self._ruled(situation))
        return self._measured(situation, known, cell)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, maybe through JSON.

        Raises:
            ValueError: It is something else.
        """
        try:
            given = dict(data)
            if given.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            if given["calibration"] is not None:
                given["calibration"] = Calibration.from_dict(given["calibration"])
            return cls(**{each.name: given.pop(each.name) for each in fields(cls)}, **given)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"This is no router ({error}): give what Router.to_dict or Router.save wrote."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: It is something else.
            OSError: It cannot be read.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def _ruled(self, situation: Situation) -> Decision:
        """By the rules at the head of this module."""
        known, room = f"Coverage {situation.coverage:.2f}", f"{situation.room} tokens"
        if situation.fits:
            times = situation.flops["train"] / situation.flops["stuff"]
            return _decision(
                "stuff",
                f"{known}, and the prompt with all passages has {situation.tokens} of {room}: "
                f"reading them is as good as training at about {times:.0f} times the arithmetic.",
                situation,
            )
        held = 1 - situation.missing
        gain = situation.coverage * (_KEPT - held)
        took = max(situation.flops["train"] - situation.flops["stuff"], 0.0) / self.speed
        pays = gain > self.price * took
        left = situation.passages - situation.fitting
        worth = f"{'worth' if pays else 'not worth'} about {seconds(took)}"
        then = f"{worth} at {self.price:g} a second" if gain > 0 else "no more"
        return _decision(
            "train" if pays else "stuff",
            f"{known}, but {left} of {situation.passages} passages do not fit into the prompt's "
            f"{room}. The others hold {held:.0%} of the selection's gain; training on all would "
            f"keep about {_KEPT:.0%}, which is {then}.",
            situation,
            {"expected_gain": gain, "expected_seconds": took},
        )

    def _permitted(self, decision: Decision) -> Decision:
        """The decision, unless its mode was shown to be worse than the baseline."""
        known = self.calibration
        if known is None or decision.mode not in known.worse:
            return decision
        best = next(m for m in ("stuff", "both", "train", "closed_book") if m not in known.worse)
        why = f"{decision.reason} But {decision.mode} {_shown_worse(known)}."
        return replace(decision, mode=cast(Choice, best), reason=why)

    def _measured(self, situation: Situation, known: Calibration, cell: Cell) -> Decision:
        """By what was measured on questions like this one."""
        sign = 1.0 if known.higher_is_better else -1.0
        modes = [mode for mode in cell.quality if mode not in known.worse]
        value = {m: sign * cell.quality[m] - self.price * cell.seconds[m] for m in modes}
        ranked = sorted(modes, key=lambda mode: (-value[mode], cell.seconds[mode]))
        numbers = {
            "questions": known.questions,
            "alike": cell.questions,
            "quality": dict(cell.quality),
            "seconds": dict(cell.seconds),
            "value": value,
        }
        fit = "fit" if cell.fits else "do not all fit"
        alike = (
            f"{cell.questions} of {known.questions} measured questions, with a coverage from "
            f"{cell.low:.2f} and passages that {fit} into the prompt"
        )
        if self._hopeless(situation, known, max(cell.quality[mode] for mode in modes)):
            found = _expected(known, cell, ranked[0])
            return self._uncovered(f"{found}: so it was with {alike}.", situation, numbers)
        others = ", ".join(_expected(known, cell, mode) for mode in ranked[1:])
        found = _expected(known, cell, ranked[0]) + (f"; against {others}" if others else "")
        reason = f"{found}; a second counts {self.price:g}. By {alike}."
        if known.worse:
            reason += f" {', '.join(known.worse)} {_shown_worse(known)}."
        return _decision(cast(Choice, ranked[0]), reason, situation, numbers)

    def _hopeless(self, situation: Situation, known: Calibration, most: float) -> bool:
        """Whether answers to such questions were mostly wrong, as their passages say nothing."""
        if not known.higher_is_better or self.covered == 0:
            return False
        return situation.coverage < _UNLIKELY and most < _HOPELESS * known.mean

    def _uncovered(
        self, why: str, situation: Situation, numbers: Mapping[str, Any] | None = None
    ) -> Decision:
        asked = self.below == "closed_book"
        then = "The model answers without them." if asked else "The model was not asked."
        return _decision(self.below, f"{why} {then}", situation, numbers)


def _decision(
    mode: Choice, reason: str, situation: Situation, numbers: Mapping[str, Any] | None = None
) -> Decision:
    return Decision(mode=mode, reason=reason, numbers={**asdict(situation), **(numbers or {})})


def _expected(known: Calibration, cell: Cell, mode: str) -> str:
    """Such as "both: exact match 93.1 % in 412 ms"."""
    quality = amount(cell.quality[mode], known.unit)
    return f"{mode}: {known.metric} {quality} in {seconds(cell.seconds[mode])}"


def _shown_worse(known: Calibration) -> str:
    return f"was shown to be worse than {known.baseline}"
