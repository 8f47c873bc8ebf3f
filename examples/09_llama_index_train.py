"""A LlamaIndex query engine that stuffs or trains; a handler that watches the losses and stops.

Run: python examples/09_llama_index_train.py
"""

import asyncio

from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import TextNode
from llama_index_sift import SIFTCallbackHandler, SIFTEmbedding, sift_query_engine

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


nodes = [TextNode(text=text) for text in PASSAGES]
index = VectorStoreIndex(nodes, embed_model=SIFTEmbedding())
with Engine.tiny() as engine:
    print("The same two nodes, used in four ways:")
    for mode in ("closed_book", "stuff", "train", "both"):
        print(f"    {mode:12} {sift_query_engine(index, engine, k=2, mode=mode).query(QUESTION)}")

    print("Training, watched, and stopped once the nodes are known:")
    known = CallbackManager([Losses(stop_when=lambda step: step["loss"] < 0.2)])
    watched = sift_query_engine(index, engine, k=2, callback_manager=known)
    response = watched.query(QUESTION)
    print(f"    {QUESTION} {response}")
    for found in response.source_nodes:
        print(f"    {found.metadata['sift_rank']}. {found.text}")

    print("Both arms at once over one model, as each answers alone:")

    async def side_by_side() -> None:
        """Ask both; the event loop goes on while one trains."""
        arms = [sift_query_engine(index, engine, k=2, mode=mode) for mode in ("stuff", "train")]
        for text in await asyncio.gather(*(arm.aquery(QUESTION) for arm in arms)):
            print(f"    {text}")

    asyncio.run(side_by_side())
