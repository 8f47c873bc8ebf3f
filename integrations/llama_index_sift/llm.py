"""A model of LlamaIndex over a `sift_rag.Engine`: streaming, stop strings, usage, training."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate
from pydantic import Field

from llama_index_sift.callbacks import watchers
from sift_rag.engine import Answer, AsyncStream, Engine, Mode, Stream
from sift_rag.events import Callback, Control
from sift_rag.training import TrainingConfig

T = TypeVar("T")
Turn = dict[str, str]

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


class SIFTLLM(CustomLLM):
    """The model of an engine: greedy, tool-free, one answer after another.

    Messages go through the tokenizer's chat template where it has one, as a plain prompt does.
    Threads and tasks may share one, and several may share an engine.

    Given passages by `train_on`, the model is trained on them for each call, answers, and is what
    it was before: `TTTSynthesizer` does so with what a retriever found.
    """

    engine: Engine = Field(exclude=True, repr=False)
    """The owner of the model."""

    max_tokens: int | None = None
    """Length of an answer at most; None leaves the engine's."""

    stop: list[str] | None = None
    """Strings before the first of which an answer ends; a call's own are added."""

    training: TrainingConfig | None = None
    """How to train; None leaves the engine's."""

    train_on: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    """Texts to train on for each call."""

    mode: Mode | None = None
    """What to call that; None for "train" where there are texts to train on, else "closed_book"."""

    fallback: str | list[Turn] | None = Field(default=None, exclude=True, repr=False)
    """What to answer instead where training was undone; None answers the same prompt."""

    watched_by: tuple[Callback, ...] = Field(default=(), exclude=True, repr=False)
    """Who is told of training and answer, beside the handlers of `callback_manager`."""

    control: Control | None = Field(default=None, exclude=True, repr=False)
    """Shared by `watched_by` and whoever asked them before."""

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return "SIFTLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model: its context, and whether it is one for chats."""
        return LLMMetadata(
            context_window=self.engine.context,
            num_output=self.max_tokens or self.engine.max_new_tokens,
            is_chat_model=self.engine.chat,
            model_name=self.engine.name,
        )

    # LlamaIndex's decorators send its own events, and begin and end its traces.

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a prompt."""
        call = self._call(self._prompt(prompt, formatted), kwargs)
        return self._completion(self.engine.answer(**call))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continue a prompt, without blocking the event loop."""
        call = self._call(self._prompt(prompt, formatted), kwargs)
        return self._completion(await self.engine.aanswer(**call))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return self._chat(self.engine.answer(**self._call(self._said(messages), kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat, without blocking the event loop."""
        return self._chat(await self.engine.aanswer(**self._call(self._said(messages), kwargs)))

    # Work on a stream begins at the call. The decorators leave the generator that they are given
    # to the garbage collector, and handlers may keep it alive by the exception of a stream that
    # was left early: so it is ended from outside of them.

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Continue a prompt piece by piece; the last piece is empty and has the usage."""
        opened: list[Stream] = []

        @llm_completion_callback()
        def begin(own: SIFTLLM, prompt: str, **kwargs: Any) -> CompletionResponseGen:
            opened.append(own.engine.stream(**own._call(own._prompt(prompt, formatted), kwargs)))
            return _pieces(opened[0], own._completion_piece, own._completion)

        return _ending(begin(self, prompt, **kwargs), opened)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, without blocking the event loop."""
        opened: list[AsyncStream] = []

        @llm_completion_callback()
        async def begin(own: SIFTLLM, prompt: str, **kwargs: Any) -> CompletionResponseAsyncGen:
            opened.append(own.engine.astream(**own._call(own._prompt(prompt, formatted), kwargs)))
            return _apieces(opened[0], own._completion_piece, own._completion)

        return _aending(await begin(self, prompt, **kwargs), opened)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat piece by piece; the last piece is empty and has the usage."""
        opened: list[Stream] = []

        @llm_chat_callback()
        def begin(own: SIFTLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
            opened.append(own.engine.stream(**own._call(own._said(messages), kwargs)))
            return _pieces(opened[0], own._chat_piece, own._chat)

        return _ending(begin(self, messages, **kwargs), opened)

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, without blocking the event loop."""
        opened: list[AsyncStream] = []

        @llm_chat_callback()
        async def begin(
            own: SIFTLLM, messages: Sequence[ChatMessage], **kwargs: Any
        ) -> ChatResponseAsyncGen:
            opened.append(own.engine.astream(**own._call(own._said(messages), kwargs)))
            return _apieces(opened[0], own._chat_piece, own._chat)

        return _aending(await begin(self, messages, **kwargs), opened)

    def worded(self, template: BasePromptTemplate, **values: Any) -> str | list[Turn]:
        """A template filled in, in the form in which `predict` gives it to the engine."""
        if self.engine.chat:
            return turns(self._get_messages(template, **values))
        return self._get_prompt(template, **values)

    def _prompt(self, prompt: str, formatted: bool) -> str:
        if formatted or self.completion_to_prompt is None:
            return prompt
        return self.completion_to_prompt(prompt)

    def _said(self, messages: Sequence[ChatMessage]) -> str | list[Turn]:
        if self.messages_to_prompt in (None, messages_to_prompt):
            return turns(messages)
        return self.messages_to_prompt(messages)

    def _call(self, prompt: str | list[Turn], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the engine."""
        if unknown := kwargs.keys() - {"max_tokens", "stop"}:
            raise TypeError(
                f"SIFTLLM does not know the argument {min(unknown)!r}: it answers greedily and "
                "without tools; what a call may set is stop and max_tokens."
            )
        stops = [*(self.stop or ()), *(kwargs.get("stop") or ())]
        return {
            "question": prompt if isinstance(prompt, str) else prompt[-1]["content"],
            "documents": self.train_on,
            "mode": self.mode or ("train" if self.train_on else "closed_book"),
            "prompt": prompt,
            "fallback_prompt": self.fallback,
            "stop": list(dict.fromkeys(stops)),
            "max_new_tokens": kwargs.get("max_tokens", self.max_tokens),
            "training": self.training,
            "control": self.control,
            "callbacks": watchers(self.callback_manager, self.watched_by),
        }

    def _completion(self, answer: Answer, delta: str | None = None) -> CompletionResponse:
        raw = _about(answer, self.engine.name)
        return CompletionResponse(
            text=answer.text, delta=delta, raw=raw, additional_kwargs=raw["usage"]
        )

    def _completion_piece(self, text: str, delta: str) -> CompletionResponse:
        return CompletionResponse(text=text, delta=delta)

    def _chat(self, answer: Answer, delta: str | None = None) -> ChatResponse:
        raw = _about(answer, self.engine.name)
        message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
        return ChatResponse(message=message, delta=delta, raw=raw, additional_kwargs=raw["usage"])

    def _chat_piece(self, text: str, delta: str) -> ChatResponse:
        message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
        return ChatResponse(message=message, delta=delta)


def turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Messages as a chat template wants them: role and content, text only.

    Raises:
        ValueError: No message, one of another role than system, user and assistant, or one that is
            not text.
    """
    if not messages:
        raise ValueError("There are no messages: give at least one.")
    found = []
    for message in messages:
        if message.role not in _ROLES:
            raise ValueError(
                f"SIFTLLM takes system, user and assistant messages, got one of role "
                f"{message.role.value!r}: tools are not supported."
            )
        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise ValueError(f"SIFTLLM reads text only, got a {type(block).__name__}.")
        found.append({"role": _ROLES[message.role], "content": message.content or ""})
    return found


def _about(answer: Answer, model: str) -> dict[str, Any]:
    read, written = answer.usage["prompt_tokens"], answer.usage["completion_tokens"]
    about: dict[str, Any] = {
        "model": model,
        "finish_reason": answer.finish_reason,
        "timings": dict(answer.timings),
        "usage": {**answer.usage, "total_tokens": read + written},
    }
    if answer.training:
        about["training"] = answer.training.plain()
    return about | ({"note": answer.note} if answer.note else {})


def _pieces(
    stream: Stream, piece: Callable[[str, str], T], whole: Callable[[Answer, str], T]
) -> Generator[T, None, None]:
    text = ""
    for delta in stream:
        text += delta
        yield piece(text, delta)
    yield whole(stream.answer, "")


async def _apieces(
    stream: AsyncStream, piece: Callable[[str, str], T], whole: Callable[[Answer, str], T]
) -> AsyncGenerator[T, None]:
    text = ""
    async for delta in stream:
        text += delta
        yield piece(text, delta)
    yield whole(await stream.answer(), "")


def _ending(pieces: Generator[T, None, None], opened: list[Stream]) -> Generator[T, None, None]:
    try:
        yield from pieces
    finally:
        for stream in opened:
            stream.close()


async def _aending(
    pieces: AsyncGenerator[T, None], opened: list[AsyncStream]
) -> AsyncGenerator[T, None]:
    try:
        async for piece in pieces:
            yield piece
    finally:
        for stream in opened:
            await stream.aclose()
