r"""Trains the bundled LM from nothing but a seed: first to read, then to learn at test time.

    python benchmarks/train_tiny.py train --out /tmp/tiny --phase read --minutes 11
    python benchmarks/train_tiny.py train --out /tmp/tiny --phase learn --minutes 15 \
        --tokens 1536 --drills 0.3 --recalls 0.15
    python benchmarks/train_tiny.py export --out /tmp/tiny --folder sift_rag/tiny
    python benchmarks/train_tiny.py evaluate --questions 300

Two workers of one thread each step the same weights in turn, without waiting for each other, so
that other work on the machine slows one of them and not both. Their order is the only thing that
the seed does not fix.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_evaluation
import torch
import torch.multiprocessing as mp
from tiny_examples import END, PLAIN, RECALLED, Examples, fill, qa, train_tokenizer
from tiny_meta import Inner, adapt, outer_loss, padded
from tiny_model import new_model, save
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Lfm2ForCausalLM

#: Share of the rows that are closed-book questions on the bank.
BANKED = 0.15
#: A context gets one passage more when this share of its answers begins right.
READY = 0.75
SAVE_EVERY = 100

Found = dict[str, float]


@dataclass
class Shared:
    """What the workers share: weights and moments in shared memory, counters, a lock to step."""

    model: Lfm2ForCausalLM
    optimizer: torch.optim.AdamW
    tokenizer: Tokenizer
    lock: Any
    step: Any
    most: Any  # passages in a context
    right: Any  # running share of answers that begin right


def batch(
    examples: Examples, tokenizer: Tokenizer, most: int, options: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Rows of about `options.tokens` tokens in all; the contexts have up to `most` passages.

    While there is one passage, half of the rows are random tokens repeated: without them copying
    had not begun after 1.9 million tokens; with them it took 0.6 million. Reading from several
    passages then stood still for 6 million tokens, until rows of `Examples.recalled` taught to
    bind a value to a name.
    """
    random = examples.random
    if options.phase == "learn":  # reading stands by then: contexts of every size keep it
        most = 5
    n = random.randint(max(1, most - 3), most)
    length = 45 * n + 18 * min(8, 4 * n)
    rows = []
    for _ in range(max(1, options.tokens // length)):
        if random.random() < (0.5 if most == 1 else 0.05):
            rows.append(examples.repeated(tokenizer.get_vocab_size(), length))
        elif random.random() < options.recalls:
            rows.append(examples.recalled(tokenizer, length))
        elif random.random() < BANKED:
            pieces = [piece for _ in range(length // 18) for piece in examples.banked()]
            rows.append(fill(tokenizer, pieces))
        elif random.random() < options.drills:
            rows.append(fill(tokenizer, examples.drill()))
        else:
            rows.append(fill(tokenizer, examples.reading(n, 8)))
    return padded(rows)


def read(model: nn.Module, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Found]:
    """Mean next-token loss under the weights (both (B, T)), and how many answers begin right."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens).logits[:, :-1]
    targets, weights = tokens[:, 1:], weights[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    first = (weights == 1) & (weights.roll(1, 1) < 1)
    right = {}
    for name, where in (("right", first), ("recall", weights == RECALLED)):
        if where.any():
            right[name] = (logits.argmax(-1) == targets)[where].float().mean().item()
    return (losses * weights.flatten()).sum() / weights.sum(), right


def learn(
    model: nn.Module, examples: Examples, tokenizer: Tokenizer, inner: Inner, tasks: int
) -> Found:
    """One meta-step, its gradients added: adapts to the passages of each task, then asks.

    Closed-book questions count fully; questions with the passages in the context, asked of a
    quarter of the tasks so that the mode `both` works, count half.
    """
    m = examples.random.randint(1, 5)
    told = [examples.told(m) for _ in range(tasks)]
    asked = [examples.asked(passages, 12) for passages in told]
    each = min(len(questions) for questions in asked)
    adapters = adapt(model, [[tokenizer.encode(p.text + END).ids for p in t] for t in told], inner)
    rows = [fill(tokenizer, qa(q)) for questions in asked for q in questions[:each]]
    closed = outer_loss(model, adapters, rows)
    closed.backward()  # type: ignore[no-untyped-call]
    few = max(1, tasks // 4)
    rows = []
    for passages, questions in zip(told[:few], asked[:few], strict=True):
        context = [("".join(f"{p.text}\n\n" for p in passages), PLAIN)]
        rows.append(fill(tokenizer, context + [piece for q in questions[:3] for piece in qa(q)]))
    both = outer_loss(model, adapters, rows, few)
    (0.5 * both).backward()  # type: ignore[no-untyped-call]
    return {"closed": closed.item(), "both": both.item()}


def share(options: argparse.Namespace) -> Shared:
    """A new model, or the one that `options.out` holds, and its optimizer in shared memory."""
    tokenizer = train_tokenizer(options.seed)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    for parameter in model.parameters():  # a step of nothing makes the moments
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    most = 1
    if (path := options.resume or options.out / "state.pt").exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        most = state["most"]
    model.share_memory()
    for moments in optimizer.state.values():
        for value in moments.values():
            value.share_memory_()
    context = mp.get_context("fork")
    counters = context.Value("i", 0), context.Value("i", most), context.Value("d", 0.0)
    return Shared(model, optimizer, tokenizer, context.Lock(), *counters)


def work(shared: Shared, options: argparse.Namespace, worker: int, start: float) -> None:
    """Steps until the time is over, beside the other workers."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed + 1000 * worker)
    examples = Examples(options.seed + 1000 * worker + (7 if options.phase == "learn" else 0))
    inner = Inner(options.rank, options.alpha, options.rate, options.epochs)
    mean: Found = {}
    step = 0
    while (fraction := (time.time() - start) / (60 * options.minutes)) < 1:
        found: Found = {}
        if options.phase == "learn":
            found = learn(shared.model, examples, shared.tokenizer, inner, options.tasks)
        rows = batch(examples, shared.tokenizer, shared.most.value, options)
        loss, right = read(shared.model, *rows)
        loss.backward()  # type: ignore[no-untyped-call]
        step = update(shared, options, fraction, right.get("right", 0.5))
        found |= {"read": loss.item()} | right
        mean |= {key: mean.get(key, new) * 0.96 + new * 0.04 for key, new in found.items()}
        if worker == 0 and step % SAVE_EVERY < 2:
            keep(shared, options)
        if worker == 0 and step % options.every < 2:
            values = " ".join(f"{key} {value:.3f}" for key, value in mean.items())
            minutes = (time.time() - start) / 60
            print(f"{step} {minutes:.1f} min, most {shared.most.value}, {values}", flush=True)


def update(shared: Shared, options: argparse.Namespace, fraction: float, right: float) -> int:
    """One locked optimizer step; a learn phase ends with the rate falling to zero."""
    nn.utils.clip_grad_norm_(shared.model.parameters(), 1.0)
    decay = min(1.0, 1.5 * (1 - fraction)) if options.phase == "learn" else 1.0
    with shared.lock:
        shared.step.value += 1
        step = int(shared.step.value)
        for group in shared.optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, step / 50) * decay
        shared.optimizer.step()
        shared.right.value += (right - shared.right.value) * 0.02
        if shared.right.value > READY and shared.most.value < 5:
            shared.most.value, shared.right.value = shared.most.value + 1, 0.5
    shared.optimizer.zero_grad(set_to_none=True)
    return step


def keep(shared: Shared, options: argparse.Namespace) -> None:
    """A checkpoint, and how well it reads."""
    with shared.lock:
        state = {
            "model": shared.model.state_dict(),
            "optimizer": shared.optimizer.state_dict(),
            "most": shared.most.value,
        }
        torch.save(state, options.out / "state.tmp")
    (options.out / "state.tmp").rename(options.out / "state.pt")
    print("   ", tiny_evaluation.quick(shared.model, shared.tokenizer), flush=True)


def train(options: argparse.Namespace) -> None:
    """Runs the workers of one phase."""
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    shared = share(options)
    print(options, flush=True)
    start = time.time()
    workers = [
        mp.get_context("fork").Process(target=work, args=(shared, options, i, start))
        for i in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    keep(shared, options)


def export(options: argparse.Namespace) -> None:
    """The checkpoint of `options.out` as a model folder."""
    save(share(options).model, train_tokenizer(options.seed), options.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "export", "evaluate"))
    parser.add_argument("--out", type=Path, default=Path("tiny-training"))
    parser.add_argument("--folder", type=Path, default=Path("sift_rag/tiny"))
    parser.add_argument("--resume", type=Path, help="a checkpoint other than that of --out")
    parser.add_argument("--phase", choices=("read", "learn"), default="read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024, help="of a reading batch")
    parser.add_argument("--drills", type=float, default=0.4, help="share of the reading rows")
    parser.add_argument("--recalls", type=float, default=0.3, help="share of the rows")
    parser.add_argument("--tasks", type=int, default=8, help="of a meta-step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--every", type=int, default=50, help="steps between two lines of log")
    parser.add_argument("--questions", type=int, default=300)
    options = parser.parse_args()
    {"train": train, "export": export, "evaluate": tiny_evaluation.evaluate}[options.command](
        options
    )


if __name__ == "__main__":
    main()
