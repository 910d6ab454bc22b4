"""The documentation runs, is current, and names everything that is public."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import graphkit as gk

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and the line where the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text[: found.start(2)].count("\n") + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = generator().PAGES
WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
@pytest.mark.usefixtures("runtime")
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page):
    """Run a page's blocks in order, in one namespace; a ``text`` block is the output before it."""
    namespace = {"__name__": "page"}
    try:
        run(page, namespace)
    finally:
        # A twin's globals are this namespace, and a runtime keeps the twins it has loaded.
        namespace.clear()


def run(page: Path, namespace: dict[str, object]) -> None:
    printed = None
    for block in blocks(page):
        if block.language == "python":
            # Blank lines in front let a traceback show the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
            printed = out.getvalue()
        elif block.language == "text" and printed is not None:
            assert block.text == printed, f"{name_of(page)}:{block.line}"
            printed = None


@pytest.mark.parametrize("page", GENERATED)
def test_a_generated_page_is_current(page):
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == GENERATED[page](), f"docs/{page} is out of date: run `make docs`"


def test_the_readme_counts_the_budgets_as_the_benchmarks_judge_them():
    judged = re.findall(r"\| (yes|no) \|$", GENERATED["benchmarks.md"](), re.MULTILINE)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (counts,) = re.findall(r"(\d+) are met and (\d+) are not", readme)
    assert tuple(map(int, counts)) == (judged.count("yes"), judged.count("no"))


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_both_ways_in_lead_to_every_guide_and_page(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = {
        ((ROOT / page).parent / target).resolve() for target in re.findall(r"\]\((.+?)\)", text)
    }
    assert {ours for ours in PAGES if ours.is_relative_to(ROOT / "docs")} - linked <= {ROOT / page}


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    missing = [name for name in gk.__all__ if f"\n## {name}\n" not in reference]
    assert missing == []


def test_every_public_name_has_a_docstring():
    bare = [
        name
        for name in gk.__all__
        if callable(getattr(gk, name)) and not (getattr(gk, name).__doc__ or "").strip()
    ]
    assert bare == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = page if not path else (page.parent / path).resolve()
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}
            assert anchor in slugs, target


# docs/concepts.md: one word per thing, and it is NVIDIA's.
BANNED = re.compile(
    r"\b(replay(s|ed|ing)?|graph instances?|compiled graphs?|hot.swap|mock|fake|dummy)\b", re.I
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_keeps_to_one_word_per_thing(page):
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        # PyTorch's own word may stand where its users are told what it is called here.
        if "PyTorch" not in line and "torch" not in line:
            assert not BANNED.search(line), f"{name_of(page)}:{number}: {line}"
