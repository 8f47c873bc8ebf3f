"""A shadow beside an app: the first way is what it was, whatever the other one does."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sift_rag import Engine, Index, Pipeline
from sift_rag.cases import Reply
from sift_rag.recording import Recorder
from sift_rag.replaying import Recording, read
from sift_rag.shadow import Shadow, in_shadow
from sift_rag.shadowing import Shadowed, shadowed
from sift_rag.worker import Job

WAIT = 120.0


class Letters:
    """Counts letters."""

    name = "letters"

    def embed(self, texts: Any, *, kind: str = "passage") -> Any:
        counts = np.array([[text.count(c) + 0.1 for c in "eionstvgp"] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recorded.jsonl"


def texts(found: Recording, way: str) -> list[str]:
    return [row.reply.text if row.reply else row.error for row in found.rows[way].values()]


def first(question: str) -> str:
    return question.upper()


def other(question: str) -> str:
    return question[::-1]


def made(path: Path, one: Any = first, two: Any = other, **more: Any) -> Shadowed:
    return shadowed(one, two, recorder=path, share=more.pop("share", 1.0), **more)


def test_both_are_recorded_with_the_request_in_common(path: Path) -> None:
    app = made(path)
    assert [app("ab"), app("cd")] == ["AB", "CD"]
    assert app.flush(WAIT)
    found = read(path)
    assert texts(found, "app") == ["AB", "CD"]
    assert texts(found, "shadow") == ["ba", "dc"]
    assert found.rows["app"].keys() == found.rows["shadow"].keys()
    for rows in found.rows.values():
        assert all(row.reply and row.reply.seconds["total"] > 0 for row in rows.values())
    assert (app.recorder.lost, app.shadow.dropped) == (0, 0)


def test_the_first_has_answered_while_the_other_has_not_begun_to_end(path: Path) -> None:
    """The other waits for what only happens after the first has answered."""
    answered = threading.Event()

    def slow(question: str) -> str:
        assert answered.wait(WAIT)
        return "late"

    app = made(path, two=slow)
    assert app("ab") == "AB"
    assert not app.flush(0)
    answered.set()
    assert app.flush(WAIT)
    assert texts(read(path), "shadow") == ["late"]


def test_what_the_other_raises_is_a_row(path: Path) -> None:
    def bad(question: str) -> str:
        raise {"a": ValueError("no"), "b": SystemExit(3), "c": KeyboardInterrupt()}[question]

    app = made(path, two=bad)
    assert [app(question) for question in "abc"] == ["A", "B", "C"]
    assert app.flush(WAIT)
    assert texts(read(path), "shadow") == ["ValueError: no", "SystemExit: 3", "KeyboardInterrupt: "]


def test_what_the_first_raises_is_raised_and_recorded(path: Path) -> None:
    error = ValueError("no")

    def bad(question: str) -> str:
        raise error

    app = made(path, bad)
    with pytest.raises(ValueError, match="no") as caught:
        app("ab")
    assert caught.value is error
    assert app.flush(WAIT)
    found = read(path)
    assert (texts(found, "app"), texts(found, "shadow")) == (["ValueError: no"], ["ba"])


def test_values_pass_through_untouched(path: Path) -> None:
    value = object()
    app = made(path, lambda question: value)
    with pytest.warns(RuntimeWarning, match="an answer is a object, of which"):
        assert app("x") is value
    assert app.recorder.lost == 1
    reply = Reply(text="t", seconds={"total": 3.0})
    assert made(path, lambda question: reply)("x") is reply
    assert next(iter(read(path).rows["app"].values())).reply == reply


async def test_coroutines(path: Path) -> None:
    async def afirst(question: str) -> str:
        await asyncio.sleep(0)
        if question == "bad":
            raise ValueError("no")
        return question.upper()

    async def aother(question: str) -> str:
        return question[::-1]

    app = made(path, afirst, aother)
    answers: Any = await asyncio.gather(app("ab"), app("cd"))
    assert answers == ["AB", "CD"]
    with pytest.raises(ValueError, match="no"):
        await app("bad")
    task = asyncio.create_task(app("ef"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(app.flush, WAIT)
    found = read(path)
    assert sorted(texts(found, "app")) == ["AB", "CD", "CancelledError: ", "ValueError: no"]
    assert sorted(texts(found, "shadow")) == ["ba", "dab", "dc", "fe"]


def test_generators_come_piece_by_piece_and_are_recorded_at_their_end(path: Path) -> None:
    taken: list[str] = []

    def stream(question: str) -> Iterator[str]:
        for letter in question:
            taken.append(letter)
            yield letter
            if letter == "!":
                raise ValueError("no")

    app = made(path, stream, stream)
    pieces = app("ab")
    assert taken == []
    assert next(pieces) == "a"
    assert taken == ["a"]
    assert not path.exists()
    assert list(pieces) == ["b"]
    left = app("cd")
    next(left)
    left.close()  # left early: not recorded
    with pytest.raises(ValueError, match="no"):
        list(app("e!f"))
    assert app.flush(WAIT)
    found = read(path)
    assert texts(found, "app") == ["ab", "ValueError: no"]
    assert texts(found, "shadow") == ["ab", "ValueError: no"]


def test_both_get_the_same_arguments(path: Path) -> None:
    seen: list[Any] = []

    def take(question: str, user: str = "", *, k: int = 1) -> str:
        seen.append((question, user, k))
        return "x"

    app = made(path, take, take)
    app("q", "u", k=2)
    app(question="q2", k=3)
    assert app.flush(WAIT)
    assert sorted(seen) == [("q", "u", 2)] * 2 + [("q2", "", 3)] * 2
    assert [case.question for case in read(path).cases] == ["q", "q2"]


def test_a_share_of_the_requests_is_shadowed(path: Path) -> None:
    app = shadowed(first, other, recorder=Recorder(path, share=0.5), share=0.2, waiting=1000)
    for _ in range(400):
        app("ab")
    assert app.flush(WAIT)
    found = read(path)
    assert 150 < len(found.rows["app"]) < 250
    assert 40 < len(found.rows["shadow"]) < 125
    assert found.rows["shadow"].keys() < found.rows["app"].keys()
    none = shadowed(first, other, recorder=path, share=0.0)
    none("ab")
    assert none.shadow._thread is None
    with pytest.raises(ValueError, match=r"share is 2; it must be from 0"):
        shadowed(first, other, recorder=path, share=2)


def test_a_hanging_shadow_costs_a_full_queue_and_no_more(path: Path) -> None:
    hanging, begun = threading.Event(), threading.Event()

    def hang(question: str) -> str:
        begun.set()
        hanging.wait()
        return "x"

    app = made(path, two=hang, waiting=3)
    app("x")
    assert begun.wait(WAIT)
    assert [app("ab") for _ in range(10)] == ["AB"] * 10
    assert app.shadow.dropped == 7
    app.close()
    assert app.shadow.dropped == 10
    assert app("ab") == "AB"
    assert app.shadow.dropped == 11
    hanging.set()
    app.close(WAIT)
    found = read(path)
    assert (len(found.rows["app"]), len(found.rows["shadow"])) == (12, 1)


def test_many_threads_at_once(path: Path) -> None:
    app = made(path, waiting=10_000)

    def ask(name: int) -> None:
        for n in range(50):
            assert app(f"q{name}.{n}") == f"Q{name}.{n}"

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert app.flush(WAIT)
    found = read(path)
    assert len(found.answered("app", "shadow")) == 400
    for name, row in found.rows["shadow"].items():
        assert row.reply
        assert row.reply.text == row.question[::-1]
        assert found.rows["app"][name].question == row.question


def test_a_shadow_of_a_shadow_is_none(path: Path) -> None:
    """Where the app's own, shadowed way stands in the shadow again, nothing runs away."""
    inner = made(path)
    asked: list[bool] = []

    def again(question: str) -> str:
        asked.append(in_shadow())
        return str(inner(question))

    app = made(path, two=again, way="again")
    app("ab")
    assert app.flush(WAIT)
    assert inner.flush(WAIT)
    assert asked == [True]
    assert not in_shadow()
    found = read(path)
    assert {way: len(rows) for way, rows in found.rows.items()} == {"app": 1, "again": 1}


