"""Texts: what a document is, reading a folder of them, and splitting them into passages.

Reading never aborts on one bad file: what could not be read is named with its reason at the end.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sift_rag.formats import READERS, Record, Unreadable, require

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

Progress = Callable[[int, int], object]
"""Called with (done, total) after each piece of work."""

MAX_BYTES = 50_000_000
"""Five times the 10 MB that a document may well have; larger files are dumps, not documents."""

MAX_TOKENS = 128
"""all-MiniLM-L6-v2 was trained on texts of at most 128 word pieces (it reads 256; its model card),
and five such passages and a question fit into a context of 1,024 tokens."""

# Cost guard of `split`: the splitter's time grows with the square of a text that has no sentence
# ends. A window of this many characters a token holds several passages of any language.
_WINDOW_PER_TOKEN = 32


def content_hash(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes in hex: equal for equal texts, on every machine."""
    return sha256(text.encode("utf-8")).hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes in hex, read in pieces of a megabyte."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Document:
    """A text, what is known about it, and its name.

    A passage (a piece of a split document) is a `Document` too. Two documents are equal when
    text, metadata and id are; the hash leaves the metadata out, as its values may be unhashable.

    Attributes:
        text: Any string that UTF-8 can hold.
        metadata: Copied, so that what the caller does to its own mapping changes nothing here.
        id: By default the first 16 hex digits of `content_hash(text)`.

    Raises:
        TypeError: `text` or `id` is no string, or `metadata` no mapping.
        ValueError: `text` or `id` holds a lone surrogate, which no UTF-8 file can store.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""

    def __post_init__(self) -> None:
        _check_string(self.text, "text")
        _check_string(self.id, "id")
        if not isinstance(self.metadata, Mapping):
            raise TypeError(
                f"A Document's metadata must be a mapping, got {type(self.metadata).__name__}."
            )
        object.__setattr__(self, "metadata", dict(self.metadata))
        if not self.id:
            object.__setattr__(self, "id", content_hash(self.text)[:16])


def as_documents(items: Iterable[str | Document]) -> list[Document]:
    """Strings and documents as documents, in order.

    Raises:
        TypeError: `items` is one bare string or `Document`, or holds anything else than these two.
    """
    if isinstance(items, (str, Document)):
        raise TypeError(
            f"Documents must come as a list, got a single {type(items).__name__}: put it in [...]."
        )
    return [item if isinstance(item, Document) else Document(item) for item in items]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a folder held.

    Attributes:
        documents: In the order of their paths.
        skipped: (path, reason) of each file, or part of one, that gave no document, by path.
    """

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...]


def read_folder(
    folder: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> Reading:
    """Read the .txt, .text, .md, .html, .htm, .jsonl and .pdf files under a folder, as UTF-8.

    A document's id is its path in the folder, its metadata `source` too. HTML adds `title`; a PDF
    gives one document a page, `page` counted from 1; a JSON line is an object with a "text", maybe
    an "id", and the rest is metadata. Hidden files and folders are passed over without a word,
    symbolic links are never followed, and everything else that gives no document is in `skipped`.

    Args:
        folder: Searched with all its subfolders.
        max_bytes: Larger files are skipped.
        progress: Called with (files done, files in all) after each file.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        ImportError: A file of this kind needs a package that is not installed.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {str(root)!r}: give the folder of your texts.")
    if not root.is_dir():
        raise NotADirectoryError(f"{str(root)!r} is a file: give the folder that it lies in.")
    documents: list[Document] = []
    skipped: list[tuple[str, str]] = []
    names = _files(root, skipped)
    for done, name in enumerate(names, 1):
        for item in _contents(root / name, name, max_bytes):
            if isinstance(item, Record):
                known = {"source": name, **item.metadata}  # a "source" of its own stays
                documents.append(Document(item.text, known, item.id or name + item.anchor))
            else:
                skipped.append((_shown(name), str(item)))
        if progress:
            progress(done, len(names))
    return Reading(tuple(documents), tuple(sorted(skipped, key=itemgetter(0))))


def split(
    documents: Iterable[str | Document],
    *,
    max_tokens: int = MAX_TOKENS,
    overlap: int = 0,
    tokenizer: Tokenizer | None = None,
) -> list[Document]:
    """Cut documents into passages at the largest units that fit: headings, paragraphs, sentences.

    A passage has its document's metadata, its `source` (by default the document's id) and its
    `part`, counted from 1. Its id is the document's id, "#" and 12 hex digits of its content hash,
    so it stays the same while its text does; the second passage of the same text in one document
    ends in "-2". Blank documents give no passage. Time grows in proportion to the text.

    Args:
        documents: Sources that end in .md are cut as Markdown, all others as plain text.
        max_tokens: Size of a passage at most, without the special tokens ([CLS], [SEP]) that an
            embedder adds. A passage has at most 4,096 or 32 `max_tokens` characters as well.
        overlap: Tokens at most that a passage repeats of the one before.
        tokenizer: Counts the tokens; use `embedder.tokenizer`. Without one, four bytes of UTF-8
            count as a token: about right for English, so stay well below the embedder's limit.

    Raises:
        ValueError: `max_tokens` < 1, or `overlap` not in 0 ... max_tokens - 1.
        ImportError: semantic-text-splitter is not installed.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap must be 0 to {max_tokens - 1} (max_tokens - 1), got {overlap}.")
    splitter = {
        kind: _splitter(kind, max_tokens, overlap, tokenizer)
        for kind in ("TextSplitter", "MarkdownSplitter")
    }
    window = max(4096, _WINDOW_PER_TOKEN * max_tokens)
    seen: Counter[str] = Counter()
    passages = []
    for document in as_documents(documents):
        source = str(document.metadata.get("source", document.id))
        kind = "MarkdownSplitter" if source.lower().endswith(".md") else "TextSplitter"
        for part, text in enumerate(_pieces(splitter[kind], document.text, window), 1):
            name = f"{document.id}#{content_hash(text)[:12]}"
            seen[name] += 1
            passages.append(
                Document(
                    text,
                    {**document.metadata, "source": source, "part": part},
                    name if seen[name] == 1 else f"{name}-{seen[name]}",
                )
            )
    return passages


