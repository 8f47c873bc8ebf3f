"""Our own ways tell what the engine and the pipeline do; names, and what a way is."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING
from numpy.typing import NDArray

from sift_rag import Callback, Engine, Index, Pipeline, TrainingConfig, mmr, nearest, sift
from sift_rag.cases import STAGES, TOKENS, Case, Reply
from sift_rag.documents import content_hash
from sift_rag.kernels import rbf
from sift_rag.pipeline import retrieve
from sift_rag.prompting import PromptTemplate
from sift_rag.replies import of_answer
from sift_rag.sizes import flops
from sift_rag.stopping import gain_share
from sift_rag.tiny import world
from sift_rag.ways import DEFAULT, SELECTORS, Own, Way, describe, resolve, warm_up

PASSAGES = [world.passage(device, seed=i) for i, device in enumerate(world.devices(12, seed=2))]
PASSAGES += [world.passage(world.devices(12, seed=2)[0], seed=9)]
ASKED = world.question(world.devices(12, seed=2)[0], "city", seed=1)
CASE = Case(ASKED.text, (ASKED.answer,))
CONTINUED = PromptTemplate(closed_book="{question}", stuffed="{context}\n\n{question}")


class LetterEmbedder:
    """Counts of letter pairs, hashed into 64 places; it counts the questions that it embeds."""

    name = "letters"

    def __init__(self) -> None:
        self.questions: list[str] = []

    def embed(self, texts: Sequence[str], *, kind: str = "passage") -> NDArray[np.float32]:
        if kind != "passage":
            self.questions += texts
        rows = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for pair in pairwise(text):
                row[int(content_hash("".join(pair)), 16) % 64] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        engine.training = replace(engine.training, epochs=2)
        yield engine


@pytest.fixture
def embedder() -> LetterEmbedder:
    return LetterEmbedder()


@pytest.fixture
def index(embedder: LetterEmbedder) -> Index:
    return Index.build(PASSAGES, embedder)


@pytest.fixture
def ways(index: Index, tiny: Engine) -> dict[str, Way]:
    return resolve(index=index, engine=tiny, k=3, fetch_k=8)


class TestWhatTheyTell:
    @pytest.mark.parametrize("name", DEFAULT)
    def test_it_is_what_the_pipeline_answers(
        self, ways: dict[str, Way], index: Index, tiny: Engine, name: str
    ) -> None:
        mode: Any = name.partition("(")[0]
        select = nearest if "nearest" in name else sift
        answer = Pipeline(index, tiny, select=select, k=3, fetch_k=8).answer(
            CASE.question, mode=mode
        )
        reply = ways[name](CASE)
        assert reply.text == answer.text
        assert reply.documents == answer.documents
        assert reply.tokens == {
            "in": answer.usage["prompt_tokens"],
            "out": answer.usage["completion_tokens"],
            "trained": answer.usage["training_tokens"],
        }
        assert reply.tokens.keys() == set(TOKENS)
        assert (reply.tokens["trained"] > 0) == (mode in ("train", "both"))
        if answer.selection is None:
            assert (reply.coverage, reply.uncertainty) == (None, None)
        else:
            left = answer.selection.uncertainty[-1] / answer.selection.initial_uncertainty
            assert reply.coverage == answer.selection.coverage
            assert reply.uncertainty == pytest.approx(left)
            assert 0 < left < 1

    @pytest.mark.parametrize("name", DEFAULT)
    def test_the_first_reference_is_scored(
        self, ways: dict[str, Way], index: Index, tiny: Engine, name: str
    ) -> None:
        mode: Any = name.partition("(")[0]
        select = nearest if "nearest" in name else sift
        found = retrieve(index, CASE.question, select=select, k=3, fetch_k=8).documents
        wanted = tiny.score(CASE.question, ASKED.answer, found, mode=mode).nats
        case = Case(CASE.question, (ASKED.answer, "another one"))
        assert ways[name](case).nats == pytest.approx(wanted)

    @pytest.mark.parametrize("references", [(), ("",), (" ", "Oslo")])
    def test_without_a_reference_there_is_no_score(
        self, ways: dict[str, Way], references: tuple[str, ...]
    ) -> None:
        reply = ways["closed_book"](Case(CASE.question, references))
        assert reply.nats is None
        assert reply.note == ""

    def test_seconds_are_those_of_the_stages_and_their_sum(self, ways: dict[str, Way]) -> None:
        told = {name: way(CASE).seconds for name, way in ways.items()}
        for name, seconds in told.items():
            assert tuple(seconds) == STAGES
            parts = [seconds[stage] for stage in STAGES[:-1]]
            assert seconds["total"] == pytest.approx(sum(parts))
            retrieves, trains = name != "closed_book", name.startswith(("train", "both"))
            assert (seconds["retrieve"] > 0) == (seconds["select"] > 0) == retrieves
            assert (seconds["train"] > 0) == trains
            assert seconds["prefill"] > 0

    def test_scoring_and_waiting_are_not_in_the_time(self, index: Index, tiny: Engine) -> None:
        answer = Pipeline(index, tiny, mode="train").answer(CASE.question)
        assert answer.timings.keys() == {
            "queue", "search", "select", "train", "prompt", "prefill", "decode", "total"
        }  # fmt: skip
        told = {"search": 1.0, "select": 2.0, "train": 4.0, "prompt": 8.0, "prefill": 16.0}
        told |= {"decode": 32.0, "queue": 100.0, "total": 500.0}
        assert of_answer(replace(answer, timings=told)).seconds == {
            "retrieve": 1, "select": 2, "train": 4, "prefill": 24, "decode": 32, "total": 63
        }  # fmt: skip

    def test_arithmetic_is_estimated_from_the_tokens(
        self, ways: dict[str, Way], index: Index, tiny: Engine
    ) -> None:
        answer = Pipeline(index, tiny, k=3, fetch_k=8, mode="both").answer(CASE.question)
        assert answer.training is not None
        wanted = flops(
            tiny.size,
            prompt=answer.usage["prompt_tokens"],
            written=answer.usage["completion_tokens"],
            trained=answer.usage["training_tokens"],
            window=answer.usage["training_tokens"] // 6,  # three passages twice
        )
        assert ways["both(sift)"](CASE).flops == wanted
        stuffed, closed = ways["stuff(sift)"](CASE).flops, ways["closed_book"](CASE).flops
        assert closed is not None
        assert stuffed is not None
        assert 0 < closed < stuffed < wanted

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
    def test_memory_is_told(self, ways: dict[str, Way]) -> None:
        memory = ways["stuff(sift)"](CASE).memory
        assert memory is not None
        assert 0 <= memory < 2**31

    def test_a_held_out_passage_is_continued_after_the_passages(
        self, index: Index, tiny: Engine
    ) -> None:
        first, second = PASSAGES[3][:60], PASSAGES[3][60:]
        case = Case(first, (second,), origin="held_out")
        words = PromptTemplate(closed_book="Q {question}", stuffed="{context} Q {question}")
        asked = resolve(
            ["closed_book", "stuff"],
            index=index,
            engine=tiny,
            k=2,
            max_new_tokens=3,
            template=words,
        )
        documents = retrieve(index, first, k=2).documents
        for name, mode in (("closed_book", "closed_book"), ("stuff", "stuff")):
            reply = asked[name](case)
            options: dict[str, Any] = {"mode": mode, "template": CONTINUED}
            assert reply.nats == pytest.approx(tiny.score(first, second, documents, **options).nats)
            answer = tiny.answer(first, documents, max_new_tokens=3, **options)
            assert reply.text == answer.text
            assert answer.finish_reason == "length"
            assert reply.note == ""  # a continuation has no end of its own

    def test_words_and_length_are_those_asked_for(self, index: Index, tiny: Engine) -> None:
        words = PromptTemplate(closed_book="{question} It is", stuffed="{context} {question} It is")
        settings: dict[str, Any] = {"max_new_tokens": 3, "template": words}
        pipeline = Pipeline(index, tiny, k=2)
        asked = resolve(
            {"none": "closed_book", "mine": pipeline}, index=index, engine=tiny, **settings
        )
        wanted = tiny.answer(CASE.question, mode="closed_book", **settings)
        assert asked["none"](CASE).text == wanted.text
        assert asked["mine"](CASE).text == pipeline.answer(CASE.question, **settings).text
        assert asked["none"](CASE).tokens["out"] <= 3

    def test_an_answer_that_was_cut_says_so(self, index: Index, tiny: Engine) -> None:
        (way,) = resolve(["stuff"], index=index, engine=tiny, max_new_tokens=1).values()
        reply = way(Case(CASE.question))
        assert reply.note == "The answer was cut at its longest, max_new_tokens=1."


class TestWhatDoesNotFit:
    """A model that sees 256 bytes and writes eight."""

    def test_passages_left_out_are_told(self, index: Index, engine: Engine) -> None:
        (way,) = resolve(["stuff"], index=index, engine=engine, k=3).values()
        reply = way(Case("Where?"))
        assert reply.documents is not None
        left = 3 - len(reply.documents)
        assert left > 0
        told = f"{left} of the selected passages did not fit into the prompt."
        assert told in reply.note

    def test_a_reference_too_long_is_not_scored_and_the_answer_stands(
        self, index: Index, engine: Engine
    ) -> None:
        for name, way in resolve(
            ["closed_book", "stuff", "train"], index=index, engine=engine
        ).items():
            reply = way(Case("Where?", ("x" * 300,)))
            assert reply.nats is None, name
            assert "The reference was not scored" in reply.note
            assert reply.tokens["out"] > 0

    def test_a_question_too_long_is_an_error(self, index: Index, engine: Engine) -> None:
        (way,) = resolve(["closed_book"], index=index, engine=engine).values()
        with pytest.raises(ValueError, match="The question takes"):
            way(Case("Where? " * 50))

    def test_training_that_was_undone_is_told(self, engine: Engine) -> None:
        engine._answerer.lm.model.lm_head.weight.data *= 4
        index = Index.build(["a" * 19, "bcdefghijklmn 0123456"], LetterEmbedder())
        wild = replace(TRAINING, learning_rate=0.1, alpha=1e6, epochs=9)
        (way,) = resolve(["train"], index=index, engine=engine, training=wild).values()
        reply = way(Case("Who is it, a?"))
        assert reply.note.startswith("Training was undone after step ")
        assert reply.note.endswith("The answer was cut at its longest, max_new_tokens=8.")


class TestOneSearch:
    def test_all_ways_share_the_search_of_a_question(
        self, ways: dict[str, Way], embedder: LetterEmbedder
    ) -> None:
        replies = {name: way(CASE) for name, way in ways.items()}
        assert embedder.questions == [CASE.question]
        shared = {reply.seconds["retrieve"] for name, reply in replies.items() if "(" in name}
        assert len(shared) == 1
        for way in ways.values():
            way(Case("Another one?"))
        assert embedder.questions == [CASE.question, "Another one?"]

    def test_only_the_last_question_is_remembered(
        self, ways: dict[str, Way], embedder: LetterEmbedder
    ) -> None:
        for question in ("One?", "Two?", "One?"):
            ways["stuff(sift)"](Case(question))
        assert embedder.questions == ["One?", "Two?", "One?"]

    def test_another_number_of_candidates_is_another_search(
        self, index: Index, tiny: Engine, embedder: LetterEmbedder
    ) -> None:
        mine = Pipeline(index, tiny, k=2, fetch_k=4)
        asked = resolve({"a": "stuff", "b": mine, "c": "stuff(nearest)"}, index=index, engine=tiny)
        replies = {name: way(CASE) for name, way in asked.items()}
        assert len(embedder.questions) == 2
        assert replies["a"].seconds["retrieve"] == replies["c"].seconds["retrieve"]
        assert replies["a"].seconds["retrieve"] != replies["b"].seconds["retrieve"]

    def test_pipelines_over_other_passages_have_their_own(self, index: Index, tiny: Engine) -> None:
        other = Index.build(PASSAGES[:4], LetterEmbedder())
        asked = resolve(
            {"here": "stuff", "there": Pipeline(other, tiny, k=9)}, index=index, engine=tiny
        )
        documents = asked["there"](CASE).documents
        assert documents is not None
        assert {document.text for document in documents} == set(PASSAGES[:4])

    def test_the_closed_book_searches_nothing(
        self, ways: dict[str, Way], embedder: LetterEmbedder, index: Index, tiny: Engine
    ) -> None:
        ways["closed_book"](CASE)
        resolve({"mine": Pipeline(index, tiny, mode="closed_book")})["mine"](CASE)
        assert embedder.questions == []

    def test_warming_up_answers_once_and_forgets(
        self, ways: dict[str, Way], embedder: LetterEmbedder
    ) -> None:
        for way in ways.values():
            warm_up(way, CASE)
        warmed = len(embedder.questions)
        assert warmed == 4
        for way in ways.values():
            way(CASE)
        assert len(embedder.questions) == warmed + 1

    def test_warming_up_costs_nobody_else_anything(self) -> None:
        asked: list[str] = []

        def paid(question: str) -> str:
            asked.append(question)
            return "yes"

        (way,) = resolve({"paid": paid}).values()
        warm_up(way, CASE)
        assert asked == []
        way(CASE)
        assert asked == [CASE.question]

    def test_what_fails_when_warming_up_fails_again_where_it_is_kept(
        self, index: Index, engine: Engine
    ) -> None:
        (way,) = resolve(["stuff"], index=index, engine=engine).values()
        warm_up(way, Case("Where? " * 50))
        with pytest.raises(ValueError, match="The question takes"):
            way(Case("Where? " * 50))


class TestNames:
    def test_the_default_is_all_five(self, ways: dict[str, Way]) -> None:
        assert tuple(ways) == DEFAULT
        assert [describe(way).get("select") for way in ways.values()] == [
            None, "nearest", "sift", "sift", "sift"
        ]  # fmt: skip

    @pytest.mark.parametrize("name", SELECTORS)
    def test_any_selector_goes_into_the_brackets(
        self, index: Index, tiny: Engine, name: str
    ) -> None:
        (way,) = resolve([f"stuff({name})"], index=index, engine=tiny, k=4, fetch_k=9).values()
        wanted = retrieve(index, CASE.question, select=SELECTORS[name], k=4, fetch_k=9)
        assert way(CASE).documents == wanted.documents
        assert SELECTORS[name].__name__ == name

    def test_without_brackets_it_is_sift(self, index: Index, tiny: Engine) -> None:
        short = resolve(["stuff", "train", "both"], index=index, engine=tiny)
        long = resolve(["stuff(sift)", "train(sift)", "both(sift)"], index=index, engine=tiny)
        assert list(short) == ["stuff", "train", "both"]
        assert [describe(way) for way in short.values()] == [describe(way) for way in long.values()]

    @pytest.mark.parametrize(
        "name",
        ["stuffed", "stuff(best)", "stuff()", "closed_book(sift)", "", "stuff(sift", "STUFF"],
    )
    def test_an_unknown_name_says_which_there_are(
        self, index: Index, tiny: Engine, name: str
    ) -> None:
        with pytest.raises(
            ValueError,
            match=r"There is no way '.*': there are closed_book, and stuff, train and both",
        ):
            resolve({"mine": name}, index=index, engine=tiny)

    def test_what_is_missing_is_named(self, index: Index, tiny: Engine) -> None:
        both = r"needs an engine and an index: pass "
        with pytest.raises(ValueError, match=both + r"index=Index\.build\(passages, embedder\)\."):
            resolve(engine=tiny)
        with pytest.raises(ValueError, match=both + r"engine=Engine\.from_pretrained\(model\)\."):
            resolve(["stuff"], index=index)
        with pytest.raises(ValueError, match=r"'stuff' .* pass engine=.* and index="):
            resolve(["stuff"])
        with pytest.raises(ValueError, match=r"'closed_book' needs an engine: pass engine="):
            resolve()
        assert resolve(["closed_book"], engine=tiny)["closed_book"](CASE).text

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("stuff", r"come as a list or a mapping, got the string 'stuff': use \['stuff'\]"),
            ([len], "A list of ways holds names of our own; for anything else pass a mapping"),
            ({3: "stuff"}, "must be a string that is not blank, got 3"),
            ({" ": "stuff"}, "must be a string that is not blank, got ' '"),
            ({"mine": 7}, "The way 'mine': A way is the name of one of our own, .* got int"),
            ({"mine": Engine}, "got the class Engine"),
        ],
    )
    def test_what_is_no_way_is_a_type_error(self, wrong: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            resolve(wrong)

    @pytest.mark.parametrize("none", [[], {}])
    def test_no_way_is_an_error(self, none: Any) -> None:
        with pytest.raises(ValueError, match="There is no way to compare"):
            resolve(none)

    def test_a_way_twice_and_settings_out_of_range_are_errors(self, tiny: Engine) -> None:
        with pytest.raises(ValueError, match="named twice: closed_book, closed_book"):
            resolve(["closed_book", "closed_book"], engine=tiny)
        with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
            resolve(["closed_book"], engine=tiny, k=0)
        with pytest.raises(ValueError, match="fetch_k is 0"):
            resolve(["closed_book"], engine=tiny, fetch_k=0)

    def test_a_way_that_was_resolved_stays_what_it_is(self, ways: dict[str, Way]) -> None:
        own = ways["stuff(sift)"]
        (foreign,) = resolve({"mine": lambda question: "yes"}).values()
        again = resolve({"own": own, "mine": foreign})
        assert (again["own"], again["mine"]) == (own, foreign)


class Watching(Callback):
    pass


class TestDescriptions:
    def test_of_our_own(self, index: Index, tiny: Engine) -> None:
        training = TrainingConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj"))
        asked = resolve(["closed_book", "both(mmr)"], index=index, engine=tiny, training=training)
        assert describe(asked["closed_book"]) == {
            "kind": "sift_rag", "mode": "closed_book", "model": "sift_rag.tiny",
            "max_new_tokens": tiny.max_new_tokens,
        }  # fmt: skip
        told = describe(asked["both(mmr)"])
        assert told["training"]["target_modules"] == ["q_proj", "v_proj"]
        assert told["training"]["rank"] == 4
        assert {name: told[name] for name in ("select", "k", "fetch_k", "noise", "stop")} == {
            "select": "mmr", "k": 5, "fetch_k": 50, "noise": None, "stop": None,
        }  # fmt: skip
        assert json.loads(json.dumps(told)) == told

    def test_of_a_pipeline_with_everything(self, index: Index, tiny: Engine) -> None:
        pipeline = Pipeline(
            index,
            tiny,
            select=partial(sift, kernel=rbf(0.1), noise=0.5),
            mode="train",
            stop=gain_share(0.75),
            callbacks=[Watching()],
        )
        words = PromptTemplate(stuffed="{context} {question}")
        told = describe(resolve({"mine": pipeline}, template=words, max_new_tokens=9)["mine"])
        assert told["select"] == "sift(kernel=Rbf(tau=0.1, query_tau=0.1), noise=0.5)"
        assert told["stop"] == "GainShare(share=0.75)"
        assert told["callbacks"] == ["Watching"]
        assert told["template"]["stuffed"] == "{context} {question}"
        assert told["max_new_tokens"] == 9
        assert told["training"]["epochs"] == 2  # the engine's
        assert json.loads(json.dumps(told)) == told

    def test_a_setting_of_no_name_has_no_address(self, index: Index, tiny: Engine) -> None:
        class Kernel:
            def __call__(self, a: Any, b: Any) -> Any:
                return a @ b.T

        def own(query: Any, candidates: Any, k: int) -> Any:
            return sift(query, candidates, k)

        for select in (
            partial(sift, kernel=Kernel()),
            partial(own),
            own,
            partial(mmr, lambda_mult=1),
        ):
            pipeline = Pipeline(index, tiny, select=select)
            told = describe(resolve({"mine": pipeline})["mine"])["select"]
            assert "0x" not in told
        assert told == "mmr(lambda_mult=1)"

    def test_another_process_says_the_same(self, tiny: Engine, index: Index) -> None:
        code = (
            "import json, test_ways as t\n"
            "from sift_rag import Engine, Index\n"
            "from sift_rag.ways import describe, resolve\n"
            "with Engine.tiny() as engine:\n"
            "    index = Index.build(t.PASSAGES, t.LetterEmbedder())\n"
            "    ways = resolve(t.NAMED, index=index, engine=engine)\n"
            "    print(json.dumps({name: describe(way) for name, way in ways.items()}))\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=True,
        )
        plain = Engine.tiny()
        here = resolve(NAMED, index=index, engine=plain)
        assert json.loads(done.stdout) == {name: describe(way) for name, way in here.items()}
        plain.close()


def shouts(question: str) -> str:
    return question.upper()


NAMED: dict[str, Any] = {
    **{name: name for name in DEFAULT},
    "mine": shouts,
    "part": partial(shouts),
    "nameless": lambda question: question,
}


def test_importing_costs_no_model_and_no_framework() -> None:
    code = (
        "import sys; from sift_rag.ways import resolve, describe\n"
        "from sift_rag.cases import Case\n"
        "way = resolve({'mine': lambda question: question})['mine']\n"
        "assert way(Case('Where?')).text == 'Where?'\n"
        "heavy = {'torch', 'transformers', 'langchain_core', 'llama_index', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_our_own_are_not_others(ways: dict[str, Way]) -> None:
    assert all(isinstance(way, Own) for way in ways.values())
    assert isinstance(ways["closed_book"](CASE), Reply)
