"""Ask one engine 1,000 questions in all four modes and watch the process's memory.

    python benchmarks/memory.py --write           # also writes benchmarks/results/memory.md

The bundled model; short answers. One question in ten is ended by an error in a callback, and one
in ten is a stream that is left after its first piece: neither may hold on to anything.
"""

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from results_file import machine
from training import CONFIG

from sift_rag import tiny
from sift_rag.engine import Engine, Mode
from sift_rag.events import Callback, Control
from sift_rag.loading import load
from sift_rag.tiny import world

RESULTS = Path(__file__).parent / "results" / "memory.md"
MODES: tuple[Mode, ...] = ("closed_book", "stuff", "train", "both")
LOOKS = (10, 30, 100, 300, 1000)  # questions after which memory is read


class Oops(Callback):
    def on_token(self, event: Mapping[str, Any], control: Control) -> None:
        raise KeyError("on purpose")


def ask(engine: Engine, number: int) -> None:
    devices = world.devices(3, seed=number)
    question = world.question(devices[0], "city", seed=number).text
    call: dict[str, Any] = {
        "documents": [world.passage(device, seed=number) for device in devices],
        "mode": MODES[number % 4],
        "max_new_tokens": 4,
    }
    if number % 10 == 7:
        with contextlib.suppress(KeyError):
            engine.answer(question, **call, callbacks=[Oops()])
    elif number % 10 == 9:
        next(engine.stream(question, **call), None)
    else:
        engine.answer(question, **call)


def measure(folder: Path) -> dict[int, float]:
    """Resident MiB after so many questions."""
    process = psutil.Process()
    found = {}
    with Engine(*load(folder), training=CONFIG) as engine:
        for number in range(1, LOOKS[-1] + 1):
            ask(engine, number)
            if number in LOOKS:
                found[number] = process.memory_info().rss / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=tiny.FOLDER)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.model)
    rows = "\n".join(f"| {number:,} | {mib:.1f} |" for number, mib in found.items())
    growth = found[LOOKS[-1]] / found[LOOKS[0]] - 1
    where = " ".join(machine("torch", "transformers", "peft", "accelerate"))
    text = (
        "# Memory of one engine\n\n`python benchmarks/memory.py --write`\n\n"
        f"{where}\n\n| questions | resident MiB |\n|---:|---:|\n{rows}\n\n"
        f"From {LOOKS[0]} to {LOOKS[-1]:,} questions: {growth:+.1%}. Wanted: at most 5 %.\n"
    )
    print(text)
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
