"""What this machine can do, and `resolve`: the one place that fills what a recipe leaves open.

Every filled field comes with its reason; both are shown and stored in `resolved.json`. Torch is
imported inside the functions that ask the machine, so that this module loads without it.
"""

from __future__ import annotations

import ipaddress
import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from retone.config import METHOD_FIELDS, Recipe
from retone.presets import (
    LORA_SCALE,
    beta2_for,
    epochs_for,
    layers_for,
    rank_for,
    rate_for,
    type_for,
)

# bf16 has 8 bits of precision: it is taken only where it is clearly the faster type.
BF16_MIN_SPEEDUP = 1.2
# Above this row length attention's quadratic memory outweighs eager's quicker backward on a CPU.
EAGER_MAX_LENGTH = 256
# Activations of one token of a 135M model in bf16, with a margin (1 MB was seen).
ACTIVATION_BYTES = 2e6
CPU_TOKENS = 512
WARMUP_FRACTION = 0.05
RSLORA_ALPHA = 16.0
CONTINUED = 64  # tokens that a model goes on with a text for
MERGED = ("merged", "one product a layer instead of two")
STACKED = ("stacked", "nothing can be added to quantized weights")


@dataclass(frozen=True)
class Machine:
    """Facts of this machine.

    Attributes:
        device: cuda, mps or cpu.
        name: processor or GPU as the system names it.
        cores: CPU cores this process may use.
        memory_bytes: memory of the device that trains.
        bf16_tflops: measured bf16 matmul rate of a CPU, TFLOP/s; None where it was not measured.
        fp32_tflops: the same in fp32.
        capability: CUDA compute capability, such as 8.0; 0 without one.
    """

    device: str
    name: str
    cores: int
    memory_bytes: int
    bf16_tflops: float | None = None
    fp32_tflops: float | None = None
    capability: float = 0.0

    @property
    def bf16_is_fast(self) -> bool:
        """True where bf16 multiplies faster than fp32 by `BF16_MIN_SPEEDUP` or more."""
        if self.bf16_tflops is None or self.fp32_tflops is None:
            return False
        return self.bf16_tflops >= BF16_MIN_SPEEDUP * self.fp32_tflops


@dataclass(frozen=True)
class DataFacts:
    """What `resolve` needs to know of the encoded data (lengths in tokens)."""

    rows: int
    longest_row: int
    longest_answer: int
    task: tuple[str, str]  # what a good answer is, and why it is taken for that


@dataclass(frozen=True)
class ModelFacts:
    """What `resolve` needs to know of the base model."""

    parameters: int
    context: int
    model_type: str = ""
    layers: int = 1  # of the decoder
    fuses: bool = True  # its attention can be torch's fused kernel
    vocabulary: int = 0  # its embeddings
    packing: str = ""  # how its stored weights are packed: nf4, int8 or another method


@dataclass(frozen=True)
class Choice:
    """A field that `resolve` filled, and why."""

    value: Any
    because: str


