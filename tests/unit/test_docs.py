"""The documents say what is: generated pages are up to date, links lead somewhere, verbs exist."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import evidence
import generate
from retone.errors import INTERNAL_EXIT_CODE, RetoneError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
IMPORTED_AS = {"python_stdnum": "stdnum", "pyyaml": "yaml"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with what the generator reads, without proof files."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def proof(folder: Path, name: str, lane: str = "proof", **values: Any) -> None:
    """A file of results with invented figures."""
    known = {
        "date": "2026-01-02",
        "commit": "0123456789abcdef",
        "versions": {"torch": "9.9"},
        "machine": {
            "device": "cpu",
            "name": "Abacus",
            "cores": 2,
            "memory_bytes": 4e9,
            "bf16_tflops": None,
            "fp32_tflops": None,
        },
    }
    (folder / lane / "results").mkdir(parents=True, exist_ok=True)
    (folder / lane / "results" / f"{name}.json").write_text(json.dumps({**known, **values}))


def test_generated_documents_are_up_to_date() -> None:
    assert generate.run(["--check"]) == 0, "python docs/generate.py"


# The metadata's older words for a licence, as SPDX says it.
SPDX = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
}


def test_licences_are_those_of_the_installed_packages() -> None:
    said = tomllib.loads((ROOT / "docs" / "dependencies.toml").read_text("utf-8"))
    wrong, compared = {}, 0
    for name, entry in said.items():
        try:
            data: Any = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only extras of other lanes may be absent
        classifiers = [
            text.rpartition(" :: ")[2]
            for text in data.get_all("Classifier") or []
            if text.startswith("License :: OSI Approved :: ")
        ]
        found = data.get("License-Expression") or ", ".join(classifiers) or data.get("License")
        compared += 1
        if entry["licence"] not in (SPDX.get(found, found), data.get("License")):
            wrong[name] = (found, entry["licence"])
    assert wrong == {}
    assert compared >= 20


def test_check_names_what_is_stale(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.run([], copy) == 0
    assert generate.run(["--check"], copy) == 0
    (copy / "docs" / "cli.md").write_text("old")
    capsys.readouterr()
    assert generate.run(["--check"], copy) == 1
    assert "docs/cli.md is stale" in capsys.readouterr().out
    assert (copy / "docs" / "cli.md").read_text() == "old"


def test_results_come_from_proof_files(copy: Path) -> None:
    generate.run([], copy)
    assert evidence.NO_SCORES in (copy / "README.md").read_text()
    assert evidence.NO_PROOF in (copy / "docs" / "results.md").read_text()
    scores = {
        who: {"bleu": {"value": value, "low": low, "high": high, "n": 7}}
        for who, value, low, high in (
            ("copy", 11.11, 0.0, 20), ("prompted", None, None, None), ("tuned", 22.22, None, None)
        )
    }  # fmt: skip
    scores["tuned"]["perplexity"] = {"value": 3.0, "low": 2.0, "high": 4.0, "n": 7}
    lead = {"tuned-copy": {"bleu": {"value": 11.11, "low": 2, "high": 21.5, "p_adjusted": 0.01}}}
    said = {"base": {"text": "a\nb | c"}, "tuned": {"text": "B, a."}}
    proof(
        copy, "yoda", headline="bleu", verdict="not resolved: x", scores=scores,
        differences=lead, signatures={"bleu": "sig"},
        seconds={"train": 60.0, "evaluate": 30.0}, base_model="some weights",
        examples=[{"prompt": "Hi.", "answers": said}],
    )  # fmt: skip
    proof(copy, "kill", killed={"times": 3, "equal": True}, changed_files=2)
    assert generate.run(["--check"], copy) == 1
    generate.run([], copy)
    readme = (copy / "README.md").read_text()
    row = (
        "| [yoda](docs/results.md#yoda) | BLEU | 11.1 (0.0 to 20.0) |  |  | **22.2** | 7 | 1.5 | Ab"
    )
    assert row in readme
    assert "Base model: some weights" in readme
    assert "These rows cannot tell whether tuning won: yoda." in readme
    assert evidence.NO_SCORES not in readme
    page = (copy / "docs" / "results.md").read_text()
    assert evidence.NO_PROOF not in page
    expected = [
        "## yoda",
        "| bleu | 11.1 (0.0 to 20.0) |  | 22.2 | 7 |",
        "| Hi. | a b \\| c | B, a. |",
        "- bleu: `sig`",
    ]
    expected += ["| perplexity |  |  | 3.0 (2.0 to 4.0) | 7 |", "| bleu | +11.1 (+2.0 to +21.5) |"]
    expected += ["## kill", "| killed.times | 3 |", "`0123456789abcdef`, 2 files changed"]
    assert [line for line in expected if line not in page] == []


def test_the_benchmark_gets_a_section_and_a_sentence(copy: Path) -> None:
    generate.run([], copy)
    assert evidence.NO_BENCHMARK in (copy / "docs" / "results.md").read_text()
    ours = {"rows_per_s": 9.0, "peak_rss_bytes": 1.5e9, "losses": [[1.0, 0.5]], "test_loss": 0.5}
    peers = {"slow": {**ours, "rows_per_s": 4.5}, "gone": {"not_run": "no wheel"}}
    ratio = {"rows_per_s": 2.0, "peak_memory": 0.75, "test_loss": 1.004}
    facts: dict[str, Any] = {"retone": ours, "peers": peers, "setting": {"rounds": 3}}
    proof(copy, "train_cpu", "benchmarks", ratio=ratio, **facts)
    generate.run([], copy)
    readme = " ".join((copy / "README.md").read_text().split())
    assert "beside the best of slow in each figure: 2.00 times the rows a second" in readme
    assert "0.75 times the peak memory, 1.00 times the test loss" in readme
    page = (copy / "docs" / "results.md").read_text()
    expected = ["## train_cpu", "| retone | 9.00 | 1.50 |  | 0.5000 |", "| slow | 4.50 |"]
    expected += [
        "| gone | not run: no wheel |",
        "| setting.rounds | 3 |",
        "| ratio.rows_per_s | 2 |",
    ]
    assert [line for line in expected if line not in page] == []
    assert "losses" not in page
    proof(copy, "train_cpu", "benchmarks", ratio=dict.fromkeys(ratio), **facts)
    generate.run([], copy)
    assert "times the rows a second" not in (copy / "README.md").read_text()


def test_a_proof_file_without_its_origin_is_refused(copy: Path) -> None:
    proof(copy, "yoda", commit="")
    with pytest.raises(SystemExit, match=r"yoda\.json lacks commit"):
        generate.run([], copy)


def test_a_dependency_without_a_purpose_is_refused(copy: Path) -> None:
    text = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(text.replace('"typer>=', '"click>=8", "typer>='))
    with pytest.raises(SystemExit, match=r"dependencies\.toml says nothing of click"):
        generate.run([], copy)


def test_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", need)[0].replace("-", "_") for need in project["dependencies"]}
    imported: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                imported |= {str(text).partition(".")[0] for text in texts}
    needed = {IMPORTED_AS.get(name, name) for name in declared}
    assert needed <= imported


def slug(heading: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.is_file():
            broken.append(f"{page.name}: {target}")
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            if anchor not in map(slug, headings):
                broken.append(f"{page.name}: {target}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


def test_the_link_guard_fires() -> None:
    page = ROOT / "README.md"
    assert broken_links(page, "[a](nowhere.md) [b](README.md#install)") == ["README.md: nowhere.md"]
    assert broken_links(page, "[a](#nothing-of-this-name)")


def test_every_verb_is_explained_and_no_other_is_named() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
    named = {verb for part in code for verb in re.findall(r"(?<![-/])\bretone ([a-z]+)\b", part)}
    assert named - {"itself"} == set(generate.verbs())


def test_exit_codes_are_all_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, flags=re.MULTILINE)}
    codes = {error.exit_code for error in RetoneError.__subclasses__()}
    assert table == {0, INTERNAL_EXIT_CODE, *codes}
