"""Folders that serve a run elsewhere: a Space and a Docker image's, served here without a network.

Docker itself is not run: the Dockerfile is read as what it says, and its command is run as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

import tiny
from foreign_adapters import lora, saved
from retone.errors import InputError
from retone.run_dir import Run, read_json, write_json
from retone.workflows.adopt import adopt
from retone.workflows.space import write_docker, write_space
from small_run import small_run

PASSWORD = "a secret of the test"
# Whatever asks for another address than this machine's is cut off.
NO_NETWORK = """
import socket
real = socket.socket.connect
def connect(self, address):
    host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost"):
        open({witness!r}, "a").write(f"{{address}}\\n")
        raise OSError("no network in this test")
    return real(self, address)
socket.socket.connect = connect
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module")
def own_template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with a template of a file, and a Space of it; other files lie in its base's folder."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "mine.jinja").write_text(tiny.CHATML)
    run = small_run(folder, f"model.template={folder / 'mine.jinja'}")
    for name in ("base_model.json", "diary.json", "notes.txt", "LICENSE.txt", "NOTICE"):
        (folder / "base" / name).write_text(f'{{"name": "{folder}"}}' if "." in name else "terms")
    (folder / "base" / "LICENSE.txt").write_text("terms")
    write_space(run, run.tuned, folder / "out" / "space", licence="mit", offline=True)
    return run, folder / "out" / "space"


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """The adapter of another tool, and an image of it."""
    folder = tmp_path_factory.mktemp("adopted")
    base = tiny.folder(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETONE_RUNS", str(folder / "runs"))
        run = adopt(saved(folder / "my", base, lora()), offline=True).run
    write_docker(run, run.tuned, folder / "out" / "image", licence="mit", offline=True)
    return run, folder / "out" / "image"


@pytest.fixture(scope="module")
def space(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "space"
    write_space(trained, trained.tuned, folder, licence="mit", offline=True)
    return folder


@pytest.fixture(scope="module")
def image(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "image"
    write_docker(trained, trained.tuned, folder, licence="mit", offline=True)
    return folder


def served(command: Sequence[str], tmp_path: Path, where: Path, **more: str) -> tuple[Any, str]:
    """The server of a command, in a process without network, settings or cache of this one's."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(witness=str(tmp_path / "asked")))
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    process = subprocess.Popen(
        command, cwd=where, stderr=subprocess.PIPE, text=True,
        env={**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path), **more},
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("API: "):
            return process, line.split()[1].removesuffix("/v1")
    process.communicate(timeout=30)
    raise AssertionError("".join(said))


def stop(process: Any) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def answer(address: str) -> str:
    """What the tuned model answers through the API; the pages and the API ask for the password."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/v1/models")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/config")
    body = {"model": "my", "messages": [{"role": "user", "content": "The cat sleeps"}]}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {PASSWORD}"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as found:
        return str(json.load(found)["choices"][0]["message"]["content"])


def expected(run: Run) -> str:
    from retone.conversation import Message
    from retone.workflows.load import load

    tuned = load(run, offline=True)
    return tuned.engine.tuned(
        [[Message("system", "Be Yoda."), Message("user", "The cat sleeps")]], tuned.sampling
    )[0].text


def test_a_space_serves_itself(space: Path, trained: Run, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    moved = tmp_path / "elsewhere"
    shutil.copytree(space, moved)
    hidden = trained.path.parents[1] / "base"
    hidden.rename(hidden.with_name("gone"))  # the base model that the run was tuned from
    try:
        process, address = served(
            [sys.executable, str(moved / "app.py")], tmp_path, tmp_path,
            RETONE_PASSWORD=PASSWORD, GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT="0",
        )  # fmt: skip
        try:
            found = answer(address)
        finally:
            stop(process)
    finally:
        hidden.with_name("gone").rename(hidden)
    assert found == expected(trained)
    assert not (tmp_path / "asked").exists()


def test_a_space_without_its_password_does_not_start(space: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="RETONE_PASSWORD"):
        served([sys.executable, "app.py"], tmp_path, space)


def test_the_command_of_the_image_serves(image: Path, trained: Run, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    program, *arguments = json.loads(instructions(image / "Dockerfile")[-1][1])
    assert program == "retone"
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    here = {"0.0.0.0": "127.0.0.1", "7860": "0"}  # for the test alone
    command = [sys.executable, "-m", "retone", *(here.get(word, word) for word in arguments)]
    process, address = served(command, tmp_path, image, RETONE_PASSWORD=PASSWORD)
    try:
        with urllib.request.urlopen(f"{address}/health") as found:  # what HEALTHCHECK asks
            assert json.load(found)["model"] == "my"
        assert answer(address) == expected(trained)
    finally:
        stop(process)


@pytest.mark.parametrize("written", ["space", "image", "own_template", "adopted"])
def test_nothing_private_goes_along(
    written: str, trained: Run, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(written)
    run, folder = (trained, found) if isinstance(found, Path) else found
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert not [name for name in names if "checkpoints" in name or "train.jsonl" in name]
    assert not [name for name in names if "validation" in name or "encoded" in name]
    place = str(run.path.parents[1]).encode()
    assert [name for name in names if place in (folder / name).read_bytes()] == []
    assert str(run.path.parents[1]) in run.resolved.read_text()  # so there was something to hide
    assert read_json(folder / "runs/my/resolved.json")["recipe"]["model"]["name"] == "base"
    assert "secret" not in (folder / "requirements.txt").read_text()


def test_of_the_base_goes_along_what_is_loaded_and_its_terms(
    own_template: tuple[Run, Path],
) -> None:
    _, folder = own_template
    names = {file.name for file in (folder / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE.txt", "NOTICE"} <= names
    assert not {"base_model.json", "diary.json", "notes.txt"} & names
    assert metadata_load(folder / "README.md")["license"] == "mit"


@pytest.mark.parametrize(
    ("known", "said", "told"),
    [
        (None, None, "not known whether"),
        ("CC-BY-ND-4.0", None, "does not allow"),
        (None, "CC-BY-NC-ND-4.0", "does not allow"),
        ("llama3.2", None, "has to begin with"),
        ("MIT", "Apache-2.0", "another licence"),
    ],
)
@pytest.mark.parametrize("write", [write_space, write_docker])
def test_a_base_that_may_not_be_given_away_is_not_copied(
    write: Any, known: str | None, said: str | None, told: str, trained: Run, tmp_path: Path
) -> None:
    shutil.copytree(trained.path, tmp_path / "my")
    run = Run(tmp_path / "my")
    manifest = read_json(run.manifest)
    manifest["base"]["licence"] = known
    write_json(run.manifest, manifest)
    with pytest.raises(InputError, match=told):
        write(run, run.tuned, tmp_path / "out", licence=said, offline=True)
    assert not (tmp_path / "out").exists()


def test_the_report_goes_along(space: Path, trained: Run) -> None:
    page = (space / "runs" / "my" / "report.html").read_text()
    assert read_json(trained.scores)["verdict"].split(" (")[0] in page


def test_a_space_says_what_it_is(space: Path) -> None:
    from importlib.metadata import version

    from retone import __version__

    header = metadata_load(space / "README.md")
    assert header["sdk"] == "gradio"
    assert header["sdk_version"] == version("gradio")
    assert header["app_file"] == "app.py"
    wanted = (space / "requirements.txt").read_text().splitlines()
    assert f"retone[app]=={__version__}" in wanted
    assert all(re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\w.]+", line) for line in wanted)


def test_a_base_of_the_hub_is_named_not_copied(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.path, tmp_path / "my")
    run = Run(tmp_path / "my")
    manifest, resolved = read_json(run.manifest), read_json(run.resolved)
    manifest["base"] |= {"origin": "hub", "repo": "org/base", "revision": "c" * 40}
    resolved["recipe"]["model"]["name"] = "org/base"
    write_json(run.manifest, manifest)
    write_json(run.resolved, resolved)
    monkeypatch.setattr("retone.workflows.space.open_run", lambda run, offline: None)
    write_space(run, run.tuned, tmp_path / "out")
    assert not (tmp_path / "out" / "base").exists()
    assert metadata_load(tmp_path / "out" / "README.md")["models"] == ["org/base"]
    assert read_json(tmp_path / "out/runs/my/manifest.json")["base"]["revision"] == "c" * 40
    assert "offline=False" in (tmp_path / "out" / "app.py").read_text()


def test_a_run_whose_folder_has_another_sort_of_name(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / 'x"; rm')
    with pytest.raises(InputError, match="one plain word"):
        write_docker(Run(tmp_path / 'x"; rm'), trained.tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the Dockerfile ---


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instruction and arguments, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [line.partition(" ") for line in lines if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in found]


def lint(folder: Path) -> list[str]:
    """What is wrong with an image's folder."""
    steps = instructions(folder / "Dockerfile")
    wrong = []
    if not re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", steps[0][1]) or steps[0][0] != "FROM":
        wrong.append("the base image is not pinned")
    users = [at for at, (name, _) in enumerate(steps) if name == "USER"]
    if not users or steps[users[-1]][1] in ("root", "0"):
        wrong.append("it runs as root")
    elif any(name in ("CMD", "ENTRYPOINT") for name, _ in steps[: users[-1]]):
        wrong.append("a command stands before the user")
    ignored = (folder / ".dockerignore").read_text().splitlines()
    for name, rest in steps:
        if name in ("COPY", "ADD"):
            source = next(word for word in rest.split() if not word.startswith("--"))
            if not (folder / source).exists() or f"!{source}" not in ignored:
                wrong.append(f"{source} is not there to be copied")
        if name in ("CMD", "ENTRYPOINT") and not isinstance(json.loads(rest), list):
            wrong.append(f"{name} goes through a shell")
        if name in ("ENV", "ARG") and re.search("password|token|secret|key", rest, re.IGNORECASE):
            wrong.append(f"{name} holds a secret")
    if not any(name == "HEALTHCHECK" for name, _ in steps):
        wrong.append("nobody asks whether it is well")
    return wrong


def test_the_dockerfile(image: Path) -> None:
    assert lint(image) == []
    probe = dict(instructions(image / "Dockerfile"))["HEALTHCHECK"].partition("CMD ")[2]
    compile(json.loads(probe)[2], "probe", "exec")


@pytest.mark.parametrize(
    ("text", "instead", "wrong"),
    [
        ("USER 1000\n", "", "it runs as root"),
        ("USER 1000\n", "USER root\n", "it runs as root"),
        (":3.11.14-slim-bookworm", "", "the base image is not pinned"),
        ("requirements.txt ./", "other.txt ./", "other.txt is not there to be copied"),
        ("ENV ", "ENV RETONE_PASSWORD=x ", "ENV holds a secret"),
        ("HEALTHCHECK", "LABEL", "nobody asks whether it is well"),
    ],
)
def test_the_lint_fires(text: str, instead: str, wrong: str, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(image, folder)
    dockerfile = folder / "Dockerfile"
    assert text in dockerfile.read_text()
    dockerfile.write_text(dockerfile.read_text().replace(text, instead, 1))
    assert wrong in lint(folder)
