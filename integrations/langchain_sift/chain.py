"""A documents chain that trains on the documents instead of stuffing them, or does both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForChainRun
from langchain_core.documents import Document
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
    RunnablePassthrough,
    RunnableSerializable,
)
from pydantic import ConfigDict, Field, SkipValidation, field_validator, model_validator
from typing_extensions import Self

from langchain_sift.callbacks import watchers
from langchain_sift.chat import ChatSIFT, turns
from sift_rag.engine import Engine, Mode, check_mode
from sift_rag.events import Control, emit
from sift_rag.training import TrainingConfig

_CONTENT = PromptTemplate.from_template("{page_content}")


def create_ttt_documents_chain(
    llm: Engine | Runnable[Any, Any],
    prompt: BasePromptTemplate[Any],
    *,
    ttt_prompt: BasePromptTemplate[Any] | None = None,
    mode: Mode = "train",
    training: TrainingConfig | None = None,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_separator: str = "\n\n",
    document_variable_name: str = "context",
) -> TTTDocumentsChain:
    """As `create_stuff_documents_chain`, with the documents in the weights instead of the prompt.

    It takes the same arguments, the same input (a dict with `context`, the documents, and what the
    prompt asks for) and gives the same output; inside `create_retrieval_chain` it takes the stuff
    chain's place unchanged. `mode` is a field, so that each request may choose:

        chain.configurable_fields(mode=ConfigurableField(id="mode"))
        chain.invoke(inputs, {"configurable": {"mode": "stuff"}})

    Args:
        llm: An `Engine`, or a `ChatSIFT` with settings of its own, bound or not. In the mode
            "stuff" any model will do.
        prompt: For "stuff" and "both", with the variable `context`. Without it, it serves "train".
        ttt_prompt: For "train" and "closed_book", without `context`.
        mode: "train" trains on the documents' `page_content`, answers, and leaves no trace;
            "stuff" puts them into the prompt; "both" does both; "closed_book" neither.
        training: How to train; None leaves the model's.
        output_parser: `StrOutputParser` by default.
        document_prompt: How a document lies in the prompt, in the terms of its `page_content` and
            metadata; by default the content alone.
        document_separator: What stands between two documents in the prompt.
        document_variable_name: The variable that holds the documents, if not `context`.

    Raises:
        ValueError: A prompt does not suit the mode.
        TypeError: The mode trains, and the model cannot be trained here.
    """
    return TTTDocumentsChain(
        llm=llm,
        prompt=prompt,
        ttt_prompt=ttt_prompt,
        mode=mode,
        training=training,
        output_parser=output_parser or StrOutputParser(),
        document_prompt=document_prompt or _CONTENT,
        document_separator=document_separator,
        document_variable_name=document_variable_name,
    )


class TTTDocumentsChain(RunnableSerializable[dict[str, Any], Any]):
    """What `create_ttt_documents_chain` makes; its arguments are the fields."""

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    llm: Any = Field(exclude=True, repr=False)
    prompt: SkipValidation[BasePromptTemplate[Any]]
    ttt_prompt: SkipValidation[BasePromptTemplate[Any] | None] = None
    mode: Mode = "train"
    training: TrainingConfig | None = None
    output_parser: Any
    document_prompt: SkipValidation[BasePromptTemplate[str]]
    document_separator: str
    document_variable_name: str

    @field_validator("llm")
    @classmethod
    def _as_model(cls, llm: Any) -> Any:
        return ChatSIFT(engine=llm) if isinstance(llm, Engine) else llm

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in (self.prompt, self.ttt_prompt or self.prompt, self.document_prompt):
            if not isinstance(what, BasePromptTemplate):
                raise TypeError(
                    f"A prompt must be a prompt template of LangChain, got {type(what).__name__}: "
                    "PromptTemplate.from_template(text) makes one."
                )
        check_mode(self.mode)
        name = self.document_variable_name
        if self.ttt_prompt and name in self.ttt_prompt.input_variables:
            raise ValueError(
                f"ttt_prompt has the variable {name!r}, so the documents would be in the prompt "
                'as well: leave it out, or use mode="both" with prompt= alone.'
            )
        self._prompt()
        if self.mode in ("train", "both") and self._trainable() is None:
            raise TypeError(
                f'mode="{self.mode}" needs a model that can be trained, an Engine or a ChatSIFT, '
                f'got {type(self.llm).__name__}: pass one, or use mode="stuff".'
            )
        return self

    def invoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Answer from the documents."""
        return self._chain(kwargs).invoke(input, config)

    async def ainvoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Answer from the documents, without blocking the event loop."""
        return await self._chain(kwargs).ainvoke(input, config)

    def stream(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Any]:
        """Answer piece by piece."""
        yield from self._chain(kwargs).stream(input, config)

    async def astream(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        """Answer piece by piece, without blocking the event loop."""
        async for piece in self._chain(kwargs).astream(input, config):
            yield piece

    def _chain(self, arguments: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        if arguments:
            raise TypeError(
                f"The chain takes no argument {min(arguments)!r}: bind it to the model, as in "
                "ChatSIFT(engine=engine).bind(stop=[...])."
            )
        return RunnableLambda(self._route, name="ttt_documents_chain")

    def _route(
        self, inputs: dict[str, Any], run_manager: CallbackManagerForChainRun
    ) -> Runnable[dict[str, Any], Any]:
        """The chain for these documents: as the stuff chain, but for prompt and model."""
        documents = self._documents(inputs)
        name = self.document_variable_name
        context = RunnablePassthrough.assign(**{name: lambda _: self._context(documents)})
        chain: Runnable[dict[str, Any], Any] = (
            context.with_config(run_name="format_inputs")
            | self._prompt()
            | self._model(inputs, documents, run_manager)
            | self.output_parser
        )
        return chain

    def _model(
        self,
        inputs: dict[str, Any],
        documents: Sequence[Document],
        run_manager: CallbackManagerForChainRun,
    ) -> Runnable[Any, Any]:
        model = self._trainable()
        if model is None:
            other: Runnable[Any, Any] = self.llm
            return other
        callbacks = watchers(run_manager.handlers, run_manager.get_child())
        control = Control(training=self.training or model.training)
        emit(callbacks, "on_start", control, self._start(inputs, len(documents)))
        texts = [document.page_content for document in documents if document.page_content.strip()]
        mode = self.mode
        if not texts:  # nothing to train on
            mode = "closed_book" if mode == "train" else "stuff" if mode == "both" else mode
        trained = mode in ("train", "both")
        adapted = model.model_copy(
            update={
                "train_on": tuple(texts) if trained else (),
                "mode": mode,
                "training": control.training,
                "fallback": self._fallback(inputs, documents),
                "watched_by": tuple(callbacks),
                "control": control,
                # What a handler may do to the training is not in the cache's key.
                "cache": False if trained and len(callbacks) > 1 else model.cache,
            }
        )
        if isinstance(self.llm, RunnableBinding):
            bound: Runnable[Any, Any] = RunnableBinding(**self.llm.__dict__ | {"bound": adapted})
            return bound
        return adapted

    def _start(self, inputs: dict[str, Any], n: int) -> dict[str, Any]:
        asked = [inputs[name] for name in self._prompt().input_variables if name in inputs]
        question = next((value for value in asked if isinstance(value, str)), "")
        return {"question": question, "mode": self.mode, "k": n, "fetch_k": n, "noise": None}

    def _trainable(self) -> ChatSIFT | None:
        model = self.llm.bound if isinstance(self.llm, RunnableBinding) else self.llm
        return model if isinstance(model, ChatSIFT) else None

    def _prompt(self) -> BasePromptTemplate[Any]:
        name = self.document_variable_name
        stuffable = name in self.prompt.input_variables
        if self.mode in ("stuff", "both"):
            if not stuffable:
                raise ValueError(
                    f'mode="{self.mode}" puts the documents into the prompt, whose variables are '
                    f"{self.prompt.input_variables}: add {{{name}}} to it."
                )
            return self.prompt
        if self.ttt_prompt is None and stuffable:
            raise ValueError(
                f'mode="{self.mode}" leaves the documents out of the prompt, but the prompt has '
                f"{{{name}}}: pass ttt_prompt=, a prompt with the question alone, or use "
                'mode="both".'
            )
        return self.ttt_prompt or self.prompt

    def _documents(self, inputs: dict[str, Any]) -> Sequence[Document]:
        name = self.document_variable_name
        if not isinstance(inputs, dict) or name not in inputs:
            got = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(f"The input must be a dict with {name!r}, the documents; got {got}.")
        documents: Sequence[Document] = inputs[name]
        return documents

    def _context(self, documents: Sequence[Document]) -> str:
        each = [format_document(document, self.document_prompt) for document in documents]
        return self.document_separator.join(each)

    def _fallback(
        self, inputs: dict[str, Any], documents: Sequence[Document]
    ) -> list[dict[str, str]] | None:
        """The stuff prompt, for when training had to be undone; None where there is none."""
        name = self.document_variable_name
        if self.mode != "train" or name not in self.prompt.input_variables:
            return None
        values = inputs | {name: self._context(documents)}
        if not set(self.prompt.input_variables) <= values.keys():
            return None
        return turns(self.prompt.format_prompt(**values).to_messages())
