"""What the README and the examples say is run, as a reader would."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
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


def run_script(name: str, folder: Path) -> str:
    """A block of a page, or an example; an example leaves nothing in its folder."""
    if name in EXAMPLES:
        shown = run([str(EXAMPLES[name]), *FEW.get(name, [])], folder)
        assert list(folder.iterdir()) == []
    else:
        (folder / "block.py").write_text(BLOCKS[name], encoding="utf-8")
        shown = run(["block.py"], folder)
    return shown


@pytest.fixture(scope="module")
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """What the scripts of the chosen tests print: two run at a time, as they take minutes."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    names = [item.callspec.params["name"] for item in items if hasattr(item, "callspec")]
    folders = {name: tmp_path_factory.mktemp("script") for name in names}
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run_script, name, folder) for name, folder in folders.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_readme_blocks_run(name: str, shown: dict[str, Future[str]]) -> None:
    assert shown[name].result().strip()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_something(name: str, shown: dict[str, Future[str]]) -> None:
    assert len(shown[name].result().splitlines()) >= 4


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
