"""Objectives: which examples come of a lesson, what becomes of errors, what is kept."""

import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from conftest import BOS, CONTEXT, EOS, build, byte_tokenizer

from sift_rag.documents import Document
from sift_rag.engine import Engine
from sift_rag.generation import LanguageModel
from sift_rag.lessons import Example
from sift_rag.made_pairs import MOST, Recent, pairs_of, texts_of
from sift_rag.objectives import (
    OBJECTIVES,
    Lesson,
    as_objective,
    distill,
    examples_of,
    leave_one_out,
    name_of,
    qa,
    text,
)
from sift_rag.prompting import PromptTemplate
from sift_rag.worker import Cancelled

PASSAGES = ("The Korvane pump was built in 1987.", "The Melbax oven is located in Oslo.")
ASKED = "How old is the Korvane pump?"


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> LanguageModel:
    return LanguageModel(model, tokenizer)


def lesson(lm: LanguageModel, *passages: str, **more: Any) -> Lesson:
    """One whose base writes "so" to everything."""
    known: dict[str, Any] = {"write": lambda question, passages: "so", "window": CONTEXT} | more
    given = passages or PASSAGES
    return Lesson(question=ASKED, passages=given, lm=lm, template=PromptTemplate(), **known)


TOKENIZER = byte_tokenizer()


def read(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def learnt(example: Example) -> str:
    return read(example.ids[example.start :])


def before(example: Example) -> str:
    return read(example.ids[: example.start])


class TestLesson:
    def test_a_text_is_learnt_with_its_end(self, lm: LanguageModel) -> None:
        example = lesson(lm).text("Oslo.")
        assert example == Example((BOS, *encode("Oslo."), EOS), 1)

    def test_a_pair_is_learnt_on_its_answer_only(self, lm: LanguageModel) -> None:
        example = lesson(lm).pair("Where?", " Oslo\n")
        prompt = lm.prompt("Question: Where?\nAnswer:")
        assert list(example.ids) == [*prompt, *encode(" Oslo"), EOS]
        assert example.start == len(prompt)
        assert (example.weights, example.teacher) == (None, None)

    def test_the_teacher_reads_the_passages(self, lm: LanguageModel) -> None:
        example = lesson(lm).taught("Where?", "Oslo")
        assert example == replace(lesson(lm).pair("Where?", "Oslo"), teacher=example.teacher)
        assert example.teacher is not None
        assert read(example.teacher) == "\n\n".join(PASSAGES) + "\n\nQuestion: Where?\nAnswer:"

    def test_the_teacher_reads_what_fits_beside_the_answer(self, lm: LanguageModel) -> None:
        example = lesson(lm, "a" * 140, "b" * 100, "c" * 40).taught("Where?", "Oslo")
        assert example.teacher is not None
        assert "a" * 140 in read(example.teacher)
        assert "c" * 40 in read(example.teacher)
        assert "bb" not in read(example.teacher)
        assert len(example.teacher) + len(example.ids) - example.start <= CONTEXT

    def test_a_long_answer_is_cut_to_the_window(self, lm: LanguageModel) -> None:
        example = lesson(lm, window=64).taught("Where?", "Oslo " * 50)
        assert len(example.ids) == 64
        with pytest.raises(ValueError, match="nothing to predict"):
            lesson(lm, window=10).taught("Where?", "Oslo")

    def test_a_teacher_without_passages_is_none(self, lm: LanguageModel) -> None:
        with pytest.raises(ValueError, match="No passage fits the context of 256 tokens"):
            lesson(lm, "x" * 1000).taught("Where?", "Oslo")

    def test_what_stands_before_a_text_is_only_read(self, lm: LanguageModel) -> None:
        example = lesson(lm).after(["One.", "Two."], "Three.")
        assert before(example) == "One.\n\nTwo.\n\n"
        assert learnt(example) == "Three."
        assert example.ids[-1] == EOS

    def test_a_chat_template_goes_around_the_question(self, model: Any) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}~\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        model.generation_config.eos_token_id = [EOS, *encode("~")]
        example = lesson(LanguageModel(model, tokenizer)).pair("Where?", "Oslo")
        assert before(example) == "<user>Question: Where?\nAnswer:~\n<assistant>"
        assert learnt(example) == "Oslo~"  # no space before it, and the end is the turn's

    def test_the_right_answer_is_what_the_model_would_write(self) -> None:
        """Of the model that comes along: the tokens are those of prompt and answer as one text."""
        with Engine.tiny() as engine:
            lm = engine._answerer.lm
            example = lesson(lm).pair("Where does it stand?", "Oslo")
            whole = lm.text("Question: Where does it stand?\nAnswer: Oslo")
            assert list(example.ids) == whole


