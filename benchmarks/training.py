"""Time the reset, one training step and a whole question against peft, plain PyTorch and Trainer.

    pip install accelerate                        # which transformers' Trainer needs
    python benchmarks/training.py --write         # also writes benchmarks/results/training.md

The bundled model, on the CPU with one thread (--threads). Repeats are interleaved and the figures
are medians of the process's CPU time, which other work on the machine disturbs less than the time
on the wall. All sides begin with the same LoRA weights and see the same texts in the same order,
one a step: their losses must be equal.

* reset: our adapter made fresh in place and a new optimizer, against what peft offers.
* step: forward, backward, clipping and Adam, against the same with LoRA layers written by hand.
* question: adapt to ten passages, a step each, and write an answer of 16 tokens at most, against
  `get_peft_model`, a `Trainer` and `generate`, made anew for each question. Steps and answer alone
  are shown too: no way can cost less. So is a Trainer that pads each text to the context.
* kept: until the adapter of the same passages is attached, from an `AdapterCache`, for the question
  it was trained for and for another one, which the guard looks at first. Time on the wall.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from results_file import machine
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from sift_rag import tiny
from sift_rag.adapter_cache import AdapterCache
from sift_rag.adapters import Adapter
from sift_rag.engine import Engine
from sift_rag.generation import LanguageModel, generate
from sift_rag.loading import load
from sift_rag.prompting import PromptTemplate
from sift_rag.tiny import world
from sift_rag.training import TrainingConfig, train

RESULTS = Path(__file__).parent / "results" / "training.md"
PASSAGES = 10
ANSWER = 16  # tokens at most
CONFIG = TrainingConfig(rank=16, alpha=32, learning_rate=1e-3, epochs=1)
LORA = LoraConfig(
    r=CONFIG.rank, lora_alpha=int(CONFIG.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
)


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each call; every repeat makes all of them once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if repeat:  # the first one warms up
                times[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(taken) for name, taken in times.items()}


@dataclass(frozen=True)
class Bench:
    """A question of the bundled model's world with its passages, and the model to ask."""

    lm: LanguageModel
    question: str
    passages: list[str]

    @property
    def texts(self) -> list[list[int]]:
        return [self.lm.text(passage) for passage in self.passages]

    @property
    def prompt(self) -> list[int]:
        return self.lm.prompt(PromptTemplate().render(self.question))


def bench(folder: Path) -> Bench:
    devices = world.devices(PASSAGES, seed=1)
    return Bench(
        LanguageModel(*load(folder)),
        world.question(devices[0], "city", seed=1).text,
        [world.passage(device, seed=1) for device in devices],
    )


def adapter_of(model: Any) -> tuple[Adapter, list[Tensor]]:
    """A fresh adapter, and its first A matrices in the order of the model's modules."""
    adapter = Adapter(model, CONFIG.rank, CONFIG.target_modules)
    adapter.reset(seed=CONFIG.seed, alpha=CONFIG.alpha)
    with adapter.attached():
        return adapter, first(model, "lora_A")


def first(model: Any, name: str) -> list[Tensor]:
    return [weight.detach().clone() for n, weight in model.named_parameters() if name in n]


def begin_like(peft_model: Any, a: Sequence[Tensor]) -> None:
    """Give a peft model our first weights."""
    mine = [weight for name, weight in peft_model.named_parameters() if "lora_A" in name]
    for weight, value in zip(mine, a, strict=True):
        weight.data.copy_(value)


# --- reset


def reset(b: Bench, repeats: int) -> dict[str, float]:
    adapter = Adapter(b.lm.model, CONFIG.rank, CONFIG.target_modules)
    alone: Any = copy.deepcopy(b.lm.model)
    peft_model: Any = get_peft_model(copy.deepcopy(b.lm.model), copy.deepcopy(LORA))

    def in_place() -> None:
        adapter.reset(seed=CONFIG.seed, alpha=CONFIG.alpha)
        torch.optim.Adam([adapter.weights], lr=CONFIG.learning_rate, fused=True)

    def add_and_delete() -> None:
        peft_model.add_adapter("question", copy.deepcopy(LORA))
        peft_model.set_adapter("question")
        peft_model.delete_adapter("question")

    def make_and_unload() -> None:
        get_peft_model(alone, copy.deepcopy(LORA)).unload()

    return interleaved(
        {
            "ours: reset in place, new optimizer": in_place,
            "peft: add_adapter, delete_adapter": add_and_delete,
            "peft: get_peft_model, unload": make_and_unload,
        },
        repeats,
    )


