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
    """A row of tables/models.toml, a hub id (org/name), or a folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the commit found is recorded."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the frozen weights; auto: bfloat16 where this device multiplies faster in it."""
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
    task: Literal["auto", "rewrite", "chat", "qa", "structured"] = "auto"
    """What a good answer is. rewrite restates the prompt (copying it is a baseline), qa has
    keywords, structured is JSON; auto: from the data."""
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


class MethodSection(Section):
    """[method]: what of the model is trained."""

    kind: Literal["lora"] = "lora"
    """lora: low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""
    rank: Annotated[int, Field(gt=0)] = 8
    """Rank of each adapter pair."""
    alpha: Positive | None = None
    """Adapters are scaled by alpha / rank; left out: twice the rank."""
    dropout: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter: all-linear, a regular expression, or a list of names."""


class TrainSection(Section):
    """[train]: how long and how fast."""

    epochs: Positive | None = None
    """Passes over the training rows (default 3). At most one of epochs, max_steps, minutes."""
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
    learning_rate: Positive | None = None
    """Peak learning rate; left out: by method."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the decay after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up; left out: 5 % of the steps."""
    weight_decay: Annotated[Finite, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this L2 norm."""
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
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
