"""Write the generated documents, or check that they are up to date.

python docs/generate.py            writes what is stale
python docs/generate.py --check    names what is stale and exits 1

docs/cli.md            the help of every verb, and every recipe field
docs/dependencies.md   pyproject.toml, docs/dependencies.toml, tables/models.toml
docs/findings.md       the table of retone/data/findings.py
docs/methods.md        the tables of methods, types and presets, and the proofs of both
docs/teacher.md        the tables of the teacher, and its proofs
docs/results.md        every proof/results/*.json and benchmarks/results/*.json
README.md              the lines between the results markers, from the same files
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from typer.main import get_command

from evidence import MADE_BY, read_proofs, results_block, results_page
from findings_table import findings_page
from format_table import accounts, formats_page
from methods_table import methods_page
from retone.cli import app, main
from retone.config import Recipe, SourceSection
from retone.models.locate import model_table
from retone.planning import DataFacts, Machine, ModelFacts, resolve
from retone.recipe_file import describe_fields
from teacher_page import teacher_page

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results:start -->", "<!-- results:end -->"
WIDTH = "100"  # columns of the help texts


def verbs() -> list[str]:
    """The verbs of the command line, in the order of its help."""
    return list(get_command(app).commands)  # type: ignore[attr-defined]


def help_text(*arguments: str) -> str:
    """What `retone ARGUMENTS --help` prints."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with redirect_stdout(printed):
            main([*arguments, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def kind_of(schema: dict[str, Any]) -> str:
    """The JSON schema of a field in words."""
    if "anyOf" in schema:
        kinds = [kind_of(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(kinds)
    if "$ref" in schema:
        return "table"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    names = {"string": "text", "boolean": "true, false", "object": "table", "array": "list of"}
    name = names.get(schema["type"], schema["type"])
    if schema["type"] == "array":
        return f"{name} {kind_of(schema['items'])}"
    signs = {"gt": ">", "exclusiveMinimum": ">", "ge": ">=", "minimum": ">=", "lt": "<", "le": "<="}
    bounds = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return f"{name} {' and '.join(bounds)}".strip()


def filled_fields() -> set[str]:
    """The fields that `planning.resolve` fills where a recipe leaves them open."""
    machine = Machine("cpu", "any", cores=1, memory_bytes=8 * 10**9)
    data = DataFacts(rows=100, longest_row=50, longest_answer=20, task=("chat", ""))
    recipe = Recipe.model_validate({"data": {"train": "rows.csv"}})
    return set(resolve(recipe, machine, data, ModelFacts(parameters=10**8, context=2048)).chosen)


def cli_page() -> str:
    """docs/cli.md."""
    schemas = Recipe.model_json_schema()["$defs"]
    kinds = {
        f"{name.removesuffix('Section').lower()}.{field}": kind_of(schema)
        for name, section in schemas.items()
        for field, schema in section["properties"].items()
    }
    filled = filled_fields()
    lines = ["# Command line and recipe fields", MADE_BY, "", "## retone", "", "```text"]
    lines += [help_text(), "```"]
    for verb in verbs():
        lines += ["", f"## retone {verb}", "", "```text", help_text(verb), "```"]
    lines += [
        "", "## Recipe fields", "",
        "A recipe is a TOML file. Every field can also be set with `--set section.field=value`.",
        "An unknown field is refused. *filled* is filled when the run is made; the value and the",
        "reason stand under `chosen` in the run's `resolved.json`.", "",
        "| field | values | default | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for field, _, default, sentence in describe_fields():
        shown = "*filled*" if field in filled else _default(default)
        lines.append(field_row(field, kinds[field], shown, sentence))
    lines += [
        "", "## Fields of a source", "",
        "`data.train` and `data.test` are a path, or tables `[[data.train]]` with these fields.",
        "",
        "| field | values | default | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, info in SourceSection.model_fields.items():
        default = info.get_default(call_default_factory=True)
        shown = "required" if info.is_required() else _default(repr(default))
        lines.append(field_row(name, kinds[f"source.{name}"], shown, info.description or ""))
    return "\n".join(lines) + "\n"


def field_row(name: str, kind: str, default: str, sentence: str) -> str:
    """A row of a table of recipe fields."""
    row = (f"`{name}`", kind, default, " ".join(sentence.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _default(text: str) -> str:
    """A Python default as it is written in TOML."""
    if text == "required":
        return text
    value = ast.literal_eval(text)
    return "none" if value is None else f"`{json.dumps(value)}`"


def dependencies_page(root: Path) -> str:
    """docs/dependencies.md."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    known = tomllib.loads((ROOT / "docs" / "dependencies.toml").read_text("utf-8"))
    groups = {"Needed to run": project["dependencies"]}
    groups |= {f"Extra `{name}`": needs for name, needs in project["optional-dependencies"].items()}
    lines = [
        "# Dependencies and licences", MADE_BY, "",
        "Only direct dependencies are listed, with their licences as SPDX expressions.",
        "`constraints.txt` pins the versions that the tests run with.",
    ]  # fmt: skip
    for title, needs in groups.items():
        lines += ["", f"## {title}", "", "| package | licence | used for |", "|---|---|---|"]
        for need in sorted(needs, key=str.lower):
            name = re.split(r"[<>=!~\[; ]", need)[0]
            if name not in known:
                raise SystemExit(f"docs/dependencies.toml says nothing of {name}")
            lines.append(f"| `{need}` | {known[name]['licence']} | {known[name]['purpose']} |")
    lines += [
        "", "## Models", "",
        "The rows of `src/retone/tables/models.toml`. No weights are in this repository or in the",
        "package. *gated*: the Hub asks for an accepted licence and a login.", "",
        "| name | on the Hub | licence | parameters | context | gated |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    models = list(model_table().values())
    for row in models:
        size, gated = f"{row.parameters / 1e6:,.0f} M", "yes" if row.gated else "no"
        cells = (f"`{row.name}`", f"`{row.repo}`", row.licence, size, f"{row.context:,}", gated)
        lines.append("| " + " | ".join(cells) + " |")
    for row in models:
        if row.embedded:
            lines += ["", f"`{row.name}` without the Hub: {row.embedded.note}"]
    return "\n".join(lines) + "\n"


def documents(root: Path) -> dict[Path, str]:
    """Path -> content of everything that is generated."""
    proofs, benchmarks = read_proofs(root), read_proofs(root, "benchmarks")
    readme = (root / "README.md").read_text("utf-8")
    before, found_start, rest = readme.partition(START)
    _, found_end, after = rest.partition(END)
    if not (found_start and found_end):
        raise SystemExit(f"docs/generate.py: README.md lacks {START} or {END}")
    shared = root.parent / "shared"
    read = accounts(shared) if shared.is_dir() else []
    pages = {"formats.md": formats_page, "findings.md": findings_page}
    of_data = {root / "docs" / name: page(read) for name, page in pages.items() if read}
    block = f"{START}\n{results_block(proofs, benchmarks)}\n{END}"
    return {
        **of_data,
        root / "README.md": before + block + after,
        root / "docs" / "cli.md": cli_page(),
        root / "docs" / "dependencies.md": dependencies_page(root),
        root / "docs" / "methods.md": methods_page(proofs),
        root / "docs" / "results.md": results_page(proofs, benchmarks),
        root / "docs" / "teacher.md": teacher_page(proofs),
    }


def run(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Write what is stale, or with --check only name it; the exit code."""
    stale = {
        path: text
        for path, text in documents(root).items()
        if not path.is_file() or path.read_text("utf-8") != text
    }
    check = "--check" in arguments
    for path, text in stale.items():
        print(f"{path.relative_to(root)} {'is stale: python docs/generate.py' if check else ''}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