# --- one step


class ByHand(nn.Module):
    """W x + (alpha / r) B A x, and nothing else."""

    def __init__(self, base: nn.Linear, a: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(a.clone())
        self.b = nn.Parameter(torch.zeros(base.out_features, len(a)))

    def forward(self, x: Tensor) -> Tensor:
        scaling = CONFIG.alpha / CONFIG.rank
        out: Tensor = self.base(x) + F.linear(F.linear(x, self.a), self.b) * scaling
        return out


class PlainTraining:
    """The same training as a user would write it in plain PyTorch."""

    def __init__(self, model: Any, a: Sequence[Tensor]) -> None:
        self._model = model.requires_grad_(False)
        self._a = list(a)
        self._layers: list[ByHand] = []
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
                    self._layers.append(ByHand(layer, self._a[len(self._layers)]))
                    setattr(parent, name, self._layers[-1])

    def __call__(self, texts: Sequence[Tensor]) -> list[float]:
        weights = [weight for layer in self._layers for weight in (layer.a, layer.b)]
        with torch.no_grad():
            for layer, a in zip(self._layers, self._a, strict=True):
                layer.a.copy_(a)
                layer.b.zero_()
        adam = torch.optim.Adam(weights, lr=CONFIG.learning_rate)
        losses = []
        for ids in texts:
            logits = self._model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, CONFIG.max_grad_norm)
            adam.step()
            losses.append(loss.item())
        return losses


def step(b: Bench, repeats: int) -> tuple[dict[str, float], float]:
    """Milliseconds a step, and the largest relative difference between the losses."""
    model: Any = b.lm.model
    adapter, a = adapter_of(model)
    plain = PlainTraining(copy.deepcopy(model), a)
    ids = [torch.tensor([text]) for text in b.texts]
    losses: dict[str, Sequence[float]] = {}

    def ours() -> None:
        with adapter.attached():
            losses["ours"] = train(model, adapter, b.texts, CONFIG).losses

    def by_hand() -> None:
        losses["by hand"] = plain(ids)

    taken = interleaved({"ours": ours, "by hand, in plain PyTorch": by_hand}, repeats)
    pairs = zip(losses["ours"], losses["by hand"], strict=True)
    return (
        {name: milliseconds / len(ids) for name, milliseconds in taken.items()},
        max(abs(x - y) / y for x, y in pairs),
    )


# --- a whole question


def with_trainer(
    b: Bench, model: Any, a: Sequence[Tensor], folder: str, *, length: int = 0
) -> list[float]:
    """Adapter, training and answer as the libraries' guides show it, for one question."""
    peft_model: Any = get_peft_model(model, copy.deepcopy(LORA))
    begin_like(peft_model, a)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1,
        num_train_epochs=CONFIG.epochs,
        learning_rate=CONFIG.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CONFIG.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer: Any = Quiet(
        model=peft_model,
        args=arguments,
        train_dataset=[row(text, length, b.lm.eos[0]) for text in b.texts],
    )
    trainer.train()
    peft_model.eval()
    ids = torch.tensor([b.prompt])
    peft_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER,
        do_sample=False,
        pad_token_id=b.lm.eos[0],
    )
    peft_model.unload()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def row(text: list[int], length: int, pad: int) -> dict[str, list[int]]:
    more = max(0, length - len(text))
    return {
        "input_ids": text + [pad] * more,
        "attention_mask": [1] * len(text) + [0] * more,
        "labels": text + [-100] * more,
    }


