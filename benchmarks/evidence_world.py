"""Does training pay on the bundled world? Every mode, with distractors, copies, and long contexts.

    python benchmarks/evidence_world.py --runs RUNS --write   # results/evidence_world.md

Exact match of the bundled LM on devices that it never met, through `Engine.answer`. One passage
answers; the others tell of other devices, half of them with a part of the same name as long as
there are such. All lie in random order, so the answering one is at a uniformly random place, and no
retriever brings it to the front. The same number has the same question in every condition. The
condition "1 to 5 passages" has the questions of the model's card instead. Stuffing takes the
passages in their order, as many as fit the window of 512 tokens.

Training is the library's own for this model: rank 8, 6 epochs, rate 0.005, the guard on. Where the
guard undid a training, the answer came from the passages in the prompt, and counts so. `train` and
`both` of one question share an adapter by the library's adapter cache; the cost of training is that
of the one which was asked first. `leave_one_out` is made for passages that are worked examples,
which these are not; it is asked all the same. From 10 passages on a wider adapter is tried as well,
of rank 32 at the same scale: in the small one many passages may be in each other's way. Conditions
of many passages have fewer questions, as they take their time. One thread. Times depend on the load
of the machine, FLOPs and exact match do not.

A claim is confirmed where the whole 95 % interval lies on its side, refuted where it lies on the
other, else not shown, nor with fewer than 20 questions; where no question differs the interval is a
point. That train reaches 80 % of stuff is judged with undone trainings counted as wrong, as their
answers were read. Intervals of shares are Wilson's, of differences of two ways the bootstrap's over
questions (BCa), of ratios, slopes and the better of two ways the bootstrap's percentiles. p is
McNemar's, in the tables against stuff after Holm's correction over the ways of a condition, else as
it is; claims are told one by one, without a correction over all of them.

What was asked is kept in the folder RUNS: run it again, and what was killed goes on.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence_world_figures import EXACT, Cell
from evidence_world_items import CONDITIONS, STUFF, Condition
from evidence_world_report import lines
from results_file import arguments, explained, load_average, machine, show

from sift_rag import compare
from sift_rag.adapter_cache import AdapterCache
from sift_rag.engine import Engine

QUESTIONS = 100
QUICK = {"questions": 4, "conditions": ["mix", "1", "3", "10"]}


def asked(engine: Engine, condition: Condition, args: argparse.Namespace) -> Cell:
    """Every way in one condition; what its run file has is not asked again."""
    cases = condition.cases(args.questions)
    comparison = compare(
        cases,
        {str(way): way.way(engine) for way in condition.ways},
        metrics=[EXACT],
        engine=engine,
        out=args.runs / f"{condition.name}-{len(cases)}.jsonl",
        baseline=str(STUFF),
        max_seconds=args.max_seconds,
        command=args.shown,
    )
    return Cell(condition, comparison)


def measured(args: argparse.Namespace) -> Iterator[Cell]:
    """What came of each condition of which anything was asked."""
    cache = AdapterCache(max_bytes=32_000_000)  # for the ways of one question
    with Engine.tiny(adapter_cache=cache) as engine:
        engine.answer("Who inspects it?", ["It weighs 340 kg."], mode="both")  # the first is slow
        for name in args.conditions:
            began = time.perf_counter()
            cell = asked(engine, CONDITIONS[name], args)
            print(f"{cell.condition}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            if cell.n:
                yield cell


def text(args: argparse.Namespace) -> Iterator[str]:
    """The result's lines."""
    cells = list(measured(args))
    yield "# Does training pay on the bundled world?"
    yield f"\n    {args.shown}\n"
    yield from machine("torch", "transformers", "peft", "sift-rag-ttt")
    yield load_average()
    yield from lines(cells)
    yield "\n## What was measured\n"
    yield explained(__doc__)


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--quick` fills in what was not said."""
    parser = arguments("evidence_world.md", __doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of what was asked")
    parser.add_argument(
        "--conditions", nargs="+", choices=list(CONDITIONS), help="mix, or passages; all of them"
    )
    parser.add_argument("--questions", type=int, metavar="N", help=f"a condition; {QUESTIONS}")
    parser.add_argument(
        "--max-seconds", type=float, metavar="S", help="for each condition; 0 reports only"
    )
    parser.add_argument("--quick", action="store_true", help="four conditions, four questions each")
    args = parser.parse_args(given)
    full = {"questions": QUESTIONS, "conditions": list(CONDITIONS)}
    for name, value in (QUICK if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    words = ("RUNS" if word == str(args.runs) else word for word in given or sys.argv[1:])
    args.shown = "python benchmarks/evidence_world.py " + " ".join(words)
    args.runs.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    options = parsed()
    show("evidence_world.md", text(options), write=options.write)
