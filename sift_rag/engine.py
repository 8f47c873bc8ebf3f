"""The one owner of a model: each question is a job of its one worker, adapt -> generate -> gone.

Callers from any thread, asyncio task or abandoned stream never touch the model, so one answer's
adapter is never there while another one is made.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypedDict, TypeVar, cast, get_args

from sift_rag import worker
from sift_rag.adapter_cache import AdapterCache
from sift_rag.answering import Answer, Answerer, Mode, Request, Score
from sift_rag.documents import Document, as_documents
from sift_rag.events import Callback, Control
from sift_rag.generation import LanguageModel, Message
from sift_rag.loading import load
from sift_rag.prompting import Order, PromptTemplate
from sift_rag.sizes import ModelSize
from sift_rag.training import TrainingConfig
from sift_rag.worker import Cancelled, Job, Worker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self, Unpack

__all__ = ["Answer", "AsyncStream", "Cancelled", "Engine", "Mode", "Score", "Stream", "check_mode"]

T = TypeVar("T")

Stream: TypeAlias = worker.Stream[Answer]
AsyncStream: TypeAlias = worker.AsyncStream[Answer]


class Options(TypedDict, total=False):
    """What a call may set beside its mode.

    Attributes:
        training: How to train; by default as the engine was told.
        callbacks: Who is told of each stage, and may change or stop it.
        control: The control object that the callbacks get; by default a fresh one.
        max_new_tokens: Tokens to generate at most; by default as the engine was told.
        order: How passages lie in the prompt: "best_first", "best_last" or "edges".
        prompt: The exact words to continue, text or the turns of a chat, in place of the engine's
            template; then documents are only trained on, and "stuff" leaves them to the prompt.
        fallback_prompt: The words to continue instead where training was undone; by default the
            same ones.
        stop: Strings before the first of which the answer ends.
        cancel: Set it, from any thread, to end the call with `Cancelled`.
        template: The words around question and passages in this call, in place of the engine's.
        tenant: Whose passages they are: no two tenants share an adapter of the cache.
        export: A folder that the adapter is written to, as peft does, where one is used.
        beside: Passages on the same subject that are not trained on: where training makes them
            less likely than the guard allows, it is undone. A `Pipeline` gives as many of what it
            found as `TrainingConfig.beside` says.
    """

    training: TrainingConfig | None
    callbacks: Sequence[Callback]
    control: Control | None
    max_new_tokens: int | None
    order: Order
    prompt: str | Sequence[Message] | None
    fallback_prompt: str | Sequence[Message] | None
    stop: Sequence[str]
    cancel: threading.Event | None
    template: PromptTemplate | None
    tenant: str
    export: str | os.PathLike[str] | None
    beside: Iterable[str | Document]


class AnswerOptions(Options, total=False):
    """What a call that answers may set as well.

    Attributes:
        reference: A right answer, of which `Answer.score` tells how well it was predicted. Its time
            is not counted.
    """

    reference: str | None


class Engine:
    """A causal language model that answers questions from documents.

    The engine owns the model: leave it alone until `close`. Calls may come from any thread; they
    are answered one after another.

    Args:
        model: A causal language model of transformers, on one device.
        tokenizer: Its tokenizer.
        training: How to train where a call does not say it.
        max_new_tokens: Length of an answer at most. None takes 256 tokens, more than an answer to
            a question needs, or a quarter of a short context, so that most is left for passages.
        template: The words around question and passages.
        chat: Whether prompts go through the tokenizer's chat template, where it has one.
        adapter_cache: Keeps what was trained: the same passages again need no training.

    Attributes:
        name: Of the model: its folder or its name on the hub; else its class.
        training: How to train where a call does not say it.
        max_new_tokens: Length of an answer at most, where a call does not say it.
        context: Tokens that the model can see, prompt and answer together.
        chat: Whether prompts go through a chat template.
        template: The words around question and passages, where a call does not say it.
        size: Of the model, for estimates of its arithmetic.

    Raises:
        ValueError: If the model is no causal language model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        training: TrainingConfig | None = None,
        max_new_tokens: int | None = None,
        template: PromptTemplate | None = None,
        chat: bool = True,
        adapter_cache: AdapterCache | None = None,
    ) -> None:
        lm = LanguageModel(model, tokenizer, chat)
        self._answerer = Answerer(lm, template or PromptTemplate(), adapter_cache)
        self.name = str(model.config.name_or_path or type(model).__name__)
        self.training = training or TrainingConfig()
        self.max_new_tokens = _given(max_new_tokens, min(256, lm.context // 4))
        self.context = lm.context
        self.chat = bool(chat and tokenizer.chat_template)
        self.template = self._answerer.template
        self.size: ModelSize = lm.size()
        self._counter: PreTrainedTokenizerBase | None = None
        self._worker = Worker("sift_rag.Engine")
        # Also when the engine is dropped and when the interpreter ends.
        weakref.finalize(self, self._worker.close, timeout=5.0)

    @classmethod
    def tiny(cls, *, adapter_cache: AdapterCache | None = None) -> Engine:
        """The small model that comes along, with the training settings that suit it."""
        from sift_rag import tiny

        settings: dict[str, Any] = dict(tiny.TRAINING)  # plain there: tiny knows no training
        training = TrainingConfig(**settings)
        engine = cls(*load(tiny.FOLDER), training=training, adapter_cache=adapter_cache)
        engine.name = "sift_rag.tiny"
        return engine

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantization_config: Any = None,
        training: TrainingConfig | None = None,
        chat: bool = True,
        adapter_cache: AdapterCache | None = None,
    ) -> Engine:
        """Load a model by its name on the Hugging Face Hub or from a folder.

        See `sift_rag.loading.load` for what `device`, `dtype` and `quantization_config` mean and
        what it raises.
        """
        model, tokenizer = load(
            name_or_path, device=device, dtype=dtype, quantization_config=quantization_config
        )
        return cls(model, tokenizer, training=training, chat=chat, adapter_cache=adapter_cache)

    def answer(
        self,
        question: str,
        documents: Iterable[str | Document] = (),
        *,
        mode: Mode = "stuff",
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Answer a question.

        Where training breaks the adapter, the answer comes without it, from the passages in the
        prompt, and says so in `training` and `note`.

        Args:
            question: What is asked.
            documents: Passages in order of selection, the best first.
            mode: How they are used; "closed_book" does not look at them.
            options: See `Options` and `AnswerOptions`.

        Raises:
            ValueError: If the question is empty, the mode unknown, or documents are missing.
            Cancelled: If the call was cancelled.
        """
        return self._submit(self._asked(question, documents, mode, options)).wait()

    def stream(
        self,
        question: str,
        documents: Iterable[str | Document] = (),
        *,
        mode: Mode = "stuff",
        **options: Unpack[AnswerOptions],
    ) -> Stream:
        """As `answer`, piece by piece as the model writes; the work begins at this call."""
        job = self._asked(question, documents, mode, options)
        stream = Stream(job)
        self._submit(job)
        return stream

    async def aanswer(
        self,
        question: str,
        documents: Iterable[str | Document] = (),
        *,
        mode: Mode = "stuff",
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """As `answer`, without blocking the event loop; cancelling the task cancels the call."""
        job = self._submit(self._asked(question, documents, mode, options))
        return await job.wait_async()

    def astream(
        self,
        question: str,
        documents: Iterable[str | Document] = (),
        *,
        mode: Mode = "stuff",
        **options: Unpack[AnswerOptions],
    ) -> AsyncStream:
        """As `stream`, for `async for`; call it where an event loop is running."""
        job = self._asked(question, documents, mode, options)
        stream = AsyncStream(job)
        self._submit(job)
        return stream

    def score(
        self,
        question: str,
        reference: str,
        documents: Iterable[str | Document] = (),
        *,
        mode: Mode = "stuff",
        **options: Unpack[Options],
    ) -> Score:
        """How well the reference is predicted as the answer to the question.

        Prompt and reference are tokenised each by itself, then joined with the space that stands
        between a prompt and its answer. Passages give way to the reference, which is never cut.

        Raises:
            ValueError: As `answer`, and if the reference is empty or exceeds the context.
            Cancelled: If the call was cancelled.
        """
        _check_text("reference", reference)
        request = self._request(question, documents, mode, options)
        return self._submit(
            Job(lambda job: self._answerer.score(request, reference, job), options.get("cancel"))
        ).wait()

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text by itself. Does not wait for the model."""
        if self._counter is None:  # its own: the worker's one is in use on another thread
            self._counter = copy.deepcopy(self._answerer.lm.tokenizer)
        return list(self._counter(text, add_special_tokens=False, verbose=False)["input_ids"])

    def close(self) -> None:
        """Cancel what is running and waiting, and let go of the thread. May be called again."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An Engine holds a model and a thread and cannot be pickled: make one in each process."
        )

    def _asked(
        self, question: str, documents: Iterable[str | Document], mode: Mode, options: AnswerOptions
    ) -> Job[Answer]:
        request = self._request(question, documents, mode, options)
        if (reference := options.get("reference")) is not None:
            request = replace(request, reference=_check_text("reference", reference))
        # The job holds the engine, which so lives until the job is done.
        return Job(lambda job: self._answerer.answer(request, job), options.get("cancel"))

    def _submit(self, job: Job[T]) -> Job[T]:
        self._worker.submit(job)
        return job

    def _request(
        self, question: str, documents: Iterable[str | Document], mode: Mode, options: Options
    ) -> Request:
        """Check everything that can be checked before the worker is bothered; fill defaults in."""
        if unknown := options.keys() - AnswerOptions.__annotations__.keys():
            names = ", ".join(AnswerOptions.__annotations__)
            raise TypeError(f"There is no option {min(unknown)!r}; there are {names}.")
        _check_text("question", question)
        passages = () if check_mode(mode) == "closed_book" else tuple(as_documents(documents))
        needed = mode in ("train", "both") if options.get("prompt") else mode != "closed_book"
        if needed and not passages:
            raise ValueError(
                f"The mode {mode!r} needs documents and there are none: give some, or use "
                'mode="closed_book".'
            )
        control = options.get("control") or Control()
        request = Request(
            question=question,
            documents=passages,
            mode=mode,
            training=options.get("training") or control.training or self.training,
            max_new_tokens=_given(options.get("max_new_tokens"), self.max_new_tokens),
            callbacks=tuple(options.get("callbacks", ())),
            control=control,
            order=options.get("order", "best_first"),
            prompt=_said("prompt", options.get("prompt")),
            fallback_prompt=_said("fallback_prompt", options.get("fallback_prompt")),
            stop=_stop(options.get("stop", ())),
            template=options.get("template"),
            tenant=options.get("tenant", ""),
            export=options.get("export"),
            beside=tuple(as_documents(options.get("beside", ()))),
        )
        self._check(request)
        return request

    def _check(self, request: Request) -> None:
        context = self._answerer.lm.context
        if not 0 < request.max_new_tokens < context:
            raise ValueError(
                f"max_new_tokens is {request.max_new_tokens}; it must be 1 to {context - 1}: the "
                f"model's context is {context} tokens."
            )
        if request.order not in get_args(Order):
            raise ValueError(
                f"order is {request.order!r}; it must be one of {', '.join(get_args(Order))}."
            )


def check_mode(mode: str) -> Mode:
    """The mode, if there is such a one.

    Raises:
        ValueError: If there is none.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(get_args(Mode))}.")
    return cast(Mode, mode)


def _check_text(what: str, text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"The {what} must be a string, got {type(text).__name__}.")
    if not text.strip():
        raise ValueError(f"The {what} is empty: write one.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The {what} holds a lone surrogate ({text[error.start]!a} at {error.start}), which is "
            "no text: decode its source with errors='replace'."
        ) from None
    return text


def _said(what: str, said: str | Sequence[Message] | None) -> str | Sequence[Message] | None:
    if said is None or isinstance(said, str):
        return said if said is None else _check_text(what, said)
    turns = [dict(turn) for turn in said]
    if not turns:
        raise ValueError(f"The {what} has no turns: give at least one.")
    for turn in turns:
        if not (isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)):
            raise TypeError(
                f"A turn of the {what} must have a role and a content that are strings, got "
                f"{turn!r}."
            )
    _check_text(what, "".join(turn["content"] for turn in turns))
    return turns


def _stop(strings: Sequence[str]) -> tuple[str, ...]:
    if isinstance(strings, str) or not all(isinstance(string, str) for string in strings):
        raise TypeError(f"stop is {strings!r}; it must be a list of strings.")
    if "" in strings:
        raise ValueError("stop holds an empty string, which would end every answer: leave it out.")
    return tuple(strings)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
