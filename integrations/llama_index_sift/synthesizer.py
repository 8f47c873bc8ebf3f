"""A response synthesizer that trains on the nodes instead of stuffing them, or does both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.synthesis import (
    SynthesizeEndEvent,
    SynthesizeStartEvent,
)
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.settings import Settings
from llama_index.core.types import RESPONSE_TEXT_TYPE

from llama_index_sift.callbacks import watchers
from llama_index_sift.llm import SIFTLLM
from sift_rag.engine import Engine, Mode, check_mode
from sift_rag.events import Callback, Control, emit
from sift_rag.prompting import PromptTemplate as Words
from sift_rag.training import TrainingConfig

_dispatcher = get_dispatcher(__name__)
_WORDS = Words()
_STUFFED = _WORDS.stuffed.format(context="{context_str}", question="{query_str}")
_EMPTY = "Empty Response"  # LlamaIndex's own
_CLOSED_BOOK = _WORDS.closed_book.format(question="{query_str}")


class TTTSynthesizer(BaseSynthesizer):
    """Answers from nodes: with their text in the weights, in the prompt, in both, or in neither.

    It takes the place of any response synthesizer of a query engine: source nodes and metadata of
    the response are the same. Without nodes the response is "Empty Response", as of any other one,
    but for "closed_book", which asks the model all the same.

    Args:
        engine: An `Engine`, or a `SIFTLLM` with settings of its own.
        mode: "train" trains on the nodes' own text (without metadata), answers, and leaves no
            trace; "stuff" puts them into the prompt, with the metadata that each node shows to a
            model; "both" does both; "closed_book" neither. `synthesize(..., mode=...)` may set it
            for one call.
        streaming: Whether responses come piece by piece. Training is over when the response is
            there: its events are inside the query's span, and its errors are the query's.
        training: How to train; None leaves the model's.
        text_qa_template: For "stuff" and "both", with `{context_str}` and `{query_str}`. Without
            `{context_str}`, it serves "train". By default the words of `sift_rag`.
        ttt_template: For "train" and "closed_book", with `{query_str}` alone. By default the words
            of `sift_rag`, where text_qa_template is not given either.
        callback_manager: Its `SIFTCallbackHandler`s configure and watch each call.
        callbacks: Other callbacks of `sift_rag` that do so.

    Raises:
        ValueError: A template does not suit the mode.
        TypeError: The model cannot be trained here, or a template is none.
    """

    def __init__(
        self,
        engine: Engine | SIFTLLM,
        mode: Mode = "train",
        *,
        streaming: bool = False,
        training: TrainingConfig | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        ttt_template: BasePromptTemplate | None = None,
        callback_manager: CallbackManager | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._model = llm = _as_model(engine)
        if callback_manager is None:  # as LlamaIndex has it, but that a model may bring its own
            own = llm.callback_manager
            callback_manager = own if own.handlers else Settings.callback_manager
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            prompt_helper=PromptHelper.from_llm_metadata(
                llm.metadata, tokenizer=llm.engine.token_ids
            ),
            streaming=streaming,
        )
        if text_qa_template is None:
            text_qa_template = PromptTemplate(_STUFFED)
            ttt_template = ttt_template or PromptTemplate(_CLOSED_BOOK)
        self._mode = check_mode(mode)
        self._training = training
        self._callbacks = tuple(callbacks)
        self._text_qa, self._ttt = _checked(mode, text_qa_template, ttt_template)

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa} | (
            {} if self._ttt is None else {"ttt_template": self._ttt}
        )

    def _update_prompts(self, prompts: PromptDictType) -> None:
        text_qa = prompts.get("text_qa_template", self._text_qa)
        ttt = prompts.get("ttt_template", self._ttt)
        self._text_qa, self._ttt = _checked(self._mode, text_qa, ttt)

    # `synthesize` is the base's, but that the nodes' own text goes along. To call the base's would
    # give each call two spans.

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer from the nodes."""
        bundle = QueryBundle(query) if isinstance(query, str) else query
        with self._announced(bundle) as done:
            if self._is_empty(nodes, response_kwargs):
                if self._streaming:
                    return done(StreamingResponse(_nothing()))
                return done(Response(_EMPTY))
            text = self.get_response(bundle.query_str, *_texts(nodes), **response_kwargs)
            sources = [*nodes, *(additional_source_nodes or ())]
            return done(self._prepare_response_output(text, sources))

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer from the nodes, without blocking the event loop."""
        bundle = QueryBundle(query) if isinstance(query, str) else query
        with self._announced(bundle) as done:
            if self._is_empty(nodes, response_kwargs):
                if self._streaming:
                    return done(AsyncStreamingResponse(_anothing()))
                return done(Response(_EMPTY))
            text = await self.aget_response(bundle.query_str, *_texts(nodes), **response_kwargs)
            sources = [*nodes, *(additional_source_nodes or ())]
            return done(self._prepare_response_output(text, sources))

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        train_on: Sequence[str] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """Answer from texts.

        Args:
            query_str: The question.
            text_chunks: For the prompt.
            train_on: To train on; None for the same ones.
            response_kwargs: `mode`, and what else the templates ask for.
        """
        llm, template, values = self._prepared(query_str, text_chunks, train_on, response_kwargs)
        if not self._streaming:
            return llm.predict(template, **values)
        return _begun(llm.stream(template, **values))

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        train_on: Sequence[str] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response`, without blocking the event loop."""
        llm, template, values = await asyncio.to_thread(  # handlers may take their time
            self._prepared, query_str, text_chunks, train_on, response_kwargs
        )
        if not self._streaming:
            return await llm.apredict(template, **values)
        return await _abegun(await llm.astream(template, **values))

    @contextmanager
    def _announced(self, query: QueryBundle) -> Iterator[Callable[[RESPONSE_TYPE], RESPONSE_TYPE]]:
        """LlamaIndex's events around a synthesis; what is yielded takes the response and gives it
        back."""
        _dispatcher.event(SynthesizeStartEvent(query=query))
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query.query_str}
        with self._callback_manager.event(CBEventType.SYNTHESIZE, payload=payload) as event:

            def done(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
                event.on_end(payload={EventPayload.RESPONSE: response})
                _dispatcher.event(SynthesizeEndEvent(query=query, response=response))
                return response

            yield done

    def _is_empty(self, nodes: Sequence[NodeWithScore], response_kwargs: dict[str, Any]) -> bool:
        return not nodes and response_kwargs.get("mode", self._mode) != "closed_book"

    def _prepared(
        self,
        question: str,
        chunks: Sequence[str],
        train_on: Sequence[str] | None,
        others: dict[str, Any],
    ) -> tuple[SIFTLLM, BasePromptTemplate, dict[str, Any]]:
        """The model for this call, and what to ask it."""
        others = dict(others)
        mode = check_mode(others.pop("mode", self._mode))
        text_qa, ttt = _checked(mode, self._text_qa, self._ttt)
        values = {"query_str": question, **others}
        stuffed = {**values, "context_str": _WORDS.separator.join(chunks)}
        fallback = (
            self._model.worded(text_qa, **stuffed)
            if mode == "train" and _takes_context(text_qa)
            else None
        )
        texts = chunks if train_on is None else train_on
        model = self._adapted(question, mode, [text for text in texts if text.strip()], fallback)
        if mode in ("stuff", "both"):
            return model, text_qa, stuffed
        return model, ttt or text_qa, values

    def _adapted(self, question: str, mode: Mode, texts: Sequence[str], fallback: Any) -> SIFTLLM:
        """The model, told what to train on for this call."""
        model = self._model
        callbacks = watchers(self._callback_manager, (*self._callbacks, *model.watched_by))
        control = Control(training=self._training or model.training)
        n = len(texts)
        asked = {"question": question, "mode": mode, "k": n, "fetch_k": n, "noise": None}
        emit(callbacks, "on_start", control, asked)
        if not texts:  # nothing to train on
            mode = "closed_book" if mode == "train" else "stuff" if mode == "both" else mode
        return model.model_copy(
            update={
                "train_on": tuple(texts) if mode in ("train", "both") else (),
                "mode": mode,
                "training": control.training,
                "fallback": fallback,
                "watched_by": tuple(callbacks),
                "control": control,
            }
        )


def _as_model(engine: Engine | SIFTLLM) -> SIFTLLM:
    """A model of our own: LlamaIndex sets its callback manager."""
    if isinstance(engine, SIFTLLM):
        return engine.model_copy()
    if isinstance(engine, Engine):
        return SIFTLLM(engine=engine)
    raise TypeError(
        f"TTTSynthesizer needs a model that can be trained, an Engine or a SIFTLLM, got "
        f"{type(engine).__name__}."
    )


def _texts(nodes: Sequence[NodeWithScore]) -> tuple[list[str], list[str]]:
    """What a prompt shows of the nodes, and their own text to train on."""
    shown = [each.node.get_content(metadata_mode=MetadataMode.LLM) for each in nodes]
    return shown, [each.node.get_content(metadata_mode=MetadataMode.NONE) for each in nodes]


def _takes_context(template: BasePromptTemplate) -> bool:
    mapped = (template.template_var_mappings or {}).get("context_str", "context_str")
    return mapped in template.template_vars


def _checked(
    mode: Mode, text_qa: BasePromptTemplate, ttt: BasePromptTemplate | None
) -> tuple[BasePromptTemplate, BasePromptTemplate | None]:
    """The templates, if they suit the mode."""
    for template in (text_qa, ttt or text_qa):
        if not isinstance(template, BasePromptTemplate):
            raise TypeError(
                f"A template must be a prompt template of LlamaIndex, got "
                f"{type(template).__name__}: PromptTemplate(text) makes one."
            )
    if ttt is not None and _takes_context(ttt):
        raise ValueError(
            "ttt_template has the variable 'context_str', so the nodes would be in the prompt as "
            'well: leave it out, or use mode="both" with text_qa_template= alone.'
        )
    if mode in ("stuff", "both") and not _takes_context(text_qa):
        raise ValueError(
            f'mode="{mode}" puts the nodes into the prompt, whose variables are '
            f"{text_qa.template_vars}: add {{context_str}} to it."
        )
    if mode in ("train", "closed_book") and ttt is None and _takes_context(text_qa):
        raise ValueError(
            f'mode="{mode}" leaves the nodes out of the prompt, but text_qa_template has '
            "{context_str}: pass ttt_template=, a template with the question alone, or use "
            'mode="both".'
        )
    return text_qa, ttt


def _nothing() -> Generator[str, None, None]:
    yield _EMPTY


async def _anothing() -> AsyncGenerator[str, None]:
    yield _EMPTY


def _begun(pieces: Iterator[str]) -> Generator[str, None, None]:
    """The same pieces, once the first is there: by then, training is over."""
    first = next(pieces, "")

    def rest() -> Generator[str, None, None]:
        yield first
        yield from pieces

    return rest()


async def _abegun(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    first = await anext(pieces, "")

    async def rest() -> AsyncGenerator[str, None]:
        try:
            yield first
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    return rest()
