"""The report: the same figures in every form, all text stays text, missing data is normal."""

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from sift_rag import metrics, page, report, tables, terminal
from sift_rag.cases import Case, Reply, Row
from sift_rag.comparison import Comparison
from sift_rag.documents import Document
from sift_rag.metrics import Metric

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x07\x00\u202egnp.exe\u2066",
    "javascript:alert(1)",
    "W" * 10_000,
    "| a | b |\n|---|---|\n[link](http://evil.example) `code`",
    "]]>--><!--",
)
SETTINGS: dict[str, Any] = {
    "ways": {
        "stuff": {"kind": "sift_rag", "mode": "stuff", "k": 3, "training": None},
        "train": {"kind": "sift_rag", "mode": "train", "training": {"rank": 16, "epochs": 4}},
        "closed_book": {"kind": "sift_rag", "mode": "closed_book"},
    },
    "seed": 0,
    "versions": {"numpy": "2.0"},
    "machine": {"cpu": "some CPU", "cores": 2},
    "command": "sift-rag compare here --out report.html",
    "created": "2026-11-21T18:05:00+00:00",
    "size": [2_939_328, 6, 192],
    "prices": {"input": 1.0, "output": 2.0, "currency": "EUR"},
}
RIGHT = {"stuff": 0.9, "train": 0.6, "closed_book": 0.1}


def made(n: int = 40, *, seed: int = 0, **changes: Any) -> Comparison:
    """Questions of which each way answers its share right, with all that a way may tell."""
    random = Random(seed)
    cases, rows = [], []
    for number in range(n):
        gold = Document(f"Fact {number} is {number}.", {"source": f"sheet {number}"})
        other = Document("Something else.", {"source": "sheet"})
        case = Case(f"What is fact {number}?", (str(number),), (gold.id,), origin="made")
        cases.append(case)
        for way, share in RIGHT.items():
            right, seconds = random.random() < share, random.uniform(0.01, 0.02)
            reply = Reply(
                text=str(number if right else -1),
                documents=() if way == "closed_book" else (gold, other),
                seconds={"prefill": seconds, "decode": seconds, "total": 2.5 * seconds}
                | ({"train": 20 * seconds, "total": 22.5 * seconds} if way == "train" else {}),
                tokens={"in": 100, "out": 3, "trained": 900 * (way == "train")},
                nats=random.uniform(0.5, 2) * (1 if right else 3),
                coverage=random.random(),
                uncertainty=None if way == "closed_book" else random.random(),
                memory=1_000_000,
                flops=1.5e9,
            )
            values = {each.name: _value(each, case, reply) for each in _METRICS}
            rows.append(Row(case=case.id, way=way, reply=reply, values=values))
    whole = Comparison(tuple(cases), tuple(RIGHT), _METRICS, tuple(rows), "stuff", SETTINGS)
    return replace(whole, **changes)


_METRICS = (metrics.exact_match, metrics.token_f1, metrics.bits_per_byte, metrics.coverage)


def _value(metric: Metric, case: Case, reply: Reply) -> float | None:
    value = metric.measure(case, reply)
    return None if value is None else float(value)


def bare(n: int = 6) -> Comparison:
    """Mere callables without references: text and total seconds is all that is known."""
    cases = tuple(Case(f"Question {number}?") for number in range(n))
    rows = tuple(
        Row(case=case.id, way=way, reply=Reply(text="x", seconds={"total": 0.1}), values={})
        for case in cases
        for way in ("mine", "yours")
    )
    return Comparison(cases, ("mine", "yours"), (), rows, "mine", {})


