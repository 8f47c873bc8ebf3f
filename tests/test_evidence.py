"""The benchmark of evidence: end to end on a few made-up passages, and its figures by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import evidence
import numpy as np
import pytest
from conftest import build, byte_tokenizer
from evidence_data import SHORTEST, copied, passages, tasks
from evidence_figures import UNDONE, Evidence
from evidence_report import claims
from evidence_ways import (
    ADAPTIVE,
    BASE,
    COPIES,
    HEAD,
    NEAREST,
    PAPER,
    REPEATED,
    SIFT,
    at_random,
    trained,
)
from numpy.typing import NDArray

from sift_rag.cases import Case, Reply, Row
from sift_rag.comparison import Comparison
from sift_rag.documents import Document
from sift_rag.embeddings import Kind
from sift_rag.metrics import bits_per_byte

WORDS = "pump crane valve boiler inspects repairs paints moves Tanaka Silva Oslo Lima red".split()


class Letters:
    """Counts of pairs of letters: no model is needed."""

    name = "pairs of letters"

    def __init__(self) -> None:
        self.seen = 0

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        self.seen += len(texts)
        rows = np.full((len(texts), 64), 0.01, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for a, b in pairwise(text):
                row[(7 * ord(a) + ord(b)) % 64] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def sentence(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=6)).capitalize() + "."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data: one domain of made-up texts, one model that knows nothing."""
    folder = tmp_path_factory.mktemp("data")
    random = Random(0)
    texts = [" ".join(sentence(random) for _ in range(8)) for _ in range(14)]
    records = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
    (folder / "domains").mkdir()
    (folder / "domains" / "machines.jsonl").write_text("\n".join(records), encoding="utf-8")
    model = build()
    model.config.max_position_embeddings = 512  # room for both halves, a byte a token
    model.save_pretrained(folder / "lm" / "toy")
    byte_tokenizer().save_pretrained(folder / "lm" / "toy")
    return folder


def options(made: Path, runs: Path, *more: str) -> Any:
    given = ["--runs", str(runs), "--data", str(made), "--models", "toy", "--steps", str(HEAD)]
    return evidence.parsed([*given, "--passages", "2", "--corpus", "10", *more])


def test_end_to_end_and_on_from_the_run_files(made: Path, tmp_path: Path) -> None:
    args = options(made, tmp_path, "--levels", "copies")
    shown = "\n".join(evidence.text("toy", args, Letters()))
    assert "* SIFT below nearest, 20 steps" in shown
    assert f"| {trained(REPEATED, HEAD)} |" in shown
    assert "* The alpha rule spends steps where they pay: not shown. " in shown
    assert "* Both at or above the better of stuff and train: " in shown
    (run,) = tmp_path.glob("*.jsonl")
    rows = [line for line in run.read_text().splitlines() if '"kind": "row"' in line]
    assert len(rows) == 2 * (1 + len(COPIES) + 4)  # base; stuffed twice, both, the alpha rule
    assert (tmp_path / "toy-copies.md").exists()

    before = run.stat().st_size
    again = Letters()
    repeated = "\n".join(evidence.text("toy", args, again))
    assert run.stat().st_size == before
    assert again.seen == 0  # the vectors were kept too
    assert claims_of(repeated) == claims_of(shown)


def claims_of(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("* ")]


def test_a_copy_has_no_passage_that_is_asked_for(made: Path, tmp_path: Path) -> None:
    found = passages("machines", 12, made)
    assert all(len(passage.text) >= SHORTEST for passage in found)
    clean, copies = tasks("machines", found, Letters(), n=2, folder=tmp_path)
    assert clean.cases == copies.cases
    assert len(clean.corpus) <= 10
    for task in (clean, copies):
        texts = [document.text for document in task.corpus.documents]
        assert not any(case.references[0] in text for case in task.cases for text in texts)


def test_near_copies_stand_beside_their_passage() -> None:
    random = Random(1)
    found = copied([Document(" ".join(sentence(random) for _ in range(5)))])
    assert len(found) == 5
    assert len({one.text for one in found}) > 1
    assert all(set(one.text.split()) <= set(found[0].text.split()) for one in found)


def test_chance_is_the_same_for_a_query_and_grows_at_its_end() -> None:
    rows = np.eye(8, dtype=np.float32)
    first = at_random(rows[0] + 0.1, rows, 5).indices.tolist()
    assert at_random(rows[0] + 0.1, rows, 3).indices.tolist() == first[:3]
    others = [at_random(rows[0] + 0.01 * i, rows, 5).indices.tolist() for i in range(4)]
    assert len(set(map(tuple, others))) > 1


