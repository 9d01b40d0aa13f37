"""Whose adapter counts, row by row: adapters of one base, and the base alone, in one pass.

peft can mix adapters in a batch as well, but splits every layer's input, and switching an adapter
off walks through the whole model: either is slower than writing a token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from retone.errors import InputError, MachineError, RetoneError
from retone.models.adapters import ADAPTER, more_than_lora
from retone.models.foreign import read_config

Forward = Callable[[Tensor], Tensor]
PAIR = (".lora_A.weight", ".lora_B.weight")
COPIES = 4  # of a saved adapter in memory: its file, peft's in float32, and those that lie together


class RowLora:
    """Plain LoRA of which each row of a batch has its own, or none.

    y = x W^T + ((x A^T) m) (s B)^T, where A [ranks, in] and B [out, ranks] hold all adapters of a
    layer side by side and m [rows, 1, ranks] keeps a row's own ranks; in the type of the frozen
    weights, as the fused training step does it. The plain twin is peft's own forward pass; the
    adapters are read when this is made.

    Args:
        model: one for which `mixes` is true.
    """

    def __init__(self, model: Any) -> None:
        self._layers = [_Layer(layer, model.dtype) for layer in _lora_layers(model) if layer.lora_A]
        self._rows: tuple[str | None, ...] | None = None  # those that `_forwards` are for
        self._forwards: list[Forward] = []

    @staticmethod
    def mixes(model: Any) -> bool:
        """Whether a model is a base and plain LoRA on linear layers, and nothing else.

        A routed expert is none of these layers: it sees some tokens, and not whose they are.
        """
        if not isinstance(model, PeftModel) or "disable_adapter" in vars(model):
            return False
        if any(more_than_lora(vars(config)) for config in model.peft_config.values()):
            return False
        if any(".experts." in name for name, _ in _named_lora_layers(model)):
            return False
        return all(
            all(name == model.active_adapter for name in layer.active_adapters)
            and all(pair.weight.ndim == 2 for pair in layer.lora_A.values())
            and not (layer.lora_embedding_A or layer.lora_variant or layer.merged)
            for layer in _lora_layers(model)
        )

    @contextmanager
    def of(self, adapters: Sequence[str | None]) -> Iterator[None]:
        """Inside the block each row of a batch has the adapter of that name; None is the base."""
        if self._rows != tuple(adapters):
            self._rows, self._forwards = tuple(adapters), self._planned(adapters)
        # Training has its own way through these layers, which must be there again afterwards.
        before = [vars(each.module).get("forward") for each in self._layers]
        for each, forward in zip(self._layers, self._forwards, strict=True):
            each.module.forward = forward
        try:
            yield
        finally:
            for each, own in zip(self._layers, before, strict=True):
                if own is None:
                    del each.module.forward  # the class's own method shows again
                else:
                    each.module.forward = own

    def _planned(self, adapters: Sequence[str | None]) -> list[Forward]:
        """What each layer computes: no product that no row needs, no mask where all rows agree."""
        masks: dict[tuple[str, ...], Tensor | None] = {}  # layers alike share one
        forwards: list[Forward] = []
        for each in self._layers:
            used = [name for name in dict.fromkeys(each.owners) if name in adapters]
            if not used:
                forwards.append(each.base.forward)
                continue
            owners = tuple(used) if len(used) == 1 else each.owners
            if owners not in masks:
                masks[owners] = _others(adapters, owners, each.a.device)
            forwards.append(each.forward(owners, masks[owners]))
        return forwards


def _others(
    adapters: Sequence[str | None], owners: Sequence[str], device: torch.device
) -> Tensor | None:
    """The ranks that are not a row's, bool [rows, 1, ranks]; None where all are everybody's."""
    table = [[name != owner for owner in owners] for name in adapters]
    return torch.tensor(table, device=device).unsqueeze(1) if any(map(any, table)) else None


def _laid_out(others: Tensor, x: Tensor) -> Tensor:
    """What `_others` gives, as the rows lie in a layer's input."""
    if x.ndim == 2:  # [rows * seq, in]: OPT and shared experts read all tokens in one line
        return others.squeeze(1).repeat_interleave(len(x) // len(others), dim=0)
    # The head reads one position of each row, all at once: [1, rows, hidden].
    return others if len(x) == len(others) else others.transpose(0, 1)


class _Layer:
    """One layer with all of its adapters side by side.

    Attributes:
        module: peft's.
        base: the frozen layer inside it.
        a: [ranks, in].
        b: [out, ranks], scaled.
        owners: whose each rank is, adapter after adapter.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.module = module
        self.base = module.base_layer
        pairs = {name: _pair(module, name, dtype) for name in module.lora_A}
        self.a = torch.cat([a for a, _ in pairs.values()])
        self.b = torch.cat([b for _, b in pairs.values()], dim=1)
        self.owners = tuple(name for name, (a, _) in pairs.items() for _ in range(len(a)))

    def forward(self, owners: tuple[str, ...], others: Tensor | None) -> Forward:
        """The pass of a batch.

        Args:
            owners: all owners of this layer, or the one that is needed.
            others: bool [rows, 1, ranks], what `_others` gives for them.
        """
        a, b, dtype = self.a, self.b, self.a.dtype
        if len(owners) == 1:
            start = self.owners.index(owners[0])
            ranks = slice(start, start + self.owners.count(owners[0]))
            a, b = a[ranks], b[:, ranks]

        def forward(x: Tensor) -> Tensor:
            x = x.to(dtype)  # a norm that is kept in float32 speaks in float32
            narrow = linear(x, a)  # [rows, seq, ranks]
            if others is not None:
                narrow = narrow.masked_fill(_laid_out(others, x), 0)
            y: Tensor = self.base(x)
            return y + linear(narrow, b)

        return forward


def add_adapter(model: Any, name: str, folder: Path) -> None:
    """Load an adapter beside those of a model, for rows that name it.

    Args:
        model: a base with plain LoRA; where anything is wrong it stays as it was.
        name: one that no other adapter has.
        folder: written by peft; only safetensors are read.

    Raises:
        InputError: the two cannot be mixed, the folder is damaged, or was made for another base.
        MachineError: the memory does not hold it.
    """
    _require_plain(model, folder)
    _require_room(folder, model.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing is an error here
            read = model.load_adapter(
                folder, name, torch_device=str(model.device), low_cpu_mem_usage=True,
                local_files_only=True,
            )  # fmt: skip
        missing = [key for key in read.missing_keys if f".{name}." in key]
        wrong = [*read.unexpected_keys, *missing]
        found = f"{len(wrong)} tensors do not fit, such as {wrong[0]}" if wrong else ""
        if not wrong and not RowLora.mixes(model):
            found = "it holds more than LoRA on linear layers"
        elif not wrong and not _finite(model, name):
            found = "it holds numbers that are not finite"
    except Exception as error:  # whatever a foreign file brought about must be undone
        remove_adapter(model, name)
        raise not_loaded(folder, error) from error
    if found:
        remove_adapter(model, name)
        raise _misfit(folder, found)


def not_loaded(folder: Path, error: Exception) -> RetoneError:
    """What went wrong while an adapter was loaded, for who asked for it."""
    told = [line.strip() for line in str(error).splitlines()]
    found = " ".join(told[:2]) or type(error).__name__  # torch names the tensor in the second
    # On the CPU torch raises a plain RuntimeError.
    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in found
    return _no_room(f"{folder}: {found}") if full else _misfit(folder, found)


def remove_adapter(model: Any, name: str) -> None:
    """Take an adapter out of a model again, also one that was loaded only in part."""
    model.peft_config.setdefault(name, LoraConfig())  # peft forgets it where loading failed
    model.delete_adapter(name)


def _named_lora_layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def _lora_layers(model: Any) -> list[Any]:
    return [layer for _, layer in _named_lora_layers(model)]


def _pair(layer: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A [rank, in] and the scaled B [out, rank] of an adapter."""
    scaled = layer.lora_B[name].weight.detach() * layer.scaling[name]
    return layer.lora_A[name].weight.detach().to(dtype), scaled.to(dtype)


def _finite(model: Any, name: str) -> bool:
    """Whether all numbers of an adapter are; others would reach its neighbours in a batch."""
    pairs = [_pair(each, name, model.dtype) for each in _lora_layers(model) if name in each.lora_A]
    return all(bool(torch.isfinite(one).all()) for pair in pairs for one in pair)


def _require_plain(model: Any, folder: Path) -> None:
    """InputError unless both are plain LoRA, as far as the folder's files tell."""
    if not RowLora.mixes(model):
        raise InputError(
            "adapters cannot be loaded beside what is served",
            "it is more than a base model with plain LoRA",
            "serve a run of method.kind lora, and load the others beside it",
            "not-plain-lora",
        )
    more = more_than_lora(read_config(folder))
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            # Weights of the base itself, which some tools save too, would be everybody's.
            others = [name for name in file.keys() if not name.endswith(PAIR)]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            "the adapter cannot be read",
            f"{folder / ADAPTER}: {error}",
            "save it again with peft's save_pretrained",
            "wrong-adapter",
        ) from error
    if more or others:
        raise InputError(
            "this adapter cannot share a batch with others",
            f"{folder}: {', '.join(more) or others[0]}",
            "serve it alone: retone serve RUN, or merge it: retone export RUN --to merged",
            "not-plain-lora",
        )


def _require_room(folder: Path, device: torch.device) -> None:
    """MachineError where the free memory does not hold an adapter."""
    needed = COPIES * (folder / ADAPTER).stat().st_size
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    if needed > free:
        sizes = f"needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise _no_room(f"{folder} {sizes}")


def _no_room(found: str) -> MachineError:
    return MachineError(
        "the memory does not hold another adapter",
        found,
        "unload one: POST /v1/unload_lora_adapter",
        "no-room",
    )


def _misfit(folder: Path, found: str) -> InputError:
    return InputError(
        "the adapter does not fit this model",
        f"{folder}: {found}",
        "give one that was trained on this base model",
        "wrong-adapter",
    )