def evil(text: str) -> Comparison:
    """Everything that has a name or a text is this text."""
    document = Document(text, {"source": text})
    case = Case(text, (text,), (document.id,), metadata={text: text})
    metric = Metric(name="m", measure=lambda case, reply: 1.0, title=text, unit=text, about=text)
    ways = (text, text + "2", "plain")
    reply = Reply(text=text, documents=(document,), seconds={"total": 1.0}, note=text)
    others = Case("Another?"), Case("A third?")
    rows = [
        Row(case=each.id, way=way, reply=reply, values={"m": float(i * j % 3)})
        for i, each in enumerate((case, *others))
        for j, way in enumerate(ways)
    ]
    rows[1] = Row(case=case.id, way=ways[1], reply=None, values={}, error=f"ValueError: {text}")
    settings = {
        "ways": {way: {"kind": text} for way in ways},
        "command": text,
        "machine": {text: text},
        "versions": {text: text},
        "warnings": [text],
        text: text,
    }
    return Comparison((case, *others), ways, (metric,), tuple(rows), text, settings)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole() -> Comparison:
    return made()


def test_the_summary_is_plain_data_and_says_what_the_comparison_says(whole: Comparison) -> None:
    found = report.summary(whole)
    assert json.loads(report.to_json(whole)) == found
    assert found["schema"] == report.SCHEMA
    assert found["verdict"]["sentence"] == whole.verdict().sentence
    for way in found["ways"]:
        values = whole.values("exact_match", way["name"])
        measured = way["metrics"]["exact_match"]
        assert measured["mean"] == pytest.approx(values.mean())
        assert (measured["low"], measured["high"]) == whole.interval("exact_match", way["name"])
        assert way["money"]["mean"] == pytest.approx(whole.money(way["name"]).mean())
        median = statistics.median(whole.seconds(way["name"], "decode"))
        assert way["seconds"]["decode"]["p50"] == pytest.approx(median)


def test_pairs_stand_as_another_way_minus_the_baseline_first(whole: Comparison) -> None:
    last = replace(whole, baseline="closed_book")
    pairs = report.summary(last)["pairs"]["exact_match"]
    assert [(pair["b"], pair["a"]) for pair in pairs] == [
        ("stuff", "closed_book"),
        ("train", "closed_book"),
        ("train", "stuff"),
    ]
    assert pairs[0]["difference"] > 0.5
    assert pairs[0]["shown"]


def test_the_best_and_those_not_shown_to_differ_are_marked(whole: Comparison) -> None:
    marks = {row[0].text: row[1].mark for row in tables.ways(report.summary(whole)).rows}
    assert marks["stuff"] == "best"
    assert marks["closed_book"] == ""
    few = {row[0].text: row[1].mark for row in tables.ways(report.summary(made(5))).rows}
    assert set(few.values()) == {"best", tables.STANDING["level"]}


def test_a_passage_is_told_once_also_where_two_share_an_id() -> None:
    case = Case("Which?")
    rows = tuple(
        Row(
            case=case.id,
            way=way,
            reply=Reply(text="", documents=(Document("same", id="1"), Document(way, id="1"))),
            values={},
        )
        for way in ("a", "b")
    )
    found = report.summary(Comparison((case,), ("a", "b"), (), rows, "a", {}))
    used = [reply["passages"] for reply in found["questions"][0]["replies"].values()]
    assert used == [["1", "1~2"], ["1", "1~3"]]
    assert [found["passages"][key]["text"] for key in ("1", "1~2", "1~3")] == ["same", "a", "b"]


def test_what_json_cannot_hold_becomes_text_or_null() -> None:
    case = Case("Which?", metadata={"when": Path("x"), "no": math.nan, "tuple": (1, {2})})
    row = Row(case=case.id, way="a", reply=Reply(text="\ud800"), values={})
    text = report.to_json(Comparison((case,), ("a",), (), (row,), "a", {"inf": math.inf}))
    found = json.loads(text.encode("ascii"))
    assert found["questions"][0]["metadata"] == {"when": "x", "no": None, "tuple": [1, [2]]}
    assert found["settings"] == {"inf": None}


def test_a_signal_is_a_rank_correlation_with_the_gain(whole: Comparison) -> None:
    from scipy.stats import spearmanr

    signals = {signal["way"]: signal for signal in report.summary(whole)["signals"]}
    assert set(signals) == {"stuff", "train"}
    one = signals["train"]
    x, y = zip(*one["points"], strict=True)
    assert one["over"] == "closed_book"
    assert one["correlation"] == pytest.approx(spearmanr(x, y).statistic)
    assert one["low"] < one["correlation"] < one["high"]


