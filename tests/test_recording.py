"""The recorder and the reader of its file: nothing reaches the app, nothing is misread."""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sift_rag.cases import Case, Reply
from sift_rag.documents import Document
from sift_rag.recording import Recorded, Recorder, sampled
from sift_rag.replaying import RecordedError, read

REPLY = Reply(
    text="Tanaka",
    documents=(Document("The pump is inspected by Tanaka.", {"page": 3}, "a"), Document("Oslo.")),
    seconds={"retrieve": 0.25, "total": 1.5},
    tokens={"in": 30, "out": 2},
    coverage=0.75,
    note="cut",
)
QUESTION = "Who inspects the pump?"
ROW: dict[str, Any] = {"question": QUESTION, "reply": REPLY, "request": "r1"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def record(path: Path, reply: Reply | None = REPLY, **more: Any) -> Recorder:
    recorder = Recorder(path, **more)
    recorder.record(Recorded(question=QUESTION, reply=reply, request="r1"))
    return recorder


def twice(recorder: Recorder, recorded: Any) -> None:
    recorder.record(recorded)
    recorder.record(recorded)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    recorder = record(path)
    failed = Recorded(question=QUESTION, error="ValueError: a: b", request="r1", way="shadow")
    recorder.record(failed)
    recorder.record(Recorded(question="Where is it?", reply=Reply(text="")))
    assert recorder.lost == 0
    assert path.stat().st_mode & 0o777 == 0o600
    found = read(path)
    assert found.ways == ("app", "shadow")
    assert found.rows["app"]["r1"].reply == REPLY
    assert found.rows["app"]["r1"].at.endswith("+00:00")
    assert [case.question for case in found.cases] == [QUESTION, "Where is it?"]
    assert found.cases[0].id == "r1"
    assert {case.origin for case in found.cases} == {"recorded"}
    assert found.documents == REPLY.documents
    assert found.rows["shadow"]["r1"] == failed


def test_a_way_of_a_recording_gives_and_raises_what_was(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    recorder = record(path)
    recorder.record(Recorded(question="x", error="ValueError: a: b", request="r2"))
    recorder.record(Recorded(question="x", error="odd type: c", request="r3", way="shadow"))
    found = read(path)
    way = found.as_way("app")
    assert way(found.cases[0]) == REPLY
    with pytest.raises(RecordedError, match=r"^a: b$") as caught:
        way(found.cases[1])
    assert type(caught.value).__name__ == "ValueError"
    with pytest.raises(LookupError, match="'app' has no row for the request r3"):
        way(found.cases[2])
    with pytest.raises(RecordedError, match=r"^c$"):
        found.as_way("shadow")(found.cases[2])
    assert [case.id for case in found.answered("app")] == ["r1", "r2"]
    assert found.answered("app", "shadow") == ()
    assert [case.id for case in found.answered()] == ["r1", "r2", "r3"]
    with pytest.raises(ValueError, match="no way 'apq' in this recording; there are: app, shadow"):
        found.as_way("apq")


def test_a_line_says_what_it_is(tmp_path: Path) -> None:
    record(tmp_path / "r.jsonl")
    [row] = lines(tmp_path / "r.jsonl")
    assert row.pop("at")
    assert row == {
        "schema": 1,
        "kind": "recorded",
        "request": "r1",
        "way": "app",
        "question": QUESTION,
        "error": "",
        "text": "Tanaka",
        "documents": [
            {"id": "a", "text": "The pump is inspected by Tanaka.", "metadata": {"page": 3}},
            {"id": Document("Oslo.").id, "text": "Oslo.", "metadata": {}},
        ],
        "seconds": {"retrieve": 0.25, "total": 1.5},
        "tokens": {"in": 30, "out": 2},
        "coverage": 0.75,
        "note": "cut",
    }


def test_texts_and_metadata_that_json_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    odd: dict[Any, Any] = {"path": Path("/a"), "nan": float("nan"), 3: (1, {"set": {2}})}
    odd |= {"none": None, "x": 1.5}
    text = "Zeile\u2028zwei \x18 \x00 é \N{PILE OF POO}\n"
    record(path, Reply(text=text, documents=(Document("\n", odd),)))
    Recorder(path).record(Recorded(question="a\ud800b", reply=Reply(text="\udfff")))
    found = read(path)
    reply = found.rows["app"]["r1"].reply
    assert reply
    assert reply.text == text
    assert reply.documents
    assert reply.documents[0].metadata == {
        "path": "/a",
        "nan": "nan",
        "3": [1, {"set": "{2}"}],
        "none": None,
        "x": 1.5,
    }
    assert found.cases[1].question == "a?b"


def unencodable() -> Reply:
    loop: list[Any] = []
    loop.append(loop)
    return Reply(text="x", documents=(Document("x", {"loop": loop}),))


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "recorded",
    [
        Recorded(question=QUESTION, reply=unencodable()),
        Recorded(
            question=QUESTION, reply=Reply(text="x", documents=(Document("x", {"a": Rude()}),))
        ),
        Recorded(question=QUESTION, reply=Reply(text="x", seconds={"total": float("nan")})),
        Recorded(question=QUESTION, reply=Reply(text=None)),  # type: ignore[arg-type]
        Recorded(question=7),  # type: ignore[arg-type]
        None,
    ],
)
def test_what_cannot_be_encoded_is_lost_and_warned_of_once(tmp_path: Path, recorded: Any) -> None:
    recorder = Recorder(tmp_path / "r.jsonl")
    with pytest.warns(RuntimeWarning, match="was not recorded") as caught:
        twice(recorder, recorded)
    assert (len(caught), recorder.lost) == (1, 2)
    recorder.record(Recorded(question=QUESTION, reply=REPLY))
    assert len(lines(tmp_path / "r.jsonl")) == 1


def gone(path: Path) -> Path:
    return path / "no" / "r.jsonl"


def folder(path: Path) -> Path:
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path / "pipe")
    return path / "pipe"


