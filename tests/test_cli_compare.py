"""`sift-rag compare` and `sift-rag report` on real files: what they print, write, and survive."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from test_cli import call

from sift_rag.cases import Reply
from sift_rag.comparison import Comparison
from sift_rag.demo import corpus
from sift_rag.documents import Document
from sift_rag.recording import Recorded, Recorder
from sift_rag.tiny import world

DEVICES = world.devices(4, seed=5)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "texts").mkdir()
    for number, document in enumerate(corpus(DEVICES, seed=5)):
        (folder / "texts" / f"{number}.txt").write_text(document.text, encoding="utf-8")
    assert call("index", folder / "texts", "--out", folder / "i").exit_code == 0
    return folder / "i"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    random = Random(5)
    asked = [world.question(device, "city", seed=random) for device in DEVICES]
    lines = [json.dumps({"question": each.text, "reference": each.answer}) for each in asked]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_three_ways_and_every_kind_of_report(index: Path, questions: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    done = call("compare", index, questions, "--ways", "stuff,train,both", "--out", html, "-k", 2)
    assert done.exit_code == 0, done.output
    assert "exact match" in done.stdout
    assert "4 questions" in done.stdout
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    runs = tmp_path / "report.runs.jsonl"
    assert len(Comparison.load(runs).rows) == 12
    for name in ("again.md", "again.json", "again.html"):
        again = call("report", runs, "--out", tmp_path / name)
        assert again.exit_code == 0, again.output
        assert again.stdout == done.stdout
        assert (tmp_path / name).stat().st_size > 500
    shown: Any = json.loads(call("report", runs, "--json").stdout)
    assert shown == json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))


def test_the_same_command_goes_on_and_another_is_refused(
    index: Path, questions: Path, tmp_path: Path
) -> None:
    given = ["compare", index, questions, "--ways", "stuff", "--out", tmp_path / "r.md"]
    assert call(*given, "--max-seconds", 0).exit_code == 0
    assert Comparison.load(tmp_path / "r.runs.jsonl").unfinished == 4
    assert call(*given).exit_code == 0
    assert Comparison.load(tmp_path / "r.runs.jsonl").unfinished == 0
    other = call(*given, "-k", 3)
    assert other.exit_code == 1
    assert "ways.stuff.k was 5, is 3" in " ".join(other.stderr.split())


@pytest.mark.parametrize("source", ["--held-out", "--made"])
def test_no_questions_no_matter(index: Path, source: str, tmp_path: Path) -> None:
    done = call("compare", index, source, 2, "--ways", "closed_book,stuff", "--json")
    assert done.exit_code == 0, done.output
    main = "bits_per_byte" if source == "--held-out" else "exact_match"
    assert json.loads(done.stdout)["main"] == main


def recorded(path: Path, *ways: str) -> Path:
    for way in ways:
        recorder = Recorder(path, way=way)
        for number, device in enumerate(DEVICES):
            passages = (Document(world.passage(device, seed=number)),)
            reply = Reply(text="Oslo", documents=passages, seconds={"total": 0.5})
            asked = f"Where is {device}?"
            recorder.record(Recorded(question=asked, reply=reply, request=str(number)))
    return path


def test_production_traffic_is_held_against_a_way_of_ours(index: Path, tmp_path: Path) -> None:
    file = recorded(tmp_path / "recorded.jsonl", "app")
    for folder in ([index], []):  # without an index: over the passages that were recorded
        done = call("compare", *folder, "--from", file, "--ways", "stuff", "--json")
        assert done.exit_code == 0, done.output
        assert len(json.loads(done.stdout)["questions"]) == 4


def test_two_recorded_ways_need_no_model(tmp_path: Path) -> None:
    file = recorded(tmp_path / "recorded.jsonl", "app", "shadow")
    runs = tmp_path / "r.jsonl"
    done = call("compare", "--from", file, "--runs", runs)
    assert done.exit_code == 0, done.output
    assert Comparison.load(runs).ways == ("app", "shadow")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "INDEX"], "one of QUESTIONS, --from, --held-out, --made; got none"),
        (["compare", "INDEX", "Q", "--made", 3], "got QUESTIONS and --made"),
        (["compare", "--held-out", 3], "give its folder"),
        (["compare", "INDEX", "missing.jsonl"], "missing.jsonl"),
        (["compare", "INDEX", "Q", "--ways", "stuf"], "no way 'stuf'"),
        (["compare", "INDEX", "Q", "--metrics", "bleu"], "bleu"),
        (["compare", "INDEX", "Q", "--out", "report.pdf"], ".html, .md or .json"),
        (["compare", "INDEX", "Q", "--prices", "1"], "two to four numbers"),
        (["compare", "INDEX", "Q", "--prices", "a,b"], "two to four numbers"),
        (["report", "missing.jsonl"], "missing.jsonl"),
        (["report", "Q"], "no run file"),
    ],
)
def test_bad_input_is_one_sentence(
    index: Path, questions: Path, arguments: list[Any], message: str
) -> None:
    places = {"INDEX": index, "Q": questions}
    done = call(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 1, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_ctrl_c_keeps_what_is_done(index: Path, questions: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text((questions.read_text(encoding="utf-8") + "\n") * 200, encoding="utf-8")
    runs = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "sift_rag", "compare", index, many, "--ways", "stuff,train"]
    running = subprocess.Popen(
        [*map(str, command), "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while running.poll() is None and not (runs.exists() and b'"row"' in runs.read_bytes()):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert "the same command goes on" in " ".join(said.split())
    assert Comparison.load(runs).unfinished > 0
