"""How runs leave, come in and are put together: export, eject, adopt, blend."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retone.cli.options import Call, Debug, Json, Offline, RunArg, Sets
from retone.errors import InputError

FORMS = ("adapter", "merged", "gguf", "lora")
SPEAKS_TO = {  # option -> the forms and destinations that it means something for
    "--type": {"gguf", "ollama"},
    "--dtype": {"merged"},
    "--base": {"merged", "gguf", "ollama"},
    "--llama-cpp": {"gguf", "ollama"},
    **{name: {"hub"} for name in ("--repo", "--as", "--public", "--dry-run")},
}
To = Literal["adapter", "merged", "gguf", "lora", "ollama", "hub", "space", "docker"]


Target = Annotated[
    To,
    typer.Option(
        help="adapter: a standard peft folder. merged: a whole model for transformers. "
        "gguf: one file for llama.cpp and its kin. lora: the adapter alone as GGUF. "
        "ollama: a GGUF and its Modelfile. hub: Hugging Face, private unless --public. "
        "space, docker: a folder that serves the app."
    ),
]
Into = Annotated[
    str | None, typer.Option(help="Merge into this model instead: the original of packed weights.")
]


def export_verb(
    run: RunArg,
    to: Target,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make; RUN/exports/NAME when left out."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="Of GGUF weights: f16, bf16, q8_0 (the default), q4_k_m ..."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of merged weights; the run's own when left out."),
    ] = None,
    base: Into = None,
    checkout: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="A checkout of llama.cpp, whose converter then writes."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the base model (SPDX), where it is not known.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="On the hub: ORG/NAME.")] = None,
    form: Annotated[
        Literal["adapter", "merged", "gguf", "lora"] | None,
        typer.Option(
            "--as",
            help="What the hub is sent; when left out the adapter, or merged where the whole model "
            "was trained.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="On the hub, for everybody.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the hub would be sent; send nothing.")
    ] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Write a run in another form; run by its own engine, it must answer as the run does."""
    _require_fitting(to, form, {
        "--type": kind, "--dtype": dtype, "--base": base, "--llama-cpp": checkout,
        "--repo": repo, "--as": form, "--public": public, "--dry-run": dry_run,
    })  # fmt: skip
    how: dict[str, Any] = {
        "kind": kind or "q8_0", "dtype": dtype, "base": base, "checkout": checkout,
        "licence": licence, "output": output, "offline": offline,
    }  # fmt: skip
    if to in FORMS:
        from retone.workflows.export import export

        return partial(export, run, to=to, **how)
    from retone.workflows.deliver import deliver

    return partial(deliver, run, to=to, form=form, repo=repo, public=public, dry_run=dry_run, **how)


def _require_fitting(to: str, form: str | None, given: dict[str, Any]) -> None:
    """InputError that names every option that would change nothing."""
    idle = [name for name, value in given.items() if value and not {to, form} & SPEAKS_TO[name]]
    if idle:
        asked = f"--to {to}" + (f" --as {form}" if form else "")
        raise InputError(
            "options that do not fit", f"{asked} has no use for {', '.join(idle)}",
            "leave them out, or say which form the hub is sent: --as merged", "idle-option",
        )  # fmt: skip


def eject_verb(
    run: RunArg,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; RUN-trl when left out.")
    ] = None,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Write the same tune as a plain TRL and peft script, with its rows; it needs no retone."""
    from retone.workflows.eject import eject

    return partial(eject, run, output=output, offline=offline)


def adopt_verb(
    folder: Annotated[Path, typer.Argument(help="A folder that peft saved.")],
    model: Annotated[
        str | None, typer.Option(help="The base; the one that the adapter names when left out.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the run; the folder's when left out.")
    ] = None,
    sets: Sets = None,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Make a run of an adapter that another tool trained."""
    from retone.workflows.adopt import adopt

    return partial(adopt, folder, model=model, name=name, sets=sets or (), offline=offline)


def blend_verb(
    parts: Annotated[list[str], typer.Argument(metavar="RUN=WEIGHT...", help="Two runs or more.")],
    name: Annotated[str, typer.Option(help="Of the new run.")],
    how: Annotated[
        Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune",
                "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"],
        typer.Option(
            help="linear: weighted sums of the As and of the Bs. cat: the exact sum of the "
            "updates; the ranks add up. svd: that sum, cut down to a rank. ties, dare and "
            "magnitude_prune drop parts of each first."
        ),
    ] = "linear",
    density: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of entries kept: ties, dare, magnitude_prune."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the result: svd.")] = None,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Put the LoRA adapters of several runs together as one."""
    from retone.workflows.blend import blend

    return partial(
        blend, parts, name=name, how=how, density=density, rank=rank, seed=seed, offline=offline
    )
