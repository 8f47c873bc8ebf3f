"""The short way through FAISS gives what the long way gives, or steps aside."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_sift import SIFTRetriever, direct
from langchain_stores import LOSSY, STORES, HashEmbeddings, passages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*langchain-community.* is being sunset:DeprecationWarning"),
]
QUESTION = "Which rivers feed the mills and towns?"
FAISS = sorted(name for name in STORES if name.startswith("faiss"))


def long_way(store: VectorStore, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(direct, "search", lambda *_: None)
        return SIFTRetriever(vectorstore=store, **settings).invoke(QUESTION)


@pytest.mark.parametrize("name", FAISS)
@pytest.mark.parametrize("unit", [True, False])
async def test_it_finds_what_the_long_way_finds(
    name: str, unit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = STORES[name](HashEmbeddings(unit=unit), passages(40), tmp_path)
    query = HashEmbeddings(unit=unit).vector(QUESTION)
    short = direct.search(store, query, 30)
    assert short is not None  # or the rest says nothing
    whole: Any = store
    wanted = whole.similarity_search_with_score_by_vector(query.tolist(), k=30)
    assert [(found, score) for found, score in zip(short[0], short[1], strict=True)] == wanted
    each: list[dict[str, Any]] = [{}, {"k": 9, "fetch_k": 20}, {"budget": 60}]
    for settings in each:
        retriever = SIFTRetriever(vectorstore=store, **settings)
        found = retriever.invoke(QUESTION)
        assert found == long_way(store, monkeypatch, **settings)
        assert await retriever.ainvoke(QUESTION) == found


def test_it_follows_what_is_added_and_deleted(tmp_path: Path) -> None:
    store: Any = STORES["faiss-l2"](HashEmbeddings(), passages(6), tmp_path)
    retriever = SIFTRetriever(vectorstore=store, k=50)
    store.delete([passages(6)[2].id])
    store.add_documents([Document("Rivers feed the mills.", id="new")])
    left = [each.page_content for each in passages(6) if each.id != passages(6)[2].id]
    found = {each.page_content for each in retriever.invoke(QUESTION)}
    assert found == {*left, "Rivers feed the mills."}


@pytest.mark.parametrize("name", [*sorted(LOSSY), "memory"])
def test_it_steps_aside(name: str, tmp_path: Path) -> None:
    store = (STORES | LOSSY)[name](HashEmbeddings(), passages(40), tmp_path)
    assert direct.search(store, HashEmbeddings().vector(QUESTION), 5) is None


def test_it_steps_aside_for_a_class_with_a_search_of_its_own(tmp_path: Path) -> None:
    store = STORES["faiss-l2"](HashEmbeddings(), passages(40), tmp_path)
    query = HashEmbeddings().vector(QUESTION)
    assert direct.search(store, query, 5) is not None
    store.__class__ = type("FAISS", (type(store),), {})
    assert direct.search(store, query, 5) is None


def test_it_steps_aside_where_something_is_wrong(tmp_path: Path) -> None:
    store: Any = STORES["faiss-l2"](HashEmbeddings(), passages(40), tmp_path)
    assert direct.search(store, np.ones(3, dtype=np.float32), 5) is None
    assert direct.search(None, np.ones(3, dtype=np.float32), 5) is None
    found = direct.search(store, HashEmbeddings().vector(QUESTION), 5)
    assert found is not None
    documents = found[0]
    assert [each.id for each in documents[1:3]] == [documents[1].id, documents[2].id]
    del store.docstore._dict[documents[0].id]
    with pytest.raises(ValueError, match="Could not find the document of id"):
        documents[0]
    del store.index_to_docstore_id[0]
    assert direct.search(store, HashEmbeddings().vector(QUESTION), 5) is None
