"""From a name to a verified folder: folders, the table, the hub (a loopback one), offline."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubRepo, HubServer
from retone.errors import InputError, MachineError
from retone.models import embedded
from retone.models.locate import cache_dir, locate, model_table, weights_sha256

DEFAULT = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETONE_CACHE", str(tmp_path / "retone-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def safetensors_bytes(fill: bytes = b"\0") -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill * 16


def model_folder(place: Path, *without: str) -> Path:
    place.mkdir()
    (place / "config.json").write_text('{"max_position_embeddings": 128}')
    (place / "model.safetensors").write_bytes(safetensors_bytes())
    (place / "tokenizer.json").write_text("{}")
    for name in without:
        (place / name).unlink()
    return place


def sharded_folder(place: Path) -> Path:
    model_folder(place, "model.safetensors")
    shards = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    for shard in shards:
        (place / shard).write_bytes(safetensors_bytes(shard[9:10].encode()))
    index = {"weight_map": {f"layer{number}": shard for number, shard in enumerate(shards)}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


# --- the table ---


def test_every_row_of_the_table_is_complete() -> None:
    rows = model_table()
    assert len({row.repo for row in rows.values()}) == len(rows) == 7
    for name, row in rows.items():
        assert name == name.lower() == row.name
        assert row.repo in row.source
        assert row.context >= 2048
        assert row.parameters > 1e8
        assert row.gated == row.repo.startswith("meta-llama/")
    assert [row.name for row in rows.values() if row.embedded] == [DEFAULT]


def test_importing_loads_neither_torch_nor_the_hub() -> None:
    script = (
        "import sys, retone.models.locate; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_cache_directory_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir().name == "retone-cache"
    monkeypatch.delenv("RETONE_CACHE")
    assert cache_dir().name.lower() in ("retone", "cache")


# --- folders ---


def test_a_complete_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    found = locate(str(folder))
    assert (found.path, found.origin, found.note) == (folder, "folder", "")
    assert (found.repo, found.revision, found.licence, found.context) == (None, None, None, 128)
    assert found.sha256 == hashlib.sha256(safetensors_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("without", "named"),
    [
        (["model.safetensors"], ["weights"]),
        (["tokenizer.json"], ["tokenizer"]),
        (["model.safetensors", "tokenizer.json"], ["weights", "tokenizer"]),
        (
            ["config.json", "model.safetensors", "tokenizer.json"],
            ["config", "weights", "tokenizer"],
        ),
    ],
)
def test_everything_missing_is_named_at_once(
    tmp_path: Path, without: list[str], named: list[str]
) -> None:
    folder = model_folder(tmp_path / "mine", *without)
    with pytest.raises(InputError) as caught:
        locate(str(folder))
    assert str(folder) in caught.value.problem
    problems = caught.value.found.split("; ")
    assert len(problems) == len(named)
    for problem, word in zip(problems, named, strict=True):
        assert word in problem


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "mine")
    whole = weights_sha256(folder)
    assert locate(str(folder)).sha256 == whole
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="1 of 3 shards missing: model-00002-of-00003"):
        locate(str(folder))
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        locate(str(folder))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (safetensors_bytes()[:-4], "bytes instead of"),
        (safetensors_bytes()[:20], "only the beginning"),
        (b"version https://git-lfs", "not a safetensors file"),
        (b"", "not a safetensors file"),
    ],
)
def test_weights_cut_short_are_noticed(tmp_path: Path, content: bytes, complaint: str) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        locate(str(folder))


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="pickle files") as caught:
        locate(str(folder))
    assert "safetensors only" in caught.value.found


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "model.safetensors")
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes())
    with pytest.raises(InputError, match="is an adapter"):
        locate(str(folder))


def test_what_is_not_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file; its folder is"):
        locate(str(folder / "model.safetensors"))
    with pytest.raises(InputError, match="does not exist"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no revision v2"):
        locate(str(folder), revision="v2")


# --- the weights' hash ---


def test_unchanged_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded_folder(tmp_path / "mine")
    hashed: list[str] = []
    plain = embedded._sha256
    monkeypatch.setattr(embedded, "_sha256", lambda file: hashed.append(file.name) or plain(file))
    first = weights_sha256(folder)
    assert weights_sha256(folder) == first
    assert len(hashed) == 3
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(safetensors_bytes(b"9"))
    os.utime(shard, ns=(1, 1))
    assert weights_sha256(folder) != first
    assert hashed[3:] == [shard.name]


def test_a_damaged_or_unwritable_memory_costs_time_only(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    expected = weights_sha256(folder)
    for content in ("{", "[]", '{"a": 1}'):
        (cache_dir() / "hashes.json").write_text(content)
        assert weights_sha256(folder) == expected
    (cache_dir() / "hashes.json").unlink()
    cache_dir().rmdir()
    cache_dir().write_text("a file where the cache should be")
    assert weights_sha256(folder) == expected


# --- names ---


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("smollm2-135m-instrukt", DEFAULT),
        ("TinyLlama", "tinyllama-1.1b-chat"),
        ("qwen3-0.6", "qwen3-0.6b"),
    ],
)
def test_an_unknown_name_gives_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f'did you mean "{nearest}"'):
        locate(name)


@pytest.mark.parametrize("name", ["", "org/na--me", "org/", "-org/name", "org/name.git", "o rg/x"])
def test_what_cannot_be_a_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="nor a hub id"):
        locate(name)


# --- offline, and the embedded model ---


def test_offline_with_nothing_cached_says_what_to_type() -> None:
    with pytest.raises(MachineError) as caught:
        locate("qwen3-0.6b", offline=True)
    assert caught.value.code == "model-offline"
    assert "retone doctor --fetch" in caught.value.remedy
    with pytest.raises(MachineError) as caught:
        locate(DEFAULT, offline=True)
    assert caught.value.code == "model-offline"
    assert "hub's cache lacks the model" in caught.value.found


def test_hf_hub_offline_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match="retone doctor --fetch"):
        locate("org/name")


def test_the_default_falls_back_to_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = model_folder(tmp_path / "fake-embedded")
    monkeypatch.setattr(embedded, "embedded_model", lambda *args, **options: fake)
    for name in (DEFAULT, "HuggingFaceTB/SmolLM2-135M-Instruct"):
        found = locate(name, offline=True)
        assert (found.name, found.path, found.origin) == (DEFAULT, fake, "embedded")
        assert "Q4_1" in found.note
        assert "not bit-equal" in found.note
        assert (found.licence, found.context, found.revision) == ("Apache-2.0", 8192, None)
    with pytest.raises(MachineError, match="at revision v1"):
        locate(DEFAULT, revision="v1", offline=True)
    with pytest.raises(MachineError):
        locate("qwen3-0.6b", offline=True)


# --- the hub: in a child, because HF_ENDPOINT is read when huggingface_hub is imported ---


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a tokenizer of 4 words, as the hub would hold it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, **special)).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token="no"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    for unwanted in (
        "pytorch_model.bin",
        "modeling_tiny.py",
        "README.md",
        "consolidated.safetensors",
    ):
        (folder / unwanted).write_text("unwanted")
    return folder


@pytest.fixture
def hub(tiny_llama: Path) -> Any:
    pickles = {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"\x80\x04"}
    repos = {
        "org/tiny": HubRepo.from_folder(tiny_llama),
        "meta-llama/Llama-3.2-1B-Instruct": HubRepo.from_folder(tiny_llama, gated=True),
        "org/pickles": HubRepo(pickles),
    }
    with HubServer(repos) as server:
        yield server


CHILD = """
import json, sys, time, dataclasses
from retone.errors import RetoneError
from retone.models.locate import locate
name, options = json.loads(sys.argv[1])
seen, started = [], time.monotonic()
try:
    model = locate(name, progress=lambda *report: seen.append(report), **options)
    found = dataclasses.asdict(model)
