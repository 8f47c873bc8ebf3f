"""Which texts to train on: the settings of selection, measured by what training on them is worth.

    python benchmarks/training_selection.py --write    # benchmarks/results/training_selection.md

One thread. What was measured is kept in benchmarks/cache by its content: a run that was broken off
goes on, and one after a change measures only what changed. `--texts` and `--questions` make it
smaller. The open data are looked for in ../shared/data or the folder in SIFT_RAG_DATA.

* Text like the query, the paper's task: pieces of seven domains in one corpus, a real small LM. A
  piece is held out with its near copies; its vector is the query, the 200 nearest others are the
  candidates. One step for each pick, in order of selection; bits a byte of the piece after each.
* A question about passages: the bundled LM, a corpus of devices that it has never met, each sheet
  told five times in other words. The question's vector is the query. The model is trained on the
  picks with its own settings, or reads them in its prompt, and answers.
* The paper's adaptive stop on the first task: as many picks as the uncertainty pays for.

All differences are paired, text by text, with bootstrap 95 % intervals.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import argparse
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from results_file import machine
from retrieval_data import CACHE, Dataset, Passage, corpus, vectors

from sift_rag import tiny
from sift_rag.adapters import Adapter
from sift_rag.embeddings import minilm
from sift_rag.generation import LanguageModel, generate, score
from sift_rag.kernels import Floats
from sift_rag.loading import load
from sift_rag.prompting import PromptTemplate
from sift_rag.rivals import mmr, nearest
from sift_rag.selection import sift
from sift_rag.stopping import alpha_rule
from sift_rag.tiny import world
from sift_rag.training import TrainingConfig, train

RESULTS = Path(__file__).parent / "results" / "training_selection.md"
MEMORY = CACHE / "training_selection.jsonl"
DATA = Path(os.environ.get("SIFT_RAG_DATA", Path(__file__).parents[2] / "shared" / "data"))

DOMAINS = "tinystories wikipedia books patents stackexchange nih_abstracts latex".split()
PIECES, PIECE = 250, (200, 360)  # of each domain; characters
LEVELS = ("clean", "copies 80 %")
FETCH, STEPS = 200, 20
RATE, RATES = 3e-3, (1e-3, 3e-3, 1e-2)
ALPHAS = (0.15, 0.3, 0.5)
DEVICES, VERSIONS, KS = 40, 5, (3, 5)

Vectors: TypeAlias = NDArray[np.float32]
Choose: TypeAlias = Callable[[Vectors, Vectors, int], list[int]]
Bits: TypeAlias = dict[str, Floats]  # of a setting: (texts, STEPS + 1)


def choose(select: Callable[..., Any], **options: Any) -> Choose:
    return lambda query, rows, k: select(query, rows, k, **options).indices.tolist()


def at_random(query: Vectors, rows: Vectors, k: int) -> list[int]:
    seed = int.from_bytes(query[:2].tobytes(), "little")
    return list(np.random.default_rng(seed).permutation(len(rows))[:k])


paper = partial(sift, kernel="linear", noise=0.01, distinct=False)
PAPER = "SIFT linear, noise 0.01, repeats (the paper)"
DEFAULT, SOME_NOISE = "SIFT rbf (the default)", "SIFT linear, noise 0.1, repeats"
MUCH_NOISE, MORE_NOISE = (f"SIFT linear, noise {noise}, repeats" for noise in (1, 3))
NEAREST, NEAREST_ONE, RANDOM = "nearest", "the nearest one, again and again", "random candidates"
SETTINGS: dict[str, Choose] = {
    PAPER: choose(paper),
    "SIFT linear, noise 0.01": choose(sift, kernel="linear", noise=0.01),
    SOME_NOISE: choose(sift, kernel="linear", noise=0.1, distinct=False),
    MUCH_NOISE: choose(sift, kernel="linear", noise=1.0, distinct=False),
    MORE_NOISE: choose(sift, kernel="linear", noise=3.0, distinct=False),
    DEFAULT: choose(sift),
    "SIFT rbf, repeats": choose(sift, distinct=False),
    "SIFT rbf, noise 1, repeats": choose(sift, noise=1.0, distinct=False),
    NEAREST: choose(nearest),
    NEAREST_ONE: choose(nearest, distinct=False),
    "MMR 0.7": choose(mmr, lambda_mult=0.7),
    RANDOM: at_random,
}
# Those that are left out of the questions are there to show where the first task has its best.
ASKED = [n for n in SETTINGS if n not in (SOME_NOISE, MORE_NOISE, NEAREST_ONE, RANDOM)]


class Memory:
    """What was measured, one JSON line each, by a hash of all that it depends on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._known = dict(json.loads(line) for line in lines)

    def get(self, key: object, measure: Callable[[], Any]) -> Any:
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        if name not in self._known:
            self._known[name] = measure()
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, self._known[name]]) + "\n")
        return self._known[name]