class Quiet(Trainer):
    """A Trainer that prints no losses."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.log_history.append(dict(logs))


def question(b: Bench, repeats: int) -> tuple[dict[str, float], float]:
    """Milliseconds a question, and the largest relative difference between the losses."""
    model: Any = copy.deepcopy(b.lm.model)
    adapter, a = adapter_of(b.lm.model)
    losses: dict[str, Sequence[float]] = {}
    with (
        Engine(b.lm.model, b.lm.tokenizer, training=CONFIG) as engine,
        tempfile.TemporaryDirectory() as folder,
    ):

        def ours() -> None:
            answer = engine.answer(b.question, b.passages, mode="train", max_new_tokens=ANSWER)
            losses["ours"] = answer.training.losses if answer.training else ()

        def alone() -> None:
            with adapter.attached():
                train(b.lm.model, adapter, b.texts, CONFIG)
                generate(b.lm, b.prompt, max_new_tokens=ANSWER)

        def theirs() -> None:
            losses["theirs"] = with_trainer(b, model, a, folder)

        def padded() -> None:
            with_trainer(b, model, a, folder, length=b.lm.context)

        taken = interleaved(
            {
                "ours: Engine.answer": ours,
                "steps and answer alone": alone,
                "get_peft_model, Trainer": theirs,
                f"get_peft_model, Trainer, padded to {b.lm.context}": padded,
            },
            repeats,
        )
    pairs = zip(losses["ours"], losses["theirs"], strict=True)
    return taken, max(abs(x - y) / y for x, y in pairs)


# --- kept


def kept(b: Bench, repeats: int) -> dict[str, float]:
    """Median milliseconds on the wall until the adapter is attached."""
    other = world.question(world.devices(PASSAGES, seed=1)[1], "weight", seed=1).text
    asked = {"kept, the same question": b.question, "kept, another question": other}
    found: dict[str, float] = {}
    cache = AdapterCache()
    with Engine(b.lm.model, b.lm.tokenizer, training=CONFIG, adapter_cache=cache) as engine:
        for name, text in asked.items():
            times = []
            engine.answer(b.question, b.passages, mode="train", max_new_tokens=ANSWER)
            for _ in range(repeats):
                answer = engine.answer(text, b.passages, mode="train", max_new_tokens=ANSWER)
                if answer.training is None or answer.training.cache != "hit":
                    raise RuntimeError(f"no adapter was kept: {answer.training}")
                times.append(1e3 * answer.timings["train"])
            found[name] = statistics.median(times)
    return found


# --- report


def table(title: str, taken: dict[str, float], unit: str, note: str) -> str:
    base = next(iter(taken.values()))
    rows = "\n".join(
        f"| {name} | {milliseconds:.2f} | {milliseconds / base:.2f} |"
        for name, milliseconds in taken.items()
    )
    return f"## {title}\n\n| | {unit} | times ours |\n|---|---:|---:|\n{rows}\n\n{note}\n"


def overheads(taken: dict[str, float]) -> str:
    ours, alone, theirs, _ = taken.values()
    return (
        f"Of the time, {alone:.0f} ms are the steps and the answer, which are the same on all "
        f"sides; the rest is {max(0.0, ours - alone):.0f} ms with us and {theirs - alone:.0f} ms "
        "with the Trainer."
    )


def report(b: Bench, threads: int, repeats: int) -> str:
    tokens = sum(len(text) for text in b.texts)
    reset_times = reset(b, 4 * repeats)
    step_times, step_gap = step(b, repeats)
    question_times, question_gap = question(b, repeats)
    kept_times = kept(b, repeats)
    size = sum(weight.numel() for weight in b.lm.model.parameters()) / 1e6
    packages = ("torch", "transformers", "peft", "accelerate")
    where = " ".join(machine(*packages, threads=threads))
    parts = [
        "# Test-time training, timed\n",
        f"`python benchmarks/training.py --write --threads {threads} --repeats {repeats}`\n",
        f"{where} A model of {size:.1f}M parameters; {PASSAGES} passages of "
        f"{tokens / PASSAGES:.0f} tokens; rank {CONFIG.rank}, all linear layers. Medians of "
        f"{repeats} interleaved repeats ({4 * repeats} for the reset), CPU time.\n",
        table("Reset", reset_times, "CPU ms", "Wanted: at most 1 ms."),
        table(
            "One step",
            step_times,
            "CPU ms a step",
            f"Wanted: ours at most 1.15 times the other, so at least 0.87 in its row. Largest "
            f"relative difference of a loss: {step_gap:.1e}.",
        ),
        table(
            "One question: ten steps and the answer",
            question_times,
            "CPU ms a question",
            f"Wanted: the unpadded Trainer at least 5 times ours. {overheads(question_times)} "
            f"Largest relative difference of a loss: {question_gap:.1e}.",
        ),
        table("An adapter that was kept", kept_times, "ms", "Wanted: at most 5 ms."),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=tiny.FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = report(bench(arguments.model), arguments.threads, arguments.repeats)
    print(text)
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
