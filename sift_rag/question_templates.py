"""Questions made of a passage's own sentences by rules: no model, the same ones each time.

The rules are for English prose. They look for sentences that name what they speak of and say
something that can be asked for: a date, a number, a name. Where the grammar is plain it becomes a
question ("When was the Korvane pump built?"), else a gap to fill.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sift_rag.documents import Document

_GAP = "____"
_WORDS = range(6, 36)  # of a sentence with a gap: fewer say too little, more too much at once
_LONGEST = 400  # characters of a sentence: bounds the time that the patterns take

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_YEAR = r"(?:1[4-9]|20)\d\d"
_DATE = rf"(?:\d{{1,2}} {_MONTH}|{_MONTH} \d{{1,2}})(?:,? {_YEAR})?|{_MONTH} {_YEAR}"
_UNIT = (
    "(?:percent|per cent|million|billion|thousand|kg|kilograms|grams|g|mg|tonnes|tons|lb|pounds|km"
    "|kilometres|kilometers|metres|meters|m|cm|mm|miles|feet|ft|inches|years?|months?|weeks?|days?"
    "|hours?|minutes?|seconds?|degrees?|people|dollars|euros|acres|hectares|copies|mph|kW|MW)"
)
_NUMBER = rf"[$€£]?\d+(?:,\d{{3}})*(?:\.\d+)?(?:%| {_UNIT}(?: {_UNIT})?)?"
_LABEL = "(?:type|phase|aims?|grade|stage|class|level|group|section|chapter|figure|table|number) "
_CAPITAL = rf"(?:(?!{_MONTH}\b)[A-Z][\w'\u2019-]+)"
_NAME = rf"{_CAPITAL}(?: (?:(?:of|de|von|van|the) )?{_CAPITAL}){{0,4}}"

_ABBREVIATED = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Mt|Prof|Sr|Jr|No|Nos|Fig|vs|e\.g|i\.e|cf|al|approx|ca|Inc|Ltd|Co"
    r"|Vol|pp|etc|U\.S)|\b[A-Z])\.$"
)
# Without "<", "=" and the like, which stand in markup, code and tables; no quotes, no questions.
_PROSE = re.compile(r"[A-Z][^<>{}\[\]=|\\@#*_^~\"“”?!:;•]+\.")
_ENGLISH = re.compile(r"\b(?:the|an?|of|in|on|at|to|by)\b", re.IGNORECASE)  # no garbled scan
# Who reads only such a sentence does not know of whom or what it speaks.
_ELSEWHERE = re.compile(
    r"\b(?:[Tt]h(?:is|ese|ose)|[Ww]e|[Oo]ur|us|[Mm]y|me|[Ss]?[Hh]e|[Tt]hey|him|[Yy]ou|[Yy]our|such"
    r"|[Hh]ere|[Tt]here|above|below|former|latter|respectively|same|proposed?|proposal|applicant"
    r"|project|aims?)\b|(?:^|, |\b[a-z]+ )I\b"
    r"|^(?:It|Its|His|Her|Their|Then|However|Also|But|And|Or|So|Thus|Hence|Therefore|Moreover"
    r"|Furthermore|Similarly|Instead|Meanwhile|Both|Another|Others?|Some|One|Two|Three|Later|Q|To"
    r"|In addition|\w+ly,|[^,]*, (?:it|its))\b"
)
_SUBORDINATE = re.compile(
    r"(?:When|While|Although|Though|If|As|After|Before|Since|Because|Despite|During|In|On|At|By"
    r"|For|From|With|Under|Upon|To|Of|Unlike|Like|Given|Using|What|Who|Why|How|Where|No|Not|Only"
    r"|Each|Every|Among|Within|Until|Through|Over|Part|Much|Most|Many|All|Several|Few)\b"
)
_CLAUSE = re.compile(
    r"\b(?:that|which|who|whose|whom|when|where|while|and|or|but|if|because|has|had|have|can|may"
    r"|will|is|was|are|were|been|being|not|\w+ed)\b"
)
_VERB = re.compile(
    r"(?<![\w-])(?:is|was|are|were|has|had|have|will|can|could|may|must|became|began|took|won|led|ran"
    r"|made|came|went|gave|held|rose|fell|grew|wrote|[a-z]{3,}ed|[a-z]{3,}[^s\W]s)\b"
)
_BE = r"(?P<be>is|was|are|were) (?P<done>(?:first |last |originally |officially )?(?:{}))"
_DONE = r"[a-z]+ed|built|made|born|held|found|founded|begun|won|written|sold|drawn|shown|known"
_PLACED = "located|situated|born|based|found|installed|held|buried|headquartered"
_END = r"(?=[,;)]|\.$| (?:and|as|at|by|during|for|from|in|on|to|until|was|were|with|who|which)\b)"
_QUESTIONS = [
    (
        rf"{_BE.format(_DONE)} (?:in|on) (?P<answer>{_DATE}|{_YEAR}){_END}",
        "When {be} {subject} {done}?",
    ),
    (rf"{_BE.format(_PLACED)} (?:in|at) (?P<answer>{_NAME}){_END}", "Where {be} {subject} {done}?"),
    (rf"{_BE.format(_DONE)} by (?P<answer>{_NAME}){_END}", "Who {be} {subject} {done} by?"),
    (
        rf"{_BE.format('made|built|composed')} (?P<of>of|from) (?P<answer>[a-z]+){_END}",
        "What {be} {subject} {done} {of}?",
    ),
    (
        r"(?P<be>is|was|are|were) (?P<answer>an? [^,;()]{8,110}?)"
        r"(?=[,;(]|\.$| (?:and|but|that|which|who|whose|where)\b)",
        "What {be} {subject}?",
    ),
]
"""What follows the subject, and the question that it answers."""

_FORMS = [
    (re.compile(rf"(?P<subject>[A-Z][^,()]+?)(?: \([^()]{{2,20}}\))? {form}.*"), question)
    for form, question in _QUESTIONS
]
_GAPS = [
    re.compile(rf"\b(?P<answer>{_DATE}|(?<=in ){_YEAR})\b"),
    re.compile(rf" (?!{_LABEL})[a-z]+ (?P<answer>{_NUMBER})(?=,? [a-z]|\.$)"),
    re.compile(rf" (?!the )[a-z]+ (?:the )?(?P<answer>{_NAME}){_END}"),
]
"""What a gap may take, the most telling first."""


def ask_by_template(document: Document) -> list[tuple[str, str]]:
    """Questions of a passage with their answers, word for word from it, the best first.

    A sentence is taken if it names what it speaks of; one that opens with "it" or holds "this" is
    not. Few or none come of a passage without such sentences (lists, code, formulas), and of one in
    a language other than English.

    Args:
        document: A passage.

    Returns:
        (question, answer), at most one for each sentence.
    """
    asked = [found for sentence in sentences(document.text) if (found := _ask(sentence))]
    return [(question, answer) for _, question, answer in sorted(asked, key=lambda one: one[0])]


def sentences(text: str) -> Iterator[str]:
    """The sentences of an English text, unwrapped; those of over 400 characters are left out."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.split("\n")
        # Among lines this long a short one is a heading; else the text is wrapped.
        for part in lines if max(map(len, lines)) > 120 else [block]:
            yield from _cut(
                re.sub(r" (?=[,.;:)%](?:\s|$)|'s\b)|(?<=\() ", "", " ".join(part.split()))
            )


