"""Datasets of the hub (a loopback one): which files make a split, the cache, and every refusal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_files import parquet_bytes
from hub_server import HubRepo, HubServer
from retone.data.hub import split_files
from retone.errors import InputError

# --- which files make a split ---

PLAIN = ["README.md", ".gitattributes", "data/train-00000-of-00002-0123456789abcdef.parquet",
         "data/train-00001-of-00002-0123456789abcdef.parquet", "data/test-00000-of-00001.parquet",
         "data/train_sft-00000-of-00001.parquet"]  # fmt: skip
TABLE = [
    {"config_name": "main", "data_files": [{"split": "train", "path": "main/train-*"},
                                           {"split": "test", "path": ["main/t*.csv", "x.csv"]}]},
    {"config_name": "socratic", "data_dir": "socratic"},
    {"config_name": "one", "data_files": "x.csv"},
]  # fmt: skip
LISTED = ["main/train-0.csv", "main/train-1.csv", "main/test.csv", "x.csv", "socratic/train.jsonl"]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (PLAIN, "train", PLAIN[2:4]),
        (PLAIN, "test", [PLAIN[4]]),
        (PLAIN, "train_sft", [PLAIN[5]]),
        (["rows.jsonl", "README.md"], "train", ["rows.jsonl"]),
        (["rows.jsonl", "rows_test.jsonl"], "train", ["rows.jsonl"]),
        (["rows.jsonl", "rows_test.jsonl"], "test", ["rows_test.jsonl"]),
        (["dev.csv", "training.csv.gz"], "validation", ["dev.csv"]),
        (["dev.csv", "training.csv.gz"], "train", ["training.csv.gz"]),
        (
            ["train/b.json", "train/a.json", "test/a.json"],
            "train",
            ["train/a.json", "train/b.json"],
        ),
        (["train.txt", "train.parquet"], "train", ["train.parquet"]),
    ],
)
def test_files_by_name(names: list[str], split: str, expected: list[str]) -> None:
    assert split_files("org/rows", names, [], None, split) == expected


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        ("main", "train", ["main/train-0.csv", "main/train-1.csv"]),
        ("main", "test", ["main/test.csv", "main/train-0.csv", "main/train-1.csv", "x.csv"]),
        ("socratic", "train", ["socratic/train.jsonl"]),
        ("one", "train", ["x.csv"]),
    ],
)
def test_files_by_the_table_of_the_readme(config: str, split: str, expected: list[str]) -> None:
    assert split_files("org/rows", LISTED, TABLE, config, split) == expected


def test_the_default_configuration() -> None:
    default = [{**TABLE[0], "default": True}, TABLE[1]]
    assert split_files("org/rows", LISTED, default, None, "train") == LISTED[:2]
    assert split_files("org/rows", LISTED, TABLE[2:], None, "train") == ["x.csv"]
    named = [{**TABLE[2], "config_name": "default"}, TABLE[0]]
    assert split_files("org/rows", LISTED, named, None, "train") == ["x.csv"]
    assert split_files("org/rows", LISTED, [], "socratic", "train") == ["socratic/train.jsonl"]


@pytest.mark.parametrize(
    ("names", "table", "config", "split", "code", "told"),
    [
        (LISTED, TABLE, None, "train", "unknown-config", 'set name = "main"'),
        (LISTED, TABLE, "man", "train", "unknown-config", 'did you mean "main"'),
        (LISTED, TABLE, "main", "tset", "unknown-split", 'did you mean "test"'),
        (PLAIN, [], None, "validation", "unknown-split", "test, train"),
        (["rows.py", "README.md"], [], None, "train", "no-data-in-dataset", "refs/convert/parquet"),
        (["model.safetensors"], [], None, "train", "no-data-in-dataset", "model.safetensors"),
        ([], [], None, "train", "no-data-in-dataset", "empty"),
        (PLAIN, [], "nowhere", "train", "no-data-in-dataset", "in nowhere"),
    ],
)
def test_what_is_not_there_is_named(
    names: list[str], table: list[Any], config: str | None, split: str, code: str, told: str
) -> None:
    with pytest.raises(InputError) as caught:
        split_files("org/rows", names, table, config, split)
    assert caught.value.code == code
    assert told in str(caught.value)


# --- the hub: in a child, because HF_ENDPOINT is read when huggingface_hub is imported ---

README = """---
configs:
- config_name: chat
  data_files:
  - {split: train, path: "chat/train*"}
  - {split: test, path: "chat/test*"}
- config_name: pairs
  data_files: pairs.csv
---
# Rows
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    rows = pa.Table.from_pylist([{"n": number, "text": f"row {number}"} for number in range(4)])
    files = {
        ".gitattributes": b"",
        "README.md": README.encode(),
        "chat/train-00000-of-00002.parquet": parquet_bytes(rows.slice(0, 2)),
        "chat/train-00001-of-00002.parquet": parquet_bytes(rows.slice(2)),
        "chat/test-00000-of-00001.parquet": parquet_bytes(rows.slice(0, 1)),
        "pairs.csv": b"prompt,completion\na,b\n",
        "rows.py": b"raise SystemExit",
    }
    broken = {"README.md": b"---\nconfigs: [\n---\n", "a.jsonl": b"{}"}
    repos = {
        "datasets/org/rows": HubRepo(files),
        "datasets/org/plain": HubRepo({"README.md": b"# Plain", "rows.jsonl": b'{"a": 1}\n'}),
        "datasets/org/closed": HubRepo(files, gated=True),
        "datasets/org/script": HubRepo({"README.md": b"", "script.py": b""}),
        "datasets/org/broken": HubRepo(broken),
    }
    with HubServer(repos) as server:
        yield server


