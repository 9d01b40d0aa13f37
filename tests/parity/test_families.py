"""Tiny random models of each architecture, with the real templates, through the same code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from test_methods import gradients, located, plain_loss
from transformers import AutoModelForCausalLM

import tiny
from chat_models import template_of, tokenizer_of
from retone.batch import EncodedRow
from retone.config import METHOD_FIELDS, MethodSection, Recipe
from retone.conversation import Message
from retone.data.batching import collate
from retone.errors import InputError
from retone.inference.engine import Engine
from retone.inference.sampling import Sampling
from retone.models import adapters
from retone.models.loading import add_embeddings, load_base, model_facts
from retone.models.methods import METHODS, count_parameters
from retone.models.saving import load_tuned, save_tuned
from retone.recipe_file import load_recipe
from retone.training.kernels import fused_lora, shared_prefix
from retone.training.losses import next_token
from retone.workflows.create import prepare

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
    "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
WINDOW = {"sliding_window": 8}
# family -> (architecture, its own settings, whose template of tests/chat_models.py)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", {}, "llama-3.2"),
    "smollm2": ("Llama", {"tie_word_embeddings": True}, "smollm2"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "qwen2.5"),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}, "qwen3"),
    "phi3": ("Phi3", {}, "phi-3"),
    "gemma2": ("Gemma2", {"tie_word_embeddings": True, **WINDOW}, "gemma-2"),
    "gemma3": ("Gemma3", {"tie_word_embeddings": True, **WINDOW}, "gemma-2"),
    "mistral": ("Mistral", WINDOW, "mistral-nemo"),
}
FORGETS = ("gemma2", "gemma3", "mistral")  # a sliding window, so no prefix can be shared
each_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, **settings: Any) -> Any:
    name, own, _ = FAMILIES[family]
    text = "TextConfig" if name == "Gemma3" else "Config"
    config = getattr(transformers, f"{name}{text}")(
        **{**SMALL, "vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
           **own, **settings}
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def loaded(folder: Path) -> Any:
    return load_base(folder, dtype="float32", attention="eager", device="cpu")


def tuned_model(family: str, folder: Path, method: MethodSection) -> Any:
    model = METHODS[method.kind].prepare(loaded(folder), method)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny model, its weights in several files."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        model_of(family).save_pretrained(made[family], max_shard_size="40KB")
        assert len(list(made[family].glob("*.safetensors"))) > 1
    return made


@each_family
def test_gradients_and_files_of_a_family(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, method = folders[family], MethodSection(rank=4)
    model = tuned_model(family, folder, method).train()
    rows = tiny.rows(5)
    expected = plain_loss(model, rows)
    expected.backward()
    plain = gradients(model)
    with fused_lora(model) as fused:
        loss, weight = next_token(model, collate(rows, pad_id=0), fast=True)
    assert fused == (8 if family == "phi3" else 14)  # phi's projections are fused already
    (loss / weight).backward()
    torch.testing.assert_close(loss / weight, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients(model).items():
        scale = float(plain[name].abs().max())
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-4 * scale)

    ids = torch.arange(20, 44).unsqueeze(0)
    with torch.no_grad():
        said = model.eval()(input_ids=ids).logits
    save_tuned(
        model, method, located(folder), tmp_path, dtype="float32",
        tokenizer=tiny.tokenizer(), template=tiny.CHATML,
    )  # fmt: skip
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, said, rtol=1e-4, atol=1e-4)


@each_family
def test_attention_is_fused_where_it_can_be(family: str, folders: dict[str, Path]) -> None:
    found = model_facts(located(folders[family]))
    assert found.fuses is (family != "gemma2")  # it caps its scores
    assert found.layers == SMALL["num_hidden_layers"]
    model = load_base(folders[family], dtype="float32", device="cpu")
    assert model.config._attn_implementation == ("sdpa" if found.fuses else "eager")
    ids = torch.arange(20, 44).unsqueeze(0)
    with torch.no_grad():
        eager, fused = (each(input_ids=ids).logits for each in (loaded(folders[family]), model))
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-4)


def test_fused_attention_is_refused_where_there_is_none(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHATML
    base = tmp_path / "base"
    shutil.copytree(folders["gemma2"], base)
    tokenizer.save_pretrained(base)
    rows = [{"prompt": f"Say {n}.", "completion": f"It is {n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        "model": {"name": str(base), "attention": "sdpa"},
        "data": {"train": "rows.jsonl"},
    }
    with pytest.raises(InputError) as error:
        prepare(Recipe.model_validate(given))
    assert error.value.code == "no-fused-attention"
    assert "gemma2" in error.value.found
    assert not (tmp_path / "runs").exists()
    given["model"]["attention"] = "auto"
    assert prepare(Recipe.model_validate(given)).resolved.recipe.model.attention == "eager"


@each_family
def test_a_prefix_is_shared_where_nothing_is_forgotten(
    family: str, folders: dict[str, Path]
) -> None:
    model = tuned_model(family, folders[family], MethodSection(rank=4))
    prefix = tuple(range(40, 52))
    rows = [
        type(row)(prefix + row.input_ids, (0.0,) * len(prefix) + row.loss_weights)
        for row in tiny.rows(4)
    ]
    batch = collate(rows, pad_id=0)
    assert shared_prefix(model, batch) == (0 if family in FORGETS else len(prefix))
    found, weight = next_token(model, batch, fast=True)
    torch.testing.assert_close(found / weight, plain_loss(model, rows), rtol=1e-5, atol=0)


@each_family
@pytest.mark.parametrize("kind", ["last_layers", "unfreeze", "ia3", "prefix", "bottleneck"])
def test_every_method_knows_the_family(
    family: str, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    layers = 1 if kind in METHOD_FIELDS["layers"] else None
    method = tiny.method(kind, layers=layers)
    model = tuned_model(family, folders[family], method)
    parameters = count_parameters(model)
    assert 0 < parameters.trained <= parameters.total
    rows = tiny.rows(3)
    loss, weight = next_token(model, collate(rows, pad_id=0), fast=True)
    torch.testing.assert_close(loss / weight, plain_loss(model, rows), rtol=1e-4, atol=0)
    save_tuned(
        model, method, located(folders[family]), tmp_path, dtype="float32",
        tokenizer=tiny.tokenizer(), template=tiny.CHATML,
    )  # fmt: skip
    again = load_tuned(tmp_path, located(folders[family]), loaded)
    with torch.no_grad():
        torch.testing.assert_close(
            plain_loss(again, rows), plain_loss(model.eval(), rows), rtol=1e-5, atol=0
        )


@each_family
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_what_stands_before_the_prompt_begins_as_tokens_do(
    family: str, kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = torch.tensor([7, 91, 33, 250, 118])
    monkeypatch.setattr(adapters, "_drawn_tokens", lambda *_: drawn)
    rows = tiny.rows(3)
    ids = tuple(drawn.tolist())
    longer = [EncodedRow(ids + row.input_ids, (0.0,) * len(ids) + row.loss_weights) for row in rows]
    expected = plain_loss(loaded(folders[family]), longer)
    method = tiny.method(kind, virtual_tokens=len(ids))
    model = METHODS[kind].prepare(loaded(folders[family]), method)
    torch.testing.assert_close(plain_loss(model, rows), expected, rtol=1e-5, atol=0)


@each_family
def test_a_family_answers_through_its_own_template(family: str) -> None:
    """Padding makes no difference, whatever the pad token: Phi-3's is its end, others have none."""
    template, tokenizer = template_of(FAMILIES[family][2]), tokenizer_of(FAMILIES[family][2])
    model = model_of(family, vocab_size=len(tokenizer))
    engine = Engine(model, tokenizer, template)
    prompts = [
        [Message("user", text)]
        for text in ("Hi.", "Where is the key that I left on the table yesterday?", "Who?")
    ]
    sampling = Sampling(max_new_tokens=6)
    alone = [engine.tuned([prompt], sampling)[0] for prompt in prompts]
    assert engine.tuned(prompts, sampling) == alone
    row = template.encode([*prompts[1], Message("assistant", "Under the mat.")])[-1]
    loss, weight = next_token(model, collate([row], template.stop_id), fast=True)
    torch.testing.assert_close(loss / weight, plain_loss(model, [row]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_only_the_text_part_of_a_multimodal_model_is_trained(kind: str) -> None:
    """What sees pictures never gets a gradient here."""
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**SMALL, "vocab_size": 320}, vision_config=seen, mm_tokens_per_image=1
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    model = METHODS[kind].prepare(model, tiny.method(kind))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".language_model." in name for name in trained)


