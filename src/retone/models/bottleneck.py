"""Bottleneck adapters: small layers behind the frozen ones. peft has none, so they are our own.

Houlsby et al. 2019 (arXiv:1902.00751) put one behind attention and one behind the feed-forward
layers of each block; Pfeiffer et al. 2021 (arXiv:2005.00247) found the second alone nearly as good.
Both add to what they read, and begin as nothing: the way up starts at zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retone.config import MethodSection
from retone.models.layers import decoder_parts

CONFIG_FILE = "bottleneck_config.json"
WEIGHTS_FILE = "bottleneck.safetensors"
PLACES = {"pfeiffer": ("mlp",), "houlsby": ("self_attn.o_proj", "mlp")}
_SHAPE = ("reduction", "placement", "dropout")


class Bottleneck(nn.Module):
    """A frozen module followed by y + up(relu(down(y))); down and up are in float32.

    Shapes: y [..., hidden], down [hidden / reduction, hidden], up [hidden, hidden / reduction].
    """

    def __init__(self, base: nn.Module, hidden: int, reduction: int, dropout: float) -> None:
        super().__init__()
        inner = max(1, hidden // reduction)
        self.base = base
        self.bottleneck_down = nn.Linear(hidden, inner)
        self.bottleneck_up = nn.Linear(inner, hidden)
        self.dropout = nn.Dropout(dropout)
        self.switched_on = True
        nn.init.normal_(self.bottleneck_down.weight, std=0.01)
        for zero in (self.bottleneck_down.bias, self.bottleneck_up.weight, self.bottleneck_up.bias):
            nn.init.zeros_(zero)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the frozen module says, and what is added to it."""
        y: Tensor = self.base(*args, **kwargs)
        if not self.switched_on:
            return y
        narrow = torch.relu(self.bottleneck_down(self.dropout(y.float())))
        added: Tensor = self.bottleneck_up(narrow)
        return y + added.to(y.dtype)


def add_bottlenecks(model: Any, method: MethodSection) -> Any:
    """Freeze the model and put bottlenecks into every decoder layer.

    Raises InputError as `decoder_parts`.
    """
    decoder, _, _ = decoder_parts(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    hidden = model.config.get_text_config().hidden_size
    for layer in decoder:
        for place in PLACES[method.placement]:
            parent, _, name = place.rpartition(".")
            owner = layer.get_submodule(parent)
            made = Bottleneck(getattr(owner, name), hidden, method.reduction, method.dropout)
            setattr(owner, name, made.to(model.device))
    model.disable_adapter = lambda: _switched_off(model)
    return model


def save_bottlenecks(model: Any, method: MethodSection, folder: Path) -> None:
    """Write the small layers and their shape."""
    weights = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".bottleneck_" in name
    }
    save_file(weights, folder / WEIGHTS_FILE)
    shape = {name: getattr(method, name) for name in _SHAPE}
    (folder / CONFIG_FILE).write_text(json.dumps(shape, indent=1) + "\n", encoding="utf-8")


def load_bottlenecks(model: Any, folder: Path) -> Any:
    """The base model with saved bottlenecks, in evaluation mode."""
    shape = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    model = add_bottlenecks(model, MethodSection(kind="bottleneck", **shape))
    weights = load_file(folder / WEIGHTS_FILE)
    model.load_state_dict(weights, strict=False)
    return model.eval()


@contextmanager
def _switched_off(model: nn.Module) -> Iterator[None]:
    added = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for module in added:
        module.switched_on = False
    try:
        yield
    finally:
        for module in added:
            module.switched_on = True
