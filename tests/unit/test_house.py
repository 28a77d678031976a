"""What the linter cannot say: files and functions stay short, and every module says what it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BROAD_EXCEPT_EDGES = {"gateway/edge.py", "gateway/sse.py", "engine/__main__.py", "cli/main.py"}
"""A request's edge (before and after the headers are sent), the engine's, the command line's."""

FILES = sorted(
    path for folder in ("server", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")
)
IDS = [str(path.relative_to(ROOT)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "server").rglob("*.py")), ids=str)
def test_structs_are_not_defined_under_postponed_annotations(path: Path) -> None:
    """msgspec resolves annotations when a Struct is made; postponed ones break it at run time."""
    text = path.read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text or "Struct" not in text


def test_broad_excepts_stand_at_the_edges_only() -> None:
    package = ROOT / "server" / "verger"
    broad = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    }
    assert broad <= BROAD_EXCEPT_EDGES
