"""The command on real files: what it prints, its exit codes, and Ctrl-C half way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from sift_rag.cli import app
from sift_rag.cli_options import SELECTORS

FACTS = {
    "korgost.txt": "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "korgost-copy.txt": "The Korgost pump is located in Oslo. It has a weight of 340 kg.",
    "velfane.md": "# Velfane\n\nThe Velfane crane stands in Lima. The Velfane crane is blue.",
    "dornook.html": "<html><body><p>The Dornook kiln is made of ceramic.</p></body></html>",
    "more.jsonl": '{"text": "The Korgost pump is inspected by Tanaka."}\n'
    '{"text": "[bold]Tin[/bold]"}\n',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    for name, text in FACTS.items():
        (path / name).write_text(text, encoding="utf-8")
    (path / "broken.txt").write_bytes(b"\xff\xfe\xfa")
    return path


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "texts.index"
    result = call("index", folder, "--out", path)
    assert result.exit_code == 0, result.output
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_files_name_sends_the_terminal_no_codes(folder: Path, tmp_path: Path) -> None:
    (folder / "a\x1b[31mred.pdf").write_bytes(b"no pdf")
    result = call("index", str(folder), "--out", str(tmp_path / "i"))
    assert "a[31mred.pdf" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout


def test_index_counts_and_names_what_it_skipped(folder: Path, tmp_path: Path) -> None:
    result = call("index", folder, "--out", tmp_path / "i")
    assert result.exit_code == 0
    assert "6 documents, 6 passages (6 embedded, 0 taken over)" in result.stdout
    assert "broken.txt" in result.stderr


def test_indexing_again_embeds_only_what_changed(folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("korgost.txt", "velfane.md"):
        (texts / name).write_text(FACTS[name], encoding="utf-8")
    assert "(2 embedded, 0 taken over)" in call("index", texts, "--out", tmp_path / "i").stdout
    (texts / "velfane.md").write_text("The Velfane crane was moved to Rome.", encoding="utf-8")
    assert "(1 embedded, 1 taken over)" in call("index", texts, "--out", tmp_path / "i").stdout


def test_search_finds_and_does_not_repeat(index: Path) -> None:
    question = "Who inspects the Korgost pump?"
    found = data(call("search", index, question, "-k", 2, "--json"))["selected"]
    assert "Tanaka" in found[0]["text"]
    assert [row["rank"] for row in found] == [1, 2]
    assert found[0]["uncertainty"] > found[1]["uncertainty"] > 0


@pytest.mark.parametrize("select", list(SELECTORS))
def test_every_selector_takes_k(index: Path, select: str) -> None:
    found = data(call("search", index, "Oslo", "-k", 3, "--select", select, "--json"))
    assert len(found["selected"]) == 3


def test_search_prints_documents_as_text_not_as_markup(index: Path) -> None:
    result = call("search", index, "tin", "-k", 6)
    assert "[bold]Tin[/bold]" in result.stdout


def test_search_says_what_is_left_in_per_cent(index: Path) -> None:
    question = "Who inspects the Korgost pump?"
    row = data(call("search", index, question, "-k", 1, "--json"))["selected"][0]
    printed = call("search", index, question, "-k", 1).stdout
    assert f"1  {row['gain']:.1%}  {row['uncertainty']:.1%}  The Korgost pump is" in printed


def explained(index: Path, monkeypatch: pytest.MonkeyPatch, columns: int, *more: object) -> str:
    monkeypatch.setattr("sift_rag.cli.out", Console(width=columns))
    result = call("search", index, "Where does the Korgost pump stand?", "--explain", *more)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= columns
    return " ".join(result.stdout.split())


@pytest.mark.parametrize("columns", [80, 60])
def test_explain_says_what_was_dropped_and_for_which_pick(
    index: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    shown = explained(index, monkeypatch, columns, "-k", 3, "--select", "mmr")
    assert shown.startswith("# relevance redundancy gain left 1 0.")
    assert "Dropped, though among the 3 nearest: 2nd nearest, 0." in shown
    assert "the same as pick 1 The Korgost pump stands in Oslo." in shown
    assert shown.endswith("korgost.txt")


def test_explain_says_so_if_nothing_was_dropped(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = explained(index, monkeypatch, 60, "-k", 6)
    assert shown.endswith("Nothing dropped: no other passage is nearer than these 6.")
    assert "[bold]Tin[/bold]" in shown


def test_explain_as_json_is_the_explanation_beside_the_rest(index: Path) -> None:
    arguments = ("search", index, "Where does the Korgost pump stand?", "-k", 3, "--json")
    found = data(call(*arguments, "--select", "mmr", "--explain"))
    picks, dropped = found["explanation"]["picks"], found["explanation"]["dropped"]
    assert [row["text"] for row in picks] == [row["text"] for row in found["selected"]]
    assert [row["left"] for row in picks] == [row["uncertainty"] for row in found["selected"]]
    assert {"relevance", "nearest", "redundancy", "like", "reason"} <= set(dropped[0])
    assert "explanation" not in data(call(*arguments))


def test_documents_cannot_control_the_terminal(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "bad.txt").write_text("The pump \x1b[2J\x9b1m\u202egreen.", encoding="utf-8")
    assert call("index", texts, "--out", tmp_path / "i").exit_code == 0
    for more in ([], ["--explain"]):
        shown = call("search", tmp_path / "i", "pump", *more).stdout
        assert "The pump [2J1mgreen." in shown
        assert not set(shown) & set("\x1b\x9b\u202e")


@pytest.mark.parametrize("use", ["closed-book", "stuff", "train", "both"])
def test_ask_each_way(index: Path, use: str) -> None:
    answer = data(call("ask", index, "Who inspects the Korgost pump?", "--use", use, "--json"))
    assert answer["mode"] == use.replace("-", "_")
    assert (answer["training"] is not None) == (use in ("train", "both"))
    assert bool(answer["documents"]) == (use != "closed-book")
    assert answer["timings"]["total"] > 0


def test_auto_says_on_standard_error_what_it_chose(index: Path) -> None:
    question = "Who inspects the Korgost pump?"
    found = call("ask", index, question, "--use", "auto")
    assert found.exit_code == 0
    said = " ".join(found.stderr.split())
    route = data(call("ask", index, question, "--use", "auto", "--json"))["route"]
    assert route["mode"] == "stuff"
    assert f"stuff: {route['reason']}" in said
    assert "reading them" not in found.stdout


def test_auto_does_not_answer_what_the_documents_do_not_cover(index: Path) -> None:
    found = call("ask", index, "What is the capital of France?", "--use", "auto")
    assert found.stdout.strip() == "The documents do not say."
    assert " ".join(found.stderr.split()).count("The model was not asked.") == 1


def test_a_stream_is_the_answer_in_pieces(index: Path) -> None:
    arguments = ("ask", index, "Who inspects the Korgost pump?", "-k", 2)
    whole = call(*arguments)
    streamed = call(*arguments, "--stream")
    assert streamed.exit_code == whole.exit_code == 0
    assert streamed.stdout.strip() == whole.stdout.strip() != ""
    lines = call(*arguments, "--stream", "--json").stdout
    assert '{"piece": ' in lines


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["search", "no-such-index", "why?"], 1, "no-such-index"),
        (["index", "no-such-folder", "--out", "i"], 1, "no-such-folder"),
        (["search"], 2, "Missing argument"),
        (["ask", "i", "why?", "--use", "magic"], 2, "magic"),
        (["index", ".", "--out", "i", "--embedder", "nobody/nothing"], 1, "path of a folder"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


WATCH = """
import sys
from sift_rag.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    print(end.code, sorted({"torch", "sentence_transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments", [("search", "no-such", "why?"), ("ask", ".", "?"), ("compare", ".", "--made", "1")]
)
def test_a_wrong_folder_is_told_before_anything_heavy_is_loaded(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "1 []"
    assert f"'{arguments[1]}' is not an index" in " ".join(done.stderr.split())


def test_an_empty_question_and_a_k_of_zero_are_refused(index: Path) -> None:
    assert call("search", index, " ").exit_code == 1
    assert call("search", index, "Oslo", "-k", 0).exit_code == 1


def test_help_shows_an_example_for_every_command() -> None:
    for command in ("index", "search", "ask", "demo"):
        assert "sift-rag " + command in call(command, "--help").stdout


@pytest.fixture
def many(tmp_path: Path) -> Path:
    texts = tmp_path / "many"
    texts.mkdir()
    for i in range(400):
        words = " ".join(f"word{i} number {j}" for j in range(60))
        (texts / f"{i}.txt").write_text(words, encoding="utf-8")
    return texts


def test_ctrl_c_leaves_no_half_written_index(many: Path, tmp_path: Path) -> None:
    """The signal comes while passages are being embedded: the bar is on the screen by then."""
    log = tmp_path / "err"
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "sift_rag", "index", str(many), "--out", str(tmp_path / "i")],
            stderr=stderr,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"},
        )
        deadline = time.monotonic() + 120
        while b"Embedding" not in log.read_bytes() and time.monotonic() < deadline:
            assert child.poll() is None, log.read_text()
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130, log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "many"]
    assert "Interrupted" in log.read_text()
    assert "Traceback" not in log.read_text()
