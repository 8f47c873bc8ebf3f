"""The built-in metrics against published values, and what else may stand in their place."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_index.core.evaluation.benchmarks import hotpotqa

from sift_rag import metrics
from sift_rag.cases import Case, Reply
from sift_rag.documents import Document
from sift_rag.metrics import Metric, described, resolve, value
from sift_rag.overlap import normalised
from sift_rag.tiny import world


def measured(name: str, text: str, references: Sequence[str], **more: Any) -> float | None:
    case = Case("What?", tuple(references), **more)
    return value(metrics.BUILT_IN[name], case, Reply(text=text))


class TestSquad:
    @pytest.mark.parametrize(
        ("text", "references", "exact", "f1"),
        [
            # AllenNLP, tests/rc/metrics/squad_em_and_f1_test.py: "this is the best span".
            ("this is the best span", ["this is a good span", "something irrelevant"], 0, 0.75),
            ("this is another span", ["this is another span", "this one is less perfect"], 1, 1),
            # Hugging Face, the metric cards of squad and squad_v2 (evaluate/metrics/squad*).
            ("1976", ["1976"], 1, 1),
            ("1999", ["1976"], 0, 0),
            ("Beyonce", ["Beyoncé and Bruno Mars"], 0, 0),
            ("climate change", ["climate change"], 1, 1),
            # torchmetrics, tests/unittests/text/_inputs.py.
            ("Hello", ["World"], 0, 0),
        ],
    )
    def test_published_values(
        self, text: str, references: list[str], exact: float, f1: float
    ) -> None:
        assert measured("exact_match", text, references) == exact
        assert measured("token_f1", text, references) == pytest.approx(f1)

    def test_two_of_three_as_on_the_metric_card(self) -> None:
        """Published as 66.66666666666667 for both."""
        asked = [
            ("1976", "1976"),
            ("Beyonce", "Beyoncé and Bruno Mars"),
            ("climate change", "climate change"),
        ]
        for name in ("exact_match", "token_f1"):
            scores = [measured(name, text, [right]) for text, right in asked]
            assert 100 * np.mean(np.array(scores, dtype=float)) == pytest.approx(66.66666666666667)

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("   Rock    n  Roll.", "rock n roll"),
            ("A cat and a dog", "cat and dog"),
            ("The U.S.A.", "usa"),
            ("a-team", "ateam"),  # punctuation goes first, so that no article is left
            ("theory of the\tan\n", "theory of"),
            ("«Beyoncé»", "«beyoncé»"),  # ASCII punctuation only
            ("the", ""),
        ],
    )
    def test_normalisation(self, text: str, wanted: str) -> None:
        assert normalised(text) == wanted

    @pytest.mark.parametrize(
        ("text", "references", "score"),
        [
            ("", [""], 1),
            ("the", [""], 1),
            ("Oslo", [""], 0),
            ("", ["Oslo"], 0),
            ("", ["", "Oslo"], 0),  # one that says something is there: it has an answer
            ("Oslo", ["", "Oslo"], 1),
            ("", ["the", "..."], 1),
        ],
    )
    def test_a_question_without_an_answer(
        self, text: str, references: list[str], score: float
    ) -> None:
        """The rule of evaluate-v2.0.py."""
        assert measured("exact_match", text, references) == score
        assert measured("token_f1", text, references) == score

    def test_without_a_reference_and_for_a_continuation_there_is_nothing_to_say(self) -> None:
        for name in ("exact_match", "token_f1"):
            assert measured(name, "Oslo", []) is None
            assert measured(name, "Oslo", ["Oslo"], origin="held_out") is None
            assert measured(name, "Oslo", ["Oslo"], origin="made") == 1


class Official:
    """evaluate-v2.0.py step by step, the published order of them kept, as an oracle."""

    @staticmethod
    def normalize_answer(text: str) -> str:
        lower = text.lower()
        exclude = set(string.punctuation)
        without = "".join(ch for ch in lower if ch not in exclude)
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", without).split())

    @classmethod
    def compute_f1(cls, gold: str, told: str) -> float:
        gold_tokens = cls.normalize_answer(gold).split() if gold else []
        told_tokens = cls.normalize_answer(told).split() if told else []
        same = sum((Counter(gold_tokens) & Counter(told_tokens)).values())
        if len(gold_tokens) == 0 or len(told_tokens) == 0:
            return int(gold_tokens == told_tokens)
        if same == 0:
            return 0
        precision, recall = same / len(told_tokens), same / len(gold_tokens)
        return 2 * precision * recall / (precision + recall)

    @classmethod
    def scores(cls, told: str, answers: Sequence[str]) -> tuple[float, float]:
        golds = [answer for answer in answers if cls.normalize_answer(answer)] or [""]
        exact = max(cls.normalize_answer(a) == cls.normalize_answer(told) for a in golds)
        return float(exact), max(cls.compute_f1(a, told) for a in golds)


WORDS = st.lists(
    st.sampled_from(
        ["a", "The", "an", "Oslo", "oslo,", "340", "kg.", "in", "é", "--", "\n", "it's"]
    )
).map(" ".join)
TEXTS = WORDS | st.text(max_size=20)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
@example("a", [""])
@example("İ the", ["i̇"])
def test_it_is_the_official_script(told: str, answers: list[str]) -> None:
    exact, f1 = Official.scores(told, answers)
    assert measured("exact_match", told, answers) == exact
    assert measured("token_f1", told, answers) == pytest.approx(f1)


@given(TEXTS, TEXTS)
def test_it_is_the_published_code_that_llama_index_carries(told: str, answer: str) -> None:
    """hotpot_evaluate_v1.py, whose normalisation is SQuAD's; its F1 makes more of yes and no."""
    assert normalised(told) == hotpotqa.normalize_answer(told)
    assert measured("exact_match", told, [answer]) == hotpotqa.exact_match_score(told, answer)
    if normalised(told) and normalised(answer):
        f1, *_ = hotpotqa.f1_score(told, answer)
        assert measured("token_f1", told, [answer]) == pytest.approx(f1)


