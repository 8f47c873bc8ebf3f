"""What came back, in whatever shape, as a `Reply`.

Answers of our own engine, texts, messages and dicts of LangChain, responses of LlamaIndex. The
frameworks' classes are known by their shape, as neither is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from sift_rag.cases import Reply
from sift_rag.documents import Document

if TYPE_CHECKING:
    from sift_rag.answering import Answer

_ANSWERS = ("answer", "result", "output")
_SOURCES = ("context", "source_documents")


def as_reply(result: Any) -> Reply:
    """What a way of the user's own gave, as a reply.

    Args:
        result: A text; a `Reply`; an `Answer`; a message of LangChain, whose usage is read; a dict
            with "answer", "result" or "output", and maybe with the passages as "context" or
            "source_documents"; a response of LlamaIndex, whose source nodes are the passages.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(result, str):
        return Reply(text=result)
    if isinstance(result, Reply) and isinstance(result.text, str):
        return result
    if isinstance(result, Mapping):
        return _of_dict(result)
    if _is_answer(result):
        return of_answer(result)
    if isinstance(getattr(result, "source_nodes", None), list):
        return _of_response(result)
    if isinstance(getattr(result, "content", None), str | list):
        return _of_message(result)
    raise TypeError(
        f"A way gave {_shown(result)}; it must give the answer as a string, a sift_rag.cases.Reply "
        "or an Answer, a message of LangChain, a dict with "
        f"{' or '.join(map(repr, _ANSWERS))}, or a response of LlamaIndex. Wrap it in a function "
        "that returns one of these."
    )


def of_answer(answer: Answer, *, endless: bool = False) -> Reply:
    """An answer of our own engine.

    Its time is the sum of its stages: waiting for the model and scoring a reference are not in it.

    Args:
        answer: With its selection and its search's time where a `Pipeline` made it.
        endless: Whether it is the continuation of a text, so that it is no news that it was cut.
    """
    timings, picks = answer.timings, answer.selection
    cut = "" if endless else _cut(answer)
    seconds = {
        "retrieve": timings.get("search", 0.0),
        "select": timings.get("select", 0.0),
        "train": timings["train"] if answer.training else 0.0,
        "prefill": timings["prompt"] + timings["prefill"],
        "decode": timings["decode"],
    }
    usage = answer.usage
    return Reply(
        text=answer.text,
        documents=answer.documents,
        seconds=seconds | {"total": sum(seconds.values())},
        tokens={
            "in": usage["prompt_tokens"],
            "out": usage["completion_tokens"],
            "trained": usage["training_tokens"],
        },
        nats=answer.score.nats if answer.score else None,
        coverage=picks.coverage if picks else None,
        uncertainty=float(picks.uncertainty[-1]) / picks.initial_uncertainty if picks else None,
        note=" ".join(filter(None, (answer.note, _left_out(answer), cut))),
    )


def _left_out(answer: Answer) -> str:
    if not answer.left_out:
        return ""
    return f"{len(answer.left_out)} of the selected passages did not fit into the prompt."


def _cut(answer: Answer) -> str:
    if answer.finish_reason != "length":
        return ""
    return f"The answer was cut at its longest, max_new_tokens={answer.usage['completion_tokens']}."


def _is_answer(result: Any) -> TypeGuard[Answer]:
    module = sys.modules.get("sift_rag.answering")  # else nobody has made one, and torch stays out
    return module is not None and isinstance(result, module.Answer)


def _of_dict(result: Mapping[str, Any]) -> Reply:
    key = next((key for key in _ANSWERS if key in result), None)
    if key is None:
        raise TypeError(
            f"A way gave a dict with the keys {', '.join(map(repr, result)) or 'none'}; it must "
            f"have {' or '.join(map(repr, _ANSWERS))}. Wrap it in a function that returns the text."
        )
    reply = as_reply(result[key])
    found = (_documents(result[name]) for name in _SOURCES if name in result)
    documents = next((each for each in found if each is not None), reply.documents)
    return replace(reply, documents=documents)


def _of_message(message: Any) -> Reply:
    """The text of its blocks, and the tokens it tells of."""
    content = message.content
    blocks = [content] if isinstance(content, str) else content
    texts = [block if isinstance(block, str) else block.get("text", "") for block in blocks]
    usage = getattr(message, "usage_metadata", None) or {}
    told = {"in": usage.get("input_tokens"), "out": usage.get("output_tokens")}
    tokens = {kind: count for kind, count in told.items() if isinstance(count, int)}
    return Reply(text="".join(texts), tokens=tokens)


def _of_response(response: Any) -> Reply:
    """Of LlamaIndex, streamed or not; the passages without the metadata shown to the model."""
    read = getattr(response, "get_response", None)  # a stream, read to its end, or an object
    text = (read() if callable(read) else response).response
    nodes = [each.node for each in response.source_nodes]
    documents = tuple(
        Document(node.get_content(metadata_mode="none"), node.metadata, node.node_id)
        for node in nodes
    )
    return replace(as_reply(text or ""), documents=documents)


def _documents(items: Any) -> tuple[Document, ...] | None:
    """Passages of a chain; None where they are something else, such as one text of all."""
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        return None
    each = [_document(item) for item in items]
    found = tuple(document for document in each if document is not None)
    return found if len(found) == len(each) else None


def _document(item: Any) -> Document | None:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(item)
    text = getattr(item, "page_content", None)
    if not isinstance(text, str):
        return None
    return Document(text, getattr(item, "metadata", None) or {}, str(getattr(item, "id", "") or ""))


def _shown(result: Any) -> str:
    kind = type(result).__name__
    return f"{kind}: {result!r}"[:120]
