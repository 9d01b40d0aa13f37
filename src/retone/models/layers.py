"""Training weights of the model itself: all of them, the last layers, or more and more layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retone.config import MethodSection
from retone.errors import InputError


def full(model: Any, method: MethodSection) -> Any:
    """All weights, kept in float32: small updates would be lost in a half-precision type."""
    for parameter in model.parameters():
        _train(parameter)
    return model


def last_layers(model: Any, method: MethodSection) -> Any:
    """Output head, final norm and the last `method.layers` decoder layers.

    A head that shares its weights with the embeddings gets weights of its own first: training them
    together would change what every layer reads. Raises InputError as `decoder_parts`.
    """
    decoder, norm, head = decoder_parts(model)
    untie(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in (*decoder[-_count(method) :], norm, head):
        for parameter in module.parameters():
            _train(parameter)
    return model


def _count(method: MethodSection) -> int:
    """`method.layers`, which `planning.resolve` fills."""
    assert method.layers is not None
    return method.layers


class Opening:
    """Gradual unfreezing (Howard and Ruder 2018, arXiv:1801.06146): layers open from the top.

    The head, the final norm and the top `method.layers` decoder layers are open from the start; the
    next group of so many layers opens at equal steps, the embeddings at last, until all are open
    after the share `method.open_until` of the run. What is closed gets no gradient, so optimizers
    pass over it and keep no state of it. For other kinds nothing ever changes.
    """

    def __init__(self, model: Any, method: MethodSection) -> None:
        self._until = method.open_until
        self._stages = _stages(model, _count(method)) if method.kind == "unfreeze" else []
        self._open = 0

    def at(self, done: float) -> None:
        """Open what is due when the share `done` of the run is over."""
        steps = max(1, len(self._stages) - 1)
        due = min(len(self._stages), 1 + int(done / self._until * steps + 1e-9))
        if due == self._open:
            return
        self._open = due
        for number, parameters in enumerate(self._stages):
            for parameter in parameters:
                parameter.requires_grad_(number < due)


def _stages(model: Any, together: int) -> list[list[nn.Parameter]]:
    """Parameters in the order in which they open; each comes once, tied ones when first needed."""
    decoder, norm, head = decoder_parts(model)
    groups: list[list[nn.Module]] = [[head, norm]]
    rest = list(decoder)
    while rest:
        groups.append(rest[-together:])
        del rest[-together:]
    groups[:2] = [[*groups[0], *groups[1]]]
    seen: set[int] = set()
    stages = []
    for group in [*groups, [model]]:  # whatever is left: the embeddings
        fresh = [p for module in group for p in module.parameters() if id(p) not in seen]
        seen.update(map(id, fresh))
        stages.append(fresh)
    return [stage for stage in stages if stage]


def decoder_parts(model: Any) -> tuple[nn.ModuleList, nn.Module, nn.Module]:
    """Decoder layers, final norm and output head of a causal language model.

    Raises InputError for a model that names them otherwise.
    """
    decoder = model.get_decoder()
    layers, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    head = model.get_output_embeddings()
    if not isinstance(layers, nn.ModuleList) or norm is None or head is None:
        raise InputError(
            "the layers of this model are not known",
            f"{type(model).__name__} has no layers, norm and head under the usual names",
            "--set method.kind=lora",
            "unknown-layers",
        )
    return layers, norm, head


def untie(model: Any) -> None:
    """Give the output head weights of its own where it shares those of the embeddings."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def in_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring all weights into one type, in place."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _train(parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise InputError(
            "packed weights cannot be trained",
            f"the base holds weights as {str(parameter.dtype).removeprefix('torch.')}",
            "--set method.kind=lora, or the model that was not quantized",
            "packed-weights",
        )
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
