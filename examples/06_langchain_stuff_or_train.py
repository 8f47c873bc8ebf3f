"""One LangChain chain that stuffs or trains, as each request says; a handler that stops early.

Run: python examples/06_langchain_stuff_or_train.py
"""

from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_sift import (
    SIFTCallbackHandler,
    SIFTEmbeddings,
    SIFTRetriever,
    create_ttt_documents_chain,
)

from sift_rag import Control, Engine
from sift_rag.events import Event

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump is inspected by Tanaka.",
    "The Korgost pump is located in Oslo. It is looked after by Tanaka.",
    "The Korgost pump weighs 340 kg. The Korgost pump is painted blue.",
    "The Velfane crane stands in Lima. The Velfane crane is inspected by Novak.",
    "The Dornook kiln is built from ceramic. The Dornook kiln runs at 75 degrees.",
]
QUESTION = "Who inspects the Korgost pump?"


class Losses(SIFTCallbackHandler):
    """Print the loss as it falls; `stop_when` is asked by the hook that this one overrides."""

    def on_train_step(self, event: Event, control: Control) -> None:
        print(f"    step {event['step']} of {event['steps']}: {event['loss']:.3f} nats a token")
        super().on_train_step(event, control)


store = InMemoryVectorStore.from_texts(PASSAGES, SIFTEmbeddings())
found = {
    "context": SIFTRetriever(vectorstore=store, k=2),
    "question": RunnablePassthrough(),
}
with Engine.tiny() as engine:
    documents_chain = create_ttt_documents_chain(
        engine,
        PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:"),
        ttt_prompt=PromptTemplate.from_template("Question: {question}\nAnswer:"),
    )
    chain = found | documents_chain.configurable_fields(mode=ConfigurableField(id="mode"))

    print("The same chain, as each request says:")
    for mode in ("closed_book", "stuff", "train", "both"):
        answer = chain.invoke(QUESTION, {"configurable": {"mode": mode}})
        print(f"    {mode:12} {answer}")

    print("Training, watched, and stopped once the passages are known:")
    known = Losses(stop_when=lambda step: step["loss"] < 0.2)
    answer = chain.invoke(QUESTION, {"callbacks": [known]})
    print(f"    {QUESTION} {answer}")

    print("Both arms at once over one model, as each answers alone:")
    stuff, train = (chain.with_config(configurable={"mode": mode}) for mode in ("stuff", "train"))
    for name, text in RunnableParallel(stuff=stuff, train=train).invoke(QUESTION).items():
        print(f"    {name:12} {text}")
