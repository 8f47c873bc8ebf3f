"""How results look in a terminal: rich renderables and a progress bar. Nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from sift_rag import tables
from sift_rag.events import Callback, Control, Event
from sift_rag.explaining import HEADER, Explanation, shorten
from sift_rag.summary import summary

if TYPE_CHECKING:  # torch comes with them
    from sift_rag.comparison import Comparison
    from sift_rag.documents import Document
    from sift_rag.engine import Answer
    from sift_rag.pipeline import Retrieved

_NAME = 24  # characters of a way's name in a table


def progress(console: Console) -> Progress:
    """A bar that counts, shows the time and goes away when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log file wants no bars
    )


class ProgressBar:
    """A bar for one job; an instance is the `progress(done, total)` function that jobs take."""

    def __init__(self, console: Console, label: str) -> None:
        self._progress = progress(console)
        self._task = self._progress.add_task(label, total=None)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class TrainingBar(Callback):
    """A bar that follows the gradient steps of test-time training and shows the loss."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = progress(console)
        self._task = TaskID(0)

    def on_train_start(self, event: Event, control: Control) -> None:
        self._progress = progress(self._console)
        self._task = self._progress.add_task("Training", total=None)
        self._progress.start()

    def on_train_step(self, event: Event, control: Control) -> None:
        self._progress.update(
            self._task,
            completed=event["step"],
            total=event["steps"],
            description=f"Training, loss {event['loss']:.2f}",
        )

    def on_train_end(self, event: Event, control: Control) -> None:
        self._progress.stop()


def passages(retrieved: Retrieved, *, characters: int = 200) -> Table:
    """The selected passages: what each one removed of the uncertainty, and what was left of it."""
    initial = retrieved.selection.initial_uncertainty or 1.0
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("gain", justify="right")
    table.add_column("left", justify="right")
    table.add_column("passage", ratio=1)
    for row in retrieved.rows():
        gain, left = (f"{row[key] / initial:.1%}" for key in ("gain", "uncertainty"))
        text = _passage(row["text"], row["metadata"], characters)
        table.add_row(str(row["rank"]), gain, left, text)
    return table


def explanation(
    explained: Explanation, documents: Sequence[Document], *, characters: int = 140
) -> Group:
    """Each pick with its figures, then what was dropped and why, in 60 columns or more.

    Args:
        explained: With the texts.
        documents: The candidates, for where they are from.
        characters: Of a text that is longer.
    """

    def passage(index: int, text: str | None) -> Padding:
        return Padding(_passage(text or "", documents[index].metadata, characters), (0, 0, 0, 4))

    parts: list[Text | Padding] = [Text(HEADER, style="dim")]
    for pick in explained.picks:
        parts += [Text(str(pick), style="bold"), passage(pick.index, pick.text)]
    parts.append(Text(f"\n{explained.title()}", style="dim"))
    for row in explained.dropped:
        parts += [Padding(Text(str(row), style="bold"), (0, 0, 0, 1)), passage(row.index, row.text)]
    return Group(*parts)


def _passage(text: str, metadata: Mapping[str, Any], characters: int) -> Text:
    """Text, not a string: square brackets in a document are no markup."""
    shown = Text(shorten(text, characters))
    if source := metadata.get("source"):
        shown.append(f"\n{shorten(str(source), 500)}", style="dim")
    return shown


def seconds(timings: Mapping[str, float], stages: Iterable[str] = ()) -> str:
    """Stages and their seconds in a line, those that took next to nothing left out."""
    shown = [name for name in (stages or timings) if timings.get(name, 0.0) >= 0.005]
    return ", ".join(f"{name} {timings[name]:.2f} s" for name in shown)


def comparison(compared: Comparison) -> Group:
    """Verdict, ways by metrics, each way against the baseline, break-even; from 60 columns on."""
    found = summary(compared)
    verdict, baseline = found["verdict"], found["baseline"]
    main = next((metric for metric in found["metrics"] if metric["name"] == found["main"]), None)
    pairs = [pair for pair in found["pairs"].get(found["main"], ()) if pair["a"] == baseline]
    parts: list[RenderableType] = [Text(_said(verdict["sentence"]), style="bold")]
    parts += [Padding(Text(_said(each), style="dim"), (0, 0, 0, 2)) for each in verdict["details"]]
    parts += [Text(), _Fitting(tables.ways(found))]
    if main and pairs:
        said = _said(f"Against {baseline}, {main['title']}:")
        parts += [Text(f"\n{said}", style="bold"), _Fitting(tables.against(pairs, main))]
    if found["break_even"]:
        parts.append(Text("\nWhen training pays:", style="bold"))
    parts += [Padding(Text(_said(each["sentence"])), (0, 0, 0, 2)) for each in found["break_even"]]
    return Group(*parts)


class _Fitting:
    """A table that leaves its last columns but one out where it would be too wide.

    The first column is the name, the second what matters most, the last what it takes.
    """

    def __init__(self, table: tables.Table) -> None:
        self._headings, self._rows = table.headings, table.rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        last = len(self._headings) - 1
        columns = [i for i in (0, 1, last) if i <= last]
        for i in sorted({*range(last + 1)} - {*columns}):
            if sum(self._width(j) + 2 for j in (*columns, i)) > options.max_width:
                break
            columns.append(i)
        shown = Table(box=None, pad_edge=False, header_style="dim")
        for i in sorted({*columns}):
            side: Literal["left", "right"] = "right" if i else "left"
            shown.add_column(Text(_said(self._headings[i])), justify=side, width=self._width(i))
        for row in self._rows:
            shown.add_row(*(_cell(row[i]) for i in sorted({*columns})))
        yield shown
        if left_out := [_said(self._headings[i]) for i in range(last + 1) if i not in columns]:
            yield Text(f"Not shown, too narrow: {', '.join(left_out)}.", style="dim")

    def _width(self, column: int) -> int:
        words = max(map(len, self._headings[column].split()))
        lines = [line for row in self._rows for line in _cell(row[column]).plain.split("\n")]
        return max([words, *map(cell_len, lines)])


def _cell(cell: tables.Cell) -> Text:
    """The value and its mark, the interval below it."""
    shown = Text(_said(f"{cell.text} {cell.mark}", characters=_NAME))
    if cell.small:
        shown.append(f"\n{_said(cell.small)}", style="dim")
    return shown


def _said(text: str, *, characters: int = 2_000) -> str:
    return shorten(text, characters)


def notices(answer: Answer) -> list[str]:
    """What the reader of an answer should know beside its text."""
    found = [answer.note] if answer.note else []
    if answer.left_out:
        found.append(f"{len(answer.left_out)} passages did not fit into the prompt.")
    if answer.finish_reason == "length":
        found.append("The answer was cut at its longest: raise --max-new-tokens.")
    return found