class TestBitsPerByte:
    def test_it_counts_the_bytes_of_the_first_reference(self) -> None:
        case = Case("What?", ("né", "a longer one"))
        assert value(metrics.bits_per_byte, case, Reply(text="", nats=3 * math.log(2))) == 1.0

    @pytest.mark.parametrize(
        ("references", "nats"), [(("x",), None), ((), 1.0), (("",), 1.0), (("", "x"), 1.0)]
    )
    def test_without_a_score_there_is_nothing_to_say(
        self, references: tuple[str, ...], nats: float | None
    ) -> None:
        reply = Reply(text="", nats=nats)
        assert value(metrics.bits_per_byte, Case("What?", references), reply) is None

    def test_lower_is_better_and_a_failure_has_no_fair_value(self) -> None:
        assert not metrics.bits_per_byte.higher_is_better
        assert metrics.bits_per_byte.failed is None
        assert metrics.bits_per_byte.unit == "bits per byte"


def recalled(gold: Sequence[str], documents: Sequence[Document] | None) -> float | None:
    case = Case("What?", gold=tuple(gold))
    kept = None if documents is None else tuple(documents)
    return value(metrics.gold_recall, case, Reply(text="", documents=kept))


class TestGoldRecall:
    def test_by_id_by_text_and_by_a_part_of_the_text(self) -> None:
        documents = [
            Document("It is\n  blue.", id="one"),
            Document("Long before. It weighs 340 kg. Long after.", id="two"),
        ]
        assert recalled(["one", "two"], documents) == 1.0
        assert recalled(["It is blue.", "It\nweighs 340 kg."], documents) == 1.0
        assert recalled(["one", "It is red.", "three", "two"], documents) == 0.5
        assert recalled(["It is blue. And green."], documents) == 0.0

    def test_an_id_that_stands_in_a_text_by_chance_is_not_found(self) -> None:
        documents = [Document("There are 340 of them.", id="7")]
        assert recalled(["340"], documents) == 0.0
        assert recalled(["7"], documents) == 1.0

    def test_a_word_that_is_the_whole_text_is_found(self) -> None:
        assert recalled(["Yes."], [Document(" Yes. ", id="x")]) == 1.0

    def test_unknown_is_not_none_found(self) -> None:
        assert recalled(["one"], None) is None
        assert recalled([], [Document("x")]) is None
        assert recalled(["one"], []) == 0.0


def repeated(*texts: str) -> float | None:
    documents = tuple(Document(text, id=f"{i}") for i, text in enumerate(texts))
    return value(metrics.near_duplicates, Case("What?"), Reply(text="", documents=documents))


