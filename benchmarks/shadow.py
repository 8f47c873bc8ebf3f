"""Time an app's answers with no recorder, with one, and with a shadow that trains beside it.

    python benchmarks/shadow.py --write      # also writes benchmarks/results/shadow.md

The app answers questions about the bundled world from 3 passages in the prompt, by the bundled
model. Its shadow trains on them for each question that it takes. Between two questions there is a
pause, drawn from 0 to 100 ms, the same ones for each setup. Setups take turns, 50 questions each;
a time is of one call. The last column is what became of the shadow's requests by the end of the
turns, of those that were taken: answered, or dropped when 100 were waiting. (What waits at the end
of a turn is answered before the next one begins.)

"its engine" is the app's own: calls of the shadow give way, and one that runs is put back, after
the training step or token that is on its way. "an engine of its own" is a second copy of the model,
which takes processor time from the first: nothing gives way there.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from results_file import arguments, explained, load_average, machine, show

from sift_rag.cases import Reply
from sift_rag.documents import Document
from sift_rag.engine import Answer, Engine
from sift_rag.recording import Recorded, Recorder
from sift_rag.replaying import read
from sift_rag.shadowing import Shadowed, shadowed
from sift_rag.tiny import world

PACKAGES = ["torch", "transformers", "peft", "numpy"]
ROUNDS, QUESTIONS, PAUSE = 4, 50, 0.1
WARM = "1000000"  # the first question, not counted
Ask = Callable[[int], Answer]


def asker(engine: Engine, mode: Any) -> Ask:
    def ask(number: int) -> Answer:
        devices = world.devices(3, seed=number)
        passages = [world.passage(device, seed=number) for device in devices]
        question = world.question(devices[0], "city", seed=number).text
        return engine.answer(question, passages, mode=mode, max_new_tokens=16)

    return ask


def by_text(ask: Ask) -> Callable[[str], Answer]:
    """The number comes as the question's text, as a request is one."""
    return lambda question: ask(int(question))


def setups(folder: Path, own: Engine, other: Engine) -> dict[str, Callable[[str], Any]]:
    first = by_text(asker(own, "stuff"))

    def beside(name: str, engine: Engine, share: float) -> Shadowed:
        train = by_text(asker(engine, "train"))
        return shadowed(first, train, recorder=folder / f"{name}.jsonl", share=share)

    return {
        "the app alone": first,
        "recorded": beside("recorded", own, 0.0),
        "shadow of 5 %, its engine": beside("5", own, 0.05),
        "shadow of all, its engine": beside("all", own, 1.0),
        "shadow of 5 %, an engine of its own": beside("5 own", other, 0.05),
        "shadow of all, an engine of its own": beside("all own", other, 1.0),
    }


def turn(app: Callable[[str], Any], seed: int) -> list[float]:
    """Seconds of each call."""
    pauses = Random(seed)
    found = []
    for number in range(seed * QUESTIONS, (seed + 1) * QUESTIONS):
        time.sleep(pauses.uniform(0, PAUSE))
        began = time.perf_counter()
        app(str(number))
        found.append(time.perf_counter() - began)
    if isinstance(app, Shadowed):
        app.flush()
    return found


def measured(apps: dict[str, Callable[[str], Any]]) -> dict[str, list[float]]:
    """Milliseconds of each call, by setup."""
    for app in apps.values():
        app(WARM)
        if isinstance(app, Shadowed):
            app.flush()
    found: dict[str, list[float]] = {name: [] for name in apps}
    names = list(apps)
    for seed in range(ROUNDS):
        for name in names[seed:] + names[:seed]:
            found[name] += [1e3 * each for each in turn(apps[name], seed)]
    return found


def fate(app: Any) -> str:
    if not isinstance(app, Shadowed) or not app.shadow.share:
        return ""
    rows = read(app.recorder.path).rows.get("shadow", {}).values()
    n = sum(row.reply is not None and row.question != WARM for row in rows)
    return f"{n} answered, {app.shadow.dropped} dropped"


def one_row(folder: Path) -> float:
    """Microseconds for one row of five passages of 500 characters."""
    documents = tuple(Document(f"{i}" + "x" * 500, {"source": "a", "page": i}) for i in range(5))
    reply = Reply(text="an answer", documents=documents, seconds={"total": 1.0})
    recorder = Recorder(folder / "rows.jsonl")
    times = []
    for _ in range(2000):
        row = Recorded(question="a question", reply=reply)
        began = time.perf_counter()
        recorder.record(row)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def report() -> Iterator[str]:
    yield "# What a recorder and a shadow cost the app\n"
    yield "    python benchmarks/shadow.py --write\n"
    yield from machine(*PACKAGES)
    with Engine.tiny() as own, Engine.tiny() as other, tempfile.TemporaryDirectory() as folder:
        apps = setups(Path(folder), own, other)
        found = measured(apps)
        row = one_row(Path(folder))
        yield load_average()
        yield "\n" + explained(__doc__)
        yield "| setup | p50 ms | p95 ms | max ms | the shadow's requests |"
        yield "|---|---:|---:|---:|---|"
        for name, times in found.items():
            p50, p95 = np.percentile(times, [50, 95])
            yield f"| {name} | {p50:.1f} | {p95:.1f} | {max(times):.1f} | {fate(apps[name])} |"
        yield f"\nOne row of five passages of 500 characters is written in {row:.0f} us (median)."


def main() -> None:
    given = arguments("shadow.md", __doc__).parse_args()
    show("shadow.md", report(), write=given.write)


if __name__ == "__main__":
    main()