def test_calls_of_an_engine_in_it_give_way(path: Path) -> None:
    seen: list[bool] = []

    def look(question: str) -> str:
        seen.append(Job(lambda job: None).in_background)
        return "x"

    app = made(path, look, look)
    app("x")
    assert app.flush(WAIT)
    assert seen == [False, True]


def test_disk_errors_reach_nobody(tmp_path: Path) -> None:
    app = made(tmp_path / "no" / "r.jsonl")
    with pytest.warns(RuntimeWarning, match="was not recorded") as caught:
        assert (app("ab"), app.flush(WAIT)) == ("AB", True)
    assert (app.recorder.lost, len(caught)) == (2, 1)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a callable or a Pipeline, got int"):
        shadowed(first, 3, recorder="x")


def test_a_pipeline_beside_a_pipeline(path: Path) -> None:
    passages = ["The Korgost pump is inspected by Tanaka.", "The Korgost pump stands in Oslo."]
    with Engine.tiny() as engine:
        index = Index.build(passages, Letters())
        stuff, train = (Pipeline(index, engine, k=2, mode=mode) for mode in ("stuff", "train"))
        question = "Who inspects the Korgost pump?"
        app = made(path, stuff, train)
        assert app(question).text == stuff.answer(question).text
        assert app.flush(WAIT)
    found = read(path)
    [stuffed], [trained] = (rows.values() for rows in found.rows.values())
    assert stuffed.reply
    assert trained.reply
    assert trained.reply.text == "Tanaka"
    assert trained.reply.seconds.keys() == {
        "retrieve",
        "select",
        "train",
        "prefill",
        "decode",
        "total",
    }
    assert trained.reply.tokens["trained"] > stuffed.reply.tokens["trained"] == 0
    assert {each.text for each in found.documents} == set(passages)
    assert 0 <= (trained.reply.coverage or 0) <= 1


