"""The commands that compare: `sift-rag compare` asks, `sift-rag report` shows what was asked."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sift_rag import terminal
from sift_rag.cli_options import (
    MINILM,
    AsJson,
    EmbedderName,
    FetchK,
    K,
    Model,
    embedder_of,
    engine_of,
    err,
    load_index,
    out,
)

if TYPE_CHECKING:
    from sift_rag.candidates import Index
    from sift_rag.cases import Case
    from sift_rag.comparison import Comparison
    from sift_rag.costs import Prices

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="The report: FILE.html, .md or .json."),
]


def compare(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The index.", show_default=False)
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Argument(
            metavar="QUESTIONS",
            help="JSONL, JSON or CSV with question, and where known reference and gold.",
            show_default=False,
        ),
    ] = None,
    ways: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Such as closed_book, stuff, train, both, stuff(nearest), both(mmr), with commas "
            "between; by default five of them.",
        ),
    ] = None,
    out_file: Out = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The run file, JSON lines, to go on with after an end; by default beside --out.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Such as exact_match, token_f1, with commas between; by default those that apply.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The way that the others are held against.")
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Questions and answers that an app recorded."),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="No questions: continue N passages that are taken out of the index."
        ),
    ] = None,
    made: Annotated[
        int | None, typer.Option(metavar="N", help="No questions: make N from the passages.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions at most.")] = None,
    model: Model = "tiny",
    embedder: EmbedderName = MINILM,
    k: K = 5,
    fetch_k: FetchK = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    max_seconds: Annotated[
        float | None, typer.Option(help="Begin no question after so long.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what failed before.")
    ] = False,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT[,TRAINED[,HOUR]]",
            help="Money for a million tokens read, written, trained; and for an hour.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the same questions of several ways to answer, and show which one answers better.

    A run that was ended goes on where it was when the same command is given again.
    """
    from sift_rag.comparing import compare as run
    from sift_rag.report import check_target

    check_target(out_file)  # before the long work, not after it
    if runs is None and out_file is not None:
        runs = out_file.with_suffix(".runs.jsonl")
    plan = _plan(
        _Sources(folder, questions, recorded, held_out, made),
        _names(ways),
        embedder=embedder,
        limit=limit,
        seed=seed,
    )
    engine = engine_of(model) if plan.corpus else None
    try:
        with terminal.ProgressBar(err, "Comparing") as bar:
            comparison = run(
                plan.cases,
                plan.ways,
                metrics=_names(metrics),
                engine=engine,
                index=plan.corpus,
                out=runs,
                k=k,
                fetch_k=fetch_k,
                max_new_tokens=max_new_tokens,
                baseline=baseline,
                prices=_prices(prices),
                seed=seed,
                max_seconds=max_seconds,
                retry_failed=retry_failed,
                progress=bar,
                command=shlex.join(["sift-rag", *sys.argv[1:]]),
            )
    except KeyboardInterrupt:
        kept = f"what is done is in {runs}; the same command goes on" if runs else "nothing is kept"
        err.print(f"Interrupted: {kept}.", style="yellow", markup=False, highlight=False)
        raise typer.Exit(130) from None
    finally:
        if engine:
            engine.close()
    _show(comparison, out_file, as_json=as_json)
    if runs:
        err.print(f"Every answer: {runs}", style="dim", markup=False, highlight=False)


def report(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A run file of a comparison.")],
    out_file: Out = None,
    as_json: AsJson = False,
) -> None:
    """Show a comparison again from its run file, finished or not: no model is loaded."""
    from sift_rag.comparison import Comparison
    from sift_rag.report import check_target

    check_target(out_file)
    _show(Comparison.load(runs), out_file, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(
        epilog="Example: [bold]sift-rag compare handbook.index questions.jsonl "
        "--ways stuff,train,both --out report.html[/bold]\n\n"
        "Example: [bold]sift-rag compare handbook.index --held-out 50[/bold]"
    )(compare)
    app.command(epilog="Example: [bold]sift-rag report report.runs.jsonl --out report.md[/bold]")(
        report
    )


class _Sources(NamedTuple):
    """What the arguments name; one of the last four is where the questions come from."""

    folder: Path | None
    questions: Path | None
    recorded: Path | None
    held_out: int | None
    made: int | None

    def check(self) -> None:
        """Raise where they do not say one thing."""
        names = ("QUESTIONS", "--from", "--held-out", "--made")
        given = [name for name, value in zip(names, self[1:], strict=True) if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Questions come from one of {', '.join(names)}; got "
                f"{' and '.join(given) or 'none'}."
            )


class _Plan(NamedTuple):
    """What is to be asked, of whom, over which passages (None: nothing of ours is run)."""

    cases: "Sequence[Case]"
    ways: "Sequence[str] | dict[str, Any] | None"
    corpus: "Index | None"


def _plan(
    sources: _Sources, ways: list[str] | None, *, embedder: str, limit: int | None, seed: int
) -> _Plan:
    from sift_rag.corpus_questions import from_corpus
    from sift_rag.holding_out import held_out
    from sift_rag.questions import read

    sources.check()
    index = load_index(sources.folder, embedder) if sources.folder else None
    if sources.recorded:
        return _replayed(sources.recorded, ways, index, embedder, limit)
    if sources.questions:
        return _Plan(read(sources.questions, limit=limit), ways, index)
    if index is None:
        raise ValueError("Passages are taken out of an index, or asked about: give its folder.")
    if sources.made is not None:
        return _Plan(from_corpus(index.documents, sources.made, seed=seed)[:limit], ways, index)
    cases, rest = held_out(index, sources.held_out or 0, seed=seed)
    return _Plan(cases[:limit], ways, rest)


def _replayed(
    path: Path, ways: list[str] | None, index: "Index | None", embedder: str, limit: int | None
) -> _Plan:
    """What was recorded, and what is to be held against it; where nothing is named and several
    ways were recorded, those alone."""
    from sift_rag.candidates import Index
    from sift_rag.replaying import read
    from sift_rag.ways import DEFAULT

    recording = read(path)
    cases = recording.answered(*recording.ways)[:limit]
    replayed: dict[str, Any] = {way: recording.as_way(way) for way in recording.ways}
    if ways is None and len(replayed) > 1:
        return _Plan(cases, replayed, None)
    if index is None:  # then all that the app has retrieved is the corpus
        with terminal.ProgressBar(err, "Embedding") as bar:
            index = Index.build(recording.documents, embedder_of(embedder), progress=bar)
    return _Plan(cases, replayed | {way: way for way in ways or DEFAULT}, index)


def _names(given: str | None) -> list[str] | None:
    return [name.strip() for name in given.split(",")] if given else None


def _prices(given: str | None) -> "Prices | None":
    from sift_rag.costs import Prices

    if given is None:
        return None
    names = ("input", "output", "trained", "hour")
    parts = given.split(",")
    try:
        if 2 <= len(parts) <= len(names):
            prices: dict[str, Any] = dict(zip(names, map(float, parts), strict=False))
            return Prices(**prices)
    except ValueError as error:
        given = f"{given} ({error})"
    raise ValueError(f"--prices is {given}; it must be two to four numbers, such as 0.15,0.60.")


def _show(comparison: "Comparison", out_file: Path | None, *, as_json: bool) -> None:
    from sift_rag import report

    if out_file:
        report.write(comparison, out_file)
    if as_json:
        sys.stdout.write(report.to_json(comparison) + "\n")
    else:
        out.print(terminal.comparison(comparison))
    if out_file:
        err.print(f"Report: {out_file}", style="dim", markup=False, highlight=False)
