"""How good a reply is: one function of case and reply for each metric."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeAlias

from sift_rag import overlap
from sift_rag.cases import Case, Reply

Measure: TypeAlias = Callable[[Case, Reply], "float | bool | None"]
"""A value, or None where there is nothing to say, such as without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measure of a reply, and how it is read.

    Attributes:
        name: Its key, such as "exact_match".
        measure: From case and reply to a value; a judge of the user's own may stand here. It may
            be slow: each value is computed once and kept.
        title: For people, such as "exact match".
        binary: Whether its values are 0 and 1: then McNemar's test is taken, else permutation.
        higher_is_better: False for what should be small.
        unit: "share" (0 to 1, shown in percent) or the unit's name, such as "bits per byte".
        failed: The value of a reply that failed; None leaves its pair out, as no value is fair.
        quality: Whether it says how good an answer is; else it only describes (coverage, copies).
        about: What it is, in a sentence.
    """

    name: str
    measure: Measure
    title: str
    binary: bool = False
    higher_is_better: bool = True
    unit: str = "share"
    failed: float | None = 0.0
    quality: bool = True
    about: str = ""


def _known(case: Case) -> tuple[str, ...]:
    """The right answers; none for a passage's other half, which nobody can guess word by word."""
    return () if case.origin == "held_out" else case.references


def _bits_per_byte(case: Case, reply: Reply) -> float | None:
    if reply.nats is None or not any(case.references[:1]):
        return None
    return reply.nats / math.log(2) / len(case.references[0].encode())


def _gold_recall(case: Case, reply: Reply) -> float | None:
    if not case.gold or reply.documents is None:
        return None
    return overlap.gold_recall(case.gold, reply.documents)


def _near_duplicates(case: Case, reply: Reply) -> float | None:
    return overlap.near_duplicates(reply.documents) if reply.documents else None


exact_match = Metric(
    name="exact_match",
    measure=lambda case, reply: overlap.exact_match(reply.text, _known(case)),
    title="exact match",
    binary=True,
    about="Whether the answer is a reference, but for case, punctuation and articles (SQuAD).",
)
token_f1 = Metric(
    name="token_f1",
    measure=lambda case, reply: overlap.token_f1(reply.text, _known(case)),
    title="token F1",
    about="How many words answer and nearest reference share: the harmonic mean of the shares of "
    "both, after SQuAD's normalisation.",
)
bits_per_byte = Metric(
    name="bits_per_byte",
    measure=_bits_per_byte,
    title="bits per byte",
    higher_is_better=False,
    unit="bits per byte",
    failed=None,
    about="How hard the first reference is to predict as the answer, in bits for each byte of it.",
)
gold_recall = Metric(
    name="gold_recall",
    measure=_gold_recall,
    title="gold passages found",
    about="The share of the passages known to hold the answer that the answer rests on.",
)
coverage = Metric(
    name="coverage",
    measure=lambda case, reply: reply.coverage,
    title="coverage",
    failed=None,
    quality=False,
    about="How likely the passages that were searched hold an answer.",
)
near_duplicates = Metric(
    name="near_duplicates",
    measure=_near_duplicates,
    title="near-duplicates",
    higher_is_better=False,
    failed=None,
    quality=False,
    about="The share of passages at least half of whose words and pairs of neighbouring words are "
    "in one passage before them.",
)

BUILT_IN = {
    metric.name: metric
    for metric in (
        exact_match,
        token_f1,
        bits_per_byte,
        gold_recall,
        coverage,
        near_duplicates,
    )
}


