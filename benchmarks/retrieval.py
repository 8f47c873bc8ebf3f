"""How much of what a question needs do the selectors find, where passages repeat themselves?

    pip install pyversity==0.2.0 matplotlib
    pip install --no-deps wordllama==0.4.0.post1
    python benchmarks/retrieval.py --write     # also writes benchmarks/RETRIEVAL.md and its picture

Four open sets (`retrieval_data.py` says what their questions need and how a corpus is made
redundant), from the folder in SIFT_RAG_DATA or ../shared/data. The vectors of all-MiniLM-L6-v2 are
made once, in a quarter of an hour, and kept in benchmarks/cache, as are the orders that selectors
give: those of this library are made anew when its code changes.

Each question has the 100 nearest passages of its corpus as candidates (--fetch-k), and each
selector puts 16 of them in order. Figures are means over the sets of the mean over a set's
questions, single ones and pairs together, and over the first k = 2, 4, 8, 16 picks:

* gold found: of all facts that the question needs, the share that the picks tell; a fact that is
  not among the candidates counts as missed.
* all gold: the share of questions of which every fact is told.
* sources: different paragraphs among the picks, as a share of the picks.
* near-duplicates: the share of picks at least half of whose sentences are in earlier picks.
* tokens: of the picks together, by MiniLM's tokenizer.

MMR (lambda from 0.5 to 0.9) and DPP (relevance weight from 0.4 to 2) are this library's own `mmr`
and `dpp`; pyversity's have a diversity from 0.01 to 0.9.

At equal tokens each selector's order of all candidates is cut to a budget, passing over passages
that do not fit: a shorter one further down may still be taken. A rival's setting is there the one
that is best at k picks. "SIFT paper" is `kernel="linear", noise=0.01`. The intervals take questions
as independent; those about one paragraph, or a pair and the two it is made of, are not quite.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy reads it

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import retrieval_report as report
from retrieval_data import LEVELS, SETS, Dataset, load
from retrieval_measures import Level
from retrieval_selectors import DEFAULT, MMR, NEAREST, PAPER, Selector, selectors
from retrieval_tasks import Minilm, Named, Setup, Wordllama, minilm_tokens, task

HERE = Path(__file__).parent
PAGE, PICTURE = HERE / "RETRIEVAL.md", HERE / "results" / "retrieval.svg"
EMBEDDERS: dict[str, Callable[[], Named]] = {"minilm": Minilm, "wordllama": Wordllama}
SQUEEZE = 0.7
FEW = (NEAREST, MMR, "pyversity dpp", DEFAULT, PAPER)  # beside the other embedders


def study(sets: Sequence[Dataset], setup: Setup, chosen: Sequence[Selector]) -> list[Level]:
    """All levels of some sets, each selector's orders made or read."""
    made = []
    for level in LEVELS:
        print(f"-- {setup.embedder.name}, {level}", file=sys.stderr, flush=True)
        made.append(Level(level, [task(data, level, setup) for data in sets], chosen))
    return made


def page(levels: Sequence[Level]) -> Iterator[str]:
    """The tables of one embedder."""
    yield from report.overview(levels)
    yield from report.verdicts(levels)
    for level in levels:
        yield from report.details(level)
    for level in levels:
        yield from report.budgets(level)
    yield from report.kinds(levels)


def other_embedders(
    sets: Sequence[Dataset], setup: Setup, chosen: Sequence[Selector]
) -> Iterator[str]:
    """A few selectors where cosines lie elsewhere."""
    few = [each for each in chosen if each.family in FEW]
    studies = {"MiniLM, squeezed": study(sets, setup._replace(squeeze=SQUEEZE), few)}
    try:
        words = setup._replace(embedder=Wordllama())
    except ImportError as error:
        yield from report.embedders(studies)
        yield f"Word vectors: {error}.\n"
        return
    studies["word vectors"] = study(sets, words, few)
    yield from report.embedders(studies)


def head() -> Iterator[str]:
    """What stands above the tables, but for the prose."""
    about, _, text = (__doc__ or "").partition("\n\n")
    yield f"{about}\n"
    yield f"{text.rstrip()}\n"
    yield from report.machine()


def sources() -> list[Dataset]:
    """The sets, or the end with a sentence where they are not here."""
    folder = Path(os.environ.get("SIFT_RAG_DATA", HERE.parents[1] / "shared" / "data"))
    if not (folder / "qa").is_dir():
        sys.exit(f"{folder} has no folder qa: set SIFT_RAG_DATA to the folder of the open data")
    return [load(name, folder) for name in SETS]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and the picture")
    parser.add_argument("--fetch-k", type=int, default=100, help="candidates a question")
    parser.add_argument("--questions", type=int, help="so many of each set; all by default")
    parser.add_argument("--embedder", choices=EMBEDDERS, default="minilm")
    parser.add_argument("--squeeze", type=float, default=0.0, help="cosines c to s + (1 - s) c")
    found = parser.parse_args()
    if min(found.fetch_k, found.questions or 1) < 1 or not 0 <= found.squeeze < 1:
        parser.error("--fetch-k and --questions must be 1 or more, --squeeze from 0 to below 1")
    usual = vars(parser.parse_args([]))
    if found.write and vars(found) != usual | {"write": True}:
        parser.error("--write is for the whole benchmark: it takes no other argument")
    return found


def main() -> None:
    options, sets, chosen = arguments(), sources(), list(selectors())
    setup = Setup(
        EMBEDDERS[options.embedder](),
        minilm_tokens(),
        options.fetch_k,
        options.squeeze,
        options.questions,
    )
    levels, lines = study(sets, setup, chosen), list[str]()

    def say(part: Iterator[str]) -> None:
        for line in part:
            print(line, flush=True)
            lines.append(line)

    say(head())
    say(page(levels))
    if (options.embedder, options.squeeze) == ("minilm", 0.0):
        say(other_embedders(sets, setup, chosen))
    say(report.settings(levels))
    if options.write:
        from retrieval_picture import draw  # matplotlib: only whoever writes needs it

        draw(levels, PICTURE)
        write(PAGE, lines)


def write(path: Path, lines: Sequence[str]) -> None:
    """The page, with the prose that stood in it."""
    picture = f"![Gold found against tokens](results/{PICTURE.name})"
    text = "\n".join(["# Retrieval\n", report.prose(path), "", picture, "", *lines])
    path.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