class Learner:
    """A model that is trained on texts and examined."""

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        self.lm = LanguageModel(*load(folder))
        self._name = folder.name
        self._config = config
        self._adapter = Adapter(self.lm.model, config.rank, config.target_modules)
        self._memory = Memory(MEMORY)

    def curve(self, text: str, texts: Sequence[str]) -> list[float]:
        """Bits a byte of a text: before, and after a step on each of the others."""
        key = ["curve", self._name, repr(self._config), text, list(texts)]
        return cast(list[float], self._memory.get(key, lambda: self._curve(text, texts)))

    def _curve(self, text: str, texts: Sequence[str]) -> list[float]:
        start, *rest = self.lm.prompt(text)
        found: list[float] = []

        def examine(step: object = None) -> None:
            nats = score(self.lm, [start], rest)
            found.append(nats / math.log(2) / len(text.encode()))

        with self._adapter.attached():
            train_ids = [self.lm.text(other) for other in texts]
            self._adapter.reset(seed=self._config.seed, alpha=self._config.alpha)
            examine()
            train(self.lm.model, self._adapter, train_ids, self._config, on_step=examine)
        return found + [found[0]] * (len(texts) + 1 - len(found))  # it diverged: so no adapter

    def reply(
        self, question: str, right: str, texts: Sequence[str], mode: str
    ) -> tuple[str, float]:
        """The answer, and nats of the right one, after training or with the texts in the prompt."""
        key = ["reply", self._name, repr(self._config), question, right, list(texts), mode]
        answer, nats = self._memory.get(key, lambda: self._reply(question, right, texts, mode))
        return answer, nats

    def _reply(self, question: str, right: str, texts: Sequence[str], mode: str) -> list[Any]:
        stuffed = [] if mode == "train" else texts
        prompt = self.lm.prompt(PromptTemplate().render(question, stuffed))
        with self._adapter.attached():
            self._adapter.reset(seed=self._config.seed, alpha=self._config.alpha)
            if mode == "train":
                ids = [self.lm.text(text) for text in texts]
                train(self.lm.model, self._adapter, ids, self._config)
            answer = generate(self.lm, prompt, max_new_tokens=8).text
            return [answer, score(self.lm, prompt, self.lm.continuation(right))]


# --- text like the query


def pieces(domain: str, lm: LanguageModel) -> list[list[str]]:
    """Pieces of a domain as sentences, neighbours together, each one step of training."""
    documents = _documents(domain)
    Random(0).shuffle(documents)
    found: list[list[str]] = []
    for document in documents:
        found += _packed(re.split(r"(?<=[.!?;:])\s+|\n+", document))[:10]
    fitting = [piece for piece in found if len(lm.text(" ".join(piece))) <= lm.context]
    return fitting[:PIECES]