class TestWeighing:
    def test_each_token_gets_its_weight(self, lm: LanguageModel) -> None:
        def capitals(text: str, tokens: Any) -> list[float]:
            return [float(text[t.start : t.end].isupper()) for t in tokens]

        example = lesson(lm, weigh=capitals).text("In Oslo.")
        assert example.weights == (1, 0, 0, 1, 0, 0, 0, 0, 0)

    def test_weights_go_with_what_is_learnt(self, lm: LanguageModel) -> None:
        def places(text: str, tokens: Any) -> list[float]:
            return [float(t.start) for t in tokens]

        example = lesson(lm, weigh=places).after(["One."], "Two.")
        assert example.weights == (6, 7, 8, 9, 10)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0], "weigh gave 1 weights for 7 tokens"),
            ([0.0] * 7, "All weights of an example are 0"),
            ([-1.0] * 7, "0 or more"),
            ([float("nan")] * 7, "0 or more"),
            (["x"] * 7, "ValueError"),
            (None, "TypeError"),
        ],
    )
    def test_a_hook_that_is_wrong_is_told_and_left(
        self, lm: LanguageModel, weights: Any, message: str
    ) -> None:
        made, note = examples_of("text", lesson(lm, "Oslo.", weigh=lambda text, tokens: weights))
        assert made == [lesson(lm).text("Oslo.")]
        assert note.startswith("The objective text failed with")
        assert message in note
        assert note.endswith("the passages were learnt as plain text.")


def test_text_is_the_passages_in_order_repeats_too(lm: LanguageModel) -> None:
    made, note = examples_of("text", lesson(lm, "B.", "A.", "B."))
    assert [learnt(one) for one in made] == ["B.", "A.", "B."]
    assert note == ""


def test_a_passage_without_tokens_is_passed_over(model: Any) -> None:
    bare = LanguageModel(model, byte_tokenizer(bos=False))
    made, note = examples_of("text", lesson(bare, "", "A."))
    assert [read(one.ids) for one in made] == ["A."]
    assert note == ""
    assert examples_of("leave_one_out", lesson(bare, "", "")) == ([], "")


class TestLeaveOneOut:
    def test_each_is_predicted_after_the_others(self, lm: LanguageModel) -> None:
        made = list(leave_one_out(lesson(lm, "One.", "Two.", "Three.")))
        assert [learnt(one) for one in made] == ["One.", "Two.", "Three."]
        assert [before(one) for one in made] == [
            "Two.\n\nThree.\n\n",
            "One.\n\nThree.\n\n",
            "One.\n\nTwo.\n\n",
        ]

    def test_as_many_as_fit(self, lm: LanguageModel) -> None:
        made = list(leave_one_out(lesson(lm, "a" * 20, "b" * 90, "c" * 20, "d" * 20, window=80)))
        assert [before(one).split() for one in made] == [
            ["c" * 20, "d" * 20],
            [],  # nothing fits beside it; it is cut later
            ["a" * 20, "d" * 20],
            ["a" * 20, "c" * 20],
        ]
        assert all(len(one.ids) <= 80 for one in made if "b" not in learnt(one))

    def test_a_passage_does_not_stand_before_itself(self, lm: LanguageModel) -> None:
        made = list(leave_one_out(lesson(lm, "One.", "One.", "One.")))
        assert made == [lesson(lm).text("One.")] * 3


