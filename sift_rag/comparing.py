"""`compare`: ask the same questions of several ways, and keep what comes of each."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime, timezone
from random import Random
from typing import TYPE_CHECKING, Any, TypedDict

from sift_rag import metrics as measures
from sift_rag import questions as asking
from sift_rag import runs
from sift_rag import ways as answering
from sift_rag.cases import Case, Row
from sift_rag.comparison import Comparison
from sift_rag.costs import Prices
from sift_rag.documents import Progress, content_hash
from sift_rag.embeddings import embedder_name
from sift_rag.metrics import Metric
from sift_rag.recording import described
from sift_rag.surroundings import machine, versions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sift_rag.candidates import Index
    from sift_rag.engine import Engine
    from sift_rag.training import TrainingConfig
    from sift_rag.ways import Way

HOPELESS = 3
"""Questions after which a run ends where no way has answered any: a wrong key, a closed engine."""


class Options(TypedDict, total=False):
    """What a comparison may set beside its questions and ways.

    Attributes:
        k: Passages that our own ways select; 5 by default.
        fetch_k: Candidates that they select from; 50 by default.
        training: How our own ways train; by default as the engine was told.
        max_new_tokens: Length of an answer at most; by default as the engine was told.
        baseline: The way that the others are held against, such as the one in production. By
            default "stuff(nearest)", or the first.
        prices: What tokens and machine cost.
        seed: Of the order of the ways, of the bootstrap and the permutations.
        max_seconds: No question is begun after so long; what is there is compared.
        progress: Told how many questions are done, of how many; True shows a bar (tqdm).
        retry_failed: Ask again what failed when the run was ended.
        command: How to repeat it, for the report.
    """

    k: int
    fetch_k: int
    training: TrainingConfig | None
    max_new_tokens: int | None
    baseline: str | None
    prices: Prices | None
    seed: int
    max_seconds: float | None
    progress: Progress | bool | None
    retry_failed: bool
    command: str


def compare(
    questions: Any,
    ways: Any = None,
    *,
    metrics: Sequence[Any] | None = None,
    engine: Engine | None = None,
    index: Index | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> Comparison:
    """Ask the same questions of several ways to answer them.

    The ways are asked one after another, in an order that changes with each question, so that no
    way always has the warm caches. A way that fails on a question has failed on it: the error is
    kept, and the run goes on.

    Args:
        questions: Strings; dicts with `question` and, where known, `reference` (or `references`)
            and `gold` passages; a JSONL, JSON or CSV file; a Hugging Face dataset; `Case`s, as
            `sift_rag.questions` makes them from a corpus. See `sift_rag.questions.read`.
        ways: Names of our own ways ("closed_book", "stuff(nearest)", "train(sift)", ...), or a
            mapping of names to those, to a `Pipeline`, a LangChain runnable, a LlamaIndex query
            engine, or a callable question -> answer. None takes closed_book, stuff(nearest),
            stuff(sift), train(sift) and both(sift), over the same candidates. See
            `sift_rag.ways.resolve`.
        metrics: Names of metrics, `Metric`s, or functions (case, reply) -> number, such as a judge;
            None takes those that the questions allow. The first is the one the verdict is about.
        engine: Answers for our own ways.
        index: Where our own ways find passages.
        out: The run file, JSON lines; a run that was ended goes on where it was when it is called
            again with the same settings. None keeps the rows in memory.
        options: See `Options`.

    Raises:
        ValueError: Questions, ways or metrics that cannot be compared.
        RunFileError: `out` holds another comparison, or is no run file.
        RuntimeError: No way answered any of the first questions.
    """
    if unknown := options.keys() - Options.__annotations__.keys():
        names = ", ".join(Options.__annotations__)
        raise TypeError(f"compare has no option {min(unknown)!r}; there are {names}.")
    cases = asking.read(questions)
    asked = answering.resolve(
        ways,
        index=index,
        engine=engine,
        **_given(options, "k", "fetch_k", "training", "max_new_tokens"),
    )
    measured = measures.resolve(metrics, cases)
    header = _header(cases, asked, engine, index, options)
    with runs.writing(out) as log, _progress(options.get("progress"), len(cases)) as progress:
        log.start(header, cases, [_described(metric) for metric in measured])
        _Run(cases, asked, measured, log, options).work(progress)
        return Comparison.of(log)


class _Run:
    """The questions that are left, asked one by one."""

    def __init__(
        self,
        cases: Sequence[Case],
        ways: Mapping[str, Way],
        metrics: Sequence[Metric],
        log: runs.Log,
        options: Options,
    ) -> None:
        self.cases, self.ways, self.metrics, self.log = cases, ways, metrics, log
        self.seed = options.get("seed", 0)
        self.retry = options.get("retry_failed", False)
        self.limit = options.get("max_seconds")
        self.began = time.monotonic()
        self.answered = any(row.reply for row in log.rows.values())
        self.warm = False

    def work(self, progress: Progress) -> None:
        """Ask what is not there yet, until the time is over."""
        for done, case in enumerate(self.cases, 1):
            if left := [way for way in self._order(case) if not self._complete(case, way)]:
                if self.limit is not None and time.monotonic() - self.began >= self.limit:
                    break
                self._ask(case, left)
            progress(done, len(self.cases))

    def _order(self, case: Case) -> list[str]:
        """The ways in an order of the question's own, the same one when a run is gone on with."""
        names = list(self.ways)
        Random(f"{self.seed} {case.id}").shuffle(names)
        return names

    def _complete(self, case: Case, way: str) -> bool:
        row = self.log.rows.get((case.id, way))
        if row is None or (self.retry and (row.error or row.unmeasured)):
            return False
        return bool(row.error) or all(metric.name in row.values for metric in self.metrics)

    def _ask(self, case: Case, left: Sequence[str]) -> None:
        if not self.warm:
            for way in self.ways.values():  # else the first question pays for what is made once
                answering.warm_up(way, case)
            self.warm = True
        for name in left:
            row = self.log.rows.get((case.id, name))
            if row is None or row.reply is None:
                row = self._answered(case, name)
            self.log.add(self._measured(case, row))
            self.answered = self.answered or row.reply is not None
        if not self.answered and len(self.log.rows) >= HOPELESS * len(self.ways):
            raise RuntimeError(
                f"No way answered any of the first {HOPELESS} questions: mend this, then run it "
                f"again with retry_failed.{''.join(self._errors(case))}"
            )

    def _errors(self, case: Case) -> Iterator[str]:
        for way in self.ways:
            yield f"\n  {way}: {self.log.rows[case.id, way].error}"

    def _answered(self, case: Case, way: str) -> Row:
        try:
            reply = self.ways[way](case)
        except Exception as error:
            return Row(case=case.id, way=way, reply=None, values={}, error=described(error))
        return Row(case=case.id, way=way, reply=reply, values={})

    def _measured(self, case: Case, row: Row) -> Row:
        if row.reply is None:
            return row
        values, unmeasured = dict(row.values), {}
        for metric in self.metrics:
            if metric.name not in values or metric.name in row.unmeasured:
                try:
                    values[metric.name] = measures.value(metric, case, row.reply)
                except Exception as error:
                    values[metric.name] = None
                    unmeasured[metric.name] = described(error)
        return Row(
            case=row.case, way=row.way, reply=row.reply, values=values, unmeasured=unmeasured
        )