def new_rows(model: Any) -> list[torch.Tensor]:
    """Embeddings of the added tokens, and their rows of the head: [3, hidden] each."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight[320:].detach().clone() for module in modules]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_added_tokens_are_trained_saved_and_loaded(kind: str, tied: bool, tmp_path: Path) -> None:
    """A tokenizer with 3 entries more than the model has embeddings."""
    folder, out = tmp_path / "base", tmp_path / "out"
    tiny.folder(folder, tie_word_embeddings=tied, initializer_range=0.2)
    out.mkdir()

    def grown(path: Path) -> Any:
        return load_base(path, dtype="float32", attention="eager", device="cpu", tokens=323)

    method = tiny.method(kind)
    model = METHODS[kind].prepare(grown(folder), method)
    rows = [type(row)((*row.input_ids, 321, 322), (*row.loss_weights, 1.0, 1.0))
            for row in tiny.rows(6)]  # fmt: skip
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses, before = [], new_rows(model)
    for _ in range(12):
        loss, weight = next_token(model, collate(rows, 0), fast=True)
        (loss / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float((loss / weight).detach()))
    assert losses[-1] < losses[0] - 0.3
    # Where they are read (nothing follows 322) and where they are written.
    read, written = (
        ((first - last).abs().max(dim=1).values > 0.01).tolist()
        for first, last in zip(before, new_rows(model), strict=True)
    )
    assert read[1]
    assert written[1:] == [True, True]
    save_tuned(
        model, method, located(folder), out, dtype="float32",
        tokenizer=tiny.tokenizer(), template=tiny.CHATML,
    )  # fmt: skip
    again = load_tuned(out, located(folder), grown)
    torch.testing.assert_close(plain_loss(again, rows), plain_loss(model.eval(), rows))
    with again.disable_adapter():
        torch.testing.assert_close(plain_loss(again, rows), plain_loss(grown(folder), rows))
    plain = AutoModelForCausalLM.from_pretrained(folder if kind == "lora" else out)
    if kind == "lora":
        add_embeddings(plain, 323)
        plain = PeftModel.from_pretrained(plain, out)
    torch.testing.assert_close(plain_loss(plain, rows), plain_loss(model, rows))


def test_phi_3_mini_in_its_own_shape() -> None:
    """The recipe yoda-phi3 on a model of its size, without weights."""
    recipe: Recipe = load_recipe("yoda-phi3")
    config = transformers.Phi3Config(
        vocab_size=32_064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = METHODS["lora"].prepare(transformers.Phi3ForCausalLM(config), recipe.method)
    counted = count_parameters(model)
    print(counted)
    assert (counted.trained, counted.total) == (12_582_912, 3_833_662_464)
    assert "(0.33 %)" in str(counted)