class TestQuestions:
    def test_texts_then_other_tellings_then_questions_in_rounds(self, lm: LanguageModel) -> None:
        def make(document: Document) -> list[tuple[str, str]]:
            return [(f"First of {document.text}?", "1"), (f"Second of {document.text}?", "2")]

        made = list(qa(make, restate=lambda text: [text.lower()])(lesson(lm, "A", "B")))
        assert [learnt(one).strip() for one in made] == ["A", "B", "a", "b", "1", "1", "2", "2"]
        assert before(made[4]) == "Question: First of A?\nAnswer:"

    def test_the_default_asks_by_template_and_shuffles(self, lm: LanguageModel) -> None:
        made, note = examples_of("qa", lesson(lm, " ".join(PASSAGES)))
        assert [learnt(one).strip() for one in made] == [
            " ".join(PASSAGES),
            " ".join(PASSAGES[::-1]),
            "1987",
            "Oslo",
        ]
        assert before(made[2]) == "Question: When was the Korvane pump built?\nAnswer:"
        assert note == ""

    def test_mappings_and_numbers_will_do_and_empty_pairs_are_left_out(self) -> None:
        def make(document: Document) -> list[Any]:
            return [
                {"question": "Q?", "reference": 1987},
                {"question": "R?", "references": ["a", "b"]},
                {"question": "S?", "answer": "c"},
                {"question": "T?"},
                ("U?", 3),
                ["", "x"],
                ("V?", "  "),
                ("W?", None),
            ]

        assert pairs_of("x", make) == (("Q?", "1987"), ("R?", "a"), ("S?", "c"), ("U?", "3"))

    def test_at_most_so_many(self, lm: LanguageModel) -> None:
        def make(document: Document) -> Iterator[tuple[str, str]]:
            n = 0
            while True:
                yield f"{(n := n + 1)}?", "a"

        assert len(list(qa(make, restate=None, most=5)(lesson(lm, "A", "B")))) == 2 + 10
        assert len(pairs_of("x", make)) == MOST
        with pytest.raises(ValueError, match="most is 0"):
            qa(most=0)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("a text", "gave str, wanted a list of pairs"),
            (None, "gave NoneType"),
            (["ab"], "gave 'ab', wanted a pair"),
            ([("a", "b", "c")], "wanted a pair"),
            ([3], "gave 3, wanted a pair"),
        ],
    )
    def test_what_a_maker_must_not_give(self, lm: LanguageModel, given: Any, message: str) -> None:
        objective = qa(lambda document: given, restate=None)
        made, note = examples_of(objective, lesson(lm))
        assert [learnt(one) for one in made] == list(PASSAGES)
        assert "failed on 2 of 2 passages" in note
        assert message in note

    def test_a_passage_that_fails_is_learnt_as_text_and_told(self, lm: LanguageModel) -> None:
        def picky(document: Document) -> list[tuple[str, str]]:
            if "oven" in document.text:
                raise RuntimeError("no ovens")
            return [("Q?", "a")]

        made, note = examples_of(qa(picky, restate=None), lesson(lm))
        assert [learnt(one).strip() for one in made] == [*PASSAGES, "a"]
        assert note == (
            "picky failed on 1 of 2 passages, first with RuntimeError: no ovens; these were learnt"
            " as text only."
        )

    def test_restating_that_fails_is_told(self, lm: LanguageModel) -> None:
        def loudly(text: str) -> Any:
            return text.upper()

        made, note = examples_of(qa(lambda _: [], restate=loudly), lesson(lm))
        assert len(made) == 2
        assert "loudly failed on 2 of 2 passages, first with TypeError: it gave 'THE KOR" in note

    def test_the_base_may_make_both(self, lm: LanguageModel) -> None:
        asked: list[tuple[str, Sequence[str]]] = []

        def write(question: str, passages: Sequence[str]) -> str:
            asked.append((question, passages))
            return "Question: Who?\nAnswer: Ada" if question.startswith("Write one") else "Again."

        objective = qa("model", restate="model")
        for _ in range(2):  # the second time nothing is asked
            made = list(objective(lesson(lm, "By Ada.", write=write)))
            assert [learnt(one).strip() for one in made] == ["By Ada.", "Again.", "Ada"]
        assert [passages for _, passages in asked] == [["By Ada."]] * 2

        other = LanguageModel(build(), lm.tokenizer)  # has its own
        list(objective(lesson(other, "By Ada.", write=write)))
        assert len(asked) == 4

    def test_a_base_that_writes_no_question_gives_none(self, lm: LanguageModel) -> None:
        made, note = examples_of(qa("model", restate=None), lesson(lm))
        assert [learnt(one) for one in made] == list(PASSAGES)
        assert note == ""


