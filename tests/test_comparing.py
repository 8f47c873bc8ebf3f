"""The run: resumed to the same end, errors kept, planted differences found and others not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sift_rag import Engine, Index, Pipeline, report
from sift_rag.cases import Case, Reply
from sift_rag.comparing import compare
from sift_rag.comparison import Comparison
from sift_rag.costs import Prices
from sift_rag.metrics import Metric
from sift_rag.runs import RunFileError, read

CASES = [Case(f"What is {i}?", (f"number {i}",)) for i in range(200)]


def sometimes(share: float, seed: int) -> Callable[[Case], Reply]:
    """A way that is right on a share of the questions, drawn for each question and seed."""

    def answer(case: Case) -> Reply:
        right = Random(f"{seed} {case.question}").random() < share
        text = case.references[0] if right else "no idea"
        return Reply(text=text, seconds={"total": 0.5 + seed}, tokens={"in": 10, "out": 2})

    return answer


def test_a_planted_difference_is_found_and_a_planted_tie_is_not() -> None:
    ways = {"old": sometimes(0.75, 1), "new": sometimes(0.93, 2), "same": sometimes(0.75, 3)}
    done = compare(CASES, ways)
    assert done.baseline == "old"
    by_names = {(pair.a, pair.b): pair for pair in done.pairs()}
    assert by_names["old", "new"].shown
    assert by_names["old", "new"].difference == pytest.approx(0.18, abs=0.07)
    assert not by_names["old", "same"].shown
    verdict = done.verdict()
    assert (verdict.recommended, verdict.shown) == ("new", True)
    tie = compare(CASES, {name: ways[name] for name in ("old", "same")}).verdict()
    assert (tie.recommended, tie.shown) == ("old", False)
    assert "no difference shown" in tie.sentence.lower()


SCRIPT = """
import sys, time
from random import Random
from sift_rag import report
from sift_rag.cases import Case, Reply
from sift_rag.comparing import compare
from sift_rag.documents import Document

def way(share, seed):
    def answer(case: Case) -> Reply:
        time.sleep(float(sys.argv[2]))
        random = Random(f"{seed} {case.question}")
        if random.random() < 0.02:
            raise OSError(f"{case.question} failed")
        right = random.random() < share
        documents = tuple(Document(f"<p>passage {random.randrange(50)}</p>") for _ in range(3))
        return Reply(
            text=case.references[0] if right else "no idea", documents=documents,
            seconds={"retrieve": random.random() / 10, "total": seed + random.random()},
            tokens={"in": random.randrange(100), "out": 3, "trained": 100 * seed},
            uncertainty=random.random(), coverage=random.random(),
        )
    return answer