END = """
import sys, threading, time
from sift_rag.shadowing import shadowed
begun = threading.Event()
def hang(question):
    begun.set()
    {how}
app = shadowed(str.upper, hang, recorder=sys.argv[1], share=1.0)
print([app("ab") for _ in range(5)])
begun.wait()
"""


@pytest.mark.parametrize(
    "how", ["threading.Event().wait()", "time.sleep(1e6)", "while True: pass", "return 'x'"]
)
def test_the_interpreter_ends_whatever_runs(path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END.format(how=how), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (str(["AB"] * 5), "")
    assert len(read(path).rows["app"]) == 5


FORK = """
import os, sys
from sift_rag.shadowing import shadowed
app = shadowed(str.upper, str.lower, recorder=sys.argv[1], share=1.0)
app("parent")
assert app.flush(30)
child = os.fork()
if child == 0:
    app("child")
    assert app.flush(30)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
app("Again")
assert app.flush(30)
"""


def test_a_forked_process_has_a_shadow_of_its_own(path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(path)]
    subprocess.run(command, check=True, timeout=60)
    assert texts(read(path), "shadow") == ["parent", "child", "again"]


def test_what_ran_is_let_go_of(path: Path) -> None:
    import gc
    import weakref

    class Text(str):
        pass

    app = made(path, lambda question: "x", lambda question: "y")
    given = Text("question")
    seen = weakref.ref(given)
    app(given)
    assert app.flush(WAIT)
    del given
    gc.collect()
    assert seen() is None


def test_a_shadow_by_itself(path: Path) -> None:
    recorder = Recorder(path)
    shadow = Shadow(lambda given: Reply(text=given), recorder, share=1.0)
    shadow.offer("r", "question", "given")
    assert shadow.flush(WAIT)
    assert texts(read(path), "shadow") == ["given"]
    shadow.close(WAIT)
    shadow.close()
