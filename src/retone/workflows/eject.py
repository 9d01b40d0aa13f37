"""`retone eject`: a run as a plain script of TRL and peft, which trains the same tokens alike.

What is trained is written down, not described: rows as token ids with their labels, and which of
them each optimizer step takes. So neither a chat template nor a shuffle can come out otherwise.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from retone import console
from retone.batch import EncodedRow
from retone.config import Recipe, TrainSection
from retone.data.batching import epoch_steps
from retone.data.preparing import PreparedData
from retone.data.spool import as_row, from_line
from retone.errors import InputError
from retone.models.adapters import IA3_FEEDFORWARD, IA3_TARGETS
from retone.models.locate import LocatedModel
from retone.run_dir import (
    Run,
    find_run,
    read_json,
    require_new,
    whole_folder,
    write_jsonl,
    write_whole,
)
from retone.training.optim import LAST_SHARE
from retone.workflows.adopt import trained_here
from retone.workflows.card import source_name
from retone.workflows.load import Opened, open_run

IGNORED = -100  # label of a token that is not trained
# The versions that proof/test_eject.py ran; a run itself does not need these packages.
TRL_VERSIONS = {"trl": "1.16.0", "datasets": "5.2.0"}
FROM_THE_RUN = ("torch", "transformers", "peft", "accelerate")
ADAPTERS = {
    "lora": "LoraConfig",
    "ia3": "IA3Config",
    "prefix": "PrefixTuningConfig",
    "prompt": "PromptTuningConfig",
}
BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion": "Lion",
}


@dataclass(frozen=True)
class Order:
    """Which rows are trained when.

    Attributes:
        steps: row numbers of every optimizer step.
        wanted: micro-batches that the largest step is cut into, to fit in memory.
        passes: micro-batches of each step in the script: the same number for all, as TRL wants
            it, and none without a row.
    """

    steps: list[list[int]]
    wanted: int
    passes: int


@dataclass(frozen=True)
class Ejected:
    """A script and its data.

    Attributes:
        path: the folder.
        files: names of the files in it.
        left_out: what the script does not do or does otherwise, a sentence each.
        base: where the base model is on this machine; None where the script has it from the hub.
            No file says so: the folder may be given to others.
    """

    path: Path
    files: list[str]
    left_out: list[str]
    base: Path | None

    def as_json(self) -> dict[str, Any]:
        """The object of `retone eject --json`."""
        base = None if self.base is None else str(self.base)
        return {
            "path": str(self.path), "files": self.files, "left_out": self.left_out, "base": base,
        }  # fmt: skip

    def show(self) -> None:
        """Print what to type next; what is left out goes to stderr."""
        told = f"wrote {self.path}: {', '.join(self.files)}   next: {self.path / 'README.md'}"
        console.out().print(told, markup=False, soft_wrap=True)
        if self.base:
            command = f"BASE={shlex.quote(str(self.base))} python train.py"
            console.out().print(f"here: {command}", markup=False, soft_wrap=True)
        console.note(f"not carried over: {len(self.left_out)}")
        for sentence in self.left_out:
            console.err.print(f"  {sentence}", markup=False, soft_wrap=True)


def eject(run: str, *, output: Path | None = None, offline: bool = False) -> Ejected:
    """Write a run, trained or not, as a folder with `train.py` and all that it reads.

    Args:
        run: a directory, a name, or `latest`.
        output: the folder, which must not be there; RUN-trl where left out.
        offline: never ask a network.

    Raises InputError: the folder is there, or the run does what TRL and peft cannot (all of it is
    named at once).
    """
    found = find_run(run)
    manifest = read_json(found.manifest)
    if not trained_here(manifest):
        made = "blended of other runs" if "blended" in manifest else "trained elsewhere"
        raise InputError(
            "there is no training to write down", f"{found.name} was {made}",
            f"retone export {found.name} --to adapter", "trained-elsewhere",
        )  # fmt: skip
    folder = output or Path(f"{found.name}-trl")
    require_new(folder)
    opened = open_run(found, offline=offline)
    _require_counterparts(found, opened)
    data = PreparedData(found.data)
    order = _order(found, opened, data.rows("train").lengths.tolist())
    weighted = _is_weighted(chain(data.rows("train"), data.rows("validation")))
    left_out = _left_out(opened.resolved.recipe, order)
    context = {
        **_context(opened, order, weighted),
        "rows": len(data.rows("train")),
        "validation": len(data.rows("validation")),
        "left_out": left_out,
    }
    with whole_folder(folder) as staging:
        write_whole(staging / "train.py", _render("eject_train.py.jinja", context))
        write_whole(staging / "README.md", _render("eject_readme.md.jinja", context))
        write_whole(staging / "chat_template.jinja", opened.template.text)
        write_whole(staging / "requirements.txt", requirements(found, opened.resolved.recipe))
        write_jsonl(staging / "steps.jsonl", order.steps)
        for split in ("train", "validation"):
            if len(data.rows(split)):
                rows = trained_rows(found, split, weighted=weighted)
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_whole(staging / f"{split}.jsonl", lines)
        files = sorted(file.name for file in staging.iterdir())
    return Ejected(folder, files, left_out, _place(opened.base))


def _place(base: LocatedModel) -> Path | None:
    """The folder that the script has to be told of, for a base that is not fetched from the hub."""
    return None if base.origin == "hub" else base.path


def trained_rows(run: Run, split: str, *, weighted: bool) -> Iterator[dict[str, Any]]:
    """The rows of a split, in the order of the run's own numbers.

    Each holds its conversation (or text) for people, and for the script `input_ids`, `labels`
    (-100 where nothing is trained) and, where `weighted`, the `weights` of the tokens.
    """
    store = PreparedData(run.data).rows(split)
    numbered = zip(store.samples.tolist(), store, strict=True)
    with run.split(split).open("rb") as lines:
        # A sample may have several rows, which follow one another.
        for line, (_, made) in zip(lines, groupby(numbered, itemgetter(0)), strict=True):
            shown = as_row(from_line(line))
            shown = {name: shown[name] for name in ("messages", "tools", "text") if name in shown}
            for _, row in made:
                yield {**shown, **_tokens(row, weighted)}


def requirements(run: Run, recipe: Recipe) -> str:
    """The packages of the script, in the versions that the run was made with."""
    versions = read_json(run.manifest)["versions"]
    # torch's local label, such as +cpu, names a build that not every index has.
    pins = {name: versions[name].partition("+")[0] for name in FROM_THE_RUN} | TRL_VERSIONS
    lines = [f"{name}=={pin}" for name, pin in pins.items()]
    if recipe.train.optimizer in BITSANDBYTES or recipe.model.quantization != "none":
        lines.append("bitsandbytes")
    return "\n".join(lines) + "\n"


def _require_counterparts(run: Run, opened: Opened) -> None:
    """InputError that names everything of a run that TRL and peft have no counterpart for."""
    recipe, known = opened.resolved.recipe, len(opened.tokenizer)
    kind, embeddings = recipe.method.kind, _vocabulary(opened.base.path)
    clock = opened.resolved.total_steps is None and not run.training.is_file()
    obstacles = [
        (kind == "unfreeze", "method.kind=unfreeze opens layers while it trains",
         "--set method.kind=full"),
        (kind == "bottleneck", "method.kind=bottleneck: peft has no such adapters",
         "--set method.kind=lora"),
        (recipe.train.optimizer == "muon", "train.optimizer=muon is two optimizers that step as "
         "one", "--set train.optimizer=adamw"),
        (recipe.model.dtype == "float16", "model.dtype=float16 keeps its norms in float32",
         "--set model.dtype=bfloat16"),
        (recipe.model.adapter, f"model.adapter: goes on from {recipe.model.adapter}",
         "that adapter merged into a folder, named with --model"),
        (known > embeddings, f"the tokenizer has {known} tokens, the base {embeddings}: embeddings "
         "are added and learned", "a base that has them"),
        (clock, "train.minutes ends by the clock, and the run is not trained yet",
         "--set train.max_steps=N, or train it first"),
    ]  # fmt: skip
    found = [(told, instead) for holds, told, instead in obstacles if holds]
    if found:
        raise InputError(
            "TRL and peft cannot do what this run does",
            f"{run.name}: {'; '.join(told for told, _ in found)}",
            f"eject a run made with {', '.join(instead for _, instead in found)}",
            "cannot-eject",
        )


def _vocabulary(base: Path) -> float:
    """Embeddings of a base model, by its config; infinite where that does not say."""
    config = read_json(base / "config.json")
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) else math.inf


def _order(run: Run, opened: Opened, lengths: Sequence[int]) -> Order:
    """The order of `fit`. A run that ended by the clock has as many steps as it came to."""
    train, total = opened.resolved.recipe.train, opened.resolved.total_steps
    if total is None:
        total = int(read_json(run.training)["steps"])
    epochs = (epoch_steps(lengths, train.batch_size, train.seed, epoch) for epoch in count())
    steps = list(islice(chain.from_iterable(epochs), total))
    wanted = max(_micro_batches([lengths[row] for row in step], train) for step in steps)
    return Order(steps, wanted, min(wanted, *map(len, steps)))


def _micro_batches(lengths: Sequence[int], train: TrainSection) -> int:
    """Micro-batches that keep a step's rows within the run's limits of rows and of tokens."""
    rows, tokens = len(lengths), len(lengths) * max(lengths)
    by_rows = rows / (train.micro_batch_size or rows)
    return math.ceil(max(by_rows, tokens / (train.micro_batch_tokens or tokens)))


def _is_weighted(rows: Iterable[EncodedRow]) -> bool:
    """Whether a token weighs neither nothing nor 1, which labels alone cannot say."""
    return any(not {0.0, 1.0}.issuperset(row.loss_weights) for row in rows)


def _tokens(row: EncodedRow, weighted: bool) -> dict[str, Any]:
    pairs = zip(row.input_ids, row.loss_weights, strict=True)
    labels = [token if weight else IGNORED for token, weight in pairs]
    made: dict[str, Any] = {"input_ids": list(row.input_ids), "labels": labels}
    return made | {"weights": list(row.loss_weights)} if weighted else made


def _left_out(recipe: Recipe, order: Order) -> list[str]:
    """What the script does not do, or does otherwise."""
    model, method, train = recipe.model, recipe.method, recipe.train
    whole = method.kind in ("full", "last_layers")
    sentences = [
        (True, "test rows, baselines, scores, report: the script only trains"),
        (True, "exact resume: the script keeps the best weights, and begins anew"),
        (train.fast, "train.fast: the same losses, but without retone's quicker paths to them"),
        (train.sample_answers, "train.sample_answers: no questions are asked while it trains"),
        (train.minutes, f"train.minutes: it does the {len(order.steps)} steps that the run did"),
        (order.passes < order.wanted, "train.micro_batch_size, micro_batch_tokens: a step has too "
         f"few rows for {order.wanted} micro-batches, so all have {order.passes}: more memory"),
        (method.dropout or train.neftune_alpha, "dropout and noise are drawn anew: losses agree on "
         "the whole, not step by step"),
        (method.init != "zero", f"method.init={method.init}: what peft saves belongs to the moved "
         "base, where retone saves plain LoRA"),
        (whole and model.dtype != "float32", f"model.dtype={model.dtype}: the model is saved in "
         "float32, as it is trained"),
    ]  # fmt: skip
    return [sentence for holds, sentence in sentences if holds]


def _context(opened: Opened, order: Order, weighted: bool) -> dict[str, Any]:
    """What the templates are filled with, beside the counts of rows."""
    recipe, base = opened.resolved.recipe, opened.base
    model, method, train = recipe.model, recipe.method, recipe.train
    whole = method.kind in ("full", "last_layers") or method.bias != "none" or method.train_also
    warmup = train.warmup_steps or 0
    return {
        "run": opened.run.name,
        "model": model,
        "method": method,
        "train": train,
        "objective": recipe.objective,
        "steps": len(order.steps),
        "warmup": math.ceil(warmup * len(order.steps)) if isinstance(warmup, float) else warmup,
        "passes": order.passes,
        "rows_a_pass": math.ceil(train.batch_size / order.passes),
        "weighted": weighted,
        "own_loss": weighted or recipe.objective.label_smoothing > 0,
        "smoothing": recipe.objective.label_smoothing,
        "base": base.repo or source_name(base.name),
        "told": _place(base) is not None,
        "revision": base.revision,
        "located": base,
        "adapter": ADAPTERS.get(method.kind),
        "optimizer": train.optimizer,
        "grouped": train.weight_decay > 0 or method.plus_ratio != 1,
        # As models.precision.mixed_precision: whole layers in float32 among others in bfloat16.
        "autocast": bool(whole) and model.dtype == "bfloat16",
        "BITSANDBYTES": BITSANDBYTES,
        "ia3_targets": IA3_TARGETS,
        "ia3_feedforward": IA3_FEEDFORWARD,
        "last_share": LAST_SHARE,
    }


def _render(template: str, context: dict[str, Any]) -> str:
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Templates of this folder; `literal` writes a value as Python does."""
    environment = Environment(
        loader=PackageLoader("retone.workflows", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = _literal
    return environment


def _literal(value: Any) -> str:
    """A value as Python source, with double quotes as the scripts have them."""
    if isinstance(value, str | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
