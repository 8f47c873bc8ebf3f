"""The index: exact search, embedding only what is new, and a folder that no accident can break."""

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.candidates import Candidates, Index, IndexFormatError
from sift_rag.documents import Document, read_folder, split
from sift_rag.embeddings import Kind, embedder_name, minilm
from sift_rag.kernels import Kernel, calibrated, rbf
from sift_rag.selection import sift

DATA = Path(os.environ.get("SIFT_RAG_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Hashing:
    """A bag of hashed words and letters, in `dimension` dimensions; remembers what it embedded."""

    def __init__(self, dimension: int = 32, name: str = "hashing") -> None:
        self.dimension, self.name = dimension, name
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        if kind == "passage":
            self.seen.extend(texts)
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[0] = 0.1
            for word in (*text.lower().split(), *text):
                digest = sha256(word.encode()).digest()
                row[digest[0] % self.dimension] += 1 if digest[1] % 2 else -1
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


class Fixed:
    """Gives the rows that it was made with; a question is "0", "1", ...: one of them."""

    name = "fixed"

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.rows = rows

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        return self.rows[[int(text) for text in texts]]


TEXTS = ["The pump weighs 3 kg.", "A crane in Oslo is red.", "Sensors fail at 90 degrees."]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    documents = [Document(text, {"page": i}, f"d{i}") for i, text in enumerate(TEXTS)]
    Index.build(documents, Hashing()).save(tmp_path / "index")
    return tmp_path / "index"


def same(one: Index, two: Index) -> bool:
    return one.documents == two.documents and np.array_equal(one.embeddings, two.embeddings)


# --- building ---------------------------------------------------------------------------------


def test_strings_and_documents_are_indexed_once_each() -> None:
    embedder = Hashing()
    seen: list[tuple[int, int]] = []
    index = Index.build(
        ["a", Document("b", {"page": 1}), "a"],
        embedder,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(index) == 3
    assert index.documents[1].metadata == {"page": 1}
    assert embedder.seen == ["a", "b"]
    assert seen == [(2, 2)]
    assert (index.embedded, index.reused) == (2, 1)
    assert index.embeddings.dtype == np.float32
    np.testing.assert_array_equal(index.embeddings[0], index.embeddings[2])
    with pytest.raises(ValueError, match="read-only"):
        index.embeddings[0] = 0


def test_many_texts_go_in_steps() -> None:
    seen: list[tuple[int, int]] = []
    texts = [f"text {i}" for i in range(600)]
    index = Index.build(texts, Hashing(), progress=lambda *at: seen.append(at))
    assert seen == [(min(done, 600), 600) for done in range(64, 664, 64)]
    np.testing.assert_array_equal(index.embeddings, Hashing().embed(texts))


def test_an_empty_corpus_and_blank_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="the corpus is empty"):
        Index.build([], Hashing())
    with pytest.raises(ValueError, match="1 of 2 documents are blank, the first is 'x'"):
        Index.build(["a", Document(" \n", id="x")], Hashing())


def test_a_changed_folder_embeds_only_what_is_new(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"The device number {i} stands in hall {i * 7}.")
    embedder = Hashing()
    first = Index.build(split(read_folder(folder).documents), embedder)
    first.save(tmp_path / "index")
    assert len(embedder.seen) == 4

    (folder / "1.txt").write_text("The device number 1 was moved to the cellar.")
    (folder / "2.txt").unlink()
    (folder / "3.txt").rename(folder / "moved.txt")
    (folder / "new.txt").write_text("A new device came.")
    embedder.seen.clear()
    previous = Index.load(tmp_path / "index", embedder)
    passages = split(read_folder(folder).documents)
    second = Index.build(passages, embedder, previous=previous)
    assert embedder.seen == ["The device number 1 was moved to the cellar.", "A new device came."]
    assert (second.embedded, second.reused) == (2, 2)
    assert same(second, Index.build(passages, Hashing()))
    second.save(tmp_path / "index")
    assert same(Index.load(tmp_path / "index", embedder), second)

    embedder.seen.clear()
    third = Index.build(passages, embedder, previous=second)
    assert embedder.seen == []
    assert (third.embedded, third.reused) == (0, 4)


@pytest.mark.parametrize("other", [Hashing(name="another"), Hashing(dimension=16)])
def test_vectors_of_another_embedder_are_not_taken_over(other: Hashing) -> None:
    previous = Index.build(TEXTS, Hashing())
    index = Index.build([*TEXTS, "more"], other, previous=previous)
    assert index.embedded == 4
    np.testing.assert_array_equal(index.embeddings, other.embed([*TEXTS, "more"]))


# --- searching --------------------------------------------------------------------------------


@given(
    n=st.integers(1, 60),
    d=st.integers(1, 40),
    m=st.integers(1, 3),
    fetch_k=st.integers(1, 80),
    copies=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_search_is_brute_force(
    n: int, d: int, m: int, fetch_k: int, copies: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)).astype(np.float32)
    if copies:
        rows = rows[rng.integers(0, max(1, n // 3), size=n)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = Index.build([str(i) for i in range(n)], Fixed(rows))
    questions = [str(i) for i in rng.integers(0, n, size=m)]
    found = index.search(questions, fetch_k=fetch_k)

    query = index.embeddings[[int(question) for question in questions]].astype(float)
    scores = [max(float((row * q).sum()) for q in query) for row in index.embeddings.astype(float)]
    expected = sorted(range(n), key=lambda i: (-scores[i], i))[:fetch_k]
    assert found.positions.tolist() == expected
    np.testing.assert_array_equal(found.scores, [scores[i] for i in expected])
    np.testing.assert_array_equal(found.embeddings, index.embeddings[expected])
    assert found.documents == tuple(index.documents[i] for i in expected)


def test_equal_scores_go_to_the_lower_position() -> None:
    """Copies, at places where matrix products take different paths through the same row."""
    rng = np.random.default_rng(1)
    row = rng.normal(size=(1, 389)).astype(np.float32)
    rows = np.concatenate([row] * 1003)
    index = Index.build([str(i) for i in range(1003)], Fixed(rows))
    assert index.search("5", fetch_k=40).positions.tolist() == list(range(40))


def test_one_question_has_one_vector_and_several_have_several() -> None:
    index = Index.build(TEXTS, Hashing())
    one, two = index.search("the pump"), index.search(["the pump", "a crane"])
    assert one.query.shape == (32,)
    assert two.query.shape == (2, 32)
    np.testing.assert_array_equal(two.query[0], one.query)
    assert len(one.documents) == len(two.documents) == 3  # n < fetch_k
    assert {one.query.dtype, one.embeddings.dtype} == {np.dtype(np.float32)}
    assert one.scores.dtype == np.float64
    assert one.positions.dtype == np.int64


def test_candidates_can_be_pickled() -> None:
    found = Index.build(TEXTS, Hashing()).search("pump")
    again: Candidates = pickle.loads(pickle.dumps(found))
    assert again.documents == found.documents
    np.testing.assert_array_equal(again.embeddings, found.embeddings)


@pytest.mark.parametrize("question", ["", " \n", [], ["pump", " "]])
def test_an_empty_question_is_refused(question: str | list[str]) -> None:
    with pytest.raises(ValueError, match="The question is empty"):
        Index.build(TEXTS, Hashing()).search(question)


def test_fetch_k_and_dimensions_are_checked(saved: Path) -> None:
    index = Index.load(saved, Hashing(dimension=16))
    with pytest.raises(ValueError, match="fetch_k must be at least 1, got 0"):
        index.search("pump", fetch_k=0)
    with pytest.raises(ValueError, match=r"16 dimensions, the index 32: is 'hashing' the embedder"):
        index.search("pump")


@pytest.mark.skipif(not (DATA / "qa").is_dir(), reason="shared/data is not here")
def test_real_questions_find_their_paragraphs() -> None:
    articles = json.loads((DATA / "qa" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [p for article in articles for p in article["paragraphs"]][::8]
    embedder = minilm(device="cpu")
    documents = [Document(p["context"], id=str(at)) for at, p in enumerate(paragraphs)]
    index = Index.build(split(documents, tokenizer=embedder.tokenizer), embedder)
    assert embedder.truncated == 0
    found = [index.search(p["qas"][0]["question"], fetch_k=5).documents for p in paragraphs]
    sources = [[passage.metadata["source"] for passage in passages] for passages in found]
    assert len(sources) == 30
    assert np.mean([str(at) in five for at, five in enumerate(sources)]) >= 0.95
    assert np.mean([str(at) == five[0] for at, five in enumerate(sources)]) >= 0.8


# --- saving and loading -----------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.builds(Document, TEXT, st.dictionaries(TEXT, JSON, max_size=3), st.just("") | TEXT)


@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document]
) -> None:
    index = Index.build(documents, Hashing())
    folder = tmp_path_factory.mktemp("any") / "index"
    index.save(folder)
    assert same(Index.load(folder, Hashing()), index)


def test_loading_embeds_nothing(saved: Path) -> None:
    embedder = Hashing()
    index = Index.load(saved, embedder)
    assert embedder.seen == []
    assert index.embedder is embedder
    assert index.search("pump", fetch_k=1).documents[0].metadata == {"page": 0}


def test_a_manifest_says_what_is_there(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_bytes())
    assert manifest["format"] == "sift_rag.index"
    assert manifest["version"] == 1
    assert (manifest["embedder"], manifest["dimension"]) == ("hashing", 32)
    assert manifest["documents"] == 3
    for entry in manifest["files"].values():
        content = (saved / entry["name"]).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert len(list(saved.iterdir())) == 3


def test_saving_again_replaces_everything(saved: Path) -> None:
    other = Index.build(["something else"], Hashing(name="another"))
    other.save(saved)
    assert same(Index.load(saved, Hashing(name="another")), other)
    assert len(list(saved.iterdir())) == 3
    assert [item.name for item in saved.parent.iterdir()] == ["index"]


def test_what_a_killed_save_left_behind_goes_later(saved: Path) -> None:
    young, old, foreign = (
        saved / "vectors-0123456789abcdef.npy",
        saved / "documents-0123456789abcdef.jsonl",
        saved / "notes.txt",
    )
    for path in (young, old, foreign):
        path.write_text("left behind")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    Index.build(TEXTS, Hashing()).save(saved)
    assert young.exists()  # another process may be saving right now
    assert not old.exists()
    assert foreign.exists()


def test_places_to_save(tmp_path: Path) -> None:
    index = Index.build(TEXTS, Hashing())
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep/down"):
        index.save(tmp_path / name)
        assert same(Index.load(str(tmp_path / name), Hashing()), index)


def test_what_is_no_index_is_never_overwritten(tmp_path: Path) -> None:
    index = Index.build(TEXTS, Hashing())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("ten years of work")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.txt' and is not an index"):
        index.save(mine)
    (mine / "manifest.json").write_text('{"format": "of another program"}')
    with pytest.raises(FileExistsError, match=r"is not an index"):
        index.save(mine)
    assert sorted(item.name for item in mine.iterdir()) == ["manifest.json", "thesis.txt"]
    with pytest.raises(FileExistsError, match=r"is not a folder"):
        index.save(mine / "thesis.txt")
    with pytest.raises(OSError, match=r"could not be saved"):
        index.save(mine / "thesis.txt" / "index")
    assert (mine / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize("metadata", [{"when": object()}, {"bytes": b"x"}, {"text": "\ud800"}])
def test_metadata_must_be_json(saved: Path, metadata: dict[str, Any]) -> None:
    before = snapshot(saved.parent)
    index = Index.build([Document("a", metadata, "odd")], Hashing())
    for path in (saved, saved.parent / "new"):
        with pytest.raises(ValueError, match=r"metadata of document 'odd' cannot be written"):
            index.save(path)
    assert snapshot(saved.parent) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- accidents --------------------------------------------------------------------------------

# Forks once for every file operation of a save and makes the accident happen at just that one.
ACCIDENTS = """
import errno, itertools, os, shutil, signal, sys
from pathlib import Path
import numpy as np
from sift_rag import storage
from sift_rag.documents import Document

root, accident = Path(sys.argv[1]), sys.argv[2]
old = storage.Stored("e", (Document("old"),), np.eye(1, 4, dtype=np.float32))
new = storage.Stored("e", (Document("new"),) * 3, np.eye(3, 4, dtype=np.float32))
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir"}

def happen():
    if accident == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt if accident == "interrupt" else OSError(errno.ENOSPC, "disk full")

def child(target, nth):
    count = itertools.count(1)
    armed = True
    def hook(event, args):
        nonlocal armed
        if armed and event in OPERATIONS and next(count) == nth:
            armed = False
            happen()
    sys.addaudithook(hook)
    code = 0
    try:
        storage.save(target, new)
    except (KeyboardInterrupt, OSError):
        code = 1
    os._exit(code if armed or code else 2)

outcomes = {True: set(), False: set()}
for replacing in (True, False):
    for nth in itertools.count(1):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        target = root / "index"
        if replacing:
            storage.save(target, old)
        before = sorted(root.rglob("*"))
        pid = os.fork()
        if pid == 0:
            child(target, nth)
        status = os.waitpid(pid, 0)[1]
        if target.exists():
            texts = [document.text for document in storage.load(target).documents]
            assert texts in (["old"], ["new"] * 3), texts
        else:
            assert not replacing, nth
            texts = None
        outcomes[replacing].add(texts and texts[0])
        if accident != "kill" and texts != ["new"] * 3:
            assert sorted(root.rglob("*")) == before, (nth, sorted(root.rglob("*")))
        storage.save(target, new)  # whatever happened, saving again works
        assert len(storage.load(target).documents) == 3
        if status == 0:
            break
    assert nth > 10, nth
assert outcomes == {True: {"old", "new"}, False: {None, "new"}}, outcomes
print("survived")
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("accident", ["kill", "interrupt", "disk full"])
def test_an_accident_at_any_operation_leaves_the_old_or_the_new_index(
    tmp_path: Path, accident: str
) -> None:
    done = run_python(ACCIDENTS, str(tmp_path / "place"), accident)
    assert done.stdout == "survived\n", done.stderr


SAVES_FOREVER = """
import sys
import numpy as np
from sift_rag import storage
from sift_rag.documents import Document
sizes = (3, 5000)
stored = [
    storage.Stored("hashing", (Document(f"of {n}"),) * n, np.ones((n, 1), np.float32))
    for n in sizes
]
storage.save(sys.argv[1], stored[0])
print("ready", flush=True)
while True:
    for one in stored:
        storage.save(sys.argv[1], one)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_real_signals_at_any_time(tmp_path: Path, kill: signal.Signals) -> None:
    target = tmp_path / "index"
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOREVER, str(target)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.1 + rng.uniform(0, 0.1))
            process.send_signal(kill)
        index = Index.load(target, Hashing())
        assert len(index) in (3, 5000)
        assert index.documents[-1].text == f"of {len(index)}"


def test_a_full_disk_while_saving(saved: Path) -> None:
    """A real one: the kernel refuses to let a file grow."""
    code = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from sift_rag import storage
        from sift_rag.documents import Document
        rows = np.ones((100_000, 1), np.float32)
        stored = storage.Stored("hashing", (Document("big"),) * len(rows), rows)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for path in sys.argv[1:]:
            try:
                storage.save(path, stored)
            except OSError as error:
                print(error.errno, error)
        """
    )
    before = snapshot(saved.parent)
    done = run_python(code, str(saved), str(saved.parent / "new"))
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith(f"{errno.EFBIG} ")
        assert "The index could not be saved" in line
        assert "what was there before is untouched" in line
    assert snapshot(saved.parent) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(saved: Path) -> None:
    index = Index.build(TEXTS, Hashing())
    saved.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="could not be saved"):
            index.save(saved.parent / "new")
    finally:
        saved.parent.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system nobody writes to")
def test_a_place_where_nobody_can_write() -> None:
    with pytest.raises(OSError, match=r"could not be saved .*'/proc/sift-rag-index'"):
        Index.build(TEXTS, Hashing()).save("/proc/sift-rag-index")


# --- tampering --------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, Path]:
    return {path.name.split("-")[0].split(".")[0]: path for path in folder.iterdir()}


def retouch(folder: Path, kind: str, content: bytes) -> None:
    """Change a file and make the manifest agree: what only a forger does."""
    files(folder)[kind].write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = manifest["files"][kind]
    entry |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["vectors", "documents"])
def test_a_flipped_bit_anywhere_is_found(saved: Path, kind: str) -> None:
    path = files(saved)[kind]
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(IndexFormatError, match="truncated or changed; build it again"):
            Index.load(saved, Hashing())


def test_a_flipped_bit_in_the_manifest_is_found(saved: Path) -> None:
    path = saved / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(IndexFormatError):
            Index.load(saved, Hashing())


@pytest.mark.parametrize("kind", ["vectors", "documents", "manifest"])
@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_truncated_file_is_found(saved: Path, kind: str, length: int) -> None:
    path = files(saved)[kind]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(IndexFormatError, match=r"truncated or changed|manifest.json is damaged"):
        Index.load(saved, Hashing())


@pytest.mark.parametrize("kind", ["vectors", "documents"])
def test_a_missing_file_is_named(saved: Path, kind: str) -> None:
    files(saved)[kind].unlink()
    with pytest.raises(IndexFormatError, match=rf"lacks a file: .*{kind}-"):
        Index.load(saved, Hashing())


def test_no_index_there(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, why in [
        (tmp_path / "nowhere", "nothing is there"),
        (tmp_path, "it has no manifest.json"),
        (tmp_path / "file", "it has no manifest.json"),
    ]:
        with pytest.raises(IndexFormatError, match=rf"is not an index \({why}\): make one with"):
            Index.load(path, Hashing())


def test_another_format_version(saved: Path) -> None:
    change_manifest(saved, lambda manifest: manifest.update(version=2))
    with pytest.raises(IndexFormatError, match="format version 2, this sift_rag reads version 1"):
        Index.load(saved, Hashing())


def test_another_embedder_is_named(saved: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"made by the embedder 'hashing', this is 'mine'"):
        Index.load(saved, Hashing(name="mine"))
    assert embedder_name(Hashing(name="")).endswith("test_candidates.Hashing")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "{parent}/outside.txt",  # stays in the test's own folder, whatever the code does with it
        "manifest.json",
        "vectors-0123456789abcdef.npy/..",
        "vectors-..%2f.npy",
        "documents-0123456789abcdef.jsonl\n",
        3,
        None,
    ],
)
def test_a_manifest_cannot_point_elsewhere(saved: Path, name: object) -> None:
    outside = saved.parent / "outside.txt"
    outside.write_text("precious")
    if isinstance(name, str):
        name = name.replace("{parent}", str(saved.parent))
    change_manifest(
        saved, lambda manifest: [file.update(name=name) for file in manifest["files"].values()]
    )
    with pytest.raises(IndexFormatError, match=r"which no index does"):
        Index.load(saved, Hashing())
    Index.build(TEXTS, Hashing()).save(saved)  # which deletes what the old manifest names
    assert outside.read_text() == "precious"
    Index.load(saved, Hashing())


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    bomb = np.array([[Bomb(tmp_path / "exploded")]], dtype=object)
    np.save(tmp_path / "bomb.npy", bomb, allow_pickle=True)
    for content in (
        (tmp_path / "bomb.npy").read_bytes(),
        pickle.dumps(Bomb(tmp_path / "exploded")),
    ):
        retouch(saved, "vectors", content)
        with pytest.raises(IndexFormatError, match="holds no vectors"):
            Index.load(saved, Hashing())
    assert not (tmp_path / "exploded").exists()


def npy(rows: NDArray[Any], tmp_path: Path) -> bytes:
    np.save(tmp_path / "rows.npy", rows)
    return (tmp_path / "rows.npy").read_bytes()


UNIT = np.eye(3, 32, dtype=np.float32)
FORGED: list[tuple[NDArray[Any], str]] = [
    (UNIT[:2], r"has 3 documents and vectors of shape \(2, 32\), its manifest says \(3, 32\)"),
    (UNIT[:, :8], r"vectors of shape \(3, 8\)"),
    (UNIT.astype(float), r"of float64, wanted \(n, d\) of float32"),
    (UNIT.ravel(), r"has shape \(96,\) of float32"),
    (UNIT * 2, r"Vector 0 .* and 2 others are not finite or not of length 1"),
    (UNIT * 0, r"Vector 0 .* not of length 1"),
    (np.where(UNIT[:, :1] == 1, np.nan, UNIT), r"Vector 0 .* and 0 others are not finite"),
    (np.where(UNIT[:, 1:2] == 1, np.inf, UNIT), r"Vector 1 .* are not finite"),
]


@pytest.mark.parametrize(("rows", "message"), FORGED)
def test_forged_vectors_are_refused(
    saved: Path, tmp_path: Path, rows: NDArray[Any], message: str
) -> None:
    retouch(saved, "vectors", npy(rows, tmp_path))
    with pytest.raises(IndexFormatError, match=message):
        Index.load(saved, Hashing())


def test_a_header_that_promises_more_than_there_is(saved: Path, tmp_path: Path) -> None:
    content = npy(UNIT, tmp_path)
    huge = content.replace(b"(3, 32), }         ", b"(9999999999, 32), }")
    assert huge != content
    assert len(huge) == len(content)
    retouch(saved, "vectors", huge)
    with pytest.raises(IndexFormatError, match="holds no vectors"):
        Index.load(saved, Hashing())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a", "text": "b", "metadata": {}}\n', "has 1 documents"),
        (b"{}\n", "Line 1 .* is no document: KeyError"),
        (b'{"id": "a", "text": 3, "metadata": {}}\n', "Line 1 .* text must be a string"),
        (b'{"id": "a", "text": "b", "metadata": []}\n', "Line 1 .* metadata must be a mapping"),
        (b'{"id": "a", "text": "\xff", "metadata": {}}\n', "Line 1 .* is no document"),
        (b"[" * 100_000, "Line 1 .* is no document"),
    ],
)
def test_forged_documents_are_refused(saved: Path, content: bytes, message: str) -> None:
    retouch(saved, "documents", content)
    with pytest.raises(IndexFormatError, match=message):
        Index.load(saved, Hashing())


@pytest.mark.parametrize("key", ["embedder", "dimension", "documents", "files"])
def test_a_manifest_must_be_complete(saved: Path, key: str) -> None:
    change_manifest(saved, lambda manifest: manifest.pop(key))
    with pytest.raises(IndexFormatError, match=rf"says {key} = None, wanted a"):
        Index.load(saved, Hashing())


# --- uniting the candidates of several questions ---------------------------------------------


def of_three_topics() -> Index:
    """Forty documents about the first axis, three about the second and three about the third."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 8), (40, 3, 3), axis=0)
    rows = centres + 0.1 * rng.normal(size=centres.shape)
    rows[5] = rows[4]  # a copy
    both = np.vstack([rows, np.eye(3, 8)])  # the questions last
    unit = np.asarray(both / np.linalg.norm(both, axis=1, keepdims=True), np.float32)
    documents = tuple(Document(f"text {i}", id=f"text {i}") for i in range(len(rows)))
    return Index(documents, unit[: len(rows)].copy(), Fixed(unit))


QUESTIONS = ["46", "47", "48"]


def test_a_union_is_every_document_of_each_question_once_nearest_first() -> None:
    index = of_three_topics()
    for fetch_ks in ((5, 5, 5), (46, 1, 2), (3, 40, 46), (46, 46, 46)):
        each = [
            index.search(q, fetch_k=fetch_k) for q, fetch_k in zip(QUESTIONS, fetch_ks, strict=True)
        ]
        found = Candidates.union(iter(each))
        wanted = {position for one in each for position in one.positions.tolist()}
        scores = (index.embeddings.astype(float) @ found.query.astype(float).T).max(axis=1)
        assert sorted(found.positions.tolist()) == sorted(wanted)
        order = sorted(wanted, key=lambda i: (-round(scores[i], 12), i))
        assert found.positions.tolist() == order
        np.testing.assert_allclose(found.scores, scores[order], atol=1e-12)
        assert found.documents == tuple(index.documents[i] for i in order)
        np.testing.assert_array_equal(found.embeddings, index.embeddings[order])
        np.testing.assert_array_equal(found.query, np.stack([one.query for one in each]))


def test_a_union_of_everything_is_the_joint_search_for_everything() -> None:
    index = of_three_topics()
    joint = index.search(QUESTIONS, fetch_k=46)
    united = Candidates.union(index.search_batch(QUESTIONS, fetch_k=46))
    for name in ("query", "embeddings", "scores", "positions"):
        np.testing.assert_array_equal(getattr(united, name), getattr(joint, name))
    assert united.documents == joint.documents


def test_no_question_is_starved_of_candidates() -> None:
    """The first topic has forty documents that are nearer than any of the others."""
    index = of_three_topics()
    rows = index.embeddings.copy()
    rows[40:] += 0.9 * np.eye(1, 8, 7, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = Index(index.documents, rows, index.embedder)
    assert index.search(QUESTIONS, fetch_k=30).positions.max() < 40
    found = Candidates.union(index.search_batch(QUESTIONS, fetch_k=10))
    assert set(range(40, 46)) <= set(found.positions.tolist())
    worst = sift(found.query, found.embeddings, 3, combine="worst")
    topics = found.positions[worst.indices]
    assert sorted(np.digitize(topics, [40, 43]).tolist()) == [0, 1, 2]


def test_candidates_of_one_or_several_questions_unite() -> None:
    index = of_three_topics()
    one, both = index.search("46", fetch_k=4), index.search(["47", "48"], fetch_k=6)
    found = Candidates.union([one, both])
    assert found.query.shape == (3, 8)
    assert len(found.documents) == 10
    alone = Candidates.union([one])
    assert alone.query.shape == (1, 8)
    assert alone.documents == one.documents
    np.testing.assert_array_equal(alone.scores, one.scores)


def test_what_cannot_be_united_is_refused() -> None:
    with pytest.raises(ValueError, match=r"There are no candidates to unite: give those of one"):
        Candidates.union([])
    index = of_three_topics()
    one = index.search("46", fetch_k=4)
    other = Index(
        tuple(Document(d.text + "!") for d in index.documents),
        index.embeddings,
        Fixed(index.embedder.embed(["46"])),
    ).search("0", fetch_k=4)
    with pytest.raises(ValueError, match=r"Position \d+ is .* unite candidates of one index only"):
        Candidates.union([one, other])
    narrow = Index.build(TEXTS, Hashing()).search("pump", fetch_k=1)
    far = Candidates(one.query, one.documents, one.embeddings, one.scores, one.positions + 50)
    with pytest.raises(ValueError, match=r"have \[8, 32\] dimensions"):
        Candidates.union([far, narrow])


# --- selecting from all documents, or from the nearest -----------------------------------------


@pytest.fixture(scope="module")
def many() -> Index:
    rows = np.random.default_rng(2).normal(size=(400, 24)) + 0.4
    rows[200:] = rows[:200] + 0.4 * rows[100:300]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    documents = tuple(Document(str(i)) for i in range(400))
    unit = rows.astype(np.float32)
    return Index(documents, unit, Fixed(unit.copy()))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("kernel", ["linear", rbf(0.1)])
def test_select_is_sift_on_all_documents(many: Index, kernel: Kernel, device: str | None) -> None:
    found = many.select("7", 9, kernel=kernel, noise=0.03, device=device)
    expected = sift(many.embeddings[7], many.embeddings, 9, kernel=kernel, noise=0.03)
    assert found.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-4)
    assert found.indices[0] == 7


def test_select_from_the_nearest_is_sift_on_what_search_finds(many: Index) -> None:
    for options in ({}, {"kernel": "linear", "distinct": False}, {"noise": 1.0}):
        candidates = many.search("7", fetch_k=60)
        found = many.select("7", 9, 60, **options)
        inner = sift(candidates.query, candidates.embeddings, 9, **options)
        assert found.indices.tolist() == candidates.positions[inner.indices].tolist()
        np.testing.assert_array_equal(found.gains, inner.gains)
        np.testing.assert_array_equal(found.context.positions, candidates.positions)
        np.testing.assert_array_equal(found.context.rows, candidates.embeddings)
    everything = many.select("7", 9, 5000, kernel="linear")  # at most n
    assert everything.indices.tolist() == many.select("7", 9, kernel="linear").indices.tolist()


def test_the_default_from_all_is_calibrated_as_if_the_nearest_had_been_fetched(many: Index) -> None:
    near = many.search("7", fetch_k=100)
    kernel = calibrated(near.query[None], near.embeddings)
    expected = sift(near.query, many.embeddings, 9, kernel=kernel)
    assert many.select("7", 9).indices.tolist() == expected.indices.tolist()


@pytest.mark.parametrize("fetch_k", [None, 50])
def test_questions_and_their_vectors_select_alike(many: Index, fetch_k: int | None) -> None:
    one = many.select("7", 6, fetch_k)
    vector = many.embeddings[7]
    for query in (["7"], vector, 30.0 * vector.astype(float), vector.tolist(), vector[None]):
        assert many.select(query, 6, fetch_k).indices.tolist() == one.indices.tolist()
    both = many.select(["7", "12"], 6, fetch_k, combine="worst")
    vectors = many.select(many.embeddings[[7, 12]] * [[2], [9]], 6, fetch_k, combine="worst")
    assert both.indices.tolist() == vectors.indices.tolist()
    assert {7, 12} <= set(both.indices.tolist())
    assert both.context.queries.shape == (2, 24)


def test_costs_are_by_position_in_the_index(many: Index) -> None:
    costs = np.arange(1.0, 401.0)
    found = many.select("390", fetch_k=80, costs=costs, budget=300)
    candidates = many.search("390", fetch_k=80)
    inner = sift(
        candidates.query, candidates.embeddings, costs=costs[candidates.positions], budget=300
    )
    assert found.indices.tolist() == candidates.positions[inner.indices].tolist()
    assert 0 < costs[found.indices].sum() <= 300
    with pytest.raises(ValueError, match=r"costs has shape \(80,\), wanted \(400,\): one for each"):
        many.select("390", fetch_k=80, costs=costs[:80], budget=300)
    for options in ({"costs": costs, "budget": 300}, {"budget": 300}, {"costs": costs}):
        with pytest.raises(ValueError, match="costs and a budget need fetch_k"):
            many.select("390", 5, **options)


def test_what_cannot_be_selected_is_refused(many: Index) -> None:
    for fetch_k in (None, 50):
        for query in ("", " ", [], ["7", ""]):
            with pytest.raises(ValueError, match="The question is empty"):
                many.select(query, 3, fetch_k)
        with pytest.raises(ValueError, match="query has 3 dimensions and candidates have 24"):
            many.select([1.0, 2.0, 3.0], 3, fetch_k)
        with pytest.raises(ValueError, match="k is 0; it must be 1 or more"):
            many.select("7", 0, fetch_k)
        with pytest.raises(TypeError, match="k is None; it must be a whole number"):
            many.select("7", fetch_k=fetch_k)
        with pytest.raises(TypeError, match="nosie"):
            many.select("7", 3, fetch_k, nosie=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="fetch_k must be at least 1, got 0"):
        many.select("7", 3, 0)
    with pytest.raises(ValueError, match="device is for all documents"):
        many.select("7", 3, 50, device="cpu")