except RetoneError as error:
    found = {**error.as_json()["error"], "exit": error.exit_code}
found |= {"seconds": time.monotonic() - started, "seen": seen}
print(json.dumps(found, default=str))
"""


def locate_in_child(url: str, tmp_path: Path, name: str, **options: object) -> dict[str, Any]:
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([name, options])],
        env={
            **os.environ,
            **variables,
            "PIP_FIND_LINKS": str(tmp_path),
            "PIP_CONFIG_FILE": "/dev/null",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "%|" not in done.stderr, "no progress bars but our own"
    return dict(json.loads(done.stdout))


def test_a_model_of_the_hub(hub: HubServer, tiny_llama: Path, tmp_path: Path) -> None:
    found = locate_in_child(hub.url, tmp_path, "org/tiny")
    assert (found["origin"], found["repo"], found["revision"]) == ("hub", "org/tiny", "a" * 40)
    assert (
        found["sha256"]
        == hashlib.sha256((tiny_llama / "model.safetensors").read_bytes()).hexdigest()
    )
    assert found["context"] == 32
    assert found["seen"][-1][1] == found["seen"][-1][2] > 0
    unwanted = {"pytorch_model.bin", "modeling_tiny.py", "README.md", "consolidated.safetensors"}
    assert hub.downloaded() == {file.name for file in tiny_llama.iterdir()} - unwanted
    assert all("org/tiny" in path for _, path in hub.requests), "no telemetry, nothing else"

    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(found["path"]).config.num_hidden_layers == 2

    asked = len(hub.requests)
    again = locate_in_child(hub.url, tmp_path, "org/tiny")
    assert again["path"] == found["path"]
    assert locate_in_child(hub.url, tmp_path, "org/tiny", offline=True)["path"] == found["path"]
    assert len(hub.requests) == asked, "a cached model asks the hub nothing"


def test_a_half_downloaded_snapshot_is_completed(
    hub: HubServer, tiny_llama: Path, tmp_path: Path
) -> None:
    snapshot = Path(locate_in_child(hub.url, tmp_path, "org/tiny")["path"])
    (snapshot / "model.safetensors").resolve().unlink()
    (snapshot / "model.safetensors").unlink()
    offline = locate_in_child(hub.url, tmp_path, "org/tiny", offline=True)
    assert offline["code"] == "model-offline"
    assert locate_in_child(hub.url, tmp_path, "org/tiny")["origin"] == "hub"


def test_a_revision_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    assert locate_in_child(hub.url, tmp_path, "org/tiny", revision="a" * 40)["revision"] == "a" * 40
    missing = locate_in_child(hub.url, tmp_path, "org/tiny", revision="v9")
    assert (missing["code"], missing["exit"]) == ("unknown-revision", 2)


def test_a_gated_model_says_how_to_get_in(hub: HubServer, tmp_path: Path) -> None:
    refused = locate_in_child(hub.url, tmp_path, "llama-3.2-1b-instruct")
    assert (refused["code"], refused["exit"]) == ("gated-model", 3)
    assert "accept the licence" in refused["remedy"]
    assert "hf auth login" in refused["remedy"]


def test_a_repository_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    unknown = locate_in_child(hub.url, tmp_path, "Qwen/Qwen3-0.6")
    assert (unknown["code"], unknown["exit"]) == ("unknown-model", 2)
    assert 'did you mean "Qwen/Qwen3-0.6B"' in unknown["problem"]


def test_a_repository_of_pickles_is_refused_before_the_download(
    hub: HubServer, tmp_path: Path
) -> None:
    refused = locate_in_child(hub.url, tmp_path, "org/pickles")
    assert (refused["code"], refused["exit"]) == ("incomplete-model", 2)
    assert "pickle files" in refused["found"]
    assert hub.downloaded() == set()


def test_an_unreachable_hub_fails_fast(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    refused = locate_in_child(url, tmp_path, "org/tiny")
    assert (refused["code"], refused["exit"]) == ("hub-unreachable", 3)
    assert refused["seconds"] < 3
    default = locate_in_child(url, tmp_path, DEFAULT)
    assert (default["code"], default["exit"]) == ("download-failed", 3)
    assert "hub: " in default["found"]
    assert "pip: " in default["found"]


def test_a_silent_hub_fails_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        refused = locate_in_child(url, tmp_path, "org/tiny")
    assert refused["code"] == "hub-unreachable"
    assert refused["seconds"] < 7.5
    assert time.monotonic() - started < 15


def test_a_gguf_file_is_unpacked_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fake in the place of the unpacking, which the embedded model's tests do for real."""
    made: list[Path] = []

    def fake_unpack(gguf: Path, out: Path) -> None:
        made.append(gguf)
        whole = model_folder(tmp_path / f"whole{len(made)}")
        for file in whole.iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr("retone.models.gguf_files.convert_in_child", fake_unpack)
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF one")
    first, again = locate(str(file)), locate(str(file))
    assert first == again
    assert len(made) == 1
    assert first.note == "These are the weights of small.gguf, unpacked."
    assert first.path.is_relative_to(cache_dir())
    file.write_bytes(b"GGUF two, another")
    assert locate(str(file)).path != first.path
    with pytest.raises(InputError, match="not the folder of a model"):
        locate(str(file), revision="main")


def test_a_gguf_file_needs_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(embedded, "remembered_sha256", lambda *_: "0" * 64)
    (tmp_path / "taken").write_text("a file, where a folder is needed")
    monkeypatch.setenv("RETONE_CACHE", str(tmp_path / "taken"))
    with pytest.raises(MachineError) as caught:
        locate(str(file))
    assert caught.value.code == "cache-unwritable"
