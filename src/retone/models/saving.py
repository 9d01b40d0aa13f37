"""Tuned models on disk: standard folders, each with the sha256 of its base; and back again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from retone.config import MethodSection
from retone.errors import InputError
from retone.models.adapters import ADAPTER, OLDER, Part, add_to_weights, as_one, beside, own_part
from retone.models.bottleneck import CONFIG_FILE, load_bottlenecks, save_bottlenecks
from retone.models.layers import in_type
from retone.models.locate import LocatedModel
from retone.models.methods import METHODS
from retone.run_dir import read_json, write_json

BASE_FILE = "base_model.json"  # travels inside every folder of a tuned model


def save_tuned(
    model: Any,
    method: MethodSection,
    base: LocatedModel,
    folder: Path,
    *,
    dtype: str,
    tokenizer: Any,
    template: str,
    parts: Sequence[Part] = (),
) -> None:
    """Write a tuned model into an empty folder, naming its base and the base's sha256.

    A peft folder for adapters, a transformers folder for whole models, our own for bottlenecks.
    The tokenizer goes with it, carrying the chat template that was trained with: a model asked
    through another template answers as if it had learned little.

    Args:
        model: as the method prepared it, trained.
        method: how.
        base: what it was before.
        folder: where to.
        dtype: type that whole models are saved in.
        tokenizer, template: what it was trained with.
        parts: LoRA adapters that are added to the trained one, so that one holds all.
    """
    saved_as = METHODS[method.kind].saved_as
    if saved_as == "bottleneck":
        save_bottlenecks(model, method, folder)
    elif saved_as == "model":
        in_type(model, getattr(torch, dtype))
        model.save_pretrained(folder)
    else:
        _save_adapter(model, base, folder, parts)
    own = tokenizer.chat_template
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = own
    write_json(
        folder / BASE_FILE,
        {
            "name": base.name,
            "repo": base.repo,
            "revision": base.revision,
            "origin": base.origin,
            "sha256": base.sha256,
        },
    )


def _save_adapter(model: Any, base: LocatedModel, folder: Path, parts: Sequence[Part]) -> None:
    # Not the folder of the hub's cache, which would be of no use elsewhere.
    model.peft_config["default"].base_model_name_or_path = base.repo or base.name
    # "auto" would ask the hub whether the vocabulary was changed.
    model.save_pretrained(
        folder, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if parts:
        tensors, fields = as_one([own_part(model), *parts])
        save_file(tensors, folder / ADAPTER)
        config = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**config, **fields})


def check_base(folder: Path, base: LocatedModel) -> None:
    """Refuse what was trained on other weights, where its folder says on which (InputError)."""
    file = folder / BASE_FILE
    trained_on = read_json(file) if file.is_file() else None
    if isinstance(trained_on, dict) and "sha256" in trained_on:  # else it is another tool's
        remedy = f"name its own base: model.name, or retone adopt {folder} --model MODEL"
        require_same_base(str(folder), trained_on, asdict(base), remedy)


def require_same_base(
    tuned: str, trained_on: Mapping[str, Any], base: Mapping[str, Any], remedy: str
) -> None:
    """InputError where two bases do not have the same weights.

    Args:
        tuned: what was trained.
        trained_on: its base: sha256 of the weights, and name and origin where they are known.
        base: the one at hand, likewise.
        remedy: what to type.
    """
    if trained_on["sha256"] != base["sha256"]:
        theirs, ours = (
            f"{one.get('name')} ({one.get('origin')}, sha256 {one['sha256'][:12]})"
            for one in (trained_on, base)
        )
        raise InputError(
            "the tuned model was trained on another base model",
            f"{tuned}: trained on {theirs}, this one is {ours}",
            remedy,
            "other-base",
        )


def load_tuned(folder: Path, base: LocatedModel, load: Callable[[Path], Any]) -> Any:
    """A tuned model; inside `with model.disable_adapter()` it is the base model.

    Args:
        folder: written by `save_tuned`, or by peft.
        base: what it was trained on; another base is refused (InputError).
        load: loads the model of a folder.
    """
    check_base(folder, base)
    if (folder / "adapter_config.json").is_file():
        return _with_adapter(load(base.path), folder)
    if (folder / CONFIG_FILE).is_file():
        return load_bottlenecks(load(base.path), folder)
    return _with_base(load(folder), lambda: load(base.path))


def add_older(model: Any, adapter: Path, *, merged: bool) -> Any:
    """The base with an adapter that training goes on from: added to the weights, or beside them."""
    return add_to_weights(model, adapter) if merged else beside(model, adapter, OLDER)


def _with_adapter(model: Any, folder: Path) -> Any:
    """A peft model whose weights of the base itself are switched off with the rest.

    Those are trained biases, and embeddings that other tools save whole; peft leaves them on.
    """
    with safe_open(folder / ADAPTER, framework="pt") as tensors:
        saved = {_of_base(name) for name in tensors.keys()}  # noqa: SIM118 - no dict
    whole = {
        parameter: parameter.data.clone()
        for name, parameter in model.named_parameters()
        if name in saved
    }
    with warnings.catch_warnings():  # of how it was trained, which nobody can mend now
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        tuned = PeftModel.from_pretrained(model, folder, local_files_only=True).eval()
    moved = {p: before for p, before in whole.items() if not torch.equal(p.data, before)}
    if not moved:
        return tuned

    @contextmanager
    def switched_off() -> Iterator[None]:
        with warnings.catch_warnings(), _swapped(moved):
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
            with PeftModel.disable_adapter(tuned):
                yield

    tuned.disable_adapter = switched_off
    return tuned


def _of_base(name: str) -> str:
    """What a tensor in an adapter is called in the base model, if it is the base's own."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _with_base(model: Any, load: Callable[[], Any]) -> Any:
    """Let a whole tuned model be its base as well.

    The base is loaded when it is first asked for; then what differs is held twice.
    """
    others: dict[nn.Parameter, torch.Tensor] = {}

    @contextmanager
    def base_weights() -> Iterator[None]:
        if not others:
            untuned = dict(load().named_parameters(remove_duplicate=False))
            for name, parameter in model.named_parameters():
                if not torch.equal(parameter.data, untuned[name].data):
                    others[parameter] = untuned[name].data
        with _swapped(others):
            yield

    model.disable_adapter = base_weights
    return model


@contextmanager
def _swapped(others: dict[nn.Parameter, torch.Tensor]) -> Iterator[None]:
    """Inside the block parameters hold their other values."""

    def swap() -> None:
        for parameter in others:
            parameter.data, others[parameter] = others[parameter], parameter.data

    swap()
    try:
        yield
    finally:
        swap()