def _header(
    cases: Sequence[Case],
    ways: Mapping[str, Way],
    engine: Engine | None,
    index: Index | None,
    options: Options,
) -> dict[str, Any]:
    """What the run file begins with; its `identity` is what must be the same to go on with it."""
    baseline = options.get("baseline") or _baseline(ways)
    if baseline not in ways:
        raise ValueError(f"The baseline {baseline!r} is none of the ways: {', '.join(ways)}.")
    described = {name: answering.describe(way) for name, way in ways.items()}
    seed, prices = options.get("seed", 0), options.get("prices")
    identity = {"questions": _digest(map(asdict, cases)), "ways": described, "seed": seed}
    settings: dict[str, Any] = {
        "ways": described,
        "seed": seed,
        "origins": dict(Counter(case.origin for case in cases)),
        "prices": asdict(prices) if prices else None,
        "size": list(asdict(engine.size).values()) if engine else None,
        "machine": machine(),
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": options.get("command", ""),
    }
    if index is not None:
        settings |= {"passages": len(index), "embedder": embedder_name(index.embedder)}
        identity["passages"] = _digest({"text": d.text, "id": d.id} for d in index.documents)
    return {"identity": identity, "baseline": baseline, "settings": settings}


def _baseline(ways: Mapping[str, Way]) -> str:
    return "stuff(nearest)" if "stuff(nearest)" in ways else next(iter(ways))


def _digest(records: Iterable[Mapping[str, Any]]) -> str:
    return content_hash("\n".join(json.dumps(r, sort_keys=True, default=str) for r in records))[:16]


def _described(metric: Metric) -> dict[str, Any]:
    """All of a metric but its function."""
    return {f.name: getattr(metric, f.name) for f in fields(metric) if f.name != "measure"}


def _given(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}


@contextmanager
def _progress(wanted: Progress | bool | None, total: int) -> Iterator[Progress]:
    if callable(wanted):
        yield wanted
    elif not wanted:
        yield lambda done, total: None
    else:
        from tqdm.auto import tqdm  # comes with the model's libraries

        with tqdm(total=total, desc="Comparing", unit="question") as bar:
            yield lambda done, total: _move(bar, done)


def _move(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
