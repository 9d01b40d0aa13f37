"""The shape of the code: imports go one way, nothing is too long, the foundations need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "retone"
# A module may import its own layer and those after it.
LAYERS = (
    ("cli", "__main__"),
    ("workflows",),
    ("teacher",),
    ("evaluation",),
    ("training", "inference"),
    ("models",),
    ("data",),
    (
        "chat_template", "prompt_styles", "template_probe", "row_encoder", "answer_layout",
        "tokens", "rendering", "batch", "planning", "run_dir", "config", "recipe_file", "presets",
        "conversation", "errors", "console",
    ),
)  # fmt: skip
FOUNDATIONS = LAYERS[-1]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LAZY = {"__init__"}  # the package's own lazy names


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of retone that `tree` imports, as seen from the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retone"):
            inner = (node.module or "").removeprefix("retone").lstrip(".")
            if inner:
                yield inner
            else:
                yield from (alias.name for alias in node.names)


def wrong_imports(name: str, tree: ast.AST) -> list[str]:
    """Imports of a lower rank (a higher layer) than the module's own."""
    own = RANK[name.partition(".")[0]]
    found = []
    for target in imports(tree):
        top = target.partition(".")[0]
        if top in RANK and RANK[top] < own:
            found.append(f"{name} imports {target}")
        # Training and inference share a rank and must not know each other.
        if {top, name.partition(".")[0]} == {"training", "inference"}:
            found.append(f"{name} imports its neighbour {target}")
    return found


def test_imports_go_one_way() -> None:
    wrong = [
        message
        for path in modules()
        if name_of(path) not in LAZY
        for message in wrong_imports(name_of(path), ast.parse(path.read_text()))
    ]
    assert wrong == []


def test_the_import_guard_fires() -> None:
    planted = ast.parse("from retone.workflows.run import run")
    assert wrong_imports("data.sources", planted) == ["data.sources imports workflows.run"]
    sideways = ast.parse("from retone.training import loop")
    assert wrong_imports("inference.engine", sideways)


def test_every_module_has_a_layer() -> None:
    tops = {name_of(path).partition(".")[0] for path in modules()} - LAZY
    assert tops <= set(RANK)


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves."""
    found = []
    for start in graph:
        seen: set[str] = set()
        open_ = list(graph[start])
        while open_:
            at = open_.pop()
            if at not in seen:
                seen.add(at)
                open_.extend(graph.get(at, ()))
        if start in seen:
            found.append(start)
    return found


def test_no_import_cycles() -> None:
    graph = {
        name_of(path): set(imports(ast.parse(path.read_text())))
        for path in modules()
        if name_of(path) not in LAZY
    }
    assert cycles(graph) == []
    assert cycles({"a": {"b"}, "b": {"a"}}) == ["a", "b"]


def too_long(path: Path, text: str) -> list[str]:
    """Files over 400 lines, functions over 60 (`fit` 120)."""
    found = []
    if len(text.splitlines()) > 400:
        found.append(f"{path.name}: {len(text.splitlines())} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > (120 if node.name == "fit" else 60):
                found.append(f"{path.name}: {node.name} has {length} lines")
    return found


def test_lengths() -> None:
    assert [m for path in modules() for m in too_long(path, path.read_text())] == []


def test_the_length_guard_fires() -> None:
    assert too_long(Path("x.py"), "def f():\n" + "    1\n" * 60) == ["x.py: f has 61 lines"]
    assert too_long(Path("x.py"), "1\n" * 401) == ["x.py: 401 lines"]


@pytest.mark.parametrize("module", [*FOUNDATIONS, "cli"])
def test_foundations_load_without_torch(module: str) -> None:
    heavy = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import sys, retone.{module}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
