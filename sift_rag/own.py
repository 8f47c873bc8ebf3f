"""A way of our own: one shared search, a selection, and an answer in one of the modes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from sift_rag.candidates import Candidates, Index
from sift_rag.cases import Case, Reply
from sift_rag.memory import watch
from sift_rag.prompting import PromptTemplate
from sift_rag.replies import of_answer
from sift_rag.sizes import flops

if TYPE_CHECKING:
    from sift_rag.answering import Answer, Mode
    from sift_rag.engine import Engine
    from sift_rag.pipeline import Pipeline

_CONTINUED = PromptTemplate(closed_book="{question}", stuffed="{context}\n\n{question}")


class Searches:
    """The search of one question, made once and timed once for all the ways that share it."""

    def __init__(self) -> None:
        self._last: tuple[str, dict[tuple[Index, int], tuple[Candidates, float]]] = ("", {})

    def find(self, index: Index, question: str, fetch_k: int) -> tuple[Candidates, float]:
        """The candidates, and the seconds that it took to find them."""
        last = self._last
        if last[0] != question:
            last = self._last = (question, {})
        found = last[1]
        if (index, fetch_k) not in found:
            began = time.perf_counter()
            candidates = index.search(question, fetch_k=fetch_k)
            found[index, fetch_k] = candidates, time.perf_counter() - began
        return found[index, fetch_k]

    def forget(self) -> None:
        """Search anew for whatever comes next."""
        self._last = ("", {})


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """A way of ours: retrieve and select as a pipeline does, then answer in a mode.

    A held-out passage's first half is continued, after the passages and with no words around it.

    Attributes:
        engine: Answers.
        mode: How passages are used; "auto" as the pipeline's router chooses.
        pipeline: How they are found and chosen; only "closed_book" needs none.
        searches: Shared with the ways that are compared with it.
        options: For each answer, beside the reference: `max_new_tokens`, `template`.
    """

    engine: Engine
    mode: Mode | Literal["auto"]
    pipeline: Pipeline | None = None
    searches: Searches = field(default_factory=Searches, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case) -> Reply:
        """The reply; the search's time counts also where another way's search was used."""
        grown = watch()
        answer = self._answer(case)
        memory = grown()
        reply = of_answer(answer, endless=case.origin == "held_out")
        return replace(reply, memory=memory, flops=self._flops(answer))

    def _answer(self, case: Case) -> Answer:
        options = dict(self.options)
        if case.origin == "held_out":
            options["template"] = _CONTINUED
        if case.references and case.references[0].strip():
            options["reference"] = case.references[0]
        if self.pipeline is None:
            return self.engine.answer(case.question, mode=cast("Mode", self.mode), **options)
        if self.mode == "closed_book":
            return self.pipeline.answer(case.question, mode=self.mode, **options)
        index, fetch_k = self.pipeline.index, self.pipeline.fetch_k
        candidates, seconds = self.searches.find(index, case.question, fetch_k)
        answer = self.pipeline.answer(
            case.question, mode=self.mode, candidates=candidates, **options
        )
        return replace(answer, timings=answer.timings | {"search": seconds})

    def _flops(self, answer: Answer) -> float:
        usage, report = answer.usage, answer.training
        steps = len(report.losses) if report else 0
        return flops(
            self.engine.size,
            prompt=usage["prompt_tokens"],
            written=usage["completion_tokens"],
            trained=usage["training_tokens"],
            window=max(usage["training_tokens"] // max(steps, 1), 1),  # those of a step
        )

    def about(self) -> dict[str, Any]:
        """What it is, as plain data."""
        limit = self.options.get("max_new_tokens") or self.engine.max_new_tokens
        about: dict[str, Any] = {"kind": "sift_rag", "mode": self.mode, "model": self.engine.name}
        about["max_new_tokens"] = limit
        if template := self.options.get("template"):
            about["template"] = asdict(template)
        pipeline = self.pipeline
        if pipeline is not None and self.mode != "closed_book":
            about |= {"select": _shown(pipeline.select), "k": pipeline.k}
            about |= {"fetch_k": pipeline.fetch_k, "noise": pipeline.noise}
            about["stop"] = pipeline.stop and _shown(pipeline.stop)
        if pipeline is not None and self.mode == "auto":
            about["router"] = pipeline.router.to_dict()
        if self.mode in ("train", "both", "auto"):
            training = (pipeline and pipeline.training) or self.engine.training
            about["training"] = training.plain()
        if pipeline is not None and pipeline.callbacks:
            about["callbacks"] = [type(callback).__qualname__ for callback in pipeline.callbacks]
        return about


def _shown(function: Any) -> str:
    """A selector or rule by its name and settings, without addresses."""
    if isinstance(function, partial):
        settings = [_shown(value) for value in function.args]
        settings += [f"{name}={_shown(value)}" for name, value in function.keywords.items()]
        return f"{_shown(function.func)}({', '.join(settings)})"
    return getattr(function, "__name__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(function))
