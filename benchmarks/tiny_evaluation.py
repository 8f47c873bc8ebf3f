"""How well the bundled LM reads, and learns, on devices that it has never met."""

import argparse
import math
import time
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import get_args

import torch
from tiny_examples import Examples, Told, fill, qa, tell
from tokenizers import Tokenizer
from torch import nn

from sift_rag import Engine, TrainingConfig, tiny
from sift_rag.answering import Mode
from sift_rag.loading import load
from sift_rag.tiny import world

TEST, VALIDATION = 2_000_003, 1_000_003  # seeds


@dataclass(frozen=True, slots=True)
class Item:
    """A question that one of the passages answers."""

    passages: list[str]
    question: world.Question


def items(n: int, *, seed: int, duplicate: bool = False) -> list[Item]:
    """`n` questions from 1 to 5 passages, on held-out names; optionally all told twice."""
    examples = Examples(seed, bank=0)
    examples.use(world.names("held_out"))
    out = []
    for i in range(n):
        told = examples.told(1 + i % 5)
        asked = examples.asked(told, 1)[0]
        passages = [p.text for p in told]
        if duplicate:
            passages += [again(p, examples.random).text for p in told]
        out.append(Item(passages, asked))
    return out


def again(told: Told, random: Random) -> Told:
    """The same attributes of the same device, in other words."""
    return tell(told.device, random, told.attributes)


@torch.no_grad()
def quick(model: nn.Module, tokenizer: Tokenizer, n: int = 100) -> str:
    """Reading and closed-book accuracy on the validation seed, as one line."""
    modes: dict[str, list[bool]] = {"reading": [], "closed": []}
    for item in items(n, seed=VALIDATION):
        context = [("".join(f"{p}\n\n" for p in item.passages), 0.0)]
        for mode, before in (("reading", context), ("closed", [])):
            tokens, weights = fill(tokenizer, before + qa(item.question))
            length = sum(weight == 1 for weight in weights)
            picks = model(input_ids=torch.tensor([tokens])).logits[0, -length - 1 : -1].argmax(-1)
            modes[mode].append(picks.tolist() == tokens[-length:])
    by = [sum(modes["reading"][i::5]) * 5 / n for i in range(5)]
    shares = {mode: sum(right) / n for mode, right in modes.items()}
    return f"reading {shares['reading']:.2f} {by}, closed-book {shares['closed']:.2f}"


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.96
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def evaluate(options: argparse.Namespace) -> None:
    """Prints the table of the card, through the library's own engine."""
    config = TrainingConfig(**tiny.TRAINING)  # type: ignore[arg-type]
    model, tokenizer = load(options.folder)
    print(f"{config}\n")
    print("| way | exact match | 95 % interval | n | median seconds |\n|---|---|---|---|---|")
    with Engine(model, tokenizer, training=config) as engine:
        for mode in get_args(Mode):
            _row(engine, mode, items(options.questions, seed=TEST), mode)
        again = items(options.questions, seed=TEST, duplicate=True)
        _row(engine, "train", again, "train, each passage told twice")


def _row(engine: Engine, mode: Mode, asked: list[Item], name: str) -> None:
    right, seconds = 0, []
    for item in asked:
        began = time.perf_counter()
        answer = engine.answer(item.question.text, item.passages, mode=mode, max_new_tokens=8)
        seconds.append(time.perf_counter() - began)
        right += answer.text.strip() == item.question.answer
    low, high = wilson(right, len(asked))
    print(
        f"| {name} | {right / len(asked):.3f} | {low:.3f} to {high:.3f} | {len(asked)} "
        f"| {median(seconds):.2f} |",
        flush=True,
    )