class TestNearDuplicates:
    def test_equal_passages(self) -> None:
        text = "The Korgost pump stands in Oslo. It weighs 340 kg."
        assert repeated(text, text) == 0.5
        assert repeated(text, text.upper(), text.replace(" ", "\n")) == 2 / 3
        assert repeated(text) == 0.0

    def test_reworded_passages(self) -> None:
        first = "The Korgost pump stands in Oslo. It weighs 340 kg and is painted blue."
        again = "It is painted blue and weighs 340 kg. The Korgost pump is located in Oslo."
        other = "The Korgost pump was built in 1987. Tanaka inspects it every year."
        assert repeated(first, again, other) == 1 / 3
        assert repeated(again, other, first) == 1 / 3

    def test_a_part_repeats_the_whole_and_not_the_other_way_round(self) -> None:
        part = "The Korgost pump stands in Oslo."
        whole = (
            f"{part} Tanaka inspects it each spring, with two colleagues from Bergen who bring "
            "their own tools and stay until the last valve has been tried."
        )
        assert repeated(whole, part) == 0.5
        assert repeated(part, whole) == 0.0

    def test_no_passages(self) -> None:
        assert value(metrics.near_duplicates, Case("What?"), Reply(text="")) is None
        assert repeated() is None
        assert repeated("!", "?") == 0.0

    def test_the_invented_world_whose_copies_are_known(self) -> None:
        """Most of the freely reworded sheets are found, and hardly one of what is none."""
        copies, others, strangers = [], [], []
        devices = world.devices(40, seed=3)
        for i, device in enumerate(devices):
            half, rest = world.ATTRIBUTES[:4], world.ATTRIBUTES[4:]
            sheet = world.passage(device, seed=i, attributes=half)
            copy = world.passage(device, seed=i + 100, attributes=half)
            copies.append(repeated(sheet, copy))
            others.append(repeated(sheet, world.passage(device, seed=i, attributes=rest)))
            other = world.passage(devices[i - 1], seed=i + 200, attributes=half)
            strangers.append(repeated(sheet, other))
        shares = [2 * sum(filter(None, each)) / 40 for each in (copies, others, strangers)]
        assert shares[0] > 0.6
        assert shares[1] == 0.0
        assert shares[2] < 0.1


def test_coverage_is_what_the_reply_says_and_tells_no_quality() -> None:
    assert value(metrics.coverage, Case("What?"), Reply(text="", coverage=0.25)) == 0.25
    assert value(metrics.coverage, Case("What?"), Reply(text="")) is None
    assert not metrics.coverage.quality
    assert not metrics.near_duplicates.quality


def test_each_built_in_metric_is_explained() -> None:
    for name, metric in metrics.BUILT_IN.items():
        assert name == metric.name
        assert metric is getattr(metrics, name)
        assert metric.about.endswith(".")


class TestThoseThatApply:
    @pytest.mark.parametrize(
        ("cases", "wanted"),
        [
            ([Case("a")], ""),
            ([Case("a", ("x",)), Case("b")], "exact_match token_f1 bits_per_byte"),
            ([Case("a", ("x",), origin="held_out"), Case("b")], "bits_per_byte"),
            (
                [Case("a", ("x",), origin="held_out"), Case("b", ("x",))],
                "exact_match token_f1 bits_per_byte",
            ),
            ([Case("a", gold=("1",))], "gold_recall"),
            ([Case("a", ("x",), ("1",))], "exact_match token_f1 bits_per_byte gold_recall"),
            ([], ""),
        ],
    )
    def test_what_the_cases_have_decides(self, cases: list[Case], wanted: str) -> None:
        names = [metric.name for metric in resolve(None, iter(cases))]
        assert names == [*wanted.split(), "coverage", "near_duplicates"]


def length(case: Case, reply: Reply) -> float:
    """Letters of the answer.

    And more.
    """
    return len(reply.text)


def is_short(case: Case, reply: Reply) -> bool:
    return len(reply.text) < 5


def perhaps_short(case: Case, reply: Reply) -> bool | None:
    return is_short(case, reply) if reply.text else None


def maybe_short(case: Case, reply: Reply) -> Optional[bool]:  # noqa: UP045
    return perhaps_short(case, reply)


def postponed_short(case: "Case", reply: "Reply") -> "bool":
    return is_short(case, reply)


