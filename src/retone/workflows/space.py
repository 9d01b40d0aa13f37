"""A run as a folder that serves it elsewhere: a Hugging Face Space, or a Docker image.

Inside are the base model, the tuned weights and what the report is drawn from, test rows and
answers included; neither training rows nor checkpoints nor a path of this machine. The same
`retone serve` runs there, and asks for the same password where others can reach it.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from retone import __version__
from retone.run_dir import Run, check_name, read_json, whole_folder, write_json
from retone.workflows.card import hide_places, source_name
from retone.workflows.licences import Licence, base_licence, require_passing_on
from retone.workflows.load import open_run
from retone.workflows.markdown import plain
from retone.workflows.report import write_report
from retone.workflows.serve import PASSWORD

PORT = 7860  # where a Space expects its app
IMAGE = "python:3.11.14-slim-bookworm"
BASE = "base"  # folder of the base model
TEMPLATE = "template.jinja"
# What serving reads of a run, and what its report is drawn from; runs lack some of them.
READ = ("template_lock.json", "training.json", "metrics.jsonl", "evaluation/scores.json",
        "evaluation/answers.jsonl", "data/diagnosis.json", "data/test.jsonl")  # fmt: skip
# Of a base model's folder: what is loaded, and the terms that go along with it.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json",
                "generation_config.json", "tokenizer.json", "tokenizer.model",
                "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
                "chat_template.json", "LICENSE*", "LICENCE*", "NOTICE*")  # fmt: skip
_PINNED = ("torch", "transformers", "peft", "gradio")

APP = '''\
"""Serves the run beside it: the web app and an OpenAI-compatible API."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent)  # the names of folders in the run begin here

from retone.workflows.serve import serve

