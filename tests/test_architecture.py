"""The house holds: imports point one way, and heavy ones stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sift_rag

PACKAGE = Path(sift_rag.__file__).parent
LAYER = {
    "documents": 1,
    "selection": 1,
    "explaining": 1,
    "plotting": 1,
    "coverage": 1,
    "stopping": 1,
    "rivals": 1,
    "refetch": 1,
    "unseen": 1,
    "problem": 1,
    "kernels": 1,
    "stacks": 1,
    "events": 1,
    "embeddings": 2,
    "candidates": 2,
    "blocks": 2,
    "batches": 2,
    "formats": 1,
    "storage": 2,
    "checkpoints": 2,
    "out_of_memory": 1,
    "quantised": 1,
    "loading": 2,
    "adapters": 2,
    "exporting": 2,
    "injecting": 2,
    "peft_settings": 2,
    "prefixes": 2,
    "adapter_cache": 2,
    "adapter_files": 2,
    "adapter_format": 2,
    "adapter_keys": 2,
    "answering": 2,
    "stored": 2,
    "vectors": 2,
    "worker": 2,
    "terminal": 6,
    "prompting": 2,
    "generation": 2,
    "training": 2,
    "training_config": 2,
    "adapting": 2,
    "lessons": 2,
    "engine": 2,
    "pipeline": 3,
    "router": 3,
    "routed": 3,
    "calibration": 3,
    "compared": 3,
    "situation": 3,
    "choosing": 3,
    "cases": 4,
    "questions": 4,
    "question_files": 4,
    "question_templates": 1,
    "question_writing": 1,
    "restating": 1,
    "weighing": 1,
    "objectives": 2,
    "made_pairs": 2,
    "teaching": 2,
    "question_objectives": 2,
    "corpus_questions": 4,
    "holding_out": 4,
    "overlap": 2,
    "metrics": 4,
    "ways": 4,
    "own": 4,
    "foreign": 4,
    "replies": 4,
    "memory": 1,
    "paired": 4,
    "costs": 4,
    "break_even": 4,
    "verdict": 4,
    "runs": 4,
    "surroundings": 1,
    "sizes": 1,
    "shrinkage": 1,
    "quantities": 1,
    "comparing": 4,
    "recording": 4,
    "replaying": 4,
    "shadow": 4,
    "shadowing": 4,
    "comparison": 4,
    "summary": 5,
    "tables": 5,
    "drawing": 5,
    "charts": 5,
    "page": 5,
    "report": 5,
    "cli": 6,
    "cli_options": 6,
    "cli_compare": 6,
    "__main__": 6,
    "demo": 6,
}
MODEL = {
    "adapters",
    "adapting",
    "engine",
    "exporting",
    "generation",
    "injecting",
    "loading",
    "out_of_memory",
    "prefixes",
    "quantised",
    "training",
}
HEAVY = {
    "torch": MODEL | {"blocks"},
    "transformers": MODEL,
    "peft": {"adapters", "injecting", "peft_settings", "prefixes"},
    "faiss": {"candidates"},
    "sentence_transformers": {"embeddings"},
    "typer": {"cli", "cli_compare", "cli_options"},
    "matplotlib": {"plotting"},
    "scipy": {"paired"},
    "jinja2": {"generation", "page"},
    "rich": {"cli", "cli_compare", "cli_options", "demo", "terminal"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of what a file imports, also inside functions unless told otherwise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide where things live"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down_the_layers(path: Path) -> None:
    if path.parent != PACKAGE:
        pytest.skip("not a module of the flow")
    own = LAYER[path.stem]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "sift_rag" and len(parts) > 1 and parts[1] in LAYER:
            assert LAYER[parts[1]] <= own, f"{path.stem} must not import {parts[1]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"langchain", "langchain_core", "llama_index"}
    for package, rooms in HEAVY.items():
        assert package not in roots or path.stem in rooms, f"{path.stem} imports {package}"


@pytest.mark.parametrize(
    "module", ["coverage", "explaining", "kernels", "problem", "rivals", "selection", "stopping"]
)
def test_selection_needs_numpy_only(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    assert roots - set(sys.stdlib_module_names) <= {"numpy", "sift_rag", "typing_extensions"}


def test_only_the_pipeline_sees_both_selection_and_training() -> None:
    for path in MODULES:
        if LAYER.get(path.stem, 0) < 3:
            seen = imports(path)
            assert not {"sift_rag.selection", "sift_rag.training"} <= seen, path.stem


INTEGRATIONS = sorted((PACKAGE.parent / "integrations").rglob("*.py"))
FRAMEWORK = {"langchain_sift": "langchain_core", "llama_index_sift": "llama_index"}


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_an_integration_needs_its_framework_and_public_names_only(path: Path) -> None:
    own = path.parent.name
    known = {own, FRAMEWORK[own], "sift_rag", "numpy", "pydantic", "typing_extensions"}
    names = imports(path)
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) <= known
    private = [name for name in names if name.startswith("sift_rag") and "._" in name]
    assert not private


def test_retrieving_with_langchain_costs_no_torch() -> None:
    code = (
        "import sys; from langchain_sift import SIFTRetriever, SIFTCompressor, SIFTCallbackHandler;"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.name for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils.py", "common.py", "base.py", "helpers.py"}


def test_nothing_unsafe_is_written_anywhere() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "trust_remote_code=True", "weights_only=False", "eval("):
            assert word not in text.replace(".eval(", ""), f"{path.name}: {word}"


def test_importing_costs_numpy_and_nothing_else() -> None:
    """In a fresh interpreter, also after touching what needs numpy only."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "import sift_rag; sift_rag.sift; sift_rag.Selection; sift_rag.Document\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'sift_rag'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['numpy']"


def test_every_public_name_is_there_and_documented() -> None:
    assert sift_rag.__all__ == sorted(sift_rag.__all__)
    for name in sift_rag.__all__:
        assert getattr(sift_rag, name).__doc__, name
    assert set(dir(sift_rag)) >= set(sift_rag.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sieve'"):
        _ = sift_rag.sieve
