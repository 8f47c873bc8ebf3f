"""Does a training gain from what another one, on most of the same passages, has learnt?

    python benchmarks/warm_start.py --write      # also writes benchmarks/results/warm_start.md

Four invented devices that the bundled LM has never met, a passage each. First a question is
answered by training on the first three; then another one, on one of the last three, by training on
these: from a fresh adapter, or from the first one's, with which it shares two passages of four.
Half of the second questions are on the new passage, half on a shared one. Exact match, passages
only in the weights, after each number of epochs; the guard is off, so that training alone counts.
The p value is McNemar's, exact, of warm against cold.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from results_file import arguments, explained, machine, show
from scipy.stats import binomtest
from tiny_evaluation import TEST
from tiny_examples import Examples

from sift_rag import AdapterCache, Engine
from sift_rag.tiny import world

EPOCHS = (1, 2, 3, 4, 6)


class Task(NamedTuple):
    """Two questions on overlapping passages."""

    first: world.Question
    second: world.Question
    passages: list[str]  # four
    new: bool  # whether the second question is on what only it was trained on


def tasks(n: int) -> Iterator[Task]:
    """On held-out names, the same ones each time."""
    examples = Examples(TEST, bank=0)
    examples.use(world.names("held_out"))
    for i in range(n):
        told = examples.told(4)
        new = i % 2 == 0
        about = told[3:] if new else told[1:2]
        first, second = examples.asked(told[:1], 1)[0], examples.asked(about, 1)[0]
        yield Task(first, second, [each.text for each in told], new)


def right(task: Task, epochs: int, warm: bool) -> bool:
    """Whether the second question is answered, in an engine that knows of no other task."""
    cache = AdapterCache()
    with Engine.tiny(adapter_cache=cache) as engine:
        config = replace(engine.training, epochs=epochs, guard=None, warm_start=warm)
        if warm:
            engine.answer(task.first.text, task.passages[:3], mode="train", training=config)
        answer = engine.answer(
            task.second.text, task.passages[1:], mode="train", training=config, max_new_tokens=8
        )
    return answer.text.strip() == task.second.answer


def lines(n: int) -> Iterator[str]:
    """The result's lines."""
    yield "# Does a warm start pay?"
    yield "\n    python benchmarks/warm_start.py --write\n"
    yield from machine("torch", "transformers", "peft", "sift-rag-ttt")
    yield f"\n{n} second questions, half of each kind.\n"
    yield "| epochs | on the new passage, cold | warm | p | on a shared one, cold | warm | p |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    asked = list(tasks(n))
    for epochs in EPOCHS:
        cells = []
        for new in (True, False):
            mine = [task for task in asked if task.new == new]
            cold, warm = ([right(task, epochs, w) for task in mine] for w in (False, True))
            gained = sum(w and not c for c, w in zip(cold, warm, strict=True))
            lost = sum(c and not w for c, w in zip(cold, warm, strict=True))
            p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            cells += [f"{sum(cold) / len(mine):.2f}", f"{sum(warm) / len(mine):.2f}", f"{p:.2g}"]
        yield f"| {epochs} | {' | '.join(cells)} |"
    yield "\n## What was measured\n"
    yield explained(__doc__)


if __name__ == "__main__":
    parser = arguments("warm_start.md", __doc__)
    parser.add_argument("--questions", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    show("warm_start.md", lines(options.questions), write=options.write)