def full(path: Path) -> Path:
    return Path("/dev/full")


@pytest.mark.parametrize("where", [gone, folder, pipe, full])
def test_a_failing_disk_does_not_reach_the_app(
    tmp_path: Path, where: Callable[[Path], Path]
) -> None:
    with pytest.warns(RuntimeWarning, match="was not recorded"):
        assert record(where(tmp_path)).lost == 1


def test_a_folder_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "r.jsonl"
    path.parent.mkdir()
    recorder = record(path)
    path.unlink()
    path.parent.rmdir()
    with pytest.warns(RuntimeWarning, match="No such file"):
        recorder.record(Recorded(question=QUESTION))
    path.parent.mkdir()
    recorder.record(Recorded(question=QUESTION, error="x"))
    assert (recorder.lost, len(lines(path))) == (1, 1)


def test_a_warning_that_is_an_error_does_not_reach_the_app(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record(gone(tmp_path)).lost == 1


def test_the_working_folder_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("r.jsonl")
    monkeypatch.chdir("/")
    recorder.record(Recorded(question=QUESTION))
    assert (tmp_path / "r.jsonl").exists()


def test_a_file_does_not_grow_beyond_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(path)
    size = path.stat().st_size
    recorder, row = Recorder(path, max_bytes=2 * size), Recorded(**ROW)
    recorder.record(row)
    with pytest.warns(RuntimeWarning, match=r"would exceed max_bytes, .*: move it away") as caught:
        twice(recorder, row)
    assert path.stat().st_size == 2 * size
    assert (recorder.lost, len(caught)) == (2, 1)
    path.rename(tmp_path / "old.jsonl")
    recorder.record(row)
    assert (recorder.lost, path.stat().st_size) == (2, size)


def test_redaction_reaches_every_text(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    document = Document("of Tanaka", {"author": "Tanaka", "by": ["Tanaka"]}, "d1")
    reply = Reply(text="Tanaka", documents=(document,), note="Tanaka")
    recorder = Recorder(path, redact=lambda text: text.replace("Tanaka", "[name]"))
    recorder.record(Recorded(question="Is it Tanaka?", reply=reply))
    recorder.record(Recorded(question="Tanaka?", error="KeyError: Tanaka"))
    assert recorder.lost == 0
    text = path.read_text(encoding="utf-8")
    assert "Tanaka" not in text
    assert text.count("[name]") == 8


@pytest.mark.parametrize("redact", [lambda text: 1 / 0, lambda text: None, lambda text: text[0][1]])
def test_where_redaction_fails_nothing_is_written(tmp_path: Path, redact: Any) -> None:
    with pytest.warns(RuntimeWarning, match="redact") as caught:
        assert record(tmp_path / "r.jsonl", redact=redact).lost == 1
    assert not (tmp_path / "r.jsonl").exists()
    assert QUESTION not in str(caught[0].message)


def test_a_share_of_the_requests_is_recorded_the_same_for_each_way(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    some, other = Recorder(path, share=0.3, seed=5), Recorder(path, way="b", share=0.3, seed=5)
    for n in range(400):
        some.record(Recorded(question="x", error="e", request=str(n)))
        other.record(Recorded(question="x", error="e", request=str(n)))
    found = read(path)
    assert found.rows["app"].keys() == found.rows["b"].keys()
    assert 90 < len(found.cases) < 150  # 4 standard deviations are 37
    names = [str(n) for n in range(400)]
    few, many = ({n for n in names if sampled(n, share)} for share in (0.1, 0.5))
    assert few < many
    assert {n for n in names if sampled(n, 0.3, seed=5)} == found.rows["app"].keys()
    assert {n for n in names if sampled(n, 0.3, seed=6)} != found.rows["app"].keys()
    assert all(sampled(n, 1.0) and not sampled(n, 0.0) for n in names)


@pytest.mark.parametrize("bad", [{"share": 1.1}, {"share": -0.1}, {"max_bytes": 0}])
def test_settings_out_of_range_are_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"is -?[\d.]+; it must be"):
        Recorder(tmp_path / "r.jsonl", **bad)


WRITER = """
import sys
from sift_rag.cases import Reply
from sift_rag.recording import Recorded, Recorder
recorder = Recorder(sys.argv[1], way=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
n = 0
while n < int(sys.argv[3]) or sys.argv[3] == "0":
    reply = Reply(text="x" * (n * 7919 % 20000))
    recorder.record(Recorded(question="q", reply=reply, request=str(n)))
    n += 1
assert recorder.lost == 0
"""


def writers(path: Path, names: str, n: int) -> list[Any]:
    made = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    for each in made:
        assert each.stdout
        each.stdout.readline()
    for each in made:
        assert each.stdin
        each.stdin.write(b"\n")
        each.stdin.flush()
    return made


def test_processes_and_threads_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    made = writers(path, "abc", 300)
    recorder = Recorder(path, way="d")

    def write(thread: int) -> None:
        for n in range(100):
            reply = Reply(text="y" * 5000)
            recorder.record(Recorded(question="q", reply=reply, request=f"{thread}.{n}"))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in made:
        assert each.wait(60) == 0
        each.stdin.close()
        each.stdout.close()
    found = read(path)
    assert {way: len(rows) for way, rows in found.rows.items()} == dict.fromkeys("abcd", 300)
    for way in "abc":
        for name, row in found.rows[way].items():
            assert row.reply
            assert len(row.reply.text) == int(name) * 7919 % 20000


def test_a_kill_loses_one_line_at_most_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for _ in range(3):
        made = writers(path, "ab", 0)
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 1_000_000:
            pass
        for each in made:
            each.kill()
            each.wait(60)
            each.stdin.close()
            each.stdout.close()
    assert len(read(path).rows) == 2


def test_a_line_that_was_cut_short_is_given_up_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    recorder = record(path)
    whole = path.read_bytes()
    for end in range(1, len(whole)):
        path.write_bytes(whole + whole[:end])
        assert set(read(path).rows["app"]) == {"r1"}
    path.write_bytes(whole + whole[:-1])  # complete but for its end
    assert set(read(path).rows["app"]) == {"r1"}
    path.write_bytes(whole + whole[:20])
    recorder.record(Recorded(question=QUESTION, error="e", request="r2"))
    assert recorder.lost == 0
    assert set(read(path).rows["app"]) == {"r1", "r2"}


FULL = """
import resource, sys, warnings
from sift_rag.cases import Reply
from sift_rag.recording import Recorded, Recorder
recorder = Recorder(sys.argv[1])
recorder.record(Recorded(question="q", reply=Reply(text="x"), request="a"))
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        recorder.record(Recorded(question="q", reply=Reply(text="x" * 2000), request="b"))
assert recorder.lost == 3 and len(caught) == 1, caught
assert "disk is full" in str(caught[0].message)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
recorder.record(Recorded(question="q", reply=Reply(text="x"), request="c"))
assert recorder.lost == 3
"""


def test_a_disk_that_fills_up_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    subprocess.run([sys.executable, "-c", FULL, str(path)], check=True)
    assert b"\x18\n" in path.read_bytes()
    assert set(read(path).rows["app"]) == {"a", "c"}


GOOD = {
    "schema": 1,
    "kind": "recorded",
    "request": "r",
    "way": "app",
    "at": "2026-01-01T00:00:00+00:00",
    "question": "q",
    "error": "",
    "text": "t",
}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b'{"seconds": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "not a line of a Recorder"),
        (json.dumps(GOOD | {"kind": "row"}).encode(), "not a line of a Recorder"),
        (json.dumps(GOOD | {"schema": 2}).encode(), "schema is 2 and this version .* reads 1"),
        (json.dumps(GOOD | {"question": 7}).encode(), "question is 7; it must be a string"),
        (json.dumps(GOOD | {"way": ""}).encode(), "way is ''; it must be a string, and not empty"),
        (json.dumps(GOOD | {"text": None}).encode(), "must be a string"),
        (json.dumps(GOOD | {"text": "\ud800"}).encode(), "lone surrogate"),
        (json.dumps(GOOD | {"documents": [{"id": "x"}]}).encode(), "'text' is missing"),
        (json.dumps(GOOD | {"documents": 5}).encode(), "not iterable"),
        (json.dumps(GOOD | {"seconds": {"total": -1}}).encode(), "total is -1; it must be a num"),
        (json.dumps(GOOD | {"seconds": {"total": "1"}}).encode(), "total is '1'; it must be a num"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "text"}).encode(), "neither a text nor"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "at"}).encode(), "'at' is missing"),
    ],
)
def test_a_broken_line_is_an_error_with_its_number(
    tmp_path: Path, line: bytes, wanted: str
) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(ValueError, match=f"line 3: .*{wanted}"):
        read(path)


def test_an_empty_file_and_rows_without_a_question(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"")
    assert read(path).cases == ()
    path.write_text(json.dumps(GOOD | {"question": " "}) + "\n" + json.dumps(GOOD))
    found = read(path)
    assert (found.blank, len(found.cases)) == (1, 1)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "no")


def test_a_case_may_be_another_one_with_the_same_id(tmp_path: Path) -> None:
    record(tmp_path / "r.jsonl")
    case = Case(QUESTION, ("Tanaka",), id="r1")  # with a reference added by hand
    assert read(tmp_path / "r.jsonl").as_way("app")(case).text == "Tanaka"
