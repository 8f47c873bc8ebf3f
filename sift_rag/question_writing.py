"""What a model is told that is to write a question on a text, and reading what it wrote."""

from __future__ import annotations

import json
import re

INSTRUCTION = (
    "Write one question that the text above answers, and its short answer. The question must be"
    " clear to somebody who has not seen the text: name what it is about. Use exactly this form:\n"
    "Question: ...\nAnswer: ..."
)
"""To be put where a question is, with one passage in the context."""

_BEFORE = r"(?:^|\n)[\s*_#>\d.)-]*"
_WRITTEN = re.compile(
    rf"{_BEFORE}(?:question|q)[*_ ]*:[*_\s]*(?P<question>[^\n]*\w[^\n]*?)[*_ ]*"
    rf"{_BEFORE}(?:answer|a)[*_ ]*:[*_\s]*(?P<answer>[^\n]*\w[^\n]*?)[*_ ]*(?:\n|$)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"^(?P<question>[^\n]*\w[^\n]*\?)\s*\n\s*(?P<answer>[^\n]*\w[^\n]*)")


def written(text: str, *, whole: bool = True) -> list[tuple[str, str]]:
    """The first question and answer in what a model wrote, if there are any.

    They may be marked "Question:" and "Answer:", "Q:" and "A:", be a JSON object, or stand in two
    lines, the first of which ends in a question mark.

    Args:
        text: What it wrote.
        whole: False where it was cut off: then an answer that reaches the end is none.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    found = _WRITTEN.search(text) or _ASKED.match(text)
    if found:
        cut = not whole and found.end("answer") == len(text)
        return [] if cut else [(found["question"].strip(), found["answer"].strip())]
    try:
        row = json.loads(text[text.index("{") : text.rindex("}") + 1])
        return [(row["question"].strip(), str(row["answer"]).strip())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
