"""The fields of a recipe: every one documented, typed and checked. Loads without torch.

What is left at "auto" (or None) is filled by `planning.resolve`, with a reason for each; nothing
else changes a recipe. `recipe_file` reads recipes from TOML.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

BUNDLED = "bundled:"  # prefix of the paths of data that ships with the package
HUB = "hub:"  # prefix of the ids of datasets on the Hugging Face Hub
STDIN = "-"


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Positive = Annotated[Finite, Field(gt=0)]
Fraction = Annotated[Finite, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, text is never taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """[model]: what is tuned."""

    name: str = Field(default="smollm2-135m-instruct", min_length=1)
    """A row of tables/models.toml, a hub id (org/name), a folder, or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the commit found is recorded."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the frozen weights and of the products; auto: by tables/precision.toml."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Frozen weights in 4 bits (nf4 with double quantization, Dettmers et al. 2023,
    arXiv:2305.14314) or in 8 (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339)."""
    adapter: str | None = None
    """Go on from this adapter: a run, or a folder of plain peft LoRA on the same base."""
    adapter_use: Literal["auto", "merged", "stacked"] = "auto"
    """merged: the adapter is added to the weights first, which is quicker; stacked: it stays beside
    them, frozen. Either way one adapter is saved that holds both. auto: merged, where the weights
    are not quantized."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention of the model; auto: eager for short rows on a CPU, sdpa otherwise."""
    template: str = "auto"
    """auto: the model's own chat template; else a prompt style (chatml, zephyr, llama2, llama3,
    phi3, gemma, alpaca) for a model without one, or the path of a Jinja file."""