def comparison(steps: int, bits: dict[str, list[float]], left: Sequence[float]) -> Comparison:
    """Passages of two domains, with so many bits a byte by way."""
    cases = [
        Case(f"q{i}", ("12345678",), origin="held_out", metadata={"passage": f"d{i % 2}-{i}#aa"})
        for i in range(len(left))
    ]
    rows = [
        Row(
            case=case.id,
            way=way,
            reply=Reply(text="", uncertainty=left[i], note=UNDONE * (values[i] > 4)),
            values={"bits_per_byte": values[i]},
        )
        for way, values in bits.items()
        for i, case in enumerate(cases)
    ]
    settings: dict[str, Any] = {"ways": {way: {} for way in bits}}
    return Comparison(tuple(cases), tuple(bits), (bits_per_byte,), tuple(rows), BASE, settings)


BITS = {
    BASE: [4.0, 4.0, 4.0, 4.0],
    trained(NEAREST, HEAD): [3.0, 3.0, 3.0, 3.0],
    trained(PAPER, HEAD): [2.0, 3.0, 2.4, 3.6],
    trained(SIFT, HEAD): [1.0, 2.0, 3.0, 4.4],
}


def figures() -> Evidence:
    left = [0.1, 0.3, 0.2, 0.4]
    later = {BASE: BITS[BASE], trained(NEAREST, 50): [3.5, 3.5, 3.25, 3.25]}
    later |= {trained(REPEATED, 50): [4.0] * 4, trained(SIFT, 50): [2.0] * 4}
    parts = [comparison(HEAD, BITS | {trained(REPEATED, HEAD): [3.0] * 4}, left)]
    return Evidence("toy", "clean", [*parts, comparison(50, later, left)])


def test_ratios_to_base_by_domain() -> None:
    found = figures()
    assert found.steps == [HEAD, 50]
    assert found.by_domain(trained(SIFT, HEAD)) == pytest.approx({"d0": 0.5, "d1": 0.8})
    assert found.target(trained(SIFT, HEAD)) == pytest.approx(0.65)
    seen = replace(found, model="stories260K")
    assert seen.target(trained(SIFT, HEAD)) == pytest.approx(0.65)


def test_uncertainty_and_gain() -> None:
    found = figures().correlation()
    assert found.pooled == pytest.approx(1.0)
    assert found.within == pytest.approx(1.0)
    assert found.n == 4


def test_the_alpha_rule_against_the_same_steps_for_all() -> None:
    whole = figures()
    part = comparison(
        HEAD,
        BITS | {ADAPTIVE: [1.9, 2.9, 2.3, 3.5], trained(REPEATED, HEAD): [3.0] * 4},
        [0.1, 0.3, 0.2, 0.4],
    )
    rows = [
        replace(row, reply=replace(row.reply, documents=(Document("a"),) * (3 * (i % 4) + 10)))
        if row.way == ADAPTIVE and row.reply
        else row
        for i, row in enumerate(part.rows)
    ]
    shown = "\n".join(claims(replace(whole, parts=[replace(part, rows=tuple(rows))])))
    assert "10 to 19 steps, 14.5 on average: 2.650; 20 for all: 2.750 bits a byte" in shown


def test_steps_that_do_harm() -> None:
    found = figures().overshoot(NEAREST)
    assert found is not None
    best, pair = found
    assert (best, pair.mean_a, pair.mean_b, pair.worse) == (HEAD, 3.0, 3.375, 4)


def test_what_the_guard_undid() -> None:
    found = figures()
    assert found.guarded(trained(SIFT, HEAD)) == pytest.approx((4, 1, 1, 1.1))
    assert found.guarded(*found.trained) == pytest.approx((28, 1, 1, 1.1))
    assert found.guarded(trained(SIFT, HEAD), new=True) == found.guarded(trained(SIFT, HEAD))
    assert found.guarded(trained(SIFT, HEAD), new=False) == (0, 0, 0, 0.0)
    assert found.guarded(trained(NEAREST, 50)) == pytest.approx((4, 0, 0, 0.875))


def test_what_is_said() -> None:
    shown = "\n".join(claims(figures()))
    assert "nearest overshoots: 3.000, then 3.375" in shown
    assert "* 50 steps: SIFT linear 1 is below nearest, 2.000 and 3.375 bits a byte" in shown
    assert "mean of domains new to the model 0.650, at most 0.90 is met" in shown
    said = "The guard undid 1 of 4; after it the worst passage has 1.100 of base, and 1 have more"
    assert said in shown


def test_twenty_steps_are_always_asked(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        options(made, tmp_path, "--steps", "5")
