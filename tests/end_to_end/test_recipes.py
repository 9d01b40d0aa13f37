"""Every bundled recipe resolves, and trains two steps on a tiny model of its own architecture."""

from __future__ import annotations

import gzip
import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from retone.cli import main
from retone.config import BUNDLED, HUB
from retone.models.locate import locate, model_table
from retone.planning import DataFacts, Machine, ModelFacts, resolve
from retone.recipe_file import bundled_recipes, load_recipe
from retone.run_dir import read_json, read_jsonl

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATASETS = Path(__file__).resolve().parents[2] / "src" / "retone" / "datasets"
RECIPES = bundled_recipes()
QA_SYSTEM = (
    "Answer from the staff handbook of Tumblegate & Crumb. Give only the key words. "
    'Say "not in the handbook" when it is not there.'
)


@dataclass(frozen=True)
class Stand:
    """What stands in for a model: a folder of `tokenizers`, perhaps a template, ids it ends on."""

    tokenizer: str | None  # None: the default model's own, which is here anyway
    vocabulary: int
    eos: int
    template: str = ""
    phi: bool = False


STANDS = {
    "smollm2-135m-instruct": Stand(None, 49_152, 2),
    "tinyllama-1.1b-chat": Stand("tinyllama", 32_000, 2),
    "phi-3-mini-4k-instruct": Stand("phi-3-mini", 32_064, 32_007, phi=True),
    "llama-3.2-3b-instruct": Stand(
        "llama-3.1", 128_256, 128_009, "meta-llama-Llama-3.2-3B-Instruct.jinja"
    ),
}