class TestDistill:
    def test_the_question_first_then_those_made(self, lm: LanguageModel) -> None:
        def write(question: str, passages: Sequence[str]) -> str:
            return f"{question[:3]} of {len(passages)}"

        made, note = examples_of("distill", lesson(lm, write=write))
        assert note == ""
        assert [learnt(one).strip() for one in made] == ["How of 2", "Whe of 1", "Whe of 1"]
        assert before(made[0]) == f"Question: {ASKED}\nAnswer:"
        teachers = [read(one.teacher or ()) for one in made]
        assert [sum(p in teacher for p in PASSAGES) for teacher in teachers] == [2, 1, 1]
        assert PASSAGES[0] in teachers[1]

    def test_a_passage_without_questions_is_learnt_as_text(self, lm: LanguageModel) -> None:
        made, _ = examples_of(distill(asked=False), lesson(lm, PASSAGES[0], "x = 1"))
        assert [learnt(one).strip() for one in made] == ["x = 1", "so"]
        made, _ = examples_of(distill(asked=False, texts=True), lesson(lm, PASSAGES[0]))
        assert [learnt(one).strip() for one in made] == [PASSAGES[0], "so"]

    def test_nothing_is_taught_where_the_base_says_nothing(self, lm: LanguageModel) -> None:
        made, _ = examples_of("distill", lesson(lm, write=lambda question, passages: "  "))
        assert [learnt(one) for one in made] == list(PASSAGES)

    def test_a_passage_beyond_the_context_is_learnt_as_text(self, lm: LanguageModel) -> None:
        long = PASSAGES[0] + " It hums." * 40
        made, note = examples_of("distill", lesson(lm, long))
        assert [learnt(one) for one in made] == [long]
        assert "distill failed on 1 of 1 passages, first with ValueError: No passage fits" in note
        assert "The question itself was not distilled: ValueError: No passage fits" in note

    def test_answers_are_written_once(self, lm: LanguageModel) -> None:
        asked = []

        def write(question: str, passages: Sequence[str]) -> str:
            asked.append(question)
            return "so"

        def learn(length: int) -> None:
            alone = lesson(lm, "Only here: the Korvane pump.", write=write, written_by=length)
            examples_of("distill", alone)

        for length in (8, 8, 16, 8):
            learn(length)
        assert len(asked) == 2


class TestFaults:
    def test_an_objective_that_raises_gives_way_to_text(self, lm: LanguageModel) -> None:
        def broken(lesson: Lesson) -> Iterator[Example]:
            yield lesson.text("half")
            raise KeyError("facts")

        made, note = examples_of(broken, lesson(lm))
        assert [learnt(one) for one in made] == list(PASSAGES)
        assert note == (
            "The objective broken failed with KeyError: 'facts': the passages were learnt as plain"
            " text."
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "empty gave no examples"),
            (None, "not iterable"),
            (["text"], "it gave str, wanted an Example"),
            ([Example((1, 999))], "it gave the token 999, the model knows 260"),
            ([Example((1, -1))], "token -1"),
            ([Example((1, 2), teacher=(3,) * 256)], "has 257 tokens, the model's context is 256"),
        ],
    )
    def test_an_objective_that_gives_no_examples(
        self, lm: LanguageModel, given: Any, message: str
    ) -> None:
        def empty(lesson: Lesson) -> Any:
            return given

        made, note = examples_of(empty, lesson(lm))
        assert [learnt(one) for one in made] == list(PASSAGES)
        assert message in note

    def test_one_without_end_is_ended(self, lm: LanguageModel) -> None:
        def forever(lesson: Lesson) -> Iterator[Example]:
            while True:
                yield Example((1, 2))

        assert len(examples_of(forever, lesson(lm))[0]) == 10_000

    @pytest.mark.parametrize("objective", [distill(), qa("model"), qa(restate="model")])
    def test_a_cancelled_call_is_cancelled(self, lm: LanguageModel, objective: Any) -> None:
        def write(question: str, passages: Sequence[str]) -> str:
            raise Cancelled("enough")

        with pytest.raises(Cancelled):
            examples_of(objective, lesson(lm, write=write))

    def test_what_was_told_before_a_failure_is_told_too(self, lm: LanguageModel) -> None:
        def chatty(lesson: Lesson) -> list[Example]:
            lesson.notes.extend(["First.", "First."])
            return []

        note = examples_of(chatty, lesson(lm))[1]
        assert note.startswith("First. The objective chatty gave no examples")

    def test_names(self) -> None:
        assert as_objective("qa") is OBJECTIVES["qa"]
        assert as_objective(text) is text
        with pytest.raises(ValueError, match="no objective 'quiz'; there are text, qa, distill, l"):
            as_objective("quiz")
        with pytest.raises(TypeError, match="objective is 3"):
            as_objective(3)  # type: ignore[arg-type]