cases = [Case(f"What is {i}?", (f"number {i}",), ("p",)) for i in range(200)]
ways = {f"way {seed}": way(0.6 + seed / 10, seed) for seed in range(4)}
done = compare(cases, ways, out=sys.argv[1])
report.write(done, sys.argv[1] + ".html")
report.write(done, sys.argv[1] + ".md")
"""


def test_a_run_of_200_questions_killed_three_times_gives_the_same_report(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def start(name: str, pause: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, script, tmp_path / name, str(pause)])

    names = ("whole.jsonl", "killed.jsonl")
    assert start("whole.jsonl", 0).wait(240) == 0
    file = tmp_path / "killed.jsonl"
    seen = 0
    for _ in range(3):
        running = start("killed.jsonl", 0.002)
        wanted = seen + 150
        while seen < wanted and running.poll() is None:
            time.sleep(0.01)
            seen = file.read_bytes().count(b'"kind": "row"') if file.exists() else 0
        assert running.poll() is None
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        with file.open("ab") as torn:  # as if it had been in the middle of a line
            torn.write(b'{"kind": "row", "case": "ab')
    assert start("killed.jsonl", 0).wait(240) == 0
    created = [read(tmp_path / name).header["settings"]["created"] for name in names]
    for kind in ("html", "md"):
        whole, killed = (
            (tmp_path / f"{name}.{kind}").read_text(encoding="utf-8").replace(at, "")
            for name, at in zip(names, created, strict=True)
        )
        assert whole == killed
        assert len(whole) > 1000
    assert len(Comparison.load(file).rows) == 800


def test_errors_are_kept_with_their_question_and_count_as_wrong() -> None:
    def shaky(case: Case) -> str:
        if case.question.endswith("7?"):
            raise OSError("no line")
        return case.references[0]

    done = compare(CASES[:20], {"sound": sometimes(1.0, 0), "shaky": shaky})
    assert [row.error for row in done.errors("shaky")] == ["OSError: no line"] * 2
    assert done.values("exact_match", "shaky").sum() == 18
    assert done.errors("sound") == []


def test_a_run_that_cannot_work_ends_early() -> None:
    asked = []

    def broken(case: Case) -> str:
        asked.append(case)
        raise PermissionError("wrong key")

    with pytest.raises(
        RuntimeError, match=r"first 3 questions.*\n.*one: PermissionError: wrong key"
    ):
        compare(CASES, {"one": broken})
    assert len(asked) == 3


def test_what_failed_is_asked_again_only_where_that_is_wanted(tmp_path: Path) -> None:
    down = True
    asked: list[str] = []

    def way(case: Case) -> str:
        asked.append(case.question)
        if down and case is CASES[1]:
            raise ConnectionError("down")
        return "number 1"

    run = tmp_path / "run.jsonl"
    assert len(compare(CASES[:4], {"way": way}, out=run).errors("way")) == 1
    down = False
    assert len(compare(CASES[:4], {"way": way}, out=run).errors("way")) == 1
    assert len(asked) == 4
    done = compare(CASES[:4], {"way": way}, out=run, retry_failed=True)
    assert len(asked) == 5
    assert done.errors("way") == []
    assert done.values("exact_match", "way").tolist() == [0, 1, 0, 0]


def test_a_judge_that_fails_is_told_and_asked_again(tmp_path: Path) -> None:
    mood = ["bad"]

    def judge(case: Case, reply: Reply) -> float:
        if mood[0] == "bad" and case is CASES[0]:
            raise TimeoutError("judge is out")
        return 0.5

    ways, run = {"way": sometimes(1.0, 0)}, tmp_path / "run.jsonl"
    done = compare(CASES[:3], ways, metrics=[judge], out=run)
    assert done.rows[0].unmeasured == {"judge": "TimeoutError: judge is out"}
    assert done.values("judge", "way").tolist()[1:] == [0.5, 0.5]
    said = "judge could not be measured on 1 of 3 replies, which are left out in it. "
    assert f"{said}The error: TimeoutError: judge is out" in done.verdict().details
    page = report.html(done)
    assert "not measured: 1 \u00d7 <code>judge: TimeoutError: judge is out</code>" in page
    assert "<b>judge not measured:</b> TimeoutError: judge is out" in page
    mood[0] = "good"
    done = compare(CASES[:3], ways, metrics=[judge], out=run, retry_failed=True)
    assert done.values("judge", "way").tolist() == [0.5] * 3


def test_another_metric_does_not_ask_anything_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def way(case: Case) -> str:
        asked.append(case.question)
        return "number 1"

    def letters(case: Case, reply: Reply) -> float:
        return float(len(reply.text))

    run = tmp_path / "run.jsonl"
    first = compare(CASES[:5], {"way": way}, out=run)
    more = compare(CASES[:5], {"way": way}, metrics=["exact_match", letters], out=run)
    assert len(asked) == 5
    assert "letters" not in {metric.name for metric in first.metrics}
    assert more.values("letters", "way").tolist() == [8.0] * 5
    assert Comparison.load(run).values("letters", "way").tolist() == [8.0] * 5


def test_a_time_limit_ends_between_two_questions(tmp_path: Path) -> None:
    def slow(case: Case) -> str:
        time.sleep(0.05)
        return "number 1"

    run = tmp_path / "run.jsonl"
    ways = {"a": slow, "b": slow}
    done = compare(CASES, ways, out=run, max_seconds=0.3)
    assert 0 < len(done.cases) < 50
    assert len(done.rows) == 2 * len(done.cases)
    assert done.unfinished == 200 - len(done.cases)
    assert Comparison.load(run).unfinished == done.unfinished
    assert compare(CASES, ways, out=run, max_seconds=0).cases == done.cases


def test_an_interrupt_loses_nothing_that_was_done(tmp_path: Path) -> None:
    def interrupted(case: Case) -> str:
        if case is CASES[2]:
            raise KeyboardInterrupt
        return "number 1"

    run = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        compare(CASES, {"way": interrupted}, out=run)
    assert len(Comparison.load(run).rows) == 2


def test_other_questions_do_not_go_into_the_same_file(tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    compare(CASES[:3], {"way": sometimes(1.0, 0)}, out=run)
    with pytest.raises(RunFileError, match=r"other settings .*questions was"):
        compare(CASES[:4], {"way": sometimes(1.0, 0)}, out=run)


def test_progress_counts_questions(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    compare(CASES[:3], {"way": sometimes(1.0, 0)}, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_bar_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    compare(CASES[:3], {"way": sometimes(1.0, 0)}, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_a_bar_is_closed_where_the_run_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Else what is written next stands behind it, on its line."""

    def way(case: Case) -> str:
        if case is CASES[1]:
            raise KeyboardInterrupt
        return "yes"

    with pytest.raises(KeyboardInterrupt):
        compare(CASES[:3], {"way": way}, progress=True)
    assert capsys.readouterr().err.endswith("\n")


