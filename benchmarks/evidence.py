"""Does training on selected passages pay, on real texts? SIFT against what it is measured against.

    python benchmarks/evidence.py --runs RUNS --write      # benchmarks/results/evidence-MODEL.md

Bits a byte of the second half of a passage, given its first half, by domain. The passage is held
out with its copies, the other passages of the domain are the corpus, all-MiniLM-L6-v2 finds its
first half's 200 nearest, a selector chooses among them. A trained way takes one step for each pick,
in order of selection; the base is the model alone. Where the guard undid a training, the answer
came from the model alone (fallback="closed_book"), and counts so. The alpha rule takes as many
steps as it wants. One thread. Times depend on the load of the machine, bits a byte do not.

The open data are looked for in ../shared/data or the folder in SIFT_RAG_DATA. What was asked is
kept in the folder RUNS: run it again, and what was killed goes on; the reports of the library on
all ways are written there too.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch read it

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence_data import DATA, LEVELS, Task, domains, passages, tasks
from evidence_figures import Evidence
from evidence_report import lines
from evidence_ways import HEAD, engine, ways
from results_file import arguments, explained, load_average, machine, show

from sift_rag import compare, report
from sift_rag.comparison import Comparison
from sift_rag.embeddings import Embedder, minilm
from sift_rag.engine import Engine

STEPS = (5, 10, HEAD, 50)
QUICK = {"domains": ["patents", "wikipedia"], "passages": 3, "corpus": 60, "steps": [5, HEAD]}


def asked(
    model: Engine, name: str, task: Task, steps: int, args: argparse.Namespace
) -> Comparison | None:
    """Every way on one domain at one number of steps; what its run file has is not asked again.
    None where nothing was, and nothing is to be."""
    size = f"{len(task.cases)}of{len(task.corpus)}"
    safe = "".join(c if c.isalnum() else "_" for c in name)
    path = args.runs / f"{safe}-{task.domain}-{task.level}-{size}-{steps}.jsonl"
    if args.max_seconds == 0 and not path.exists():
        return None
    return compare(
        task.cases,
        ways(model, task.corpus, steps, task.level),
        metrics=["bits_per_byte"],
        engine=model,
        index=task.corpus,
        out=path,
        baseline="closed_book",
        max_new_tokens=1,  # only the likelihood counts
        max_seconds=args.max_seconds,
        command=args.shown,
    )


def measured(name: str, args: argparse.Namespace, embedder: Embedder) -> Iterator[Evidence]:
    """What came of a model at each level of redundancy."""
    found = {each: passages(each, args.corpus + args.passages, args.data) for each in args.domains}
    done: dict[str, list[Comparison]] = {level: [] for level in args.levels}
    with engine(name, args.rate, args.data) as model:
        for steps in sorted(args.steps, key=lambda n: n != HEAD):  # the main table first
            for domain in args.domains:
                made = tasks(
                    domain,
                    found[domain],
                    embedder,
                    n=args.passages,
                    levels=args.levels,
                    folder=args.runs,
                )
                for task in made:
                    began = time.perf_counter()
                    if comparison := asked(model, name, task, steps, args):
                        done[task.level].append(comparison)
                    told = f"{name} {domain} {task.level} {steps} steps"
                    print(f"{told}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for level, comparisons in done.items():
        if comparisons:
            yield Evidence(name, level, comparisons)


def text(name: str, args: argparse.Namespace, embedder: Embedder) -> Iterator[str]:
    """The result's lines; the library's own reports lie beside the runs."""
    evidence = list(measured(name, args, embedder))
    yield f"# Does training {name} on selected passages pay?"
    yield f"\n    {args.shown}\n"
    yield from machine("torch", "transformers", "peft", "sift-rag-ttt")
    yield load_average()
    yield from lines(evidence)
    yield "\n## What was measured\n"
    yield explained(__doc__)
    for one in evidence:
        report.write(one.head, args.runs / f"{Path(one.model).name}-{one.level}.md")


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--quick` fills in what was not said."""
    parser = arguments("evidence-MODEL.md", __doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of what was asked")
    parser.add_argument("--domains", nargs="+", metavar="D", help="of the open data; all of them")
    parser.add_argument(
        "--models",
        "--model",
        nargs="+",
        default=["tiny", "stories260K"],
        metavar="M",
        help="tiny, stories260K, or any name or folder of a Hugging Face model",
    )
    parser.add_argument("--passages", type=int, metavar="N", help="test passages a domain; 20")
    parser.add_argument("--corpus", type=int, help="passages of a domain to choose from; 300")
    parser.add_argument("--steps", type=int, nargs="+", help="5 10 20 50")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument(
        "--max-seconds", type=float, metavar="S", help="for each domain and steps; 0 reports only"
    )
    parser.add_argument("--rate", type=float, help="learning rate, in place of the model's own")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the open data")
    parser.add_argument("--quick", action="store_true", help="two domains, three passages each")
    args = parser.parse_args(given)
    full = {"domains": domains(args.data), "passages": 20, "corpus": 300, "steps": list(STEPS)}
    for name, value in (QUICK if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not (args.data / "domains").is_dir():
        parser.error(f"there are no open data in {args.data}: set SIFT_RAG_DATA or --data")
    if HEAD not in args.steps:
        parser.error(f"--steps must have {HEAD}: the main table, and the base, are there")
    args.shown = "python benchmarks/evidence.py " + " ".join(given or sys.argv[1:])
    args.runs.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    options = parsed()
    for model in options.models:
        result = f"evidence-{Path(model).name}.md"
        show(result, text(model, options, minilm()), write=options.write)
