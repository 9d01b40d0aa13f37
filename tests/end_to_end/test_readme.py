"""The documents' examples: README blocks run on a tiny model, JSON examples have the real keys.

    RETONE_WRITE_EXAMPLES=1 pytest tests/end_to_end/test_readme.py

writes new examples into docs/json.md. In the README, a comment before a block says what it is:

    <!-- run -->            its commands, or its Python, must succeed
    <!-- file: NAME -->     the file that later blocks read
    <!-- prints: COMMAND -->    exactly what the command prints to stderr
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.main import get_command

import retone.recipe_file
import tiny
from retone.cli import app, main
from teacher_process import server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
JSON_PAGE = ROOT / "docs" / "json.md"
FENCE = re.compile(r"(?:<!-- ([a-z]+)(?:: (.+?))? -->\n)?```(\w+)\n(.*?)```\n", re.DOTALL)
METRICS_SHOWN = ("chrf", "perplexity")  # of the many, in the examples of docs/json.md
# What turns any recipe into seconds on a tiny model, whose tokens are nearly single letters.
QUICK = ["train.max_steps=2", "evaluate.max_new_tokens=4", "data.max_length=500"]


class Block(NamedTuple):
    """A fenced block with the comment before it."""

    mark: str
    argument: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*(part or "" for part in found.groups())) for found in FENCE.finditer(page)]


def commands(page: str) -> Iterator[list[str]]:
    """The words after `retone` of every such line in the bash blocks of a page."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.text.splitlines():
                if line.startswith("retone "):
                    yield shlex.split(line, comments=True)[1:]


def parse(arguments: list[str]) -> None:
    """Let the real command line read a command, without running it."""
    root: Any = get_command(app)
    context = root.make_context("retone", list(arguments))
    if arguments[0].startswith("-"):
        return
    name, verb, rest = root.resolve_command(context, list(arguments))
    verb.make_context(name, rest, parent=context)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which every recipe tunes a tiny model for two steps."""
    monkeypatch.chdir(tmp_path)
    base = tiny.folder(tmp_path / "base")
    bundled = (ROOT / "src/retone/datasets/yoda/train.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(bundled[:12]) + "\n")
    (tmp_path / "held.jsonl").write_text("\n".join(bundled[12:24]) + "\n")
    real = retone.recipe_file.load_recipe

    def quick(name: str, *, flags: Mapping[str, Any] | None, sets: Sequence[str]) -> Any:
        small = dict(flags or {}, model=str(base))
        if name == "yoda":
            small |= {"train": str(tmp_path / "few.jsonl"), "test": str(tmp_path / "held.jsonl")}
        return real(name, flags=small, sets=[*sets, *QUICK])

    for verb in ("run", "train", "inspect"):
        monkeypatch.setattr(f"retone.workflows.{verb}.load_recipe", quick)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello there.\n/exit\n"))
    return tmp_path


def test_every_command_of_the_readme_is_one() -> None:
    found = list(commands(README))
    assert len(found) > 8
    for arguments in found:
        parse(arguments)


@pytest.mark.parametrize("wrong", [["rnu", "yoda"], ["run", "yoda", "--epoch", "2"], ["ask", "x"]])
def test_the_command_guard_fires(wrong: list[str]) -> None:
    with pytest.raises(typer.TyperException):
        parse(wrong)


def test_the_marked_blocks_of_the_readme_run(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    for mark, argument, language, text in blocks(README):
        capsys.readouterr()
        if mark == "file":
            (work / argument).write_text(text, encoding="utf-8")
        elif mark == "prints":
            assert main(shlex.split(argument)[1:]) != 0
            assert capsys.readouterr().err == text
        elif mark == "run" and language == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
            ran += 1
        elif mark == "run":
            for line in text.splitlines():
                assert line.startswith("retone "), f"only retone's commands are run: {line}"
                assert main(shlex.split(line)[1:]) == 0, line
                ran += 1
    assert ran > 6


def test_other_bash_lines_are_known() -> None:
    """What is neither a command of ours nor run here is short enough to check by eye."""
    others = [
        line.split()[0]
        for block in blocks(README)
        if block.language == "bash"
        for line in block.text.splitlines()
        if not line.startswith("retone ")
    ]
    assert set(others) == {"make", "python3", "source", "python"}


# --- docs/json.md ---------------------------------------------------------------------------------


def shape(value: Any, place: str = "") -> set[str]:
    """Every field of a JSON value by its dotted place; all entries of a list are one."""
    if isinstance(value, list):
        return set().union(*(shape(entry, f"{place}[]") for entry in value))
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, inner in value.items():
        name = f"{place}.{key}".lstrip(".")
        found |= {name} | shape(inner, name)
    return found


def leaves(fields: set[str]) -> set[str]:
    """The fields that hold no others."""
    return {f for f in fields if not any(g.startswith((f"{f}.", f"{f}[]")) for g in fields)}


def abridged(value: Any) -> Any:
    """An object without most of its metrics and examples, which are all alike."""
    short = dict(value)
    for name in {"scores", "differences"} & short.keys():
        short[name] = {
            who: {metric: by[metric] for metric in METRICS_SHOWN if metric in by}
            for who, by in short[name].items()
        }
    if "groups" in short:
        short["groups"] = {
            group: {"tuned": {"chrf": by["tuned"]["chrf"]}} for group, by in short["groups"].items()
        }
    if "signatures" in short:
        short["signatures"] = {name: short["signatures"][name] for name in METRICS_SHOWN}
    if "seeds" in short:
        short["seeds"] = [abridged_seed(seed) for seed in short["seeds"]]
    if "examples" in short:
        short["examples"] = short["examples"][:2]
    return short


def abridged_seed(seed: dict[str, Any]) -> dict[str, Any]:
    return {**seed, "scores": {name: seed["scores"][name] for name in METRICS_SHOWN}}


def pretty(value: Any, depth: int = 0) -> str:
    """JSON whose small objects stand on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or depth + len(flat) < 96:
        return flat
    parts = [(json.dumps(k) + ": ", v) for k, v in value.items()] if isinstance(value, dict) else []
    parts = parts or [("", entry) for entry in value]
    lines = [" " * (depth + 1) + name + pretty(inner, depth + 1) for name, inner in parts]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([left, ",\n".join(lines), " " * depth + right])


