"""Question and passages to a prompt that fits: which passages are kept, and in what order they lie.

Strings only. How long a text is in tokens comes in as a function, so nothing here knows a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sift_rag.documents import Document

Order = Literal["best_first", "best_last", "edges"]
"""How passages lie in the prompt; "edges" puts the best at both ends, the worst in the middle."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The words around question and passages; the bundled model was trained on the defaults.

    Attributes:
        closed_book: Format string with `{question}`.
        stuffed: Format string with `{context}` and `{question}`.
        separator: What stands between two passages in the context.

    Raises:
        ValueError: If a format string lacks a field it needs or has one that nobody fills.
    """

    closed_book: str = "Question: {question}\nAnswer:"
    stuffed: str = "{context}\n\nQuestion: {question}\nAnswer:"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        _check_fields("closed_book", self.closed_book, {"question"})
        _check_fields("stuffed", self.stuffed, {"context", "question"})

    def render(self, question: str, passages: Sequence[str] = ()) -> str:
        """The prompt; without passages, the closed-book one."""
        # str.format fills the template's own fields only: braces inside a passage stay text.
        if not passages:
            return self.closed_book.format(question=question)
        return self.stuffed.format(context=self.separator.join(passages), question=question)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits its budget.

    Attributes:
        text: The prompt.
        documents: The passages in it, in order of selection (not in the order they lie).
        left_out: The passages that did not fit, in order of selection.
    """

    text: str
    documents: tuple[Document, ...]
    left_out: tuple[Document, ...]


def lay_out(passages: Sequence[str], order: Order) -> list[str]:
    """Put passages, given best first, in the order in which they lie in the prompt.

    "edges" answers "Lost in the Middle" (Liu et al., arXiv 2307.03172): rank 1 comes first, rank 2
    last, rank 3 second, rank 4 last but one, ... whether their number is odd or even.

    Raises:
        ValueError: If `order` is unknown.
    """
    if order == "best_first":
        return list(passages)
    if order == "best_last":
        return list(passages[::-1])
    if order == "edges":
        return [*passages[0::2], *passages[1::2][::-1]]
    raise ValueError(f"order is {order!r}; it must be one of {', '.join(get_args(Order))}.")


def closed_book(
    question: str,
    *,
    budget: int,
    count: Callable[[str], int],
    template: PromptTemplate | None = None,
) -> Prompt:
    """The prompt without passages.

    Args:
        question: What is asked.
        budget: The most tokens that the prompt may have.
        count: The tokens of a prompt.
        template: The words around it.

    Raises:
        ValueError: If the question alone is over the budget.
    """
    text = (template or PromptTemplate()).render(question)
    if (tokens := count(text)) > budget:
        raise ValueError(
            f"The question takes {tokens} tokens and the model leaves room for {budget}: shorten "
            "the question, lower max_new_tokens, or use a model with a longer context."
        )
    return Prompt(text, (), ())


def stuffed(
    question: str,
    documents: Sequence[Document],
    *,
    budget: int,
    count: Callable[[str], int],
    order: Order = "best_first",
    template: PromptTemplate | None = None,
) -> Prompt:
    """The prompt with as many passages as fit, the best kept first.

    Passages are tried in order of selection; one that does not fit is left out whole (a passage
    is never cut), and the shorter ones after it still get their chance. A passage that is given
    twice, as a selection for training may do, is laid out once.

    Args:
        question: What is asked.
        documents: Passages, best first.
        budget: The most tokens that the prompt may have.
        count: The tokens of a prompt.
        order: How the kept passages lie in the prompt.
        template: The words around them.

    Returns:
        The prompt. Where no passage fits, it is the closed-book prompt and `left_out` holds all.

    Raises:
        ValueError: If `order` is unknown or the question alone is over the budget.
    """
    template = template or PromptTemplate()
    documents = list(dict.fromkeys(documents))

    def render(kept: Sequence[Document]) -> str:
        return template.render(question, lay_out([d.text for d in kept], order))

    if count(text := render(documents)) <= budget:  # the usual case, in one count
        return Prompt(text, tuple(documents), ())
    best = closed_book(question, budget=budget, count=count, template=template).text
    kept: list[Document] = []
    left_out: list[Document] = []
    for document in documents:
        if count(text := render([*kept, document])) <= budget:
            kept.append(document)
            best = text
        else:
            left_out.append(document)
    return Prompt(best, tuple(kept), tuple(left_out))


def _check_fields(name: str, template: str, wanted: set[str]) -> None:
    try:
        template.format(**dict.fromkeys(wanted, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"The {name} template has a field that nothing fills ({error}); its fields are "
            f"{_braced(wanted)}, and a literal brace is written twice."
        ) from error
    if missing := {field for field in wanted if f"{{{field}}}" not in template}:
        raise ValueError(f"The {name} template lacks {_braced(missing)}: {template!r}")


def _braced(fields: set[str]) -> str:
    return ", ".join(f"{{{field}}}" for field in sorted(fields))