def test_the_ways_take_turns_in_being_first() -> None:
    first: list[str] = []
    last: list[str] = []

    def named(name: str) -> Callable[[Case], str]:
        def way(case: Case) -> str:
            if last[-1:] != [case.id]:
                first.append(name)
                last.append(case.id)
            return "x"

        return way

    compare(CASES, {name: named(name) for name in "abc"})
    assert all(50 < first.count(name) < 85 for name in "abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "best"}, "baseline 'best' is none of the ways: way"),
        ({"metrics": ["exact"]}, "exact"),
        ({"questions": []}, "no question"),
        ({"ways": {}}, "way"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"questions": CASES, "ways": {"way": sometimes(1.0, 0)}} | change
    with pytest.raises(ValueError, match=message):
        compare(**given)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="no option 'sede'; there are k,"):
        compare(CASES, {"way": sometimes(1.0, 0)}, sede=1)  # type: ignore[call-arg]


def test_prices_make_money() -> None:
    done = compare(CASES[:2], {"way": sometimes(1.0, 0)}, prices=Prices(input=1.0, output=10.0))
    assert done.money("way").tolist() == pytest.approx([30e-6] * 2)


def test_our_own_ways_by_default(engine: Engine, world: Index) -> None:
    asked = [{"question": "Where is thing 3?", "reference": "in room 3"}] * 2
    done = compare(asked, engine=engine, index=world, k=2, fetch_k=6)
    assert done.ways == (
        "closed_book",
        "stuff(nearest)",
        "stuff(sift)",
        "train(sift)",
        "both(sift)",
    )
    assert done.baseline == "stuff(nearest)"
    assert [metric.name for metric in done.metrics][:2] == ["exact_match", "token_f1"]
    for row in done.rows:
        assert row.error == ""
        assert row.reply is not None
        assert row.reply.nats is not None
        assert row.reply.seconds["total"] > 0
        assert (row.reply.tokens["trained"] > 0) == (row.way.startswith(("train", "both")))
    assert done.settings["ways"]["both(sift)"]["k"] == 2
    assert done.settings["passages"] == 12


def test_a_pipeline_is_a_way(engine: Engine, world: Index) -> None:
    mine = Pipeline(world, engine, k=1, mode="train")
    done = compare(["Where is thing 3?"], {"mine": mine, "bare": "closed_book"}, engine=engine)
    row = done.row(done.cases[0].id, "mine")
    assert row is not None
    assert row.reply is not None
    assert row.reply.text == mine.answer("Where is thing 3?").text


def test_other_passages_are_another_comparison(
    engine: Engine, world: Index, tmp_path: Path
) -> None:
    run = tmp_path / "run.jsonl"
    compare(["Where?"], ["stuff"], engine=engine, index=world, out=run)
    other = Index.build(["Another passage."], world.embedder)
    with pytest.raises(RunFileError, match="passages was"):
        compare(["Where?"], ["stuff"], engine=engine, index=other, out=run)


def test_a_metric_without_a_fair_value_for_a_failure_leaves_the_pair_out() -> None:
    def fails(case: Case) -> str:
        if case is CASES[0]:
            raise OSError
        return "x"

    length = Metric(name="length", measure=lambda c, r: len(r.text), title="length", failed=None)
    done = compare(CASES[:10], {"a": fails, "b": lambda q: "xy"}, metrics=[length])
    assert done.pairs()[0].n == 9


@pytest.fixture
def world() -> Index:
    from test_pipeline import LetterEmbedder

    return Index.build([f"Thing {i} is in room {i}." for i in range(12)], LetterEmbedder())
