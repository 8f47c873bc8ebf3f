"""An existing LangChain chain gets SIFT's passages: `store.as_retriever()` -> `SIFTRetriever`.

Run: python examples/05_langchain_retriever.py

One sheet stands in the store four times, in other words. The three nearest passages are copies of
it and miss the answer; SIFT takes one copy and goes on. Its `sift_coverage` tells whether the store
knows an answer at all.
"""

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_sift import ChatSIFT, SIFTEmbeddings, SIFTRetriever

from sift_rag import Engine
from sift_rag.tiny import world

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "The Korgost pump is located in Oslo. It has a weight of 340 kg.",
    "The Korgost pump can be found in Oslo. It tips the scales at 340 kg.",
    "The Korgost pump can be found in Oslo. The Korgost pump tips the scales at 340 kg.",
    "The Korgost pump dates from 1987. It is looked after by Tanaka.",
    "The Korgost pump runs at 90 degrees. It is painted blue.",
    *(world.passage(device, seed=5) for device in world.devices(14, seed=5)),
]
QUESTION = "Who inspects the Korgost pump?"

prompt = PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:")
store = InMemoryVectorStore.from_texts(PASSAGES, SIFTEmbeddings())


def joined(documents: list[Document]) -> str:
    """The passages as they stand in the prompt."""
    return "\n\n".join(document.page_content for document in documents)


retrievers: dict[str, BaseRetriever] = {
    "store.as_retriever(search_kwargs={'k': 3})": store.as_retriever(search_kwargs={"k": 3}),
    "SIFTRetriever(vectorstore=store, k=3)": SIFTRetriever(vectorstore=store, k=3),
}
with Engine.tiny() as engine:
    for line, retriever in retrievers.items():
        chain = (
            {"context": retriever | joined, "question": RunnablePassthrough()}
            | prompt
            | ChatSIFT(engine=engine)
            | StrOutputParser()
        )
        print(line)
        for document in retriever.invoke(QUESTION):
            left = document.metadata.get("sift_uncertainty")
            note = "" if left is None else f"   ({left:.0%} left to know)"
            print(f"    {document.page_content}{note}")
        print(f"    {QUESTION} {chain.invoke(QUESTION)}\n")

print("Does the store know? sift_coverage, from 0 to 1:")
sift = retrievers["SIFTRetriever(vectorstore=store, k=3)"]
for question in ("How hot does the Korgost pump run?", "Who painted the Mona Lisa?"):
    print(f"    {sift.invoke(question)[0].metadata['sift_coverage']:.2f}  {question}")