CHILD = """
import json, sys, time
from retone.config import SourceSection
from retone.data.sources import BadRows, read_items, source_sha256
from retone.errors import RetoneError
source, started = SourceSection(**json.loads(sys.argv[1])), time.monotonic()
try:
    items = list(read_items(source, BadRows()))
    found = {"values": [item.values for item in items], "files": [item.file for item in items]}
    found["sha256"] = source_sha256(source)
except RetoneError as error:
    found = {**error.as_json()["error"], "exit": error.exit_code}
print(json.dumps(found | {"seconds": time.monotonic() - started}))
"""


def read_in_child(url: str, home: Path, path: str, **fields: Any) -> dict[str, Any]:
    offline = {"HF_HUB_OFFLINE": "1"} if fields.pop("offline", False) else {}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps({"path": path, **fields})],
        env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "%|" not in done.stderr, "no progress bars"
    return dict(json.loads(done.stdout))


def test_a_split_of_a_configuration(hub: HubServer, tmp_path: Path) -> None:
    found = read_in_child(hub.url, tmp_path, "hub:org/rows", name="chat")
    assert [row["n"] for row in found["values"]] == [0, 1, 2, 3]
    assert found["files"][0] == "org/rows/chat/train-00000-of-00002.parquet"
    about = {"org/rows/README.md", "org/rows/.gitattributes"}
    fetched = {f"org/rows/{name}" for name in hub.downloaded()}
    assert fetched - about == set(found["files"]), "only the split's files are fetched"
    assert all("org/rows" in path for _, path in hub.requests), "no telemetry, nothing else"
    test = read_in_child(hub.url, tmp_path, "hub:org/rows", name="chat", split="test")
    assert [row["n"] for row in test["values"]] == [0]
    assert test["sha256"] != found["sha256"]
    pairs = read_in_child(hub.url, tmp_path, "hub:org/rows", name="pairs")
    assert pairs["values"] == [{"prompt": "a", "completion": "b"}]


def test_a_dataset_without_a_table(hub: HubServer, tmp_path: Path) -> None:
    assert read_in_child(hub.url, tmp_path, "hub:org/plain")["values"] == [{"a": 1}]


def test_a_second_reading_fetches_nothing_and_needs_no_network(
    hub: HubServer, tmp_path: Path
) -> None:
    first = read_in_child(hub.url, tmp_path, "hub:org/rows", name="chat")
    hub.requests.clear()
    again = read_in_child(hub.url, tmp_path, "hub:org/rows", name="chat")
    assert again["sha256"] == first["sha256"]
    assert hub.downloaded() == set()
    hub.requests.clear()
    offline = read_in_child(hub.url, tmp_path, "hub:org/rows", name="chat", offline=True)
    assert (offline["values"], offline["sha256"]) == (first["values"], first["sha256"])
    assert hub.requests == []
    missing = read_in_child(
        hub.url, tmp_path, "hub:org/rows", name="chat", split="test", offline=True
    )
    assert (missing["code"], missing["exit"]) == ("dataset-offline", 3)
    assert "switched off" in missing["found"]


def test_a_new_commit_is_another_source(hub: HubServer, tmp_path: Path) -> None:
    first = read_in_child(hub.url, tmp_path, "hub:org/plain")
    hub.repos["datasets/org/plain"] = HubRepo({"rows.jsonl": b'{"a": 2}\n'}, commit="b" * 40)
    second = read_in_child(hub.url, tmp_path, "hub:org/plain")
    assert second["values"] == [{"a": 2}]
    assert second["sha256"] != first["sha256"]
    pinned = read_in_child(hub.url, tmp_path, "hub:org/plain", revision="a" * 40, offline=True)
    assert pinned["values"] == [{"a": 1}]


@pytest.mark.parametrize(
    ("path", "fields", "code", "exit_code", "told"),
    [
        ("hub:org/nowhere", {}, "unknown-dataset", 2, "hf auth login"),
        ("hub:org/rows", {"revision": "v9"}, "unknown-revision", 2, "no revision v9"),
        ("hub:org/rows", {}, "unknown-config", 2, 'set name = "chat"'),
        ("hub:org/rows", {"name": "chat", "split": "dev"}, "unknown-split", 2, "train, test"),
        ("hub:org/closed", {"name": "chat"}, "gated-dataset", 3, "/datasets/org/closed), then: hf"),
        ("hub:org/script", {}, "no-data-in-dataset", 2, "it is a script, which is not run"),
        ("hub:org/broken", {}, "broken-dataset", 2, "README"),
        ("hub:o rg/x", {}, "unknown-dataset", 2, "hub:ORG/NAME"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_type(
    hub: HubServer, tmp_path: Path, path: str, fields: dict[str, str],
    code: str, exit_code: int, told: str,
) -> None:  # fmt: skip
    refused = read_in_child(hub.url, tmp_path, path, **fields)
    assert (refused["code"], refused["exit"]) == (code, exit_code)
    assert told in " ".join(refused[part] for part in ("problem", "found", "remedy"))


def test_an_unreachable_hub(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    refused = read_in_child(url, tmp_path, "hub:org/rows")
    assert (refused["code"], refused["exit"]) == ("dataset-offline", 3)
    assert "does not answer" in refused["found"]
    assert "with a network" in refused["remedy"]


def test_a_silent_hub_fails_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused = read_in_child(url, tmp_path, "hub:org/rows")
    assert refused["code"] == "dataset-offline"
    assert refused["seconds"] < 15


def test_importing_loads_no_hub() -> None:
    code = "import sys, retone.data.sources; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
