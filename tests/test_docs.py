"""The documentation: what its pages say to write and to call does what they say that it does."""

import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyrolatent import cli, declaration
from pyrolatent.cli.tables import components_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted((DOCS / "add").glob("*.md")),
    DOCS / "data.md",
    DOCS / "pyro.md",
    DOCS / "sklearn.md",
    DOCS / "tasks.md",
]
"""The pages whose blocks are run."""
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and text of the fenced blocks of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def shape(text: str) -> str:
    """A text without its numbers and its spaces, so that it is the same wherever it is computed."""
    return "".join(re.sub(r"[-+]?\d[\d.,e-]*%?", "0", text).split())


def called(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, run in this process."""
    program, *arguments = shlex.split(line)
    if program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
        return capsys.readouterr().out
    assert program == "pyrolatent"
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def unwritten_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made, but not turned into files, of which no page says what they show."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)


@pytest.mark.usefixtures("few_cells", "few_steps", "unwritten_pictures")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem != "prior")) for page in PAGES],
    ids=[p.stem for p in PAGES],
)
def test_what_a_page_says_works_from_an_empty_folder(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded, printed = {*sys.modules}, ""
    for language, title, text in blocks(page):
        assert bool(title) == (language in ("python", "yaml")), "a file is written, and so has a name"
        if title:
            assert text.count("\n") < 30
            Path(title).write_text(text, encoding="utf-8")
        elif language == "sh":
            printed = "".join(called(line, capsys) for line in text.splitlines())
        else:
            assert language == "text"
            for line in text.splitlines():
                assert shape(line.removesuffix("...")) in shape(printed), line
    for module in {*sys.modules} - loaded:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def test_the_page_of_components_is_what_the_code_writes() -> None:
    assert (DOCS / "components.md").read_text(encoding="utf-8") == components_page()


@pytest.mark.parametrize("kind", declaration.kinds())
def test_every_option_of_a_component_of_this_package_is_documented_and_has_a_type(kind: str) -> None:
    for name, entry in declaration.registered(kind).items():
        if entry.target.__module__.startswith("pyrolatent."):
            assert all(entry.documentation.values()), (name, entry.documentation)
            untyped = {option for option, parameter in entry.options.items() if parameter.annotation is Any}
            assert untyped <= {"energies"}, name  # tensors and functions, in Python alone


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem
)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./])pyrolatent(?:\.[a-zA-Z]\w*)+", text):
        if name != "pyrolatent.NAME":
            pkgutil.resolve_name(name)
    for path in re.findall(r"(?<![\w./])(?:pyrolatent|tests|examples|benchmarks|docs)/[\w./-]*\w/?", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / link).exists(), link