def _documents(domain: str) -> list[str]:
    if domain == "tinystories":  # 20 lines: their ends are not marked
        lines = (DATA / "domains" / "tinystories.txt").read_text(encoding="utf-8").splitlines()
        return ["\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    lines = (DATA / "domains" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _packed(sentences: Sequence[str]) -> list[list[str]]:
    least, most = PIECE
    out: list[list[str]] = [[]]
    for sentence in filter(None, map(str.strip, sentences)):
        if len(" ".join([*out[-1], sentence])) > most:
            out.append([])
        out[-1].append(sentence)
    return [piece for piece in out if least <= len(" ".join(piece)) <= most and len(piece) > 2]


class Task(NamedTuple):
    """A text that is to be predicted, and the nearest others."""

    domain: str
    text: str
    query: Vectors  # (d,)
    rows: Vectors  # (FETCH, d)
    candidates: list[Passage]


def tasks(lm: LanguageModel, level: str, count: int) -> list[Task]:
    by_domain = [pieces(domain, lm) for domain in DOMAINS]
    sources = [piece for found in by_domain for piece in found]
    domains = [name for name, found in zip(DOMAINS, by_domain, strict=True) for _ in found]
    passages = corpus(Dataset("mixed", sources, [], []), level).passages
    rows = vectors([passage.text for passage in passages], minilm(), "passage")
    owner = np.array([passage.source for passage in passages])
    out = []
    for name in DOMAINS:
        own = [s for s, domain in enumerate(domains) if domain == name]
        for s in Random(0).sample(own, len(own))[: -(-count // len(DOMAINS))]:
            query = rows[int((owner == s).argmax())]  # a source's own text is the first of it
            near = np.argsort(-np.where(owner == s, -2.0, rows @ query), kind="stable")[:FETCH]
            text, others = " ".join(sources[s]), [passages[i] for i in near]
            out.append(Task(name, text, query, rows[near], others))
    return out


def curves(learner: Learner, found: list[Task], names: Sequence[str]) -> Bits:
    bits: dict[str, list[list[float]]] = {name: [] for name in names}
    for number, task in enumerate(found, 1):
        for name in names:
            picks = SETTINGS[name](task.query, task.rows, STEPS)
            texts = [task.candidates[i].text for i in picks]
            bits[name].append(learner.curve(task.text, texts))
        print(f"{number} of {len(found)} texts", flush=True)
    return {name: np.array(lists) for name, lists in bits.items()}


def sources_of(name: str, found: list[Task]) -> float:
    """Mean number of different pieces among the picks, near copies counted as one."""
    picks = [(task, SETTINGS[name](task.query, task.rows, STEPS)) for task in found]
    return float(np.mean([len({t.candidates[i].source for i in order}) for t, order in picks]))


def level_table(level: str, found: list[Task], bits: Bits) -> Iterator[str]:
    yield f"### {level}\n"
    yield f"Bits a byte before training: {bits[PAPER][:, 0].mean():.3f}.\n"
    yield (
        f"| chosen by | different of {STEPS} | after 10 | to the paper's | after {STEPS} "
        "| to the paper's |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, after in bits.items():
        cells = [f"{name} | {sources_of(name, found):.1f}"]
        for k in (10, STEPS):
            cells.append(f"{after[:, k].mean():.3f} | {difference(after[:, k], bits[PAPER][:, k])}")
        yield f"| {' | '.join(cells)} |"
    ends = {name: after[:, STEPS] for name, after in bits.items()}
    before = bits[PAPER][:, 0]
    for name in (MUCH_NOISE, NEAREST, PAPER):
        share = float((ends[name] < ends[DEFAULT]).mean())
        relative = difference(ends[name] / before, ends[DEFAULT] / before)
        yield (
            f"\n{name}, to the default after {STEPS}: "
            f"{difference(ends[name], ends[DEFAULT])} bits, "
            f"{relative} of each text's own bits before; better for {share:.0%} of the texts."
        )
    yield ""


def domain_table(found: list[Task], bits: Bits, names: Sequence[str]) -> Iterator[str]:
    yield f"By domain, bits a byte before and after {STEPS} steps:\n"
    yield f"| domain | before | {' | '.join(names)} |\n|---|{'---:|' * (1 + len(names))}"
    for domain in DOMAINS:
        own = np.array([task.domain == domain for task in found])
        after = [f"{bits[name][own, STEPS].mean():.3f}" for name in names]
        yield f"| {domain} | {bits[PAPER][own, 0].mean():.3f} | {' | '.join(after)} |"
    yield ""


def rate_table(learners: dict[float, Learner], found: list[Task]) -> Iterator[str]:
    names = [PAPER, MUCH_NOISE, DEFAULT, NEAREST]
    some = found[::3]
    yield f"Learning rates, {len(some)} of the texts, bits a byte after {STEPS} steps:\n"
    yield f"| rate | {' | '.join(names)} |\n|---|{'---:|' * len(names)}"
    for rate, learner in learners.items():
        after = curves(learner, some, names)
        yield f"| {rate:g} | {' | '.join(f'{after[n][:, STEPS].mean():.3f}' for n in names)} |"
    yield ""


# --- the adaptive stop


def alpha_table(level: str, found: list[Task], bits: Floats) -> Iterator[str]:
    yield f"### {level}\n"
    yield (
        "| alpha | picks, mean (least to most) | all "
        f"{STEPS} taken | bits a byte | fixed k, the same mean | difference |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for alpha in ALPHAS:
        kept = np.array(
            [len(paper(t.query, t.rows, STEPS).until(alpha_rule(alpha))) for t in found]
        )
        mean = kept.mean()
        low, share = int(mean), mean - int(mean)
        stopped = bits[np.arange(len(bits)), kept]
        fixed = (1 - share) * bits[:, low] + share * bits[:, min(low + 1, STEPS)]
        yield (
            f"| {alpha} | {mean:.1f} ({kept.min()} to {kept.max()}) | {(kept == STEPS).mean():.0%} "
            f"| {stopped.mean():.3f} | {fixed.mean():.3f} | {difference(stopped, fixed)} |"
        )
    yield ""


# --- a question about passages


class Sheet(NamedTuple):
    """One telling of half of a device's facts."""

    device: world.Device
    attributes: frozenset[str]
    text: str


class Asked(NamedTuple):
    """A question and its nearest passages."""

    question: world.Question
    query: Vectors  # (d,)
    rows: Vectors  # (n, d)
    candidates: list[Sheet]

    def tells(self, i: int) -> bool:
        sheet, asked = self.candidates[i], self.question
        return sheet.device == asked.device and asked.attribute in sheet.attributes


def sheets(devices: Sequence[world.Device], random: Random) -> list[Sheet]:
    """Two sheets for each device, each with half of its facts, each told `VERSIONS` times."""
    out = []
    for device in devices:
        facts = random.sample(world.ATTRIBUTES, len(world.ATTRIBUTES))
        for half in (facts[:4], facts[4:]):
            texts = [world.passage(device, seed=random, attributes=half) for _ in range(VERSIONS)]
            out += [Sheet(device, frozenset(half), text) for text in texts]
    return out


def questions(count: int) -> list[Asked]:
    random = Random(0)
    devices = world.devices(DEVICES, seed=3)
    told = sheets(devices, random)
    asked = [
        world.question(random.choice(devices), random.choice(world.ATTRIBUTES), seed=random)
        for _ in range(count)
    ]
    rows = vectors([sheet.text for sheet in told], minilm(), "passage")
    queries = vectors([each.text for each in asked], minilm(), "query")
    near = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, : FETCH // 2]
    return [
        Asked(question, query, rows[order], [told[i] for i in order])
        for question, query, order in zip(asked, queries, near, strict=True)
    ]


class Replies(NamedTuple):
    """What one setting gave for each question, (n,)."""

    told: Floats
    train: Floats
    nats: Floats
    stuff: Floats


def replies(learner: Learner, found: list[Asked], name: str, k: int) -> Replies:
    out = []
    for asked in found:
        picks = SETTINGS[name](asked.query, asked.rows, k)
        texts, right = [asked.candidates[i].text for i in picks], asked.question.answer
        trained, nats = learner.reply(asked.question.text, right, texts, "train")
        stuffed, _ = learner.reply(asked.question.text, right, texts, "stuff")
        out.append((any(map(asked.tells, picks)), trained == right, nats, stuffed == right))
    print(f"{name}, k = {k}", flush=True)
    return Replies(*np.array(out, dtype=np.float64).T)


def question_table(learner: Learner, found: list[Asked], k: int) -> Iterator[str]:
    all_replies = {name: replies(learner, found, name, k) for name in ASKED}
    base = all_replies[PAPER]
    yield f"### k = {k}\n"
    yield (
        "| chosen by | fact among the picks | right, trained | to the paper's "
        "| nats of the answer, to the paper's | right, in the prompt | to the paper's |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, got in all_replies.items():
        yield (
            f"| {name} | {got.told.mean():.2f} | {got.train.mean():.2f} "
            f"| {difference(got.train, base.train, 2)} | {difference(got.nats, base.nats, 2)} "
            f"| {got.stuff.mean():.2f} | {difference(got.stuff, base.stuff, 2)} |"
        )
    ours, near = all_replies[DEFAULT], all_replies[NEAREST]
    yield f"\nnearest, to the default: {difference(near.train, ours.train, 2)} right, trained."
    yield ""


# --- report


def head() -> Iterator[str]:
    yield "# Which texts to train on\n"
    yield "    python benchmarks/training_selection.py --write\n"
    yield from machine("torch", "transformers", "peft")
    yield ""
    yield (__doc__ or "").split("\n\n", 3)[3]


def difference(ours: Floats, theirs: Floats, digits: int = 3) -> str:
    """Mean paired difference and its bootstrap 95 % interval."""
    pairs = ours - theirs
    if not pairs.any():
        return "the same"
    draws = np.random.default_rng(0).integers(len(pairs), size=(5000, len(pairs)))
    low, high = np.quantile(pairs[draws].mean(axis=1), [0.025, 0.975])
    return f"{pairs.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def likeness(count: int) -> Iterator[str]:
    """The first task and the adaptive stop on it."""
    folder = DATA / "lm" / "stories260K"
    learners = {
        rate: Learner(folder, TrainingConfig(epochs=1, learning_rate=rate)) for rate in RATES
    }
    learner = learners[RATE]
    found = {level: tasks(learner.lm, level, count) for level in LEVELS}
    bits = {level: curves(learner, found[level], list(SETTINGS)) for level in LEVELS}
    yield f"## Text like the query\n\n{len(found[LEVELS[0]])} texts, stories260K.\n"
    for level in LEVELS:
        yield from level_table(level, found[level], bits[level])
    names = [PAPER, MUCH_NOISE, DEFAULT, NEAREST, RANDOM]
    yield from domain_table(found[LEVELS[0]], bits[LEVELS[0]], names)
    yield from rate_table(learners, found[LEVELS[0]])
    yield "## The adaptive stop, with the paper's selection\n"
    for level in LEVELS:
        yield from alpha_table(level, found[level], bits[level][PAPER])


def reading(count: int) -> Iterator[str]:
    """The second task."""
    learner = Learner(tiny.FOLDER, TrainingConfig(**cast(dict[str, Any], tiny.TRAINING)))
    found = questions(count)
    yield f"## A question about passages\n\n{count} questions, the bundled LM.\n"
    for k in KS:
        yield from question_table(learner, found, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=63, help="of the first task, about")
    parser.add_argument("--questions", type=int, default=100, help="of the second task")
    parser.add_argument("--write", action="store_true", help=f"write results/{RESULTS.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = list(head())
    for part in (likeness(options.texts), reading(options.questions)):
        lines += part
    print(text := "\n".join(lines).rstrip() + "\n")
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
