"""Reading questions: from memory, from files of three kinds, from data sets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sift_rag import question_files
from sift_rag.cases import Case
from sift_rag.questions import read


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def references(value: Any) -> tuple[str, ...]:
    (case,) = read([{"question": "Q?", "reference": value}])
    return case.references


class Split:
    """One split as Hugging Face `datasets` hands it over (checked by hand against 5.2.0)."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Splits(dict[str, Split]):
    """A `datasets.DatasetDict`: a dict whose column names are by split."""

    @property
    def column_names(self) -> dict[str, list[str]]:
        return {name: split.column_names for name, split in self.items()}


# --- in memory --------------------------------------------------------------------------------


def test_strings_mappings_and_cases_in_order() -> None:
    own = Case("Third?", id="mine", origin="recorded")
    row = {"question": "Second?", "references": ["a", "b"], "gold": "p1", "id": 7, "level": 3}
    first, second, third = read(["First?", row, own])
    assert first == Case("First?")
    assert second == Case("Second?", ("a", "b"), ("p1",), metadata={"level": 3}, id="7")
    assert third is own


@pytest.mark.parametrize("key", ["reference", "references", "answer", "answers"])
@pytest.mark.parametrize("value", ["yes, so", ["yes, so"], {"text": ["yes, so"]}])
def test_answers_have_four_names_and_three_shapes(key: str, value: Any) -> None:
    (case,) = read([{"question": "Q?", key: value}])
    assert case.references == ("yes, so",)
    assert not case.metadata


def test_a_reference_goes_before_an_answer_which_may_be_what_a_model_said() -> None:
    (case,) = read([{"question": "Q?", "answer": "said", "reference": "right"}])
    assert case.references == ("right",)
    assert case.metadata == {"answer": "said"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (42, ("42",)),
        (3.0, ("3",)),
        (0.1, ("0.1",)),
        (1e-7, ("0.0000001",)),
        (True, ("yes", "true")),
        (False, ("no", "false")),
        (np.float32(0.5), ("0.5",)),
        (np.array(["a", "b"]), ("a", "b")),
        (None, ()),
        (float("nan"), ()),
        ("  ", ()),
        ([], ()),
        (["a", "a", None, 2], ("a", "2")),
        ([{"text": "a", "answer_start": 3}, {"text": "b", "answer_start": 9}], ("a", "b")),
    ],
)
def test_whatever_type_an_answer_has_it_becomes_text(value: Any, wanted: tuple[str, ...]) -> None:
    assert references(value) == wanted


def test_a_mapping_without_a_question_names_its_keys_and_those_wanted() -> None:
    with pytest.raises(ValueError, match=r"question 2: .*'query', 'answer'.*Wanted: \"question\""):
        read(["Q?", {"query": "Q?", "answer": "a"}])
    with pytest.raises(ValueError, match=r'question 1: "question" must be a string; got a int'):
        read([{"question": 3}])
    with pytest.raises(ValueError, match=r"question 1: \"answer\" must be text.*keys 'value'"):
        read([{"question": "Q?", "answer": {"value": 3}}])


@pytest.mark.parametrize("row", ["", " \n", {"question": " "}])
def test_an_empty_question_is_named(row: Any) -> None:
    with pytest.raises(ValueError, match="question 2: A case has an empty question"):
        read(["Q?", row])


@pytest.mark.parametrize(
    "row",
    [
        "a \ud800 b",
        {"question": "Q?", "answer": "\udfff"},
        {"question": "Q?", "gold": ["\ud800"]},
        {"question": "Q?", "id": "\ud800"},
        {"question": "Q?", "tags": ["\ud800"]},
    ],
)
def test_lone_surrogates_are_refused(row: Any) -> None:
    with pytest.raises(ValueError, match="question 1: a text holds a lone surrogate"):
        read([row])


def test_metadata_may_be_anything() -> None:
    what = {(1, 2): {3}, "when": object}
    assert read([{"question": "Q?", "own": what}])[0].metadata == {"own": what}