def real_objects(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """One object of each kind, from commands in the order a person would type them."""

    def told(*arguments: str, code: int | None = 0) -> Any:
        capsys.readouterr()
        given = main([*arguments, "--json"])
        assert code is None or given == code
        return json.loads(capsys.readouterr().out)

    recipe = (
        '[data]\ntrain = "rows.csv"\ntest = "test.csv"\ntask = "rewrite"\nsystem = "Be Yoda."\n'
        'validation_fraction = 0.2\nshowcase = ["Hello there."]\n[train]\nlearning_rate = 0.3\n'
    )
    (work / "my.toml").write_text(recipe)
    (work / "axolotl.yaml").write_text(
        "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\nadapter: lora\nlora_r: 8\n"
        "datasets:\n  - path: rows.csv\n    type: completion\nmicro_batch_size: 4\n"
        "num_epochs: 2\nflash_attention: true\n"
    )
    animals = ("cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose")
    rows = [f'The {one} sleeps.,"Sleeps, the {one} does.",{one[0] < "g"}' for one in animals]
    robot = "The robot sleeps.,Sleeps <|im_end|> it does.,True"  # left out: it spells the end token
    for name, part in (("rows.csv", [*rows[:6], robot]), ("test.csv", rows[6:])):
        (work / name).write_text("\n".join(["prompt,completion,group", *part]) + "\n")
    with server(work / "log.jsonl", "--answers", "teacher_server:persona") as address:
        synthesized = told("synthesize", "sysadmin", "-o", "juno.jsonl", "--count", "6",
                           "--endpoint", address, "--teacher", "any", "--least", "0.8")  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nr\nq\n"))
    return {
        "new": told("new", "starter.toml"),
        "import": told("import", "axolotl.yaml"),
        "synthesize": synthesized,
        "review": told("review", "juno.jsonl", "--terminal"),
        "inspect": told("inspect", "my.toml"),
        "run": told("run", "my.toml", "--set", "train.seeds=[0,1]"),
        "train": told("train", "my.toml", "--name", "again", "--set", "method.rank=4"),
        "evaluate": told("evaluate", "again"),
        "compare": told("compare", "my", "again"),
        "ask": told("ask", "my", "The hen sleeps."),
        "test": told("test", "my"),
        "batch": told("batch", "my", "test.csv", "-o", "answers.jsonl"),
        "export": told("export", "my", "--to", "adapter", "-o", "taken"),
        "eject": told("eject", "my"),
        "adopt": told("adopt", "taken", "--name", "back"),
        "blend": told("blend", "my=0.7", "again=0.3", "--how", "cat", "--name", "mix"),
        "cache": told("cache", "--delete", "prepared"),
        "runs": told("runs", "--delete", "again"),
        "doctor": told("doctor", "--offline", code=None),  # 1 where the default model is not cached
        "error": told("run", "yodda", code=2),
    }


def with_examples(page: str, real: dict[str, Any], work: Path) -> str:
    """The page with its examples made anew, without paths of this machine."""
    for name, value in real.items():
        text = pretty(abridged(value))
        text = text.replace(str(work), "/home/you").replace(str(Path.home()), "/home/you")
        block = f"<!-- example: {name} -->\n```json\n{text}\n```\n"
        old = rf"<!-- example: {name} -->\n```json\n.*?```\n"
        page = re.sub(old, lambda _, new=block: new, page, flags=re.DOTALL)
    return page


def test_json_examples_have_the_real_keys(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the extra `teacher` is not installed")
    monkeypatch.setenv("RETONE_CACHE", str(work / "cache"))
    real = real_objects(work, capsys, monkeypatch)
    page = JSON_PAGE.read_text(encoding="utf-8")
    if os.environ.get("RETONE_WRITE_EXAMPLES"):
        page = with_examples(page, real, work)
        JSON_PAGE.write_text(page, encoding="utf-8")
    sections = page.split("\n## ")[1:]
    assert [section.split()[0] for section in sections] == list(real)
    for section, (name, value) in zip(sections, real.items(), strict=True):
        (example,) = (block for block in blocks(section) if block.mark == "example")
        assert shape(json.loads(example.text)) == shape(abridged(value)), name
        described = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
        patterns = {field: re.escape(field).replace(r"\*", r"[^.]+") for field in described}
        fields = leaves(shape(value))
        unused = {f for f, p in patterns.items() if not any(re.fullmatch(p, x) for x in fields)}
        missing = {x for x in fields if not any(re.fullmatch(p, x) for p in patterns.values())}
        assert (unused, missing) == (set(), set()), name
