"""The HTML page of a report: what stands on it, and the template filled in."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import pvariance
from typing import TYPE_CHECKING, Any

from sift_rag import charts, drawing, quantities, tables
from sift_rag.cases import STAGES, TOKENS
from sift_rag.explaining import shorten, visible

if TYPE_CHECKING:
    from jinja2 import Template

Summary = Mapping[str, Any]

MOST = 200
"""Questions on a page: more than anyone reads, and a few megabytes."""

LEVEL = (
    "\u2248 best: not shown to differ from the best way. That is not the same as equal: with more "
    "questions a difference may show."
)
ORIGINS = {
    "given": "given by you",
    "made": "made from the documents",
    "held_out": "passages held out, to be continued",
    "recorded": "recorded in production",
}
_LONGEST = 2_000  # characters of an answer or a passage; the JSON report has them whole
_PASSAGES = 30  # of one question
_FOLDER = Path(__file__).parent


def render(found: Summary) -> str:
    """The page of a summary."""
    style, script = ((_FOLDER / f"report.{end}").read_text("utf-8") for end in ("css", "js"))
    main = next((one for one in found["metrics"] if one["name"] == found["main"]), None)
    return template().render(
        found=found,
        main=main,
        title=title(found),
        cautions=[str(warning) for warning in found["settings"].get("warnings") or ()],
        level=LEVEL,
        ways=[way["name"] for way in found["ways"]],
        tables=tables,
        quality=charts.quality(found),
        stage_bars=list(_stage_bars(found)),
        stage_legend=_stage_legend(found),
        token_bars=list(_token_bars(found)),
        forests=[forest for each in found["metrics"] for forest in _forests(found, each)],
        signals=list(_signals(found, main)) if main else [],
        matrix=_matrix(found),
        questions=_questions(found, main),
        style=style,
        script=script,
        hashes={"style": _digest(style), "script": _digest(script)},
    )


def title(found: Summary) -> str:
    """What was compared, in a few words."""
    ways, asked = len(found["ways"]), found["asked"]
    questions = f"{asked:,} question{'s' * (asked != 1)}"
    return f"{ways} ways to answer {questions}" if ways != 1 else f"One way to answer {questions}"


def _stage_parts(way: Mapping[str, Any]) -> dict[str, float]:
    """Medians of the stages, and what they leave of the median of the total."""
    spreads = way["seconds"]
    parts = {stage: spreads[stage]["p50"] for stage in STAGES[:-1] if spreads[stage]}
    rest = spreads["total"]["p50"] - sum(parts.values()) if spreads["total"] else 0.0
    return parts | ({"other": rest} if rest > 0 else {})


def _stage_bars(found: Summary) -> Iterator[str]:
    """The parts in a bar, and a whisker to p95 of the total."""
    bars = [_stage_parts(way) for way in found["ways"]]
    totals = [way["seconds"]["total"] for way in found["ways"]]
    late = [total["p95"] if total else None for total in totals]
    full = max([0.0, *(sum(parts.values()) for parts in bars), *(end or 0.0 for end in late)])
    for way, parts, end in zip(found["ways"], bars, late, strict=True):
        title = f"Median seconds of {drawing.name(way['name'])}"
        yield charts.bar(title, parts, full, late=end) if parts else ""


def _stage_legend(found: Summary) -> list[tuple[str, str]]:
    there = {stage for way in found["ways"] for stage in _stage_parts(way)}
    words = {stage: stage for stage in STAGES[:-1]} | {"other": "other or not known"}
    return [(stage, said) for stage, said in words.items() if stage in there]


def _token_bars(found: Summary) -> Iterator[str]:
    bars = [
        {kind: way["tokens"][kind]["mean"] for kind in TOKENS if way["tokens"][kind]}
        for way in found["ways"]
    ]
    full = max([0.0, *(sum(parts.values()) for parts in bars)])
    for way, parts in zip(found["ways"], bars, strict=True):
        title = f"Mean tokens of {drawing.name(way['name'])}"
        yield charts.bar(title, parts, full) if parts else ""


def _forests(found: Summary, metric: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The pairs of a metric; of the main one those with the baseline, then the others."""
    pairs = found["pairs"].get(metric["name"], [])
    scale = charts.forest(pairs)
    if scale is None:
        return
    first = [pair for pair in pairs if pair["a"] == found["baseline"]]
    others = [pair for pair in pairs if pair not in first]
    split = metric["name"] == found["main"] and first and others
    for title, part in (("", first), (" between the others", others)) if split else (("", pairs),):
        yield {
            "title": f"Differences in {metric['title']}{title}",
            "metric": metric,
            "pairs": part,
            "table": tables.pairs(part, metric),
            "rows": [charts.difference(pair, scale, metric["unit"]) for pair in part],
            "axis": charts.axis(scale, metric["unit"]),
        }


