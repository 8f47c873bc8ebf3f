"""SIFT as the search tool of a LangChain or LangGraph agent.

Run: python examples/07_langchain_tool.py

No agent runs here: the tool is called as one calls it, by a `ToolCall` that its model has written.
With langchain installed, `create_agent(model, tools=[tool])` takes the same tool.
"""

from langchain_core.messages.tool import tool_call
from langchain_core.tools import create_retriever_tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_sift import SIFTCallbackHandler, SIFTEmbeddings, SIFTRetriever

from sift_rag.tiny import world

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "The Korgost pump can be found in Oslo. The Korgost pump tips the scales at 340 kg.",
    "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987.",
    *(world.passage(device, seed=5) for device in world.devices(14, seed=5)),
]

store = InMemoryVectorStore.from_texts(PASSAGES, SIFTEmbeddings())
tool = create_retriever_tool(
    SIFTRetriever(vectorstore=store, k=2),
    "search_devices",
    "Searches the data sheets of all devices: city, inspector, weight, year and more.",
    response_format="content_and_artifact",  # the message keeps the documents beside the text
)

print("What the model is told of the tool:")
schema = convert_to_openai_tool(tool)["function"]
print(f"    {schema['name']}({', '.join(schema['parameters']['properties'])})")
print(f"    {schema['description']}")

call = tool_call(name=tool.name, args={"query": "Who inspects the Korgost pump?"}, id="call_1")
message = tool.invoke(call)
print(f"\n{type(message).__name__}, the answer to {message.tool_call_id}:")
for text in message.content.split("\n\n"):
    print(f"    {text}")
print("With it come the documents, for the program, not for the model:")
for document in message.artifact:
    about = document.metadata
    print(f"    rank {about['sift_rank']}, told {about['sift_gain']:.0%} of what was to know")

print("\nThe same tool in a run whose handler asks for one passage:")
asked = {"query": "Where is the Korgost pump?"}
print(f"    {tool.invoke(asked, {'callbacks': [SIFTCallbackHandler(k=1)]})}")