def _cut(text: str) -> Iterator[str]:
    sentence = ""
    for piece in re.split(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z0-9])", text):
        sentence = f"{sentence} {piece}".strip()
        long = len(sentence) > _LONGEST
        if long or not _ABBREVIATED.search(sentence):
            if not long:
                yield sentence
            sentence = ""


def _ask(sentence: str) -> tuple[int, str, str] | None:
    """Rank (0 is the best), question and answer."""
    if not (_PROSE.fullmatch(sentence) and _ENGLISH.search(sentence)):
        return None
    if _ELSEWHERE.search(sentence):
        return None
    for rank, (form, question) in enumerate(_FORMS):
        found = form.fullmatch(sentence)
        if found and _is_subject(found["subject"]) and sentence.count(found["answer"]) == 1:
            parts = found.groupdict() | {"subject": _inside(found["subject"])}
            return rank, question.format(**parts), found["answer"]
    return _gap(sentence)


def _gap(sentence: str) -> tuple[int, str, str] | None:
    if len(sentence.split()) not in _WORDS:
        return None
    for rank, kind in enumerate(_GAPS, len(_FORMS)):
        for found in reversed(list(kind.finditer(sentence))):
            start, end = found.span("answer")
            rest = sentence[:start] + _GAP + sentence[end:]
            if found["answer"] not in rest and _tells(rest):
                return rank, f"What fills the gap? {rest}", found["answer"]
    return None


def _tells(rest: str) -> bool:
    """Whether it is a sentence, and one that says what it speaks of.

    "The roof" is another one in each text: then other names must say which.
    """
    vague = _SUBORDINATE.match(rest) or re.match(r"(?:The|An?) [a-z]", rest)
    return bool(_VERB.search(rest)) and len(_named(rest)) > (1 if vague else 0)


def _is_subject(text: str) -> bool:
    """Whether it is a noun phrase by itself, and says which one of its kind it speaks of."""
    if _SUBORDINATE.match(text) or _CLAUSE.search(text) or len(text.split()) > 8:
        return False
    return bool(_named(text)) or not text.startswith(("The ", "A ", "An "))


def _named(text: str) -> list[str]:
    """The capitalised words after the first, without months."""
    return re.findall(rf"(?<=\s)(?!{_MONTH})[A-Z][\w-]*", text)


def _inside(subject: str) -> str:
    """The subject as it stands inside a sentence."""
    return re.sub(r"^(?:The|An?)\b", lambda found: found[0].lower(), subject)
