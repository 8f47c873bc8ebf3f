"""What the README and the examples say is run, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("integrations/*/README.md"))]
BLOCKS = {
    f"{page.parent.name if page.parent != ROOT else 'README'} {i}": block
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S), 1
    )
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FEW = {"10_compare": ["5"], "11_compare_no_labels": ["2"]}  # questions: all of them take minutes


def run(arguments: list[str], folder: Path) -> str:
    """In an empty folder and with no network to lean on."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:sift_rag", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("name", BLOCKS)
def test_readme_blocks_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(BLOCKS[name], encoding="utf-8")
    assert run(["block.py"], tmp_path).strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_print_something(example: Path, tmp_path: Path) -> None:
    few = FEW.get(example.stem, [])
    assert len(run([str(example), *few], tmp_path).splitlines()) >= 4
    assert list(tmp_path.iterdir()) == []


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *PAGES[1:]]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_annotated_tree_names_every_module() -> None:
    named = set(re.findall(r"(\w+\.py)", README))
    modules = {path.name for path in (ROOT / "sift_rag").glob("*.py")} - {"__init__.py"}
    assert modules <= named


def test_commands_in_the_readme_exist() -> None:
    commands = set(re.findall(r"^\$ sift-rag (\w+)", README, flags=re.MULTILINE))
    shown = run(["-m", "sift_rag", "--help"], ROOT)
    assert commands
    for command in commands:
        assert command in shown
    for command, option in re.findall(r"^\$ sift-rag (\w+).*?(--[\w-]+)", README, re.MULTILINE):
        assert option in run(["-m", "sift_rag", command, "--help"], ROOT)