@dataclass(frozen=True)
class Resolved:
    """A complete recipe, the filled fields with their reasons, and the length of the run."""

    recipe: Recipe
    chosen: dict[str, Choice]
    total_steps: int | None  # None: the run ends by minutes

    def as_json(self) -> dict[str, Any]:
        """The content of `resolved.json`."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "chosen": {field: asdict(choice) for field, choice in self.chosen.items()},
            "total_steps": self.total_steps,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Resolved:
        """The inverse of `as_json`."""
        return cls(
            Recipe.model_validate(value["recipe"]),
            {field: Choice(**choice) for field, choice in value["chosen"].items()},
            value["total_steps"],
        )


def matmul_rate(dtype: str, *, size: int = 1024, repeats: int = 5) -> float:
    """Best measured rate of one [size, size] x [size, size] product on this CPU, in TFLOP/s."""
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    left, right = torch.ones(size, size, dtype=kind), torch.ones(size, size, dtype=kind)
    best = math.inf
    for _ in range(repeats + 1):  # the first one also warms up
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
        if best > 0.5:  # an emulated type: no need to know how slow exactly
            break
    return 2 * size**3 / best / 1e12


@cache
def probe_machine() -> Machine:
    """Look at the machine; on a CPU both matmul rates are measured (about 0.2 s)."""
    import psutil
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(
            "cuda",
            properties.name,
            _cores(),
            properties.total_memory,
            capability=properties.major + properties.minor / 10,
        )
    memory = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        return Machine("mps", platform.processor() or "Apple GPU", _cores(), memory)
    rates = (matmul_rate("bfloat16"), matmul_rate("float32"))
    return Machine("cpu", _processor(), _cores(), memory, *rates)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address, or answers at it."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def resolve(recipe: Recipe, machine: Machine, data: DataFacts, model: ModelFacts) -> Resolved:
    """Fill every field left open. Pure: the same arguments give the same answer."""
    filled: dict[str, Choice] = {}

    def fill(field: str, value: Any, because: str) -> None:
        section, _, name = field.partition(".")
        if field not in filled and getattr(getattr(recipe, section), name) in (None, "auto"):
            filled[field] = Choice(value, because)

    fill("model.dtype", *dtype_for(machine, model))
    fill("model.attention", *_attention(machine, data, model))
    if recipe.model.adapter is not None:
        packed = recipe.model.quantization != "none" or bool(model.packing)
        fill("model.adapter_use", *(STACKED if packed else MERGED))
    longest = min(data.longest_row, model.context)
    fill("data.max_length", longest, f"longest row {data.longest_row}, context {model.context}")
    fill("data.task", *data.task)
    task = recipe.data.task if recipe.data.task != "auto" else data.task[0]
    fill("objective.kind", "text" if task == "text" else "sft", f"the task is {task}")
    if recipe.method.kind == "lora":
        fill("method.rank", *rank_for(data.rows))
        fill("method.alpha", *_alpha(recipe, filled))
    if recipe.method.kind in METHOD_FIELDS["layers"]:
        fill("method.layers", *layers_for(recipe.method.kind, model.layers))
    if recipe.train.optimizer == "paged_adamw_8bit" and machine.device == "cpu":
        because = "there is no GPU memory to page to"
        filled["train.optimizer"] = Choice("adamw_8bit", because)
    if beta2 := beta2_for(recipe.train.optimizer):
        fill("train.beta2", *beta2)
    fill("train.micro_batch_size", recipe.train.batch_size, "the token limit cuts where needed")
    fill("train.micro_batch_tokens", *_micro_batch_tokens(machine))
    fill("train.learning_rate", *rate_for(recipe, model.parameters, _rslora_scale(recipe, filled)))
    if recipe.train.max_steps is None and recipe.train.minutes is None:
        fill("train.epochs", *epochs_for(data.rows))
    steps_per_epoch = max(1, math.ceil(data.rows / recipe.train.batch_size))
    epochs = recipe.train.epochs or (
        filled["train.epochs"].value if "train.epochs" in filled else None
    )
    total = math.ceil(epochs * steps_per_epoch) if epochs else recipe.train.max_steps
    warmup = recipe.train.warmup_steps
    if not isinstance(warmup, int):
        share = WARMUP_FRACTION if warmup is None else warmup
        filled["train.warmup_steps"] = (
            Choice(math.ceil(share * total), f"{share:.0%} of the steps")
            if total
            else Choice(share, "a share of the minutes, whose steps nobody knows")
        )
    fill("train.evaluate_every", max(1, steps_per_epoch // 2), "twice an epoch")
    fill("train.save_every", steps_per_epoch, "once an epoch")
    if task == "text":
        fill("evaluate.max_new_tokens", CONTINUED, "texts are gone on with for a few sentences")
    fill(
        "evaluate.max_new_tokens",
        min(model.context, math.ceil(1.5 * data.longest_answer) + 8),
        f"longest reference has {data.longest_answer} tokens; a half more and 8",
    )
    return Resolved(_apply(recipe, filled), filled, total)


def _apply(recipe: Recipe, filled: dict[str, Choice]) -> Recipe:
    values = recipe.model_dump()
    for field, choice in filled.items():
        section, _, name = field.partition(".")
        values[section][name] = choice.value
    return Recipe.model_validate(values)


def dtype_for(machine: Machine, model: ModelFacts) -> tuple[str, str]:
    dtype, because = type_for(machine.device, machine.capability, model.model_type)
    if dtype != "measured":
        return dtype, f"{machine.name}: {because}"
    if machine.bf16_tflops is None or machine.fp32_tflops is None:
        return "float32", "bf16 was not measured here"
    bf16, fp32 = machine.bf16_tflops, machine.fp32_tflops
    rates = f"{because}: bf16 {bf16:.2f}, fp32 {fp32:.2f} TFLOP/s"
    return ("bfloat16" if machine.bf16_is_fast else "float32"), rates


def _attention(machine: Machine, data: DataFacts, model: ModelFacts) -> tuple[str, str]:
    if not model.fuses:
        return "eager", "this architecture has no fused attention"
    if machine.device == "cpu" and data.longest_row <= EAGER_MAX_LENGTH:
        return (
            "eager",
            f"rows of at most {EAGER_MAX_LENGTH} tokens on a CPU: its backward is quicker",
        )
    return "sdpa", "fused attention for long rows or a GPU"


def _rslora_scale(recipe: Recipe, filled: dict[str, Choice]) -> float:
    method = recipe.method
    if method.kind != "lora":
        return LORA_SCALE
    rank, alpha = (
        getattr(method, name) or filled[f"method.{name}"].value for name in ("rank", "alpha")
    )
    return float(alpha / math.sqrt(rank))


def _alpha(recipe: Recipe, filled: dict[str, Choice]) -> tuple[float, str]:
    if recipe.method.rslora:
        return RSLORA_ALPHA, "the same at every rank: rsLoRA divides it by the rank's root"
    rank = recipe.method.rank or filled["method.rank"].value
    return LORA_SCALE * rank, "twice the rank"


def _micro_batch_tokens(machine: Machine) -> tuple[int, str]:
    tokens = max(1, int(machine.memory_bytes / 4 / ACTIVATION_BYTES))
    if machine.device == "cpu" and tokens > CPU_TOKENS:
        return CPU_TOKENS, "more tokens at once take much memory and little time off a CPU"
    return tokens, f"a quarter of {machine.memory_bytes / 1e9:.0f} GB for activations"