def fill_folder(folder: Path, stand: Stand) -> None:
    """Random weights of the architecture, two layers and hidden 64, and the real tokenizer."""
    settings: dict[str, Any] = {
        "vocab_size": stand.vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": stand.eos,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = (
        Phi3ForCausalLM(Phi3Config(**settings))
        if stand.phi
        else LlamaForCausalLM(LlamaConfig(**settings))
    )
    model.save_pretrained(folder)
    if stand.tokenizer is None:
        source = locate("smollm2-135m-instruct").path
    else:
        source = SHARED / "tokenizers" / stand.tokenizer
        if not source.is_dir():
            pytest.skip(f"needs the tokenizer in {source}")
    for file in source.iterdir():
        if file.suffix == ".gz":
            (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        elif file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(file, folder / file.name)
    if stand.template:
        template = SHARED / "templates" / stand.template
        if not template.is_file():
            pytest.skip(f"needs the template {template}")
        shutil.copyfile(template, folder / "chat_template.jinja")


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Any:
    """Model name -> folder of its tiny stand-in, made when it is first asked for."""

    @cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        fill_folder(folder, STANDS[name])
        return folder

    return made


def bundled_rows(dataset: str) -> Iterator[dict[str, Any]]:
    for line in (DATASETS / dataset / "train.jsonl").read_text("utf-8").splitlines():
        yield json.loads(line)


def hub_rows(name: str) -> list[dict[str, Any]]:
    """Rows in the shape of a hub dataset, filled with bundled texts."""
    if name == "dvgodoy/yoda_sentences":
        return [
            {"sentence": row["plain"], "translation": row["yoda"], "translation_extra": row["yoda"]}
            for row in bundled_rows("yoda")
        ]
    if name == "mlabonne/FineTome-100k":
        return [
            {"conversations": row["conversations"], "source": "stand-in", "score": 4.5}
            for row in bundled_rows("lamplight")
        ]
    assert name == "WizardLMTeam/WizardLM_evol_instruct_70k"
    return [
        {"instruction": row["instruction"], "output": row["output"]}
        for row in bundled_rows("notebook")
    ]


def stand_in_data(name: str, folder: Path) -> list[str]:
    """`--set` flags that put files in the place of what the recipe takes from a hub."""
    given = tomllib.loads(RECIPES[name].read_text("utf-8"))["data"]["train"]
    sources = [{"path": given}] if isinstance(given, str) else given
    if not any(source["path"].startswith(HUB) for source in sources):
        return []
    tables = []
    for index, source in enumerate(sources):
        file = folder / f"hub{index}.jsonl"
        rows = hub_rows(source["path"].removeprefix(HUB))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        sample = f", sample = {min(source['sample'], 60)}" if "sample" in source else ""
        tables.append(f'{{ path = "{file}"{sample} }}')
    return ["--set", f"data.train=[{', '.join(tables)}]"]


def test_the_bundled_recipes_are_these() -> None:
    assert set(RECIPES) == {
        "yoda", "qa", "instruct", "structured", "chat", "persona", "saltings",
        "yoda-phi3", "qa-tinyllama", "instruct-tinyllama", "chat-llama3.2-3b",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_resolves(name: str) -> None:
    recipe = load_recipe(name)
    row = model_table()[recipe.model.name]
    machine = Machine("cuda", "any", cores=8, memory_bytes=24 * 10**9)
    data = DataFacts(rows=600, longest_row=60, longest_answer=30, task=("chat", "a test"))
    resolved = resolve(recipe, machine, data, ModelFacts(row.parameters, row.context))
    assert resolved.total_steps
    values = resolved.recipe.model_dump()
    for field in ("model.dtype", "data.max_length", "data.task", "train.learning_rate"):
        section, _, key = field.partition(".")
        assert values[section][key] not in (None, "auto"), field
    assert (recipe.data.max_length or 0) <= row.context


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_what_it_needs(name: str) -> None:
    text = RECIPES[name].read_text("utf-8")
    header = text[: text.index("model.name")]
    assert len(text.splitlines()) <= 25
    assert all(line.startswith("# ") for line in header.splitlines())
    assert "# Hardware: " in header
    if load_recipe(name).model.name != "smollm2-135m-instruct":
        assert load_recipe(name).model.quantization != "none"
        assert "No figure has been measured yet." in header


@pytest.mark.parametrize("name", RECIPES)
def test_bundled_files_and_showcase_prompts_are_there(name: str) -> None:
    recipe = load_recipe(name)
    sources = [*recipe.data.sources("train"), *recipe.data.sources("test")]
    files = [
        DATASETS / source.path.removeprefix(BUNDLED)
        for source in sources
        if source.path.startswith(BUNDLED)
    ]
    assert all(file.is_file() for file in files)
    if recipe.data.showcase:
        lines = (files[0].parent / "showcase.jsonl").read_text("utf-8").splitlines()
        prompts = {next(iter(json.loads(line).values())) for line in lines}
        assert set(recipe.data.showcase) <= prompts


def test_the_recipes_ask_for_what_was_chosen() -> None:
    """The settings of the tutorials that people compare with."""
    phi, qa = load_recipe("yoda-phi3"), load_recipe("qa-tinyllama")
    assert phi.data.sources("train")[0].columns == {
        "prompt": "sentence", "completion": "translation_extra",
    }  # fmt: skip
    assert (phi.method.rank, phi.method.alpha, phi.train.epochs) == (8, 16, 10)
    assert (phi.train.learning_rate, phi.data.max_length) == (3e-4, 64)
    assert (qa.method.rank, qa.method.alpha, qa.train.epochs) == (16, 32, 5)
    assert qa.method.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (qa.train.learning_rate, qa.data.max_length) == (2e-4, 512)
    assert qa.data.system == load_recipe("qa").data.system == QA_SYSTEM
    method = load_recipe("instruct-tinyllama").method
    assert (method.rank, method.alpha, method.dropout) == (8, 32, 0.05)
    chat = load_recipe("chat-llama3.2-3b")
    assert [source.sample for source in chat.data.sources("train")] == [15_000, 15_000]
    assert (chat.train.batch_size, chat.train.micro_batch_size) == (16, 4)
    assert (chat.train.weight_decay, chat.train.evaluate_every) == (0.01, 10)
    assert [s.weight for s in load_recipe("chat").data.sources("train")] == [95, 5]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps(
    name: str,
    tiny_models: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    base = tiny_models(recipe.model.name)
    flags = [*stand_in_data(name, tmp_path), "--set", "train.max_steps=2", "--model", str(base)]
    code = main(["train", name, *flags, "--name", "tiny", "--offline"])
    assert code == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "tiny"
    training = read_json(run / "training.json")
    assert training["steps"] == 2
    adapter = read_json(run / "adapter" / "adapter_config.json")
    method = read_json(run / "resolved.json")["recipe"]["method"]
    assert adapter["r"] == method["rank"] == (recipe.method.rank or method["rank"])
    if isinstance(recipe.method.targets, list):
        assert set(adapter["target_modules"]) == set(recipe.method.targets)
    losses = [line["loss"] for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2
    # A random model knows nothing: its loss is about the logarithm of the vocabulary.
    assert all(5 < loss < 15 for loss in losses)
    locked = read_json(run / "template_lock.json")
    assert locked["prompts"]