def resolve(
    metrics: Iterable[str | Metric | Measure] | None, cases: Iterable[Case]
) -> tuple[Metric, ...]:
    """Metrics from their names, from functions, and from themselves.

    Args:
        metrics: Names of built-in ones, `Metric` objects, and functions from case and reply to a
            number or None. A function is called by its name, in its own unit, the higher the
            better; its values are 0 and 1 only where its return type is annotated as `bool`, and
            a reply that failed then counts as 0, else not at all. None takes the built-in ones
            that have something to say of these cases.
        cases: What is to be measured.

    Raises:
        ValueError: An unknown name, a name twice, or a function without one.
        TypeError: Something else, or a function that does not take a case and a reply.
    """
    if metrics is None:
        return _that_apply(list(cases))
    if isinstance(metrics, (str, Metric)) or callable(metrics):
        raise TypeError(f"Metrics must come as a list, got a single {metrics!r}: put it in [...].")
    found = [_as_metric(metric) for metric in metrics]
    for name, count in Counter(metric.name for metric in found).items():
        if count > 1:
            raise ValueError(f"There are {count} metrics with the name {name!r}: rename or drop.")
    return tuple(found)


def _that_apply(cases: Sequence[Case]) -> tuple[Metric, ...]:
    answered = any(case.references and case.origin != "held_out" for case in cases)
    applies = {
        "exact_match": answered,
        "token_f1": answered,
        "bits_per_byte": any(case.references for case in cases),
        "gold_recall": any(case.gold for case in cases),
    }
    return tuple(metric for name, metric in BUILT_IN.items() if applies.get(name, True))


def _as_metric(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in BUILT_IN:
            names = ", ".join(BUILT_IN)
            raise ValueError(
                f"There is no metric {metric!r}; built in are {names}. Pass a function "
                "(case, reply) -> number, or a Metric, for one of your own."
            )
        return BUILT_IN[metric]
    if callable(metric):
        return _of_function(metric)
    raise TypeError(
        "A metric is the name of a built-in one, a Metric, or a function (case, reply) -> number "
        f"or None; got {type(metric).__name__}: {metric!r}."
    )


def _of_function(function: Callable[..., Any]) -> Metric:
    name = getattr(function, "__name__", "<lambda>")
    if name == "<lambda>":
        raise ValueError(
            f"The metric {function!r} has no name: define it with def, or pass "
            'Metric(name="...", title="...", measure=...).'
        )
    _check_takes_two(name, function)
    # As a string too, where annotations are postponed. Optional[...] equals ... | None.
    returns = getattr(function, "__annotations__", {}).get("return")
    binary = returns in (bool, Optional[bool], "bool", "bool | None", "Optional[bool]")  # noqa: UP045
    return Metric(
        name=name,
        measure=function,
        title=name.replace("_", " ").strip(),
        binary=binary,
        unit="share" if binary else "points",
        failed=0.0 if binary else None,
        about=(inspect.getdoc(function) or "").partition("\n")[0],
    )


def _check_takes_two(name: str, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"The metric {name!r} is async: give a plain function that waits for it.")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise TypeError(f"The metric {name!r} must take (case, reply): {error}.") from None


def value(metric: Metric, case: Case, reply: Reply) -> float | None:
    """What a metric says of a reply.

    Raises:
        ValueError: The metric gave something that is no finite number, or, being binary, neither
            0 nor 1.
    """
    got: Any = metric.measure(case, reply)
    if got is None:
        return None
    try:
        number = math.nan if isinstance(got, str) else float(got)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (metric.binary and number not in (0.0, 1.0)):
        wanted = "True, False, 0 or 1" if metric.binary else "a finite number"
        raise ValueError(f"The metric {metric.name!r} must give {wanted}, or None; got {got!r}.")
    return number


def described(record: Mapping[str, Any]) -> Metric:
    """A metric from all of its attributes but the function, as a run file keeps them.

    A built-in one has its function again; any other one has none that could be called.
    """
    name = record["name"]

    def lost(case: Case, reply: Reply) -> float | None:
        raise ValueError(
            f"The function of the metric {name!r} is not in the run file: pass it to compare."
        )

    known = BUILT_IN.get(name)
    return Metric(**record, measure=known.measure if known else lost)