def _check_string(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"A Document's {what} must be a string, got {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A Document's {what} holds a lone surrogate ({value[error.start]!a} at {error.start}),"
            " which UTF-8 cannot store: decode the source with errors='replace'."
        ) from None


def _files(root: Path, skipped: list[tuple[str, str]]) -> list[str]:
    """POSIX paths of the files under `root`, sorted; links and closed folders go to `skipped`."""

    def closed(error: OSError) -> None:
        skipped.append(
            (_shown(os.path.relpath(error.filename, root)), error.strerror or str(error))
        )

    names = []
    for place, folders, files in os.walk(root, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in folders + files):
            name = path.relative_to(root).as_posix()
            if path.is_symlink() and not path.name.startswith("."):
                skipped.append((_shown(name), "a symbolic link, which is not followed"))
            elif path.name in files and not path.name.startswith("."):
                names.append(name)
    return sorted(names)


def _shown(name: str) -> str:
    """A file name that can be printed and stored, even where its bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def _contents(path: Path, name: str, max_bytes: int) -> list[Record | Unreadable]:
    try:
        return _read(path, name, max_bytes)
    except Unreadable as error:
        return [error]
    except OSError as error:
        return [Unreadable(error.strerror or str(error))]


def _read(path: Path, name: str, max_bytes: int) -> list[Record | Unreadable]:
    if _shown(name) != name:
        raise Unreadable("its name is not valid UTF-8")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Unreadable(f"unsupported type {path.suffix or '(no suffix)'}")
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")
    if status.st_size > max_bytes:
        raise Unreadable(f"{status.st_size:,} bytes, more than max_bytes={max_bytes:,}")
    return reader(path.read_bytes())


def _splitter(
    kind: str, max_tokens: int, overlap: int, tokenizer: Tokenizer | None
) -> TextSplitter | MarkdownSplitter:
    cls = getattr(require("semantic_text_splitter"), kind)
    if tokenizer is None:
        made = cls.from_callback(lambda text: -(-len(text.encode()) // 4), max_tokens, overlap)
    else:
        whole = type(tokenizer).from_str(tokenizer.to_str())  # the caller's may truncate and pad
        whole.no_truncation()
        whole.no_padding()
        made = cls.from_huggingface_tokenizer(whole, max_tokens, overlap)
    return made  # type: ignore[no-any-return]


def _pieces(splitter: TextSplitter | MarkdownSplitter, text: str, window: int) -> Iterator[str]:
    """The splitter's pieces of the whole text, found window by window.

    The last piece of a window may have been cut by its end, so the next window starts there; a
    piece that fills a window alone (a "word" without end: one token to some tokenizers) is kept.
    """
    start = 0
    while start < len(text):
        found = splitter.chunk_indices(text[start : start + window])
        redo = len(found) > 1 and start + window < len(text)
        pieces = (piece for _, piece in (found[:-1] if redo else found))
        # Blank as Python sees it: the splitter keeps lone separators such as \x1f.
        yield from (piece for piece in pieces if piece.strip())
        start += found[-1][0] if redo else window