@pytest.mark.parametrize("source", [{"question": "Q?"}, Case("Q?"), 3, None])
def test_what_holds_no_questions_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        read(source)


@pytest.mark.parametrize("row", [3, None, ["Q?", "a"], b"Q?"])
def test_what_is_no_question_is_refused(row: Any) -> None:
    with pytest.raises(TypeError, match="question 1: a question is a string, a mapping"):
        read([row])


def test_a_table_says_how_its_rows_are_given() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"question": ["Q?", "R?"], "answer": ["a", None]})
    with pytest.raises(TypeError, match=r'to_dict\("records"\)'):
        read(table)
    assert [case.references for case in read(table.to_dict("records"))] == [("a",), ()]


def test_no_questions_at_all() -> None:
    with pytest.raises(ValueError, match="The source holds no questions"):
        read([])


# --- ids --------------------------------------------------------------------------------------


def test_equal_questions_get_rows_of_their_own() -> None:
    own = Case("Q?")
    ids = [case.id for case in read(["Q?", {"question": "Q?"}, own, "R?"])]
    assert ids == [own.id, f"{own.id}-2", f"{own.id}-3", Case("R?").id]


def test_the_same_question_with_another_answer_is_another_one() -> None:
    rows = [{"question": "Q?", "answer": "a"}, {"question": "Q?", "answer": "b"}]
    assert not any("-" in case.id for case in read(rows))


def test_an_id_that_is_given_twice_is_named_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", '{"question":"A?","id":0}\n\n{"question":"B?","id":"0"}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3: the id '0' is that of line 1 too"):
        read(path)
    with pytest.raises(ValueError, match="question 2: the id 'x' is that of question 1 too"):
        read([Case("A?", id="x"), Case("B?", id="x")])


@given(st.lists(st.sampled_from(["A?", "B?", "C?"]), min_size=1))
def test_ids_are_all_different_and_questions_stay(questions: list[str]) -> None:
    cases = read(questions)
    assert [case.question for case in cases] == questions
    assert len({case.id for case in cases}) == len(questions)


# --- limit ------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_and_looks_no_further() -> None:
    def endless() -> Iterator[str]:
        for number in range(1000):
            assert number < 3
            yield f"Question {number}?"

    assert len(read(endless(), limit=3)) == 3
    with pytest.raises(ValueError, match="limit is 0; it must be at least 1"):
        read(["Q?"], limit=0)


# --- files ------------------------------------------------------------------------------------

ROWS: list[Any] = [
    {"question": "Wie heißt es?", "references": ["a", "b"], "gold": ["p"], "id": "1", "x": [1]},
    "Just a string?",
]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_json_lines(tmp_path: Path, bom: bytes, newline: str) -> None:
    lines = ["", *(json.dumps(row, ensure_ascii=False) for row in ROWS), "  ", ""]
    path = write(tmp_path, "q.JSONL", bom + newline.join(lines).encode())
    assert read(path) == read(str(path)) == read(ROWS)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_json_list(tmp_path: Path, bom: bytes) -> None:
    path = write(tmp_path, "q.json", bom + json.dumps(ROWS, indent=1).encode())
    assert read(path) == read(ROWS)


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", '{"question": "A\u2028B?"}\n')
    assert read(path)[0].question == "A\u2028B?"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_each_delimiter(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["id", "question", "references", "gold", "level"],
        ["1", '"What, or; who	is it?\nSay."', "a| b b |", "p1|p2", "3"],
        ["", "", "", "", ""],
        ["2", "Next?", '"[""x|y"", 2]"', "", ""],
        ["3", "Last?", "[so", "", "4"],
    ]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    first, second, third = read(write(tmp_path, "q.csv", text))
    assert first.question == "What, or; who	is it?\nSay."
    assert (first.references, first.gold) == (("a", "b b"), ("p1", "p2"))
    assert first.metadata == {"level": "3"}
    assert (second.references, second.gold, second.metadata) == (("x|y", "2"), (), {})
    assert third.references == ("[so",)