class TestResolve:
    def test_names_objects_and_functions_keep_their_order(self) -> None:
        own = Metric(name="own", measure=length, title="own")
        found = resolve(["token_f1", own, length, "coverage"], [])
        assert [metric.name for metric in found] == ["token_f1", "own", "length", "coverage"]
        assert found[0] is metrics.token_f1
        assert found[1] is own

    def test_a_function_is_graded(self) -> None:
        (metric,) = resolve([length], [])
        assert (metric.title, metric.about) == ("length", "Letters of the answer.")
        assert (metric.binary, metric.unit, metric.failed) == (False, "points", None)
        assert value(metric, Case("What?"), Reply(text="Oslo")) == 4.0

    @pytest.mark.parametrize(
        "function",
        [is_short, perhaps_short, maybe_short, postponed_short],
        ids=lambda f: f.__name__,
    )
    def test_a_function_annotated_as_bool_is_binary(self, function: Any) -> None:
        (metric,) = resolve([function], [])
        assert (metric.binary, metric.unit, metric.failed) == (True, "share", 0.0)
        assert value(metric, Case("What?"), Reply(text="Oslo")) == 1.0
        assert value(metric, Case("What?"), Reply(text="Bergen")) == 0.0

    def test_an_unknown_name_lists_the_names(self) -> None:
        with pytest.raises(ValueError, match=r"no metric 'f1'; built in are exact_match, token_f1"):
            resolve(["f1"], [])

    @pytest.mark.parametrize("nameless", [lambda case, reply: 1, partial(length)])
    def test_a_function_without_a_name_is_refused(self, nameless: Any) -> None:
        with pytest.raises(ValueError, match=r"has no name: define it with def, or pass Metric"):
            resolve([nameless], [])

    def test_a_name_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="2 metrics with the name 'length'"):
            resolve([length, Metric(name="length", measure=is_short, title="x")], [])

    def test_what_is_no_metric_is_refused(self) -> None:
        def one(reply: Reply) -> float:
            return 1.0

        async def later(case: Case, reply: Reply) -> float:
            return 1.0

        wrong: list[tuple[Any, str]] = [
            ([7], "a Metric, or a function .* got int: 7"),
            ("exact_match", "must come as a list, got a single 'exact_match'"),
            (length, "must come as a list, got a single <function length"),
            ([one], r"'one' must take \(case, reply\): too many positional arguments"),
            ([later], "'later' is async"),
        ]
        for given_, message in wrong:
            with pytest.raises(TypeError, match=message):
                resolve(given_, [])


class TestValue:
    @pytest.mark.parametrize(
        ("got", "wanted"),
        [(True, 1.0), (0, 0.0), (0.5, 0.5), (np.float32(0.5), 0.5), (np.bool_(True), 1.0)],
    )
    def test_numbers_of_any_kind(self, got: Any, wanted: float) -> None:
        metric = Metric(name="own", measure=lambda case, reply: got, title="own")
        found = value(metric, Case("What?"), Reply(text=""))
        assert found == wanted
        assert type(found) is float

    @pytest.mark.parametrize(
        "got", [math.nan, math.inf, "0.5", "good", [1, 2], 10**400, np.array([1.0, 2.0])]
    )
    def test_what_is_no_finite_number_names_the_metric(self, got: Any) -> None:
        metric = Metric(name="own", measure=lambda case, reply: got, title="own")
        with pytest.raises(ValueError, match=r"'own' must give a finite number, or None; got"):
            value(metric, Case("What?"), Reply(text=""))

    def test_a_binary_metric_gives_0_or_1(self) -> None:
        metric = Metric(name="own", measure=lambda case, reply: 0.5, title="own", binary=True)
        with pytest.raises(ValueError, match=r"must give True, False, 0 or 1, or None; got 0.5"):
            value(metric, Case("What?"), Reply(text=""))


def test_a_metric_of_a_run_file_is_what_it_was_but_for_its_function() -> None:
    for metric in (metrics.bits_per_byte, *resolve([length], [])):
        record = {f.name: getattr(metric, f.name) for f in fields(metric) if f.name != "measure"}
        again = described(record)
        assert replace(again, measure=metric.measure) == metric
    with pytest.raises(ValueError, match="'length' is not in the run file: pass it to compare"):
        value(again, Case("What?"), Reply(text=""))
    bits = described({"name": "bits_per_byte", "title": "bits"})
    assert value(bits, Case("What?", ("a",)), Reply(text="", nats=math.log(2))) == 1.0