def _signals(found: Summary, main: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    numbers = {way["name"]: number for number, way in enumerate(found["ways"])}
    for signal in found["signals"]:
        number = numbers[signal["way"]]
        told = charts.correlation(signal)
        yield signal | {"number": number, "words": told, "chart": charts.gain(signal, number, main)}


def _matrix(found: Summary) -> list[list[int | None]]:
    """On how many questions the way of a row was better than the way of a column."""
    ways = [way["name"] for way in found["ways"]]
    pairs = found["pairs"].get(found["main"], [])
    counts = {(pair["b"], pair["a"]): pair["better"] for pair in pairs}
    counts |= {(pair["a"], pair["b"]): pair["worse"] for pair in pairs}
    return [[counts.get((row, column)) for column in ways] for row in ways] if counts else []


def _questions(found: Summary, main: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Those that are shown: where there are too many, those on which the ways differ most."""
    asked = [_asked(found, main, number) for number in range(found["asked"])]
    telling = sorted(asked, key=lambda each: (-each["failed"], -each["differs"]))[:MOST]
    for each in telling:
        each["passages"], each["more"] = _passages(found, each)
        each["figures"] = tables.replies(found, found["questions"][each["number"] - 1])
    return sorted(telling, key=lambda each: int(each["number"]))


def _asked(found: Summary, main: Mapping[str, Any] | None, number: int) -> dict[str, Any]:
    """A question with its replies in the order of ways; None where there is none."""
    question = found["questions"][number]
    replies = [question["replies"].get(way["name"]) for way in found["ways"]]
    values = [reply["values"].get(found["main"]) if reply else None for reply in replies]
    sign = 1 if main is None or main["higher_is_better"] else -1
    known = [value for value in values if value is not None]
    return {
        **question,
        "number": number + 1,
        "replies": replies,
        "values": values,
        "signed": [None if value is None else sign * value for value in values],
        "differs": pvariance(known) if known else 0.0,
        "failed": any(reply and reply["error"] for reply in replies),
    }


def _passages(found: Summary, question: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Each passage of a question once, with the ways that used it and at which rank."""
    used: dict[str, list[tuple[int, int]]] = {}
    for number, reply in enumerate(question["replies"]):
        for rank, key in enumerate((reply and reply["passages"]) or (), 1):
            used.setdefault(key, []).append((number, rank))
    gold = set(question["gold"])
    listed = [
        {"key": key, **found["passages"][key], "ways": ways}
        | {"gold": bool(gold & {found["passages"][key][name] for name in ("id", "text")})}
        for key, ways in used.items()
    ]
    return listed[:_PASSAGES], max(0, len(listed) - _PASSAGES)


def _cut(text: str) -> str:
    """A long text's beginning, and how much is not there."""
    left = len(text) - _LONGEST
    return text if left <= 0 else f"{text[:_LONGEST]} \u2026 ({left:,} more characters)"


def _short(text: str, characters: int = 60) -> str:
    """A name on one line; a control code in it is gone, and so is what is too long for a name."""
    return shorten(text, characters)


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


@cache
def template() -> Template:
    """The page to be filled in, read once; ImportError where jinja2 is not installed."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(
            "A report as HTML needs the package jinja2, which is not installed:"
            ' pip install "sift-rag-ttt[compare]"'
        ) from error

    def readable(value: Any) -> Any:
        """Of all that the template writes: escaping comes after it."""
        own = not isinstance(value, str) or isinstance(value, Markup)
        return value if own else visible(value)

    def drawn(function: Callable[..., str]) -> Callable[..., Markup]:
        return lambda *given: Markup(function(*given))  # noqa: S704 - drawings are escaped

    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = "amount change figure operations probability seconds size span".split()
    made.filters |= {name: getattr(quantities, name) for name in written}
    made.filters |= {"cut": _cut, "short": _short, "told": tables.told, "drawn": drawn(str)}
    made.globals |= {"icon": drawn(drawing.icon), "ORIGINS": ORIGINS}
    return made.get_template("report.html.jinja")
