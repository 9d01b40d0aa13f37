"""What people get wrong, and the three lines that they see. `pytest -s` shows every message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from retone.cli import main
from retone.run_dir import all_runs, read_json, write_json

GOOD = '{"prompt": "The cat sleeps.", "completion": "Sleeps, the cat does."}\n'
RECIPE = """
model.name = "{base}"
[data]
train = "rows.jsonl"
system = "Be Yoda."
eval_fraction = 0.3
[method]
rank = 2
[train]
max_steps = 3
batch_size = 4
save_every = 1
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def work(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe that works, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(RECIPE.format(base=base))
    lines = [GOOD.replace("cat", f"cat number {n}") for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    return tmp_path


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The message of a command that has to fail with `code`: three lines, no traceback."""
    capsys.readouterr()
    assert main(arguments) == code
    told = capsys.readouterr().err
    print(f"$ retone {' '.join(arguments)}\n{told}")
    lines = told.strip().splitlines()[-3:]
    assert [line.partition(":")[0] for line in lines] == ["error", "found", "to do"]
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "yodda"], 'did you mean "yoda"'),
        (["run", "none.toml"], "no such file"),
        (["rnu", "yoda"], "Did you mean 'run'"),
        (["run", "yoda", "--epoch", "2"], "--epochs"),
        (["run", "yoda", "--epochs", "many"], "'--epochs'"),
        (["run", "yoda", "--set", "epochs=2"], "section.field=value"),
        (["run", "yoda", "--set", "train.epoch=2"], 'did you mean "epochs"'),
        (["run", "yoda", "--set", "trian.epochs=2"], 'did you mean "train"'),
        (["run", "yoda", "--set", "train.learning_rate=fast"], "found 'fast'"),
        (["run", "yoda", "--set", "train.learning_rate=nan"], "finite"),
        (["run", "yoda", "--set", "train.learning_rate=-1.0"], "greater than 0"),
        (["run", "yoda", "--set", "train.batch_size=2.5"], "found 2.5"),
        (["run", "yoda", "--set", "method.kind=lorra"], "'lora'"),
        (["ask", "nothing", "Hello"], "there is no run"),
        (["ask", "latest", "Hello"], "no finished run yet"),
    ],
)
def test_wrong_words(
    arguments: list[str], expected: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in fails(arguments, capsys, 2)


def test_all_wrong_fields_are_named_at_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (work / "my.toml").read_text() + "epochs = -1\nseeed = 3\nlearning_rate = true\n"
    (work / "my.toml").write_text(text)
    told = fails(["run", "my.toml"], capsys, 2)
    assert 'unknown field train.seeed (did you mean "seed"?)' in told
    assert "train.epochs" in told
    assert "train.learning_rate" in told


def test_two_run_lengths_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "my.toml").write_text((work / "my.toml").read_text() + "epochs = 1\n")
    assert "only one of epochs, max_steps" in fails(["run", "my.toml"], capsys, 2)


def test_broken_toml(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "my.toml").write_text("[data\n")
    assert "line 1" in fails(["run", "my.toml"], capsys, 2)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", None, "no such data file"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.jsonl", b"\n\n", "has no rows"),
        ("rows.jsonl", b'{"prompt": "caf\xe9"}', "line 1: byte 0xe9"),
        ("rows.jsonl", b'{"prompt": 1}\n{"prom\n[1]\n', "line 2: not JSON"),
        ("rows.jsonl", b'{"a": 1}\n', "columns a"),
        ("rows.jsonl", b'{"text": "hello"}\n', "there are no test rows"),
        (
            "rows.jsonl",
            GOOD.encode() + b'{"prompt": "x", "completion": "  "}\n',
            "rows.jsonl, line 2: field completion: empty",
        ),
        (
            "rows.jsonl",
            GOOD.encode() + b'{"prompt": "x"}\n',
            "line 2: field completion: text is expected, found nothing",
        ),
        (
            "rows.jsonl",
            b'{"messages": [{"role": "user", "content": "x"}]}\n',
            "no-assistant-turn: 1; rows.jsonl, row 1: 2 messages, none by the assistant",
        ),
        (
            "rows.jsonl",
            b'{"messages": [{"role": "boss", "content": "x"}]}\n',
            "messages[0].role: found 'boss'",
        ),
        ("rows.json", b'{"prompt": "x"}', "rows.json, row 1: 2 messages, none by the assistant"),
        ("rows.csv", b"prompt,completion\na,b,c\n", "line 2: 3 values for 2 columns"),
        ("rows.xlsx", b"PK", "ending '.xlsx'"),
    ],
)
def test_wrong_data(
    name: str, content: bytes | None, expected: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "rows.jsonl").unlink()
    if content is not None:
        (work / name).write_bytes(content)
    told = fails(["run", "my.toml", "--train", name], capsys, 2)
    assert expected in told
    assert all_runs() == []
    assert not list(work.glob("runs/.prepared/.*"))  # nothing half prepared


def test_every_broken_row_is_counted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (work / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": 3}\n' * 7)
    told = fails(["train", "my.toml"], capsys, 2)
    assert "7 rows of the data" in told
    assert "line 13: field completion: text is expected, found 3" in told
    assert "(+2 more)" in told


def test_a_column_that_is_not_there(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", 'data.columns={prompt="promt", completion="completion"}']
    told = fails(["run", "my.toml", *sets], capsys, 2)
    assert 'no column promt (did you mean "prompt"?); there are prompt, completion' in told


def test_a_model_folder_without_weights(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "empty").mkdir()
    told = fails(["run", "my.toml", "--model", str(work / "empty")], capsys, 2)
    for missing in ("config.json", "safetensors", "tokenizer"):
        assert missing in told


def test_targets_that_match_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(["run", "my.toml", "--set", 'method.targets=["nope"]'], capsys, 2)
    assert "method.targets matches no module" in told


def test_an_adapter_of_another_base(
    work: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "my.toml"]) == 0
    run = work / "runs" / "my"
    record = read_json(run / "adapter" / "base_model.json")
    write_json(run / "adapter" / "base_model.json", {**record, "sha256": "0" * 64})
    told = fails(["ask", "latest", "Hello"], capsys, 2)
    assert "trained on another base model" in told
    assert "000000000000" in told
    write_json(run / "adapter" / "base_model.json", record)
    assert main(["ask", "latest", "Hello"]) == 0
    manifest = read_json(run / "manifest.json")
    manifest["base"]["sha256"] = "1" * 64
    write_json(run / "manifest.json", manifest)
    assert "trained on another base model" in fails(["ask", "latest", "Hello"], capsys, 2)


def test_a_changed_template_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "my.toml"]) == 0
    lock = read_json(work / "runs/my/template_lock.json")
    lock["prompts"][0]["ids"][0] += 1
    write_json(work / "runs/my/template_lock.json", lock)
    assert "renders other tokens" in fails(["ask", "latest", "Hello"], capsys, 2)


def test_errors_as_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "yodda", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["code"] == "unknown-recipe"
    assert set(told["error"]) == {"problem", "found", "remedy", "code"}


def test_our_own_fault_has_a_traceback(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("retone.workflows.runs.all_runs", broken)
    assert main(["runs"]) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "RuntimeError: planted" in told
