"""The command sift-rag: a thin skin over the Python API, and the only place that prints or exits.

Results go to standard output, progress and notices to standard error. Exit codes: 0 done, 1 the
input or the machine did not allow it (one sentence says why), 2 wrong usage, 130 Ctrl-C.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sift_rag import cli_compare, terminal
from sift_rag.cli_options import (
    MINILM,
    SELECTORS,
    AsJson,
    EmbedderName,
    FetchK,
    IndexFolder,
    K,
    Model,
    Question,
    Selector,
    Use,
    embedder_of,
    engine_of,
    err,
    load_index,
    out,
    print_json,
)
from sift_rag.documents import MAX_TOKENS
from sift_rag.explaining import visible

if TYPE_CHECKING:
    from sift_rag.candidates import Index
    from sift_rag.embeddings import SentenceTransformerEmbedder
    from sift_rag.engine import Answer
    from sift_rag.pipeline import Pipeline


class _Commands(typer.core.TyperGroup):
    """Turns what went wrong into one sentence and an exit code, for every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("Interrupted: nothing was left half done.", style="yellow")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # `| head` closed the pipe: typer ends quietly
        except (ValueError, OSError, ImportError) as error:
            err.print(f"Error: {error}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="From a folder of texts to an answer: select passages with SIFT, then stuff them into "
    "the prompt, train on them for one question, or both.",
)


@app.command(
    epilog="Example: [bold]sift-rag index ./handbook --out handbook.index[/bold]",
)
def index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the texts are.")],
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the index goes.")],
    embedder: EmbedderName = MINILM,
    max_tokens: Annotated[int, typer.Option(help="Longest passage, in tokens.")] = MAX_TOKENS,
    overlap: Annotated[int, typer.Option(help="Tokens that neighbouring passages share.")] = 0,
) -> None:
    """Index a folder: text, Markdown, HTML, JSON lines and PDF.

    Run it again after the folder changed: only new and changed passages are embedded.
    """
    from sift_rag.candidates import Index
    from sift_rag.documents import read_folder, split
    from sift_rag.storage import check_target

    check_target(out_dir)  # before the long work, not after it
    with terminal.ProgressBar(err, "Reading") as bar:
        reading = read_folder(folder, progress=bar)
    model = embedder_of(embedder)
    passages = split(
        reading.documents, max_tokens=max_tokens, overlap=overlap, tokenizer=model.tokenizer
    )
    previous = _previous(out_dir, model)
    with terminal.ProgressBar(err, "Embedding") as bar:
        built = Index.build(passages, model, previous=previous, progress=bar)
    built.save(out_dir)
    out.print(
        f"{len(reading.documents)} documents, {len(built)} passages "
        f"({built.embedded} embedded, {built.reused} taken over): {out_dir}",
        highlight=False,
        markup=False,
    )
    if reading.skipped:
        err.print(f"{len(reading.skipped)} skipped:", style="yellow")
        for path, reason in reading.skipped:
            err.print(visible(f"  {path}: {reason}"), markup=False, highlight=False)


