"""The ways to answer that a comparison asks: our own, by name, and whatever else can answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sift_rag.candidates import Index
from sift_rag.cases import Case, Reply
from sift_rag.choosing import at_least_one
from sift_rag.foreign import Foreign, InvokeWith, as_way
from sift_rag.own import Own, Searches
from sift_rag.prompting import PromptTemplate
from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
from sift_rag.selection import Selector, sift

if TYPE_CHECKING:
    from sift_rag.answering import Mode
    from sift_rag.engine import Engine
    from sift_rag.training import TrainingConfig

__all__ = ["DEFAULT", "SELECTORS", "InvokeWith", "Own", "Way", "describe", "resolve", "warm_up"]

Way: TypeAlias = Callable[[Case], Reply]

DEFAULT = ("closed_book", "stuff(nearest)", "stuff(sift)", "train(sift)", "both(sift)")
"""The ways that are compared where none are named."""

SELECTORS: dict[str, Selector] = {
    "sift": sift,
    "nearest": nearest,
    "mmr": mmr,
    "dpp": dpp,
    "uncertainty_sampling": uncertainty_sampling,
    "random": random,
}
"""What may stand in the brackets of a way's name."""

_NAME = re.compile(r"(closed_book|(stuff|train|both)(?:\((\w+)\))?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """What `resolve` was told, for each of its ways."""

    index: Index | None
    engine: Engine | None
    k: int
    fetch_k: int
    training: TrainingConfig | None
    options: Mapping[str, Any]
    searches: Searches = field(default_factory=Searches)

    def way(self, name: str, given: Any) -> Way:
        if isinstance(given, str):
            return self._named(given)
        if isinstance(given, Own | Foreign):
            return given
        if _is_pipeline(given):
            return Own(given.engine, given.mode, given, self.searches, self.options)
        try:
            return as_way(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"The way {name!r}: {error}") from None

    def _named(self, name: str) -> Own:
        mode, select = _parsed(name)
        self._check(name, needs_index=select is not None)
        engine = cast("Engine", self.engine)
        if select is None:
            return Own(engine, mode, None, self.searches, self.options)
        from sift_rag.pipeline import Pipeline  # needs torch, as the engine does

        pipeline = Pipeline(
            cast(Index, self.index),
            engine,
            select=select,
            k=self.k,
            fetch_k=self.fetch_k,
            mode=mode,
            training=self.training,
        )
        return Own(engine, mode, pipeline, self.searches, self.options)

    def _check(self, name: str, *, needs_index: bool) -> None:
        missing = [] if self.engine is not None else ["engine=Engine.from_pretrained(model)"]
        if needs_index and self.index is None:
            missing.append("index=Index.build(passages, embedder)")
        if missing:
            needs = "an engine and an index" if needs_index else "an engine"
            raise ValueError(f"The way {name!r} needs {needs}: pass {' and '.join(missing)}.")


def resolve(
    ways: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    index: Index | None = None,
    engine: Engine | None = None,
    k: int = 5,
    fetch_k: int = 50,
    training: TrainingConfig | None = None,
    max_new_tokens: int | None = None,
    template: PromptTemplate | None = None,
) -> dict[str, Way]:
    """Ways by their names, each a function from a case to a reply.

    Our own ones share one search for each question. Their names are "closed_book", and "stuff",
    "train" and "both" with a selector in brackets (see `SELECTORS`), without one that of SIFT.

    Args:
        ways: Names of our own, or a mapping of any names to such a name, to a `Pipeline`, a
            LangChain runnable (or `InvokeWith`), a LlamaIndex query engine or a callable, see
            `sift_rag.foreign.as_way`. None takes `DEFAULT`.
        index: Where our own find passages.
        engine: Answers for our own.
        k: Passages that they select.
        fetch_k: Candidates that they select from.
        training: How they train; by default as the engine was told.
        max_new_tokens: Length of an answer of our own, pipelines too; by default the engine's.
        template: Words around question and passages, likewise.

    Raises:
        ValueError: No way, an unknown name, a way twice, or an engine or index missing.
        TypeError: Something that is no way.
    """
    options = {"max_new_tokens": max_new_tokens, "template": template}
    make = _Maker(
        index=index,
        engine=engine,
        k=at_least_one("k", k),
        fetch_k=at_least_one("fetch_k", fetch_k),
        training=training,
        options={name: value for name, value in options.items() if value is not None},
    )
    return {name: make.way(name, given) for name, given in _by_name(ways).items()}


def describe(way: Way) -> dict[str, Any]:
    """What a way is, as plain data; equal settings give equal dicts, in any process."""
    if isinstance(way, Own):
        return way.about()
    return dict((way if isinstance(way, Foreign) else as_way(way)).about)


def warm_up(way: Way, case: Case) -> None:
    """Let one of our own ways answer once, so that the first time does not count what is made once.

    Another's way is left alone: an answer of it may cost money.
    """
    if isinstance(way, Own):
        with suppress(Exception):  # it will come again, where it is recorded
            way(case)
        way.searches.forget()  # that search had to wake the embedder up


def _by_name(ways: Iterable[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(ways, str):
        raise TypeError(
            f"Ways come as a list or a mapping, got the string {ways!r}: use [{ways!r}]."
        )
    if isinstance(ways, Mapping):
        given = dict(ways)
    else:
        names = list(DEFAULT if ways is None else ways)
        given = {name: name for name in names if isinstance(name, str)}
        if len(given) < len(names) and all(isinstance(name, str) for name in names):
            raise ValueError(f"A way is named twice: {', '.join(names)}.")
        if len(given) < len(names):
            raise TypeError(
                "A list of ways holds names of our own; for anything else pass a mapping, such as "
                '{"mine": pipeline, "stuff": "stuff(nearest)"}.'
            )
    if not given:
        raise ValueError("There is no way to compare: name one, or leave ways out for all our own.")
    if wrong := [name for name in given if not isinstance(name, str) or not name.strip()]:
        raise TypeError(f"A way's name must be a string that is not blank, got {wrong[0]!r}.")
    return given


def _parsed(name: str) -> tuple[Mode, Selector | None]:
    found = _NAME.fullmatch(name.strip())
    select = "" if found is None else found[3] or "sift"
    if found is None or select not in SELECTORS:
        raise ValueError(
            f"There is no way {name!r}: there are closed_book, and stuff, train and both with one "
            f"of {', '.join(SELECTORS)} in brackets, as in 'stuff(nearest)'."
        )
    if found[2] is None:
        return "closed_book", None
    return cast("Mode", found[2]), SELECTORS[select]


def _is_pipeline(given: Any) -> bool:
    module = sys.modules.get("sift_rag.pipeline")  # else nobody has made one, and torch stays out
    return module is not None and isinstance(given, module.Pipeline)