@pytest.mark.parametrize("n", [0, 1, 2, 40])
def test_any_number_of_questions_makes_a_report(n: int) -> None:
    whole = made(n)
    assert Tags(report.html(whole)).open == []
    assert report.markdown(whole).startswith("# 3 ways to answer")


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: replace(whole, metrics=()),
        lambda whole: replace(whole, metrics=(metrics.coverage,)),
        lambda whole: replace(whole, metrics=(metrics.bits_per_byte,)),
        lambda whole: replace(whole, settings={}),
        lambda whole: replace(whole, unfinished=7),
        lambda whole: replace(
            whole,
            ways=("stuff",),
            rows=tuple(row for row in whole.rows if row.way == "stuff"),
        ),
        lambda whole: replace(
            whole,
            rows=tuple(
                replace(row, reply=None, values={}, error="OSError: gone") for row in whole.rows
            ),
        ),
        lambda whole: bare(),
    ],
    ids=["none", "describing", "lower", "no-settings", "unfinished", "one", "failed", "bare"],
)
def test_missing_data_is_normal(change: Callable[[Comparison], Comparison]) -> None:
    found = change(made(8))
    text = report.html(found)
    assert Tags(text).open == []
    assert "nan" not in re.sub(r"<style>.*</style>|[\w-]*nan[\w-]+", "", text, flags=re.S).split()
    assert "None" not in Tags(text).text
    assert report.markdown(found)
    json.loads(report.to_json(found))
    Console(width=60, file=sys.stderr).print(terminal.comparison(found))


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_untrusted_text_stays_text(text: str) -> None:
    found = evil(text)
    seen, plain = Tags(report.html(found)), Tags(report.html(evil("harmless")))
    assert [tag for tag, _ in seen.tags if tag == "script"] == ["script"]
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in plain.tags} | {"line", "svg", "text"}
    names = {name for _, attributes in seen.tags for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    whole = report.html(found)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", whole)


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_untrusted_text_stays_text_in_markdown_and_terminal(text: str) -> None:
    found = evil(text)
    plain, lines = report.markdown(evil("harmless")), report.markdown(found)
    assert lines.count("\n") == plain.count("\n")  # no rows, headings or blocks of its own
    assert not re.search(r"(?<!\\)[<>\[`]", lines)
    for width in (60, 120):
        console = Console(width=width, record=True, file=sys.stderr, force_terminal=True)
        console.print(terminal.comparison(found))
        shown = console.export_text(styles=False)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", shown)
        assert max(map(len, shown.splitlines())) <= width


def test_the_page_loads_nothing(whole: Comparison) -> None:
    text = report.html(whole)
    seen = Tags(text)
    links = [
        value
        for tag, attributes in seen.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    ]
    assert links
    assert all((link or "").startswith("#") for link in links)
    targets = {attributes.get("id") for _, attributes in seen.tags}
    assert {(link or "")[1:] for link in links} <= targets
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_policy_lets_in_only_the_own_style_and_script(whole: Comparison) -> None:
    text = report.html(whole)
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Tags(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, flags=re.S)
        digest = b64encode(sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [1 for _, attributes in Tags(text).tags if "style" in attributes]


def test_the_page_reads_without_looks(whole: Comparison) -> None:
    tags = Tags(report.html(whole)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        if tag == "svg":
            hidden = attributes.get("aria-hidden") == "true" or attributes.get("overflow")
            assert hidden or attributes["role"] == "img"
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    names = [tag for tag, _ in tags]
    for landmark in ("header", "main", "nav", "footer", "h1"):
        assert names.count(landmark) == 1
    text = report.html(whole)
    assert len(re.findall(r'<svg[^>]*role="img"[^>]*><title>[^<]+</title><desc>', text)) == len(
        re.findall('role="img"', text)
    )


def test_of_many_questions_those_that_differ_are_shown() -> None:
    whole = made(page.MOST + 100)
    text = report.html(whole)
    shown = [
        dict(attributes)
        for tag, attributes in Tags(text).tags
        if attributes.get("class") == "question"
    ]
    assert len(shown) == page.MOST
    assert "100 are not shown" in Tags(text).text
    numbers = [int(each["data-number"] or 0) for each in shown]
    assert numbers == sorted(numbers)
    differing = sum(len({*(each["data-signed"] or "").split()}) > 1 for each in shown)
    columns = [whole.values("exact_match", way) for way in whole.ways]
    assert differing == min(page.MOST, sum(len({*row}) > 1 for row in zip(*columns, strict=True)))


def test_a_failure_is_shown_with_its_error(whole: Comparison) -> None:
    rows = (replace(whole.rows[0], reply=None, values={}, error="OSError: no <model>"),)
    text = report.html(replace(whole, rows=rows + whole.rows[1:]))
    assert "What failed" in text
    text = text[text.index('id="failures"') :]  # the verdict tells of it too
    assert text.count("OSError: no &lt;model&gt;") == 2  # in the list, and at its question
    assert text.count("data-failed>") == 1


def test_long_texts_are_cut_on_the_page_and_whole_in_json() -> None:
    case = Case("Which?")
    row = Row(case=case.id, way="a", reply=Reply(text="x" * 5_000), values={})
    found = Comparison((case,), ("a",), (), (row,), "a", {})
    assert "\u2026 (3,000 more characters)" in report.html(found)
    assert "x" * 5_000 in report.to_json(found)


def test_markdown_holds_the_verdict_and_every_way(whole: Comparison) -> None:
    text = report.markdown(whole)
    for part in ("## Ways", "## Costs", "## Pairs, exact match", "## Settings", "closed_book"):
        assert part in text
    assert "train \u2212 stuff" in text
    assert "\u202f" not in text
    tables_of_it = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M)
    assert len(tables_of_it) == 4
    for one in tables_of_it:
        assert len({line.count("|") for line in one.splitlines()}) == 1


@pytest.mark.parametrize("width", [60, 120])
def test_the_terminal_shows_ways_and_pairs_in_its_width(whole: Comparison, width: int) -> None:
    console = Console(width=width, record=True, file=sys.stderr)
    console.print(terminal.comparison(whole))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    for way in whole.ways:
        assert re.search(rf"^{way} ", shown, flags=re.M)
    assert "Against stuff, exact match:" in shown
    assert ("too narrow" in shown) == (width == 60)


@pytest.mark.parametrize(("ending", "start"), [("html", "<!DOCTYPE"), ("md", "# "), ("JSON", "{")])
def test_it_is_written_as_its_name_ends(
    whole: Comparison, tmp_path: Path, ending: str, start: str
) -> None:
    path = tmp_path / f"report.{ending}"
    path.write_text("old")
    assert report.write(whole, path) == path
    assert path.read_text("utf-8").lstrip().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_wrong_name_a_folder_and_a_missing_folder_are_refused(
    whole: Comparison, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"as \.html, \.md or \.json, got 'report\.pdf'"):
        report.write(whole, "report.pdf")
    (tmp_path / "a.html").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file in it"):
        report.write(whole, tmp_path / "a.html")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        report.write(whole, tmp_path / "none" / "a.html")
    report.check_target(None)


def test_what_cannot_be_made_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    without = {"closed_book": {"mode": "stuff"}}
    broken = replace(made(3, settings=without), baseline="gone", ways=("stuff", "train"))
    with pytest.raises(ValueError, match="There is no way 'gone'"):
        report.write(broken, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium to open it in")
def test_a_browser_runs_the_script_that_the_policy_lets_in(
    whole: Comparison, tmp_path: Path
) -> None:
    path = report.write(whole, tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'u'}"]
    command = ["chromium", *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert '<html lang="en" class="scripted">' in done.stdout
    assert ">40 of 40 questions</output>" in done.stdout
    assert re.search(r'<th scope="col" data-sort[^>]*><button type="button">', done.stdout)


def test_without_jinja2_the_error_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from sift_rag import report\n"
        "try: report.check_target('a.html')\n"
        "except ImportError as error: print(error)\n"
        "report.check_target('a.md')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "sift-rag-ttt[compare]"' in done.stdout