@app.command(
    epilog='Example: [bold]sift-rag search handbook.index "How many days off?" -k 3[/bold]',
)
def search(
    folder: IndexFolder,
    question: Question,
    k: K = 5,
    fetch_k: FetchK = 50,
    select: Selector = "sift",
    embedder: EmbedderName = MINILM,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why these passages, and why not nearer ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the passages that together leave the least uncertainty about a question."""
    loaded = load_index(folder, embedder)
    from sift_rag.pipeline import retrieve  # seconds, which a wrong folder need not wait for

    found = retrieve(loaded, question, select=SELECTORS[select], k=k, fetch_k=fetch_k)
    documents = found.candidates.documents
    why = found.selection.explain([d.text for d in documents]) if explain else None
    if as_json:
        extra = {"explanation": asdict(why)} if why else {}
        print_json({"question": question, "selected": found.rows()} | extra)
        return
    out.print(terminal.explanation(why, documents) if why else terminal.passages(found))
    err.print(terminal.seconds(found.timings), style="dim")


@app.command(
    epilog='Example: [bold]sift-rag ask handbook.index "How many days off?" --use both[/bold]\n\n'
    'Example: [bold]sift-rag ask handbook.index "How many days off?" --stream[/bold]',
)
def ask(
    folder: IndexFolder,
    question: Question,
    use: Annotated[
        Use, typer.Option(help="How the passages are used; auto chooses for this question.")
    ] = "stuff",
    model: Model = "tiny",
    embedder: EmbedderName = MINILM,
    k: K = 5,
    fetch_k: FetchK = 50,
    select: Selector = "sift",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    stream: Annotated[bool, typer.Option(help="Print the answer as it is made.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question from an index."""
    loaded = load_index(folder, embedder)
    from sift_rag.pipeline import Pipeline  # seconds, as above
    from sift_rag.router import Router

    mode: Any = use.replace("-", "_")
    with engine_of(model) as engine:
        pipeline = Pipeline(
            loaded,
            engine,
            select=SELECTORS[select],
            k=k,
            fetch_k=fetch_k,
            mode=mode,
            router=Router(not_covered="The documents do not say."),
            callbacks=[terminal.TrainingBar(err)],
        )
        answer = _answer(pipeline, question, max_new_tokens, stream=stream, as_json=as_json)
    if as_json:
        print_json(_answer_as_json(answer), indent=None if stream else 2)
        return
    if not stream:
        out.print(visible(answer.text), markup=False, highlight=False)
    if answer.route and answer.route.reason not in answer.note:
        route = f"{answer.route.mode}: {answer.route.reason}"
        err.print(route, style="dim", markup=False, highlight=False)
    for notice in terminal.notices(answer):
        err.print(notice, style="yellow", markup=False, highlight=False)
    err.print(terminal.seconds(answer.timings), style="dim")


@app.command(epilog="Example: [bold]sift-rag demo --questions 5[/bold]")
def demo(
    questions: Annotated[int, typer.Option(min=1, help="Questions to ask.")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed, another invented world.")] = 0,
) -> None:
    """See it work: invented devices, three ways to answer, nothing downloaded."""
    from sift_rag.demo import run

    embedder = embedder_of(MINILM)
    with engine_of("tiny") as engine:
        run(embedder, engine, questions=questions, seed=seed, console=out)


def _previous(folder: Path, embedder: "SentenceTransformerEmbedder") -> "Index | None":
    """The index that is there, for its vectors; None where there is none to take over from."""
    from sift_rag.candidates import Index, IndexFormatError

    if not folder.exists():
        return None
    try:
        return Index.load(folder, embedder)
    except IndexFormatError as error:
        err.print(f"Embedding everything anew: {error}", style="yellow", markup=False)
        return None


def _answer(
    pipeline: "Pipeline", question: str, max_new_tokens: int, *, stream: bool, as_json: bool
) -> "Answer":
    """Answer a question; a stream prints its pieces, as JSON lines where JSON is wanted."""
    if not stream:
        return pipeline.answer(question, max_new_tokens=max_new_tokens)
    pieces = pipeline.stream(question, max_new_tokens=max_new_tokens)
    for piece in pieces:
        sys.stdout.write(json.dumps({"piece": piece}) + "\n" if as_json else visible(piece))
        sys.stdout.flush()
    if not as_json:
        sys.stdout.write("\n")
    return pieces.answer


def _answer_as_json(answer: "Answer") -> dict[str, Any]:
    return {
        "question": answer.question,
        "mode": answer.mode,
        "text": answer.text,
        "documents": [{"id": d.id, "metadata": dict(d.metadata)} for d in answer.documents],
        "left_out": [d.id for d in answer.left_out],
        "timings": answer.timings,
        "usage": answer.usage,
        "training": answer.training.plain() if answer.training else None,
        "route": asdict(answer.route) if answer.route else None,
    }


cli_compare.register(app)


def main() -> None:
    """Entry point of the command."""
    app()