class SourceSection(Section):
    """[[data.train]] and [[data.test]]: one of several sources."""

    path: str = Field(min_length=1)
    """A file (JSON, JSONL, CSV, TSV, Parquet, text; also .gz, .zst, .zip), a folder, a glob, a
    saved datasets folder, - for stdin, bundled:DATASET/FILE, or hub:ORG/NAME."""
    format: str = "auto"
    """Row shape; auto: found from the rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column, for example prompt and completion; found by name when left out."""
    name: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; the commit found is recorded."""
    split: str = "train"
    """Split of a hub dataset or of a saved datasets folder."""
    sample: Annotated[int, Field(gt=0)] | Annotated[Finite, Field(gt=0, lt=1)] | None = None
    """Keep so many rows, or this share of them, picked by content hash."""
    weight: Positive | None = None
    """Share of the mixture: sources with weights are cut down to these proportions."""
    repeat: Annotated[int, Field(gt=0)] = 1
    """Times that each row is trained on in an epoch."""


class DataSection(Section):
    """[data]: what it is tuned on and tested on."""

    train: str | list[SourceSection] = Field(min_length=1)
    """Training file, folder, glob or hub dataset (as a source's path), or [[data.train]] tables."""
    format: str = "auto"
    """Row shape of sources that name none; auto: found from the rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column for sources that name none; found by name when left out."""
    values: dict[str, str] = Field(default_factory=dict)
    """What placeholders such as {{name}} in the rows stand for."""
    bad_rows: Literal["error", "drop"] = "error"
    """Rows that cannot be read or converted: an error that names them, or a counted drop."""
    test: str | list[SourceSection] | None = None
    """Held-out file or sources. Left out: `eval_fraction` of the training rows."""
    against: list[str] = Field(default_factory=list)
    """Further files whose rows must not be trained on, such as benchmarks: only looked for."""
    allow: list[str] = Field(default_factory=list)
    """Codes of error-level findings (docs/findings.md) that do not stop a run."""
    eval_fraction: Annotated[Finite, Field(gt=0, lt=1)] = 0.1
    """Share of the training rows held out when there is no test file, picked by content hash."""
    validation_fraction: Annotated[Finite, Field(ge=0, lt=1)] = 0.05
    """Share of the training rows that picks the best weights; test rows never steer training."""
    split_by: str | None = None
    """Column of a topic or group: rows that share its value fall on the same side of a split."""
    deduplicate: Literal["near", "exact", "none"] = "near"
    """Which repeated rows are dropped, within and across sources; near: MinHash similarity."""
    train_on: Literal["all", "last", "everything"] = "all"
    """Trained turns: all assistant turns, only the last one, or every token."""
    task: Literal["auto", "rewrite", "chat", "qa", "structured", "text"] = "auto"
    """What a good answer is. rewrite restates the prompt (copying it is a baseline), qa has
    keywords, structured is JSON, text has no prompts; auto: from the data."""
    system: str | None = None
    """System prompt put before every conversation that has none."""
    showcase: list[str] = Field(default_factory=list)
    """Prompts whose answers before and after are shown; filled from the test rows when empty."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """Longest row in tokens; left out: the longest row of the data, within the model's context."""

    def sources(self, split: Literal["train", "test", "against"]) -> list[SourceSection]:
        """The sources of a split, each with the section's format and columns where it has none."""
        given = {"train": self.train, "test": self.test or [], "against": self.against}[split]
        listed = [given] if isinstance(given, str) else given
        found = [SourceSection(path=one) if isinstance(one, str) else one for one in listed]
        return [
            source.model_copy(
                update={
                    "format": self.format if source.format == "auto" else source.format,
                    "columns": source.columns or self.columns,
                }
            )
            for source in found
        ]


Kind = Literal["lora", "full", "last_layers", "unfreeze", "ia3", "prefix", "prompt", "bottleneck"]

# Fields of [method] beside `kind`, and the kinds that use each.
METHOD_FIELDS: dict[str, tuple[Kind, ...]] = {
    "rank": ("lora",),
    "alpha": ("lora",),
    "dropout": ("lora", "bottleneck"),
    "targets": ("lora",),
    "bias": ("lora",),
    "train_also": ("lora",),
    "rslora": ("lora",),
    "dora": ("lora",),
    "plus_ratio": ("lora",),
    "init": ("lora",),
    "layers": ("last_layers", "unfreeze"),
    "open_until": ("unfreeze",),
    "virtual_tokens": ("prefix", "prompt"),
    "reduction": ("bottleneck",),
    "placement": ("bottleneck",),
}


class MethodSection(Section):
    """[method]: what of the model is trained."""

    kind: Kind = "lora"
    """lora: low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685); full: all
    weights; last_layers: head, final norm and the last decoder layers; unfreeze: these first, then
    more from the top (Howard and Ruder 2018, arXiv:1801.06146); ia3: learned scales (Liu et al.
    2022, arXiv:2205.05638); prefix: learned keys and values before the prompt (Li and Liang 2021,
    arXiv:2101.00190); prompt: learned embeddings there (Lester et al. 2021, arXiv:2104.08691);
    bottleneck: small layers behind the frozen ones (Houlsby et al. 2019, arXiv:1902.00751)."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """lora: rank of each adapter pair; left out: by tables/presets.toml."""
    alpha: Positive | None = None
    """lora: adapters are scaled by alpha / rank; left out: twice the rank (rslora: 16)."""
    dropout: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """lora, bottleneck: dropout on the adapters' input."""
    targets: str | list[str] | None = None
    """lora: modules that get an adapter: all-linear, a regular expression, or a list of names;
    left out: all linear layers."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """lora: which biases are trained as well."""
    train_also: list[str] = Field(default_factory=list)
    """lora: names of further modules that are trained whole and saved with the adapter."""
    rslora: bool = False
    """lora: scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """lora: magnitudes are trained apart from directions (Liu et al. 2024, arXiv:2402.09353)."""
    plus_ratio: Annotated[Finite, Field(ge=1)] = 1.0
    """lora: the rate of B is so many times that of A (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354, takes 16)."""
    init: Literal["zero", "pissa", "olora"] = "zero"
    """lora: what adapters begin as. pissa (Meng et al. 2024, arXiv:2404.02948) and olora
    (Büyükakyüz 2024, arXiv:2406.01775) move the base's weights; they are saved as plain LoRA."""
    layers: Annotated[int, Field(gt=0)] | None = None
    """last_layers: decoder layers trained; unfreeze: decoder layers opened together; left out: by
    tables/presets.toml."""
    open_until: Annotated[Finite, Field(gt=0, lt=1)] = 0.5
    """unfreeze: share of the run after which every layer is trained."""
    virtual_tokens: Annotated[int, Field(gt=0)] = 20
    """prefix, prompt: learned positions before the prompt."""
    reduction: Annotated[int, Field(gt=1)] = 16
    """bottleneck: the hidden size is divided by this inside."""
    placement: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """bottleneck: behind the feed-forward layers (Pfeiffer et al. 2021, arXiv:2005.00247), or
    behind attention as well (houlsby)."""

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> MethodSection:
        for name, kinds in METHOD_FIELDS.items():
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(
                    f"method.{name} is for the kind {' or '.join(kinds)}, not for {self.kind}"
                )
        if self.dora and self.init != "zero":
            raise ValueError("method.dora starts from zero: leave method.init out")
        return self


class ObjectiveSection(Section):
    """[objective]: what the loss asks for."""

    kind: Literal["auto", "sft", "text"] = "auto"
    """sft: the next token of answers; text: every next token of plain text, judged by how likely
    held-out text becomes; auto: text where the rows are plain text."""
    label_smoothing: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """Share of the target's weight that is spread over all tokens (Szegedy et al. 2015,
    arXiv:1512.00567)."""


class TrainSection(Section):
    """[train]: how long and how fast."""

    epochs: Positive | None = None
    """Passes over the training rows; left out: by tables/presets.toml. At most one of epochs,
    max_steps, minutes."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps."""
    minutes: Positive | None = None
    """Wall-clock budget of the training loop, in minutes."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Rows per optimizer step, over all devices."""
    micro_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Most rows per forward pass and device; left out: the whole batch."""
    micro_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Most tokens, padding included, per forward pass and device; left out: by memory."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon"] = (
        "adamw"
    )
    """adamw (Loshchilov and Hutter 2017, arXiv:1711.05101); adamw_8bit: its state in 8 bits
    (Dettmers et al. 2021, arXiv:2110.02861), paged: moved off the GPU when that is full; adafactor
    (Shazeer and Stern 2018, arXiv:1804.04235); lion (Chen et al. 2023, arXiv:2302.06675); muon for
    matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), with adamw for the rest."""
    learning_rate: Positive | None = None
    """Peak learning rate; left out: by tables/presets.toml."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape of the decay after the warm-up; wsd: constant, then linear over the last fifth (Hu et
    al. 2024, arXiv:2404.06395)."""
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[Finite, Field(ge=0, lt=1)] | None = None
    """Steps of linear warm-up, or a share of all steps; left out: 0.05 of them."""
    weight_decay: Annotated[Finite, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    beta1: Annotated[Finite, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradients' running mean (adamw, lion); muon's momentum; not of adafactor."""
    beta2: Annotated[Finite, Field(ge=0, lt=1)] | None = None
    """Decay of the squared gradients' running mean (adamw), of the gradients' own (lion); left out:
    by tables/presets.toml; not of adafactor."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this L2 norm."""
    neftune_alpha: Annotated[Finite, Field(ge=0)] = 0.0
    """Noise on the embeddings while training, times alpha / sqrt(tokens * hidden) (NEFTune, Jain
    et al. 2023, arXiv:2310.05914, takes 5)."""
    gradient_checkpointing: bool = False
    """Layers are computed again in the backward pass: less memory, more time (Chen et al. 2016,
    arXiv:1604.06174)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds adapters, data order and dropout."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Train once with each of these seeds and show the spread, for example [0, 1, 2]."""
    log_every: Annotated[int, Field(gt=0)] = 1
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two evaluation losses; left out: twice an epoch."""
    save_every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two checkpoints; left out: once an epoch."""
    sample_answers: Annotated[int, Field(ge=0)] = 0
    """Questions (the showcase's, else test rows') answered at each evaluation loss."""
    fast: bool = True
    """False trains by the plain twins of the fast paths."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        given = [name for name in ("epochs", "max_steps", "minutes") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(given)}")
        return self


class EvaluateSection(Section):
    """[evaluate]: how answers are made and scored."""

    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    """Longest answer in tokens; left out: a half more than the longest reference."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Prompts answered together."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Score only the first so many test rows."""
    instruction: str | None = None
    """System prompt of the prompted baseline; left out: written from the training rows."""
    group_by: str = "group"
    """Column of the test rows; where its values differ, each gets scores of its own."""


class Recipe(Section):
    """A whole recipe: what to tune, on what, how, and how to judge it."""

    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection
    method: MethodSection = Field(default_factory=MethodSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        model, method = self.model, self.method
        if model.quantization != "none":
            self.require_unpacked(f"model.quantization={model.quantization}", model.quantization)
        if method.init != "zero" and (method.bias != "none" or method.train_also):
            raise ValueError(
                f"method.init={method.init} is saved as plain LoRA, which holds neither biases nor "
                "whole modules: leave method.bias and method.train_also out"
            )
        if method.kind == "prefix" and self.train.gradient_checkpointing:
            raise ValueError(
                "method.kind=prefix fills the cache that train.gradient_checkpointing switches off"
            )
        text = "text" in (self.objective.kind, self.data.task)
        if text and {self.objective.kind, self.data.task} - {"text", "auto"}:
            raise ValueError(
                f"objective.kind={self.objective.kind} and data.task={self.data.task} do not go "
                "together: leave one of them out"
            )
        if model.adapter is None and model.adapter_use != "auto":
            raise ValueError("model.adapter_use says how model.adapter is used: there is none")
        if model.adapter is not None and (
            method.kind != "lora"
            or method.init != "zero"
            or method.bias != "none"
            or method.dora
            or method.train_also
        ):
            raise ValueError("model.adapter is gone on from by plain lora alone")
        return self

    def require_unpacked(self, what: str, packing: str) -> None:
        """ValueError where this recipe changes weights of the base that are packed.

        Args:
            what: packs them, as a recipe or a model's config names it.
            packing: nf4, int8 or another method.
        """
        method = self.method
        if method.kind in ("full", "last_layers", "unfreeze"):
            raise ValueError(
                f"{what} freezes the weights that method.kind={method.kind} trains: "
                "take method.kind=lora"
            )
        if method.init != "zero":
            raise ValueError(
                f"method.init={method.init} moves the base's weights, which {what} has packed: "
                "leave one of them out"
            )
        if method.kind == "ia3" or (method.dora and packing == "int8"):
            name = "ia3" if method.kind == "ia3" else "dora"
            raise ValueError(f"{name} does not work on weights of {what}")
        if self.model.adapter_use == "merged":
            raise ValueError(
                f"{what} packs the weights that an adapter would be added to: "
                "set model.adapter_use=stacked"
            )
