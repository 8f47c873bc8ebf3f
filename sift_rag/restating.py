"""A text told another way by rules: the same sentences in another order."""

from __future__ import annotations

import re
from random import Random

from sift_rag.question_templates import sentences

# A sentence that opens so leans on the one before it, and stays behind it.
_LEANS = re.compile(
    r"(?:It|Its|He|His|She|Her|They|Their|This|That|These|Those|Such|There|Here|Then|However|But"
    r"|And|Or|So|Yet|Also|Thus|Hence|Therefore|Moreover|Furthermore|Similarly|Instead|Meanwhile"
    r"|Both|Another|Other|Others|Later|Afterwards|Finally|First|Second|Third|Next|In addition"
    r"|For example|For instance|As a result|On the other hand|In contrast)\b"
)
_SENTENCE = re.compile(r"[^a-z\n].*[.!?][\"'\u201d\u2019)]*", re.DOTALL)


def shuffled(text: str) -> list[str]:
    """The text with its sentences in another order, so that they are not learnt in one only.

    A sentence that leans on the one before it ("It ...", "However, ...") goes where that one goes.
    The order depends on the text alone: each time it is the same.

    Returns:
        One text; none where there are fewer than two sentences that stand by themselves, or where
        the text is no prose (lists, tables, code).
    """
    found = list(sentences(text))
    if not all(_SENTENCE.fullmatch(sentence) for sentence in found):
        return []
    groups: list[list[str]] = []
    for sentence in found:
        if groups and _LEANS.match(sentence):
            groups[-1].append(sentence)
        else:
            groups.append([sentence])
    if len(groups) < 2:
        return []
    order = list(groups)
    random = Random(text)
    while order == groups and len({*map(tuple, groups)}) > 1:
        random.shuffle(order)
    return [" ".join(" ".join(group) for group in order)] if order != groups else []
