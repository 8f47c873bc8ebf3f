"""Chains of LangChain, query engines of LlamaIndex and functions, as they are, as ways."""

import asyncio
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import pytest
from langchain_classic.chains import RetrievalQA, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import (
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_sift import ChatSIFT, SIFTRetriever, create_ttt_documents_chain
from langchain_stores import HashEmbeddings
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index_sift import sift_query_engine
from llama_index_stores import HashEmbedding
from pydantic import BaseModel

from sift_rag import Document, Engine
from sift_rag.cases import Case, Reply
from sift_rag.foreign import InvokeWith
from sift_rag.ways import Way, describe, resolve

TEXTS = (
    "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987.",
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "The Belvane crane is painted blue. It dates from 2011.",
)
CASE = Case("Who inspects the Korgost pump?", ("Tanaka",))


def way(given: Any) -> Way:
    return resolve({"mine": given})["mine"]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class TestLangChain:
    STUFF = PromptTemplate.from_template("{context}\n\nQuestion: {input}\nAnswer:")
    ASK = PromptTemplate.from_template("Question: {input}\nAnswer:")
    PROMPT = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:")

    @pytest.fixture
    def retriever(self) -> SIFTRetriever:
        store = InMemoryVectorStore(HashEmbeddings())
        documents = [
            LangChainDocument(text, metadata={"page": i}, id=f"p{i}")
            for i, text in enumerate(TEXTS)
        ]
        store.add_documents(documents)
        return SIFTRetriever(vectorstore=store, k=2)

    @pytest.mark.parametrize("mode", ["stuff", "train", "both"])
    def test_a_retrieval_chain_that_trains(
        self, retriever: SIFTRetriever, tiny: Engine, mode: Any
    ) -> None:
        inner = create_ttt_documents_chain(tiny, self.STUFF, ttt_prompt=self.ASK, mode=mode)
        reply = way(create_retrieval_chain(retriever, inner))(CASE)
        found = retriever.invoke(CASE.question)
        texts = [document.page_content for document in found]
        assert reply.text == tiny.answer(CASE.question, texts, mode=mode).text
        assert reply.documents is not None
        assert [document.text for document in reply.documents] == texts
        assert [document.id for document in reply.documents] == [each.id for each in found]
        assert [document.metadata["page"] for document in reply.documents] == [
            each.metadata["page"] for each in found
        ]
        assert reply.seconds.keys() == {"total"}
        assert 0 < reply.seconds["total"] < 60

    def test_usage_of_a_message_is_read(self, retriever: SIFTRetriever, tiny: Engine) -> None:
        texts = retriever | (lambda found: "\n\n".join(each.page_content for each in found))
        chain: Any = {"context": texts, "question": RunnablePassthrough()} | self.PROMPT
        message = (chain | ChatSIFT(engine=tiny)).invoke(CASE.question)
        reply = way(chain | ChatSIFT(engine=tiny))(CASE)
        assert reply.text == message.content
        usage = message.usage_metadata
        assert reply.tokens == {"in": usage["input_tokens"], "out": usage["output_tokens"]}
        assert reply.tokens["in"] > 10
        assert reply.documents is None  # the chain keeps them to itself

    @pytest.mark.parametrize("kind", ["string", "itemgetter", "assign", "lambda", "parallel"])
    def test_the_input_is_what_the_chain_asks_for(
        self, retriever: SIFTRetriever, kind: str
    ) -> None:
        model = FakeListChatModel(responses=["Tanaka"])
        prompt: Any = self.PROMPT | model | StrOutputParser()
        ask, found = itemgetter("question"), itemgetter("question") | retriever
        chains: dict[str, Any] = {
            "string": {"context": retriever, "question": RunnablePassthrough()} | prompt,
            "itemgetter": {"context": found, "question": ask} | prompt,
            "assign": RunnablePassthrough.assign(context=found).assign(answer=prompt),
            "lambda": RunnablePassthrough.assign(context=(lambda x: x["question"]) | retriever)
            | prompt,
            "parallel": RunnableParallel(
                answer={"context": found, "question": ask} | prompt, context=found
            ),
        }
        reply = way(chains[kind])(CASE)
        assert reply.text == "Tanaka"
        shown = reply.documents and [document.id for document in reply.documents]
        wanted = [document.id for document in retriever.invoke(CASE.question)]
        assert shown == (wanted if kind in ("assign", "parallel") else None)

    def test_a_model_alone_gets_the_question(self, tiny: Engine) -> None:
        assert (
            way(ChatSIFT(engine=tiny))(CASE).text
            == tiny.answer(CASE.question, prompt=CASE.question, mode="closed_book").text
        )

    def test_the_classic_question_answering_chain(self, retriever: SIFTRetriever) -> None:
        model = FakeListChatModel(responses=["Tanaka"])
        chain = RetrievalQA.from_chain_type(
            model, retriever=retriever, return_source_documents=True
        )
        reply = way(chain)(CASE)
        assert reply.text == "Tanaka"
        assert reply.documents is not None
        assert len(reply.documents) == 2

    def test_an_optional_history_is_left_out(self) -> None:
        prompt = ChatPromptTemplate.from_messages(
            [MessagesPlaceholder("history", optional=True), ("human", "{input}")]
        )
        chain: Any = prompt | RunnableLambda(lambda value: value.to_string())
        assert way(chain)(CASE).text == f"Human: {CASE.question}"

    def test_several_inputs_are_for_the_user_to_say(self) -> None:
        prompt = ChatPromptTemplate.from_template("{tone} {question}")
        chain: Any = prompt | FakeListChatModel(responses=["x"])
        message = r"'mine': The runnable RunnableSequence takes several inputs: question, tone\."
        with pytest.raises(ValueError, match=message + r" Say where .*InvokeWith"):
            way(chain)
        asked = lambda question: chain.invoke({"tone": "Kindly:", "question": question})  # noqa: E731
        assert way(asked)(CASE).text == "x"

    def test_a_function_of_a_dict_finds_the_question_under_the_usual_names(self) -> None:
        def typed(inputs: dict[str, Any]) -> str:
            return str(inputs["query"])

        assert way(RunnableLambda(typed))(CASE).text == CASE.question

    def test_the_input_may_be_said(self) -> None:
        chain: Any = RunnableLambda(lambda inputs: str(inputs))
        assert way(InvokeWith(chain, "ask"))(CASE).text == str({"ask": CASE.question})
        assert way(InvokeWith(chain, None))(CASE).text == CASE.question

    def test_content_in_blocks_is_joined(self) -> None:
        blocks: list[Any] = ["Ta", {"type": "text", "text": "na"}, {"type": "image"}, "ka"]
        chain: Any = RunnableLambda(lambda question: AIMessage(content=blocks))
        assert way(chain)(CASE).text == "Tanaka"

    def test_a_context_that_is_one_text_tells_no_passages(self) -> None:
        chain: Any = RunnableLambda(lambda question: {"answer": "Tanaka", "context": "all of it"})
        assert way(chain)(CASE).documents is None

    def test_a_retriever_is_no_way_to_answer(self, retriever: SIFTRetriever) -> None:
        with pytest.raises(TypeError, match=r"A way gave list: .*; it must give the answer as a"):
            way(retriever)(CASE)

    def test_a_dict_without_an_answer_says_what_it_has(self) -> None:
        chain: Any = RunnableLambda(lambda question: {"text": "x", "score": 1})
        message = r"keys 'text', 'score'; it must have 'answer' or 'result' or 'output'"
        with pytest.raises(TypeError, match=message):
            way(chain)(CASE)

    def test_an_error_of_the_chain_is_the_error(self) -> None:
        def fails(question: str) -> str:
            raise KeyError("no such thing")

        with pytest.raises(KeyError, match="no such thing"):
            way(RunnableLambda(fails))(CASE)

    def test_a_broken_schema_is_no_obstacle(self) -> None:
        class Plain(RunnableLambda[Any, Any]):
            def get_input_jsonschema(
                self, config: RunnableConfig | None = None, **kwargs: Any
            ) -> dict[str, Any]:
                raise ValueError("no schema")

        assert way(Plain(lambda question: question))(CASE).text == CASE.question

    def test_what_it_is_is_told_by_its_classes(self, retriever: SIFTRetriever) -> None:
        chain: Any = {"context": retriever, "question": RunnablePassthrough()} | self.PROMPT
        model = FakeListChatModel(responses=["x"])
        assert describe(way(chain | model)) == {
            "kind": "langchain",
            "module": "langchain_core.runnables.base",
            "name": "RunnableSequence",
            "steps": ["RunnableParallel", "ChatPromptTemplate", "FakeListChatModel"],
            "keys": [],
        }
        assert describe(way(InvokeWith(model, "q")))["keys"] == ["q"]
        inner = create_stuff_documents_chain(model, self.STUFF)
        assert describe(way(create_retrieval_chain(retriever, inner)))["keys"] == ["input"]


class Structured(BaseModel):
    name: str


class TestLlamaIndex:
    @pytest.fixture
    def index(self) -> VectorStoreIndex:
        nodes = [
            TextNode(text=text, id_=f"n{i}", metadata={"page": i}) for i, text in enumerate(TEXTS)
        ]
        return VectorStoreIndex(nodes, embed_model=HashEmbedding())

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("mode", ["stuff", "train"])
    def test_a_query_engine(
        self, index: VectorStoreIndex, tiny: Engine, mode: Any, streaming: bool
    ) -> None:
        engine = sift_query_engine(index, tiny, k=2, mode=mode, streaming=streaming)
        reply = way(engine)(CASE)
        response: Any = engine.query(CASE.question)
        assert reply.text == str(response).strip()
        assert reply.documents is not None
        assert [document.id for document in reply.documents] == [
            each.node_id for each in response.source_nodes
        ]
        assert [document.text for document in reply.documents] == [
            each.node.get_content(metadata_mode=MetadataMode.NONE) for each in response.source_nodes
        ]
        assert all("page" in document.metadata for document in reply.documents)
        assert reply.seconds.keys() == {"total"}

    def test_the_query_engine_of_an_index(self, index: VectorStoreIndex) -> None:
        reply = way(index.as_query_engine(llm=MockLLM(), similarity_top_k=1))(CASE)
        assert CASE.question in reply.text  # the model echoes its prompt
        assert reply.documents is not None
        (document,) = reply.documents
        assert document.text in TEXTS
        assert document.text in reply.text

    def test_other_responses_of_a_function(self) -> None:
        nodes = [NodeWithScore(node=TextNode(text="a", id_="1"))]
        structured: Any = PydanticResponse(response=Structured(name="x"), source_nodes=nodes)
        assert way(lambda question: structured)(CASE).text == '{"name":"x"}'
        empty = Response(response=None, source_nodes=nodes)
        reply = way(lambda question: empty)(CASE)
        assert (reply.text, reply.documents) == ("", (Document("a", id="1"),))

    def test_what_it_is(self, index: VectorStoreIndex, tiny: Engine) -> None:
        assert describe(way(sift_query_engine(index, tiny))) == {
            "kind": "llama_index",
            "module": "llama_index.core.query_engine.retriever_query_engine",
            "name": "RetrieverQueryEngine",
        }


def of_question(question: str) -> str:
    return f"asked: {question}"


def of_case(case: Case) -> str:
    return f"case: {case.id}"


def of_postponed_case(case: "Case", *, more: int = 0) -> str:
    return f"case: {case.id}"


def of_marked(any_name: Any) -> str:
    return f"case: {any_name.id}"


of_marked.takes_case = True  # type: ignore[attr-defined]


class Asks:
    def __call__(self, case: Case) -> str:
        return f"case: {case.id}"

    def method(self, question: str) -> str:
        return f"asked: {question}"


class TestFunctions:
    @pytest.mark.parametrize(
        "function", [of_question, Asks().method, lambda question: f"asked: {question}"]
    )
    def test_they_get_the_question(self, function: Any) -> None:
        assert way(function)(CASE).text == f"asked: {CASE.question}"

    @pytest.mark.parametrize(
        "function",
        [of_case, of_postponed_case, of_marked, Asks(), partial(of_postponed_case, more=1)],
    )
    def test_or_the_case_where_they_say_so(self, function: Any) -> None:
        assert way(function)(CASE).text == f"case: {CASE.id}"

    def test_async_ones_share_a_loop_that_stays(self) -> None:
        loops = []

        async def later(question: str) -> str:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return of_question(question)

        first, second = way(later), way(later)
        assert [first(CASE).text, second(CASE).text, first(CASE).text] == [
            f"asked: {CASE.question}"
        ] * 3
        assert len(set(loops)) == 1
        assert loops[0].is_running()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_fork_has_a_loop_of_its_own(self) -> None:
        """Also where its parent had one, whose thread is not there: and nothing is said at exit."""
        code = (
            "import os\n"
            "from sift_rag.cases import Case\n"
            "from sift_rag.ways import resolve\n"
            "async def later(question): return question\n"
            "way = resolve({'mine': later})['mine']\n"
            "print(way(Case('parent')).text, flush=True)\n"
            "child = os.fork()\n"
            "print(way(Case('both')).text, flush=True)\n"
            "if child: os.waitpid(child, 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-I", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split() == ["parent", "both", "both"]
        assert done.stderr == ""

    async def test_also_where_a_loop_is_running(self) -> None:
        async def later(question: str) -> str:
            await asyncio.sleep(0.001)
            return of_question(question)

        assert way(later)(CASE).text == f"asked: {CASE.question}"

    def test_the_error_of_an_async_one(self) -> None:
        async def fails(question: str) -> str:
            raise OSError("no network")

        with pytest.raises(OSError, match="no network"):
            way(fails)(CASE)

    def test_a_reply_keeps_what_it_tells(self) -> None:
        told = Reply(
            text="x", seconds={"prefill": 1.0}, tokens={"in": 3}, memory=7, coverage=0.5, nats=2.0
        )
        reply = way(lambda question: told)(CASE)
        assert reply.seconds["prefill"] == 1.0
        assert reply.seconds["total"] < 1.0
        assert (reply.tokens, reply.memory, reply.coverage, reply.nats) == ({"in": 3}, 7, 0.5, 2.0)

    def test_a_reply_that_tells_its_whole_time_stays_as_it_is(self) -> None:
        told = Reply(text="x", seconds={"total": 100.0})
        assert way(lambda question: told)(CASE) is told

    def test_an_answer_of_an_engine_keeps_its_stages(self, tiny: Engine) -> None:
        reply = way(lambda question: tiny.answer(question, TEXTS[:1], mode="train"))(CASE)
        assert reply.text == "Tanaka"
        assert reply.tokens["trained"] > 0
        assert 0 < reply.seconds["train"] < reply.seconds["total"]

    def test_passages_may_be_texts_or_documents(self) -> None:
        reply = way(lambda question: {"answer": "x", "context": ["a", Document("b", id="2")]})(CASE)
        assert reply.documents == (Document("a"), Document("b", id="2"))

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
    def test_time_and_memory_are_those_of_the_call(self) -> None:
        def slow(question: str) -> str:
            kept = bytearray(100 * 2**20)
            kept[::4096] = b"x" * len(kept[::4096])
            time.sleep(0.05)
            return "x"

        reply = way(slow)(CASE)
        assert 0.05 <= reply.seconds["total"] < 5
        assert reply.memory is not None
        assert 95 * 2**20 < reply.memory < 150 * 2**20

    @pytest.mark.parametrize("wrong", [None, 7, ["x"], object(), Reply(text=None)])  # type: ignore[arg-type]
    def test_what_is_no_answer_is_refused(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"A way gave .*; it must give the answer as a string"):
            way(lambda question: wrong)(CASE)

    def test_a_function_of_nothing_or_of_two_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"The way 'mine': .* must take one argument: too many"):
            way(lambda: "x")
        with pytest.raises(TypeError, match=r"must take one argument: missing a required"):
            way(lambda question, other: "x")

    def test_a_builtin_without_a_signature_is_asked_all_the_same(self) -> None:
        with pytest.raises(ValueError, match="no signature"):
            inspect.signature(max)
        assert way(max)(Case("abc")).text == "c"

    def test_what_it_is(self) -> None:
        module = __name__
        named = {"kind": "callable", "module": module}
        assert describe(way(of_question)) == named | {"name": "of_question"}
        assert describe(way(partial(of_question))) == named | {"name": "of_question"}
        assert describe(way(Asks())) == named | {"name": "Asks"}
        assert describe(way(Asks().method)) == named | {"name": "Asks.method"}
        assert describe(of_case) == named | {"name": "of_case"}  # type: ignore[arg-type]
        assert describe(way(lambda question: "x"))["name"].endswith("<lambda>")
