"""The run file: what is added is there, a kill costs a line, nothing foreign is overwritten."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sift_rag.cases import Case, Reply, Row
from sift_rag.documents import Document
from sift_rag.runs import Log, RunFileError, read, writing

CASES = [
    Case("Who?", ("Ada", "A."), gold=("p1",), metadata={"page": 3}),
    Case("Where?\nOslo", origin="made"),
]
PASSAGES = (Document("Ada runs the pump.", {"source": "a.md"}, "p1"), Document("It is in Oslo."))
REPLY = Reply(
    text="Ada <b>&\u202e",
    documents=PASSAGES,
    seconds={"total": 0.25},
    tokens={"in": 3, "out": 1},
    nats=1.5,
    coverage=0.75,
    note="cut",
)
HEADER: dict[str, Any] = {
    "identity": {"ways": {"stuff": {"k": 5}}, "seed": 0},
    "baseline": "stuff",
    "settings": {"ways": {"stuff": {"k": 5}}},
}
ROWS = [
    Row(case=CASES[0].id, way="stuff", reply=REPLY, values={"f1": 0.5, "em": None}),
    Row(case=CASES[1].id, way="stuff", reply=None, values={}, error="OSError: no"),
]


def write(path: Path | None, rows: list[Row] = ROWS, header: dict[str, Any] = HEADER) -> Log:
    with writing(path) as log:
        log.start(header, CASES, [{"name": "f1"}])
        for row in rows:
            log.add(row)
    return log


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    written, there = write(path), read(path)
    for log in (written, there, write(None)):
        assert list(log.cases.values()) == CASES
        assert list(log.rows.values()) == ROWS
        assert log.metrics == [{"name": "f1"}]
        assert log.header["cases"] == 2


def test_a_passage_is_written_once(tmp_path: Path) -> None:
    rows = [Row(case=CASES[0].id, way=way, reply=REPLY, values={}) for way in "abc"]
    write(tmp_path / "runs.jsonl", rows)
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("document") == 2
    assert kinds.count("row") == 3


def test_every_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with writing(path) as log:
        log.start(HEADER, CASES, [])
        log.add(ROWS[0])
        assert len(read(path).rows) == 1


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_kill_at_any_byte_loses_a_line_at_most(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "runs.jsonl"
    write(path)
    whole = path.read_bytes()
    lines = whole.count(b"\n")
    path.write_bytes(whole[:-cut])
    kept = whole[:-cut].count(b"\n")
    with writing(path) as log:
        log.start(HEADER, CASES, [{"name": "f1"}])
        for row in ROWS:
            if (row.case, row.way) not in log.rows:
                log.add(row)
    assert list(read(path).rows.values()) == ROWS
    assert path.read_bytes() == whole
    assert kept < lines


def test_a_kill_within_the_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"kind": "compar')
    write(path)
    assert list(read(path).rows.values()) == ROWS


def test_other_settings_are_named_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    write(path)
    before = path.read_bytes()
    other = HEADER | {"identity": {"ways": {"stuff": {"k": 8}}, "seed": 0, "new": 1}}
    with pytest.raises(RunFileError, match=r"ways\.stuff\.k was 5, is 8; new was not there, is 1"):
        write(path, [], other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "line 1"),
        (b'{"kind": "recorded", "schema": 1}\n', "line 1: .*header of schema 1"),
        (b'{"kind": "comparison", "schema": 2}\n', "header of schema 1"),
        (b"[1]\n", "line 1"),
    ],
)
def test_what_is_no_run_file_is_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    for use in (read, write):
        with pytest.raises(RunFileError, match=message):
            use(path)
    assert path.read_bytes() == content


def test_a_line_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"kind": "row"}\n', *lines[3:]]))
    with pytest.raises(RunFileError, match="damaged: line 4"):
        read(path)


def test_an_empty_file_holds_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").touch()
    with pytest.raises(RunFileError, match="is empty"):
        read(tmp_path / "runs.jsonl")


def test_a_row_that_comes_again_takes_the_place(tmp_path: Path) -> None:
    again = Row(case=CASES[1].id, way="stuff", reply=REPLY, values={})
    write(tmp_path / "runs.jsonl", [*ROWS, again])
    rows = read(tmp_path / "runs.jsonl").rows
    assert len(rows) == 2
    assert rows[again.case, "stuff"] == again


def test_what_json_does_not_know_becomes_plain(tmp_path: Path) -> None:
    odd: Any = {"total": np.float32(0.5)}
    right: Any = {"em": np.bool_(True)}
    documents = (Document("x", {"at": Path("a"), "n": np.int64(3)}),)
    reply = Reply(text="lone \ud800", seconds=odd, documents=documents)
    log = write(None, [Row(case=CASES[0].id, way="a", reply=reply, values=right)])
    row = log.rows[CASES[0].id, "a"]
    assert row.reply is not None
    assert row.reply.text == "lone ?"
    assert row.reply.seconds == {"total": 0.5}
    assert row.values == {"em": True}
    assert row.reply.documents is not None
    assert row.reply.documents[0].metadata == {"at": "a", "n": 3}


def test_two_processes_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    code = (
        "import sys; from sift_rag.runs import writing\n"
        f"with writing({str(path)!r}): print('has it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "has it\n"
    with pytest.raises(RunFileError, match="Another process is writing"):
        write(path)
    other.kill()
    other.communicate()
    write(path)  # the lock went with its process
    assert len(read(path).rows) == 2
