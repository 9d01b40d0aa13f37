"""`retone serve --engine vllm`: another server takes over, with the run's template and adapter."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from retone import console
from retone.errors import InputError, MachineError
from retone.models.adapters import read_part
from retone.models.methods import METHODS
from retone.run_dir import Run, read_json, write_whole
from retone.workflows.load import open_run

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def serve_with_vllm(
    run: Run, *, host: str, port: int, password: str | None, offline: bool = False
) -> None:
    """Start `vllm serve` on the run's base and adapter, or on its whole tuned model.

    Both are served under the names that retone's own API gives them. The key goes through the
    environment, not the command line, which others can read.

    Raises:
        InputError: the run holds what vLLM cannot load.
        MachineError: vLLM is not installed; its command stands in the remedy.
    """
    command = _command(run, host=host, port=port, offline=offline)
    if shutil.which("vllm") is None:
        raise MachineError(
            "vLLM is not installed",
            "no vllm on the path",
            f"pip install vllm, in an environment of its own; then: {shlex.join(command)}",
            "no-vllm",
        )
    console.note(shlex.join(command))
    key = {"VLLM_API_KEY": password} if password else {}
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, env={**os.environ, **quiet, **key}, check=False)
    if done.returncode not in (0, 130, -2):
        raise MachineError(
            "vLLM stopped", f"exit code {done.returncode}", "see what it printed above", "vllm"
        )


def _command(run: Run, *, host: str, port: int, offline: bool) -> list[str]:
    opened = open_run(run, offline=offline)
    recipe = opened.resolved.recipe
    whole = METHODS[recipe.method.kind].saved_as == "model"
    if not whole:
        _require_plain_lora(run)
    template = run.path / "chat_template.jinja"
    write_whole(template, opened.template.text)
    base = read_json(run.manifest)["base"]["name"]
    common = ["--host", host, "--port", str(port), "--chat-template", str(template)]
    if whole:
        return ["vllm", "serve", str(run.model), "--served-model-name", run.name, *common]
    return [
        "vllm", "serve", str(opened.base.path), "--served-model-name", base, *common,
        "--enable-lora", "--max-lora-rank", str(_rank(run)),
        "--lora-modules", f"{run.name}={run.adapter}",
    ]  # fmt: skip


def _require_plain_lora(run: Run) -> None:
    """InputError where the run's adapter is more than LoRA on linear layers."""
    try:
        read_part(run.adapter)
    except (InputError, FileNotFoundError) as error:
        found = error.found if isinstance(error, InputError) else "a bottleneck adapter"
        raise InputError(
            "vLLM cannot load what this run trained",
            f"{run.name}: {found}",
            f"retone serve {run.name}",
            "not-for-vllm",
        ) from error


def _rank(run: Run) -> int:
    """The smallest of vLLM's ranks that holds the saved one, which may be a sum of several."""
    rank = int(read_json(run.adapter / "adapter_config.json")["r"])
    return next((one for one in VLLM_RANKS if one >= rank), rank)