serve(
    {run},
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "{port}")),
    offline={offline},
)
'''
SPACE_README = """\
---
{header}
---

# {title}

{verdict}

The app asks for a password. Set the secret `{password}` in the settings of the Space first
(Variables and secrets); the user name is `retone`, and the API takes the password as bearer token.
Without it the Space does not start.

The report inside shows test rows and answers: keep the Space private where those are.
"""
DOCKERFILE = """\
FROM {image}

# Wheels for processors alone are small: give the index that PyTorch names for them.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \\
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 1000 retone
WORKDIR /srv/retone
COPY requirements.txt ./
RUN pip install --requirement requirements.txt
{copies}
# Votes and new runs are written here.
RUN chown retone:retone . runs
USER 1000
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", {probe}]
CMD ["retone", "serve", {run}, "--host", "0.0.0.0", "--port", "{port}", "--offline"]
"""
DOCKER_README = """\
# {title}

{verdict}

```sh
docker build --tag my-model .
export {password}=...   # the app asks for it, with the user name retone; the API as bearer token
docker run --rm --publish 127.0.0.1:{port}:{port} --env {password} my-model
```

Without a GPU, `docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS`, where ADDRESS is the index
that PyTorch's own page names for CPU wheels, makes a much smaller image. The password is given when
the container starts and is in no layer of the image.

The report inside shows test rows and answers: whoever has the image has them. So it is with the
base model, whose licence is: {licence}.
"""


def write_space(
    run: Run, tuned: Path, out: Path, *, licence: str | None = None, offline: bool = False
) -> None:
    """Write the folder of a Space on free CPU hardware.

    A base model of the hub is named, with its commit, and fetched there; any other is copied.

    Args:
        run: a trained run.
        tuned: its tuned weights as exported: an adapter, or a whole model.
        out: the folder to write; one that is there is replaced once the new one is whole.
        licence: the base's, where the table of models does not have it.
        offline: never ask a network.

    Raises InputError where the base's licence does not allow giving away what is copied.
    """
    from huggingface_hub import SpaceCardData

    check_name(run.name)
    base = read_json(run.manifest)["base"]
    fetched = base["origin"] == "hub" and base["revision"] is not None
    found = _require_licence(run, tuned, licence, with_base=not fetched)
    header = SpaceCardData(
        title=run.name,
        sdk="gradio",
        sdk_version=_version("gradio"),
        python_version="3.11",
        app_file="app.py",
        models=[base["repo"]] if base["repo"] else None,
        suggested_hardware="cpu-basic",
        pinned=False,
        **found.metadata(),
    ).to_yaml()
    with whole_folder(out) as staging:
        _copy_run(run, tuned, staging, with_base=not fetched, offline=offline)
        app = APP.format(run=repr(f"runs/{run.name}"), port=PORT, offline=not fetched)
        (staging / "app.py").write_text(app, encoding="utf-8")
        (staging / "requirements.txt").write_text(_requirements(run), encoding="utf-8")
        readme = SPACE_README.format(
            header=header, title=plain(run.name), verdict=_verdict(run), password=PASSWORD
        )
        (staging / "README.md").write_text(readme, encoding="utf-8")


def write_docker(
    run: Run, tuned: Path, out: Path, *, licence: str | None = None, offline: bool = False
) -> None:
    """Write the folder of an image that serves the run without a network; as `write_space`."""
    check_name(run.name)
    found = _require_licence(run, tuned, licence, with_base=True)
    probe = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/health', timeout=4)"
    with whole_folder(out) as staging:
        _copy_run(run, tuned, staging, with_base=True, offline=offline)
        copied = sorted(path.name for path in staging.iterdir())
        dockerfile = DOCKERFILE.format(
            image=IMAGE,
            copies="\n".join(
                f"COPY --chown=retone:retone {name} ./{name if '.' not in name else ''}"
                for name in copied
            ),
            port=PORT,
            probe=json.dumps(probe),
            run=json.dumps(f"runs/{run.name}", ensure_ascii=False),
        )
        kept = "\n".join(f"!{name}" for name in ("requirements.txt", *copied))
        readme = DOCKER_README.format(
            title=plain(run.name), verdict=_verdict(run), password=PASSWORD, port=PORT,
            licence=plain(found.name or "unknown"),
        )  # fmt: skip
        texts = {
            "Dockerfile": dockerfile,
            ".dockerignore": f"*\n{kept}\n",
            "requirements.txt": _requirements(run),
            "README.md": readme,
        }
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")


def _require_licence(run: Run, tuned: Path, said: str | None, *, with_base: bool) -> Licence:
    """The base's licence, where it allows giving away what is copied, under the run's name."""
    whole = with_base or (tuned / "config.json").is_file()
    found = base_licence(run, said)
    require_passing_on(run, "merged" if whole else "adapter", found, run.name, said)
    return found


def _copy_run(run: Run, tuned: Path, out: Path, *, with_base: bool, offline: bool) -> None:
    """The run as out/runs/NAME, and out/base; every name in it begins at `out`."""
    opened = open_run(run, offline=offline)  # refuses another base than the run's
    copy = Run(out / "runs" / run.name)
    for name in READ:
        if (run.path / name).is_file():
            (copy.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.path / name, copy.path / name)
    whole = (tuned / "config.json").is_file()
    shutil.copytree(tuned, copy.model if whole else copy.adapter)
    hide_places(copy.tuned, run)
    resolved, manifest = read_json(run.resolved), read_json(run.manifest)
    ledger = read_json(run.ledger)
    for source in ledger["sources"]:
        source["path"] = source_name(source["path"])
    manifest["base"]["name"] = source_name(manifest["base"]["name"])
    for origin in ("parent", "adopted"):
        if manifest.get(origin):
            manifest[origin]["folder"] = source_name(manifest[origin]["folder"])
    recipe = resolved["recipe"]
    recipe["model"]["adapter"] = None  # the tuned weights hold it
    recipe["data"] |= _without_paths(recipe["data"])
    if Path(recipe["model"]["template"]).is_file():
        shutil.copyfile(recipe["model"]["template"], out / TEMPLATE)
        recipe["model"]["template"] = TEMPLATE
    if with_base:
        _copy_files(opened.base.path, out / BASE)
        recipe["model"] |= {"name": BASE, "revision": None}
        manifest["base"]["revision"] = None
    for field in ("name", "template"):
        if f"model.{field}" in resolved["chosen"]:
            resolved["chosen"][f"model.{field}"]["value"] = recipe["model"][field]
    for file, value in (
        (copy.resolved, resolved), (copy.manifest, manifest), (copy.ledger, ledger)
    ):  # fmt: skip
        write_json(file, value)
    if copy.scores.is_file():
        write_report(copy, copy.evaluation(), copy.report)


def _copy_files(model: Path, target: Path) -> None:
    """The files of a model's folder that are loaded; not what else lies there."""
    target.mkdir()
    for file in model.iterdir():
        if file.is_file() and any(fnmatchcase(file.name, each) for each in _MODEL_FILES):
            shutil.copyfile(file, target / file.name)


def _without_paths(data: dict[str, Any]) -> dict[str, Any]:
    """The sources of a recipe by their names."""

    def named(given: Any) -> Any:
        if isinstance(given, str):
            return source_name(given)
        return [{**one, "path": source_name(one["path"])} for one in given or []] or None

    return {"train": named(data["train"]), "test": named(data["test"]), "against": []}


def _requirements(run: Run) -> str:
    """retone and what it loads models with, as they are installed here."""
    quantized = read_json(run.resolved)["recipe"]["model"]["quantization"] != "none"
    extras = "app,quantization" if quantized else "app"
    return _lines([f"retone[{extras}]=={__version__}", *(f"{n}=={_version(n)}" for n in _PINNED)])


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _version(package: str) -> str:
    """The installed version, without the part that names a build."""
    return importlib.metadata.version(package).partition("+")[0]


def _verdict(run: Run) -> str:
    told = read_json(run.scores)["verdict"] if run.scores.is_file() else "It is not evaluated"
    return f"{plain(told)}."
