"""The command `sift-rag demo`: invented devices, near-duplicate passages, four ways to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from string import ascii_lowercase
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table

from sift_rag import terminal
from sift_rag.candidates import Index
from sift_rag.documents import Document
from sift_rag.embeddings import Embedder
from sift_rag.pipeline import Pipeline, retrieve
from sift_rag.rivals import nearest
from sift_rag.tiny import world

if TYPE_CHECKING:
    from sift_rag.engine import Answer, Engine, Mode

DEVICES = 24
K = 3
HOW = {
    "closed_book": "closed book",
    "stuff": "passages in the prompt",
    "train": "passages in the weights",
    "both": "passages in both",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of one way, and whether it was right."""

    mode: "Mode"
    answer: "Answer"
    right: bool


def corpus(devices: Sequence[world.Device], *, seed: int, copies: int = 2) -> list[Document]:
    """Two sheets for each device, each with half of its facts, in several rewordings.

    The copies are what a real corpus is full of: revisions, mirrors, overlapping chunks.
    """
    random = Random(seed)
    documents = []
    for device in devices:
        facts = random.sample(world.ATTRIBUTES, len(world.ATTRIBUTES))
        for sheet, attributes in enumerate((facts[:4], facts[4:]), 1):
            for revision in ascii_lowercase[:copies]:
                documents.append(
                    Document(
                        world.passage(device, seed=random, attributes=attributes),
                        {"source": f"{device.name} {device.kind}, sheet {sheet}{revision}"},
                    )
                )
    random.shuffle(documents)
    return documents


def run(
    embedder: Embedder, engine: "Engine", *, questions: int, seed: int, console: Console
) -> list[Row]:
    """Index the corpus, ask, and print what happens; returns every answer."""
    random = Random(seed)
    devices = world.devices(DEVICES, seed=seed)
    documents = corpus(devices, seed=seed)
    with terminal.ProgressBar(console, "Embedding") as bar:
        index = Index.build(documents, embedder, progress=bar)
    console.print(
        f"{len(index)} passages on {DEVICES} invented devices that the model has never met; "
        "each passage comes twice, in other words.\n"
    )
    pipeline = Pipeline(index, engine, k=K, callbacks=[terminal.TrainingBar(console)])
    rows: list[Row] = []
    for number in range(1, questions + 1):
        asked = world.question(random.choice(devices), random.choice(world.ATTRIBUTES), seed=random)
        console.rule(f"[bold]{number}. {asked.text}", align="left")
        rows += _ask(pipeline, asked, console)
    console.rule("[bold]In all", align="left")
    console.print(_closing_table(rows))
    return rows


def _ask(pipeline: Pipeline, asked: world.Question, console: Console) -> list[Row]:
    """Show the selection for one question, and its answer each way."""
    from sift_rag.engine import Mode

    found = retrieve(pipeline.index, asked.text, k=pipeline.k, fetch_k=pipeline.fetch_k)
    console.print(terminal.passages(found))
    plain = retrieve(pipeline.index, asked.text, select=nearest, k=pipeline.k)
    console.print(
        f"[dim]SIFT took {_sheets(found.documents)} different sheets; the {pipeline.k} nearest "
        f"passages are {_sheets(plain.documents)}. {terminal.seconds(found.timings)}[/dim]\n"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("way", "answer", "", "seconds"):
        table.add_column(heading)
    rows = []
    for mode in get_args(Mode):
        answer = pipeline.answer(asked.text, mode=mode)
        right = answer.text == asked.answer
        rows.append(Row(mode, answer, right))
        stages = terminal.seconds(answer.timings, ("train", "prefill", "decode"))
        table.add_row(HOW[mode], answer.text, _mark(right), stages)
    console.print(table)
    console.print(f"[dim]Right: {asked.answer}[/dim]\n")
    return rows


def _closing_table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("way")
    for heading in ("right", "median s", "prompt tokens", "trained tokens"):
        table.add_column(heading, justify="right")
    for mode, how in HOW.items():
        own = [row for row in rows if row.mode == mode]
        table.add_row(
            how,
            f"{sum(row.right for row in own)} of {len(own)}",
            f"{median(row.answer.timings['total'] for row in own):.2f}",
            f"{median(row.answer.usage['prompt_tokens'] for row in own):.0f}",
            f"{median(row.answer.usage['training_tokens'] for row in own):.0f}",
        )
    return table


def _sheets(documents: Sequence[Document]) -> int:
    """How many different sheets, a reworded copy counted as its original."""
    return len({document.metadata["source"][:-1] for document in documents})


def _mark(right: bool) -> str:
    return "[green]✓[/green]" if right else "[red]✗[/red]"