def test_a_single_reference_of_a_csv_is_never_cut(tmp_path: Path) -> None:
    (case,) = read(write(tmp_path, "q.csv", "question,reference\nQ?,a | b\n"))
    assert case.references == ("a | b",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b'{"question": "A?"}\n\n{"question": "\xff"}', "line 3: not valid UTF-8"),
        ("q.jsonl", '"A?"\n{"question": ', "line 2: not valid JSON"),
        ("q.jsonl", "[" * 100_000, "line 1: not valid JSON"),
        ("q.jsonl", '"A?"\n[1]', "line 2: a question is a string, a mapping"),
        ("q.jsonl", '{"q": "A?"}', "line 1: .*got the keys 'q'.*Wanted"),
        ("q.jsonl", '{"question": "\\ud800"}', "line 1: a text holds a lone surrogate"),
        ("q.jsonl", "", "q.jsonl holds no questions"),
        ("q.json", " ", "q.json holds no questions"),
        ("q.json", "[]", "q.json holds no questions"),
        ("q.json", '{"question": "A?"}', "a JSON list of questions was wanted, got dict"),
        ("q.json", '{"question": "A?"}\n{"question": "B?"}', r"Name a file .* \.jsonl"),
        ("q.json", '["A?", {"question": null}]', "item 2: .*got a NoneType there"),
        ("q.csv", "", "q.csv holds no questions"),
        ("q.csv", "question,answer\n", "q.csv holds no questions"),
        ("q.csv", "frage,answer\nA?,b\n", "line 2: .*got the keys 'frage', 'answer'"),
        ("q.csv", "question,answer\nA?,b\n,c\n", "line 3: .*got the keys 'answer'"),
        ("q.csv", "question,answer\nA?,b,c\n", "line 2: 3 cells under 2 columns"),
        ("q.csv", 'question\n"A\nB?"\n"C', "line 4: not valid CSV"),
        ("q.csv", "question,answer,answer\nA?,b,c\n", "line 1: the column 'answer' is there twice"),
        ("q.txt", "A?", r"the ending .txt is unknown; .* \.jsonl, \.json, \.csv"),
        ("q", "A?", r"the ending \(none\) is unknown"),
    ],
)
def test_a_bad_file_is_named_with_place_and_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_no_such_file_and_a_question_taken_for_a_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file 'Who is it\?'.* in a list"):
        read("Who is it?")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read("Who is it? " * 1000)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read(tmp_path)


def test_a_dump_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "q.jsonl", '"A?"\n' * 10)
    monkeypatch.setattr(question_files, "MAX_BYTES", 49)
    with pytest.raises(ValueError, match="has 50 bytes, more than 49"):
        read(path)


# --- data sets --------------------------------------------------------------------------------

SQUAD = [
    {"id": "a", "title": "t", "question": "Q?", "answers": {"text": ["x", "x"], "start": [1, 9]}},
    {"id": "b", "title": "t", "question": "R?", "answers": {"text": [], "start": []}},
]


def test_a_split_of_squad() -> None:
    first, second = read(Split(SQUAD))
    assert first == Case("Q?", ("x",), id="a", metadata={"title": "t"})
    assert second.references == ()
    with pytest.raises(ValueError, match=r"row 1: .*keys 'id', 'title', 'answers'"):
        read(Split([{name: value for name, value in SQUAD[0].items() if name != "question"}]))


def test_several_splits_ask_for_one() -> None:
    splits = Splits(train=Split(SQUAD), validation=Split(SQUAD))
    with pytest.raises(TypeError, match=r"choose a split, as in dataset\['train'\].*'validation'"):
        read(splits)
    assert len(read(splits["validation"])) == 2


def test_the_data_sets_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_list(SQUAD)
    assert read(split) == read(split.to_iterable_dataset()) == read(Split(SQUAD))
    (case,) = read(split.with_format("numpy"), limit=1)
    assert (type(case.question), case.references) == (str, ("x",))
    with pytest.raises(TypeError, match="choose a split"):
        read(datasets.DatasetDict({"train": split}))
