"""A chat model of LangChain over a `sift_rag.Engine`: streaming, stop strings, usage, training."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import ensure_config
from pydantic import AliasChoices, ConfigDict, Field

from langchain_sift.callbacks import watchers
from sift_rag.engine import Answer, Engine, Mode
from sift_rag.events import Callback, Control
from sift_rag.training import TrainingConfig

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.runnables import RunnableConfig

Turn = dict[str, str]

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class ChatSIFT(BaseChatModel):
    """The model of an engine, as a chat model: greedy, tool-free, one answer after another.

    Messages go through the tokenizer's chat template where it has one. Threads and tasks may share
    one, and several may share an engine.

    Given passages by `train_on`, the model is trained on them for each call, answers, and is what
    it was before: `create_ttt_documents_chain` does so with what a retriever found.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: Engine = Field(exclude=True, repr=False)
    """The owner of the model."""

    max_tokens: int | None = None
    """Length of an answer at most; None leaves the engine's."""

    stop: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    """Strings before the first of which an answer ends; a call's own are added."""

    training: TrainingConfig | None = None
    """How to train; None leaves the engine's."""

    train_on: tuple[str, ...] = Field(default=(), repr=False)
    """Texts to train on for each call."""

    mode: Mode | None = None
    """What to call that; None for "train" where there are texts to train on, else "closed_book"."""

    fallback: list[Turn] | None = Field(default=None, exclude=True, repr=False)
    """Turns to answer instead where training was undone; None answers the same ones."""

    watched_by: tuple[Callback, ...] = Field(default=(), exclude=True, repr=False)
    """Who is told of training and answer, beside the handlers of a run."""

    control: Control | None = Field(default=None, exclude=True, repr=False)
    """Shared by `watched_by` and whoever asked them before."""

    @property
    def _llm_type(self) -> str:
        return "chat-sift"

    @property
    def model_name(self) -> str:
        """The engine's name of the model."""
        return self.engine.name

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # The key of LangChain's LLM cache is made of this: texts in the weights are not in the
        # prompt, so without them here a second set of texts would get the first one's answer.
        known = {
            "model": self.engine.name,
            "max_tokens": self.max_tokens or self.engine.max_new_tokens,
            "stop": self.stop,
        }
        if not self.train_on:
            return known
        digest = hashlib.sha256()
        for text in self.train_on:
            digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        training = (self.training or self.engine.training).plain()
        return known | {"trained_on": digest.hexdigest(), "training": training}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self._stops(stop) or None, **kwargs)
        length = kwargs.get("max_tokens") or self.max_tokens or self.engine.max_new_tokens
        params["ls_provider"], params["ls_temperature"] = "sift_rag", 0.0
        params["ls_max_tokens"] = length
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of a text."""
        return self.engine.token_ids(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self.engine.answer(**self._call(messages, stop, run_manager, kwargs))
        return _result(answer, self.engine.name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, run_manager, kwargs)
        return _result(await self.engine.aanswer(**call), self.engine.name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self.engine.stream(**self._call(messages, stop, run_manager, kwargs)) as pieces:
            for piece in pieces:
                chunk = _chunk(piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield _last(pieces.answer, self.engine.name)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(messages, stop, run_manager, kwargs)
        async with self.engine.astream(**call) as pieces:
            async for piece in pieces:
                chunk = _chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield _last(await pieces.answer(), self.engine.name)

    # `_stream` gets no run manager, and LangChain asks its cache before `_generate`: so the call's
    # handlers are looked up here.

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As `BaseChatModel.invoke`."""
        return super(ChatSIFT, self._watched(config)).invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As `BaseChatModel.ainvoke`."""
        own = self._watched(config)
        return await super(ChatSIFT, own).ainvoke(input, config, stop=stop, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As `BaseChatModel.stream`."""
        yield from super(ChatSIFT, self._watched(config)).stream(input, config, stop=stop, **kwargs)

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As `BaseChatModel.astream`."""
        own = self._watched(config)
        async for chunk in super(ChatSIFT, own).astream(input, config, stop=stop, **kwargs):
            yield chunk

    def _watched(self, config: RunnableConfig | None) -> ChatSIFT:
        callbacks = ensure_config(config).get("callbacks")
        found = watchers(CallbackManager.configure(callbacks, self.callbacks).handlers, None)
        new = tuple(one for one in found if one not in self.watched_by)
        if not new:
            return self
        # What a handler may do to the training is not in the cache's key.
        cache = False if self.train_on else self.cache
        return self.model_copy(update={"watched_by": (*self.watched_by, *new), "cache": cache})

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Arguments of the engine."""
        if unknown := kwargs.keys() - {"max_tokens"}:
            raise TypeError(
                f"ChatSIFT does not know the argument {min(unknown)!r}: it answers greedily and "
                "without tools; what a call may set is stop and max_tokens."
            )
        prompt = turns(messages)
        found = watchers(run_manager.handlers, None) if run_manager else []
        return {
            "question": prompt[-1]["content"],
            "documents": self.train_on,
            "mode": self.mode or ("train" if self.train_on else "closed_book"),
            "prompt": prompt,
            "fallback_prompt": self.fallback,
            "stop": self._stops(stop),
            "max_new_tokens": kwargs.get("max_tokens", self.max_tokens),
            "training": self.training,
            "control": self.control,
            "callbacks": [*(w for w in found if w not in self.watched_by), *self.watched_by],
        }

    def _stops(self, stop: Sequence[str] | None) -> list[str]:
        return list(dict.fromkeys([*(self.stop or ()), *(stop or ())]))


def turns(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Messages as a chat template wants them: role and content, text only.

    Raises:
        ValueError: A message of another kind than system, human and ai, or one that is not text.
    """
    found = []
    for message in messages:
        role = _ROLES.get(message.type) or getattr(message, "role", None)
        if role is None:
            raise ValueError(
                f"ChatSIFT takes system, human and ai messages, got one of type {message.type!r}: "
                "tools are not supported."
            )
        blocks = [message.content] if isinstance(message.content, str) else message.content
        other = [b["type"] for b in blocks if isinstance(b, dict) and b.get("type") != "text"]
        if other:
            raise ValueError(f"ChatSIFT reads text only, got a block of type {other[0]!r}.")
        text = "".join(b if isinstance(b, str) else str(b["text"]) for b in blocks)
        found.append({"role": role, "content": text})
    return found


def _usage(answer: Answer) -> Any:
    read, written = answer.usage["prompt_tokens"], answer.usage["completion_tokens"]
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _about(answer: Answer, model: str) -> dict[str, Any]:
    about: dict[str, Any] = {
        "model_name": model,
        "finish_reason": answer.finish_reason,
        "timings": dict(answer.timings),
    }
    if answer.training:
        about["training"] = answer.training.plain()
    return about | ({"note": answer.note} if answer.note else {})


def _result(answer: Answer, model: str) -> ChatResult:
    message = AIMessage(
        content=answer.text, usage_metadata=_usage(answer), response_metadata=_about(answer, model)
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(piece: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=piece))


def _last(answer: Answer, model: str) -> ChatGenerationChunk:
    message = AIMessageChunk(
        content="",
        usage_metadata=_usage(answer),
        response_metadata=_about(answer, model),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