def test_objectives_have_names_are_equal_and_pickle() -> None:
    assert {name_of(one): one for one in OBJECTIVES.values()} == OBJECTIVES
    assert name_of(qa(lambda _: [], restate=None)) == "qa(make=<lambda>, restate=None)"
    assert name_of(qa("model", most=5)) == "qa(make=model, most=5)"
    assert name_of(distill(asked=False, texts=True)) == "distill(asked=False, texts=True)"
    for one in OBJECTIVES.values():
        again = pickle.loads(pickle.dumps(one))
        assert again == one
        assert hash(again) == hash(one)
    assert qa() == OBJECTIVES["qa"] != qa(most=4)


class TestKept:
    def test_a_passage_is_asked_about_once(self) -> None:
        asked = []

        def make(document: Document) -> list[tuple[str, str]]:
            asked.append(document.text)
            return [("Q?", "a")]

        for passage in ("A", "B", "A", "B"):
            assert pairs_of(passage, make) == (("Q?", "a"),)
        assert asked == ["A", "B"]

    def test_an_error_is_not_kept(self) -> None:
        tries = []

        def make(document: Document) -> list[tuple[str, str]]:
            tries.append(1)
            if len(tries) == 1:
                raise RuntimeError("busy")
            return [("Q?", "a")]

        with pytest.raises(RuntimeError):
            pairs_of("A", make)
        assert pairs_of("A", make) == (("Q?", "a"),)

    def test_who_cannot_be_hashed_is_asked_again(self) -> None:
        class Maker:
            __hash__ = None  # type: ignore[assignment]
            asked = 0

            def __call__(self, text: str) -> list[str]:
                self.asked += 1
                return ["b", "", text]

        maker = Maker()
        assert [texts_of("a", maker) for _ in range(2)] == [("b",)] * 2
        assert maker.asked == 2

    def test_the_oldest_goes(self) -> None:
        kept: Recent[Any] = Recent(2)
        made: list[str] = []
        for key in "ABACAB":
            kept.get(key, partial(made.append, key))
        assert "".join(made) == "ABCB"
        assert len(kept) == 2

    def test_threads_share_it(self) -> None:
        kept: Recent[int] = Recent(8)
        wrong: list[int] = []

        def work() -> None:
            for i in range(2000):
                if kept.get(i % 11, lambda i=i: i % 11) != i % 11:  # type: ignore[misc]
                    wrong.append(i)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(kept) == 8


@pytest.mark.parametrize("objective", [*OBJECTIVES, leave_one_out, qa(restate=None)])
def test_the_engine_learns_by_each(engine: Engine, objective: Any) -> None:
    config = replace(engine.training, objective=objective, guard=None)
    answer = engine.answer(ASKED, PASSAGES, mode="train", training=config)
    assert answer.training is not None
    assert answer.training.steps > 0
    assert answer.training.note == ""
    assert engine.answer(ASKED, PASSAGES, mode="train", training=config).text == answer.text


def test_the_engine_tells_what_it_did_instead(engine: Engine) -> None:
    def broken(lesson: Lesson) -> list[Example]:
        raise RuntimeError("no idea")

    config = replace(engine.training, objective=broken, guard=None)
    answer = engine.answer(ASKED, PASSAGES, mode="train", training=config)
    plain = engine.answer(ASKED, PASSAGES, mode="train", training=replace(config, objective="text"))
    assert answer.training is not None
    assert plain.training is not None
    assert answer.training.losses == plain.training.losses
    assert "The objective broken failed with RuntimeError: no idea" in answer.training.note
