"""`retone import`: YAML of Axolotl and LlamaFactory becomes a recipe that loads, or is listed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from retone.cli import main
from retone.config import Recipe, SourceSection
from retone.data.formats import detect_shape
from retone.recipe_file import describe_fields, load_recipe
from retone.workflows.import_fields import TOOLS
from retone.workflows.import_recipe import MAX_BYTES, Imported, import_recipe

AXOLOTL_LORA = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: false
strict: false
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - q_proj
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
tf32: false
gradient_checkpointing: true
logging_steps: 5
warmup_steps: 10
eval_steps: 50
save_steps: 100
weight_decay: 0.01
max_grad_norm: 0.5
seed: 7
"""
AXOLOTL_CHAT = """
base_model: ./models/base
revision_of_model: v1.1
chat_template: phi_3
default_system_message: Be brief.
adapter: qlora
load_in_4bit: true
sequence_len: "4096"
datasets:
  - path: chats.jsonl
    type: chat_template
    field_messages: dialog
    message_property_mappings: {role: from, content: value}
    roles: {user: [human, user], assistant: [gpt]}
    roles_to_train: [assistant]
    train_on_eos: turn
  - path: json
    data_files: [one.jsonl, two.jsonl]
    ds_type: json
    type:
      system_prompt: ""
      field_instruction: ask
      field_output: say
      format: "User: {instruction}"
  - path: books/text
    name: english
    revision: main
    split: train[:500]
    type: completion
    field: body
test_datasets:
  - path: held.jsonl
    type: sharegpt
val_set_size: 0
lora_r: 8
lora_target_linear: true
lora_target_modules: [q_proj]
train_on_inputs: true
micro_batch_size: 1
gradient_accumulation_steps: 16
max_steps: 200
num_epochs: 4
warmup_ratio: 0.1
lr_scheduler: constant_with_warmup
learning_rate: 0.0001
optimizer: paged_adamw_8bit
bf16: true
sdp_attention: true
deepspeed: zero2.json
special_tokens: {pad_token: "<pad>"}
rl: dpo
"""
LLAMAFACTORY_LORA = """
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: identity,chats
template: llama3
cutoff_len: 1024
max_samples: 1000
preprocessing_num_workers: 16
overwrite_cache: true
### output
output_dir: saves/llama3/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
LLAMAFACTORY_QLORA = """
model_name_or_path: Qwen/Qwen3-0.6B
quantization_bit: 4
flash_attn: disabled
lora_rank: 16
lora_alpha: 16
lora_dropout: 0.1
lora_target: q_proj,v_proj
dataset: identity, chats
eval_dataset: held
interleave_probs: 0.7,0.3
mix_strategy: interleave_under
template: chatml
default_system: Be brief.
mask_history: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
max_steps: 50
warmup_ratio: 0.1
fp16: true
"""
LLAMAFACTORY_PT = """
model_name_or_path: Qwen/Qwen3-0.6B
stage: pt
dataset: books
cutoff_len: 512
"""
DATASET_INFO = {
    "identity": {"file_name": "identity.json"},
    "held": {"file_name": "held.json", "columns": {"prompt": "ask", "response": "say"}},
    "books": {"file_name": "books.jsonl", "columns": {"prompt": "body"}},
    "chats": {
        "hf_hub_url": "someone/chats",
        "subset": "en",
        "split": "validation",
        "num_samples": 500,
        "formatting": "sharegpt",
        "columns": {"messages": "dialog", "system": "persona", "tools": "tools"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    },
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with LlamaFactory's table of datasets in `data`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    for name in ("identity.json", "held.json", "books.jsonl"):
        (tmp_path / "data" / name).write_text("[]")
    return tmp_path


def imported(text: str, folder: Path) -> tuple[Imported, Recipe]:
    """The translation of a YAML, and the recipe as `retone run` would load it."""
    (folder / "train.yaml").write_text(text)
    target = folder / "made.toml"
    target.unlink(missing_ok=True)
    found = import_recipe(folder / "train.yaml", output=target)
    assert target.read_text() == found.recipe
    return found, load_recipe(str(target))


def listed(found: Imported) -> dict[str, Any]:
    return {name: value for name, value, _ in found.untranslated}


def fails(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The three lines of a YAML that cannot be used."""
    (folder / "train.yaml").write_text(text)
    assert main(["import", str(folder / "train.yaml")]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    lines = [line.partition(":")[0] for line in told.strip().splitlines()[-3:]]
    assert lines == ["error", "found", "to do"]
    return " ".join(told.split())


def test_axolotl_lora(work: Path) -> None:
    found, recipe = imported(AXOLOTL_LORA, work)
    assert found.tool == "Axolotl"
    assert recipe.model.name == "NousResearch/Llama-3.2-1B"
    assert recipe.model.dtype == "auto"
    (source,) = recipe.data.sources("train")
    assert (source.path, source.format) == ("hub:teknium/GPT4-LLM-Cleaned", "alpaca")
    assert (recipe.data.eval_fraction, recipe.data.max_length) == (0.1, 2048)
    assert recipe.data.train_on == "all"
    method = recipe.method
    assert (method.rank, method.alpha, method.dropout) == (16, 32, 0.05)
    assert method.targets == ["gate_proj", "q_proj"]
    train = recipe.train
    assert (train.batch_size, train.micro_batch_size, train.epochs) == (8, 2, 3)
    assert (train.learning_rate, train.schedule, train.warmup_steps) == (2e-4, "cosine", 10)
    assert (train.log_every, train.evaluate_every, train.save_every) == (5, 50, 100)
    assert (train.weight_decay, train.max_grad_norm, train.seed) == (0.01, 0.5, 7)
    assert listed(found) == {
        "dataset_prepared_path": "last_run_prepared",
        "output_dir": "./outputs/lora-out",
        "sample_packing": True,
    }


def test_axolotl_chat(work: Path) -> None:
    for name in ("chats", "one", "two", "held"):
        (work / f"{name}.jsonl").write_text("")
    found, recipe = imported(AXOLOTL_CHAT, work)
    model = recipe.model
    assert (model.name, model.revision, model.template) == ("./models/base", "v1.1", "phi3")
    assert (model.dtype, model.attention) == ("bfloat16", "sdpa")
    chats, one, two, books = recipe.data.sources("train")
    assert chats == SourceSection(path=str(work / "chats.jsonl"), columns={"messages": "dialog"})
    asked = {"instruction": "ask", "output": "say"}
    for source, name in ((one, "one"), (two, "two")):
        path = str(work / f"{name}.jsonl")
        assert source == SourceSection(path=path, format="alpaca", columns=asked)
    assert books == SourceSection(
        path="hub:books/text", format="text", columns={"text": "body"}, name="english",
        revision="main", sample=500,
    )  # fmt: skip
    assert [s.path for s in recipe.data.sources("test")] == [str(work / "held.jsonl")]
    assert (recipe.data.train_on, recipe.data.max_length) == ("everything", 4096)
    assert recipe.data.system == "Be brief."
    assert (
        recipe.data.eval_fraction
        == Recipe.model_validate({"data": {"train": "x"}}).data.eval_fraction
    )
    assert recipe.method.targets == "all-linear"
    train = recipe.train
    assert (train.batch_size, train.micro_batch_size) == (16, 1)
    assert (train.max_steps, train.epochs, train.warmup_steps) == (200, None, 0.1)
    assert (train.schedule, train.optimizer) == ("constant", "paged_adamw_8bit")
    assert (recipe.method.kind, model.quantization) == ("lora", "nf4")
    assert set(listed(found)) == {
        "datasets[1].format", "datasets[2].split", "lora_target_modules", "deepspeed",
        "special_tokens", "rl",
    }  # fmt: skip


def test_llamafactory_lora(work: Path) -> None:
    found, recipe = imported(LLAMAFACTORY_LORA, work)
    assert found.tool == "LlamaFactory"
    assert recipe.model.name == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert (recipe.model.template, recipe.model.dtype) == ("llama3", "bfloat16")
    identity, chats = recipe.data.sources("train")
    path = str(work / "data" / "identity.json")
    assert identity == SourceSection(path=path, format="alpaca", sample=1000)
    assert chats == SourceSection(
        path="hub:someone/chats", name="en", split="validation", sample=500,
        columns={"messages": "dialog", "system": "persona"},
    )  # fmt: skip
    assert (recipe.data.eval_fraction, recipe.data.max_length) == (0.1, 1024)
    assert (recipe.method.rank, recipe.method.targets) == (8, "all-linear")
    train = recipe.train
    assert (train.batch_size, train.micro_batch_size, train.epochs) == (8, 1, 3)
    assert (train.learning_rate, train.schedule) == (1e-4, "cosine")
    assert (train.log_every, train.evaluate_every, train.save_every) == (10, 500, 500)
    assert listed(found) == {
        "trust_remote_code": True,
        "preprocessing_num_workers": 16,
        "output_dir": "saves/llama3/lora/sft",
        "ddp_timeout": 180000000,
        "per_device_eval_batch_size": 1,
    }


def test_llamafactory_qlora_and_defaults(work: Path) -> None:
    found, recipe = imported(LLAMAFACTORY_QLORA, work)
    assert [s.weight for s in recipe.data.sources("train")] == [0.7, 0.3]
    (held,) = recipe.data.sources("test")
    assert held.columns == {"instruction": "ask", "output": "say"}
    assert (recipe.model.template, recipe.model.attention) == ("chatml", "eager")
    assert (recipe.data.system, recipe.data.train_on) == ("Be brief.", "last")
    assert recipe.method.targets == ["q_proj", "v_proj"]
    assert (recipe.train.max_steps, recipe.train.warmup_steps) == (50, 0.1)
    # What the tool assumes is written out where retone assumes something else.
    assert (recipe.train.learning_rate, recipe.data.max_length) == (5e-5, 2048)
    assert "learning_rate = 5e-05   # LlamaFactory's default" in found.recipe
    assert (recipe.model.quantization, recipe.model.dtype) == ("nf4", "float16")
    assert listed(found) == {}


def test_llamafactory_documents(work: Path) -> None:
    found, recipe = imported(LLAMAFACTORY_PT, work)
    (source,) = recipe.data.sources("train")
    assert (source.format, source.columns) == ("text", {"text": "body"})
    assert recipe.train.warmup_steps == 0
    assert found.untranslated == []


def test_axolotl_defaults_and_a_whole_model(work: Path) -> None:
    found, recipe = imported("base_model: a/b\ndatasets: [{path: c/d, type: alpaca}]", work)
    train = recipe.train
    assert (train.epochs, train.batch_size, train.schedule) == (1, 1, "cosine")
    assert recipe.data.max_length == 512
    assert recipe.method.kind == "full"  # what it means there to leave the adapter out
    assert listed(found) == {}


def test_lion_keeps_the_second_mean_of_the_tool(work: Path) -> None:
    text = "base_model: a/b\nadapter: lora\ndatasets: [{path: c/d, type: alpaca}]\n"
    _, recipe = imported(text + "optimizer: lion_32bit\n", work)
    assert (recipe.train.optimizer, recipe.train.beta2) == ("lion", 0.999)
    _, recipe = imported(text + "optimizer: lion_32bit\nadam_beta2: 0.95\n", work)
    assert recipe.train.beta2 == 0.95


def test_further_settings_of_training_are_translated(work: Path) -> None:
    _, recipe = imported(
        "base_model: a/b\nadapter: lora\ndatasets: [{path: c/d, type: alpaca}]\n"
        "optimizer: adamw_bnb_8bit\nload_in_8bit: true\nadam_beta2: 0.95\nneftune_noise_alpha: 5\n"
        "peft_use_rslora: true\nlora_modules_to_save: [lm_head]\nloraplus_lr_ratio: 16\n"
        "gradient_checkpointing: true\nfp16: true\nlabel_smoothing_factor: 0.1\n",
        work,
    )
    train, method = recipe.train, recipe.method
    assert (train.optimizer, train.beta2, train.neftune_alpha) == ("adamw_8bit", 0.95, 5)
    assert train.gradient_checkpointing
    assert (recipe.model.quantization, recipe.model.dtype) == ("int8", "float16")
    assert (method.rslora, method.train_also, method.plus_ratio) == (True, ["lm_head"], 16)
    assert recipe.objective.label_smoothing == 0.1


def test_layers_and_all_weights_of_llamafactory(work: Path) -> None:
    given = "model_name_or_path: a/b\ndataset: identity\nlora_rank: 8\n"
    frozen = "finetuning_type: freeze\nfreeze_trainable_layers: 3\n"
    found, recipe = imported(given + frozen, work)
    assert (recipe.method.kind, recipe.method.layers) == ("last_layers", 3)
    assert listed(found) == {"lora_rank": 8}
    _, recipe = imported(given + "quantization_bit: 8\nadapter_name_or_path: runs/one\n", work)
    assert (recipe.model.quantization, recipe.model.adapter) == ("int8", "runs/one")
    found, recipe = imported(given + "adapter_name_or_path: runs/one,runs/two\n", work)
    assert recipe.model.adapter is None
    assert listed(found) == {"adapter_name_or_path": "runs/one,runs/two"}
    found, recipe = imported(given + "finetuning_type: freeze\n", work)
    assert recipe.method.layers == 2


@pytest.mark.parametrize(
    ("yaml_type", "row", "question"),
    [
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2"),
        ("alpaca:chat", {"instruction": "Add.", "output": "3"}, "Add."),
        ("alpaca_chat.load_qa", {"question": "1 + 2?", "answer": "3"}, "1 + 2?"),
        ("gpteacher", {"instruction": "Add.", "input": "", "response": "3"}, "Add."),
        ("oasst", {"INSTRUCTION": "Add.", "RESPONSE": "3"}, "Add."),
        ("summarizetldr", {"article": "1 and 2", "summary": "3"}, "1 and 2"),
        ("metharme", {"prompt": "Add.", "generation": "3"}, "Add."),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "3"}]},
            "A",
        ),
        (
            "chat_template",
            {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "3"}]},
            "A",
        ),
        (
            {"field_instruction": "q", "field_input": "c", "field_output": "a"},
            {"q": "Add.", "c": "1 2", "a": "3"},
            "Add.\n\n1 2",
        ),
    ],
    ids=str,
)
def test_rows_of_axolotl_types_are_read(
    yaml_type: Any, row: dict[str, Any], question: str, work: Path
) -> None:
    (work / "rows.jsonl").write_text(json.dumps(row))
    given = {"base_model": "a/b", "adapter": "lora"}
    given["datasets"] = [{"path": "rows.jsonl", "type": yaml_type}]
    found, recipe = imported(yaml.safe_dump(given), work)
    assert found.untranslated == []
    (sample,) = detect_shape([row], recipe.data.sources("train")[0], "rows.jsonl").convert(row)
    assert (sample.question, sample.answer) == (question, "3")


def test_rows_of_llamafactory_columns_are_read(work: Path) -> None:
    table = {
        "one": {
            "file_name": "identity.json",
            "columns": {"prompt": "q", "query": "c", "response": "a"},
        },
        "two": {
            "file_name": "held.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
        },
    }
    (work / "data" / "dataset_info.json").write_text(json.dumps(table))
    _, recipe = imported("model_name_or_path: a/b\ndataset: one,two", work)
    turns = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}]
    rows: list[dict[str, Any]] = [{"q": "Add.", "c": "", "a": "3"}, {"talk": turns}]
    for row, source in zip(rows, recipe.data.sources("train"), strict=True):
        (sample,) = detect_shape([row], source, "rows").convert(row)
        assert (sample.question, sample.answer) == ("Add.", "3")


def test_everything_unknown_is_listed(work: Path) -> None:
    text = AXOLOTL_LORA + "frobnicate: false\nplugins: [a.B]\nnested: {deep: [1, 2]}\n"
    text = text.replace("    type: alpaca", "    type: made.up\n    shards: 4\n    zeal: 1")
    found, _ = imported(text, work)
    told = listed(found)
    assert told["frobnicate"] is False
    assert told["plugins"] == "['a.B']"
    assert told["nested"] == "{'deep': [1, 2]}"
    assert told["datasets[0].type"] == "made.up"
    assert (told["datasets[0].shards"], told["datasets[0].zeal"]) == (4, 1)
    assert all(why.strip() for _, _, why in found.untranslated)
    header = " ".join(found.recipe.split("\n\n")[0].replace("#", "").split())
    assert all(name in header for name in told)


def test_spellings_of_turns_that_are_not_read_are_listed(work: Path) -> None:
    dataset = "    roles: {user: [patient]}\n    message_property_mappings: {role: who}"
    found, _ = imported(AXOLOTL_LORA.replace("    type: alpaca", dataset), work)
    assert {"datasets[0].roles", "datasets[0].message_property_mappings"} <= set(listed(found))
    table = {"chats": {**DATASET_INFO["chats"], "tags": {"role_tag": "who", "user_tag": "boss"}}}
    (work / "data" / "dataset_info.json").write_text(json.dumps(table))
    found, _ = imported("model_name_or_path: a/b\ndataset: chats", work)
    assert set(listed(found)) == {"dataset chats.tags.role_tag", "dataset chats.tags.user_tag"}


def test_datasets_that_cannot_be_found_are_listed(work: Path) -> None:
    found, recipe = imported("model_name_or_path: a/b\ndataset: nowhere,identity", work)
    assert listed(found) == {"dataset": "nowhere"}
    assert len(recipe.data.sources("train")) == 2
    (work / "data" / "dataset_info.json").unlink()
    found, _ = imported("model_name_or_path: a/b\ndataset: identity", work)
    assert "no dataset_info.json" in found.untranslated[0][2]
    found, recipe = imported("model_name_or_path: a/b\ndataset: x/y\ndataset_dir: ONLINE", work)
    assert (found.untranslated, recipe.data.sources("train")[0].path) == ([], "hub:x/y")
    text = AXOLOTL_LORA.replace("teknium/GPT4-LLM-Cleaned", "s3://bucket/rows.jsonl")
    found, _ = imported(text, work)
    assert listed(found)["datasets[0].path"] == "s3://bucket/rows.jsonl"


def test_the_table_beside_the_yaml_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (work / "data" / "train.yaml").write_text("model_name_or_path: a/b\ndataset: identity")
    target = work / "recipes" / "made.toml"
    import_recipe(work / "data" / "train.yaml", output=target)
    assert tomllib.loads(target.read_text())["data"]["train"][0]["path"] == "../data/identity.json"
    (source,) = load_recipe(str(target)).data.sources("train")
    assert source.path == str(work / "data" / "identity.json")


def test_numbers_written_as_text_are_numbers(work: Path) -> None:
    text = AXOLOTL_LORA.replace("lora_r: 16", 'lora_r: "16"').replace("0.01", "1e-2")
    assert yaml.safe_load(text)["learning_rate"] == "2e-4"  # that is the point
    _, recipe = imported(text, work)
    assert (recipe.train.learning_rate, recipe.train.weight_decay) == (2e-4, 0.01)
    assert recipe.method.rank == 16


def test_every_wrong_value_is_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = AXOLOTL_LORA.replace("2e-4", "fast").replace("num_epochs: 3", "num_epochs: .nan")
    text = text.replace("lora_r: 16", "lora_r: 1.5").replace(
        "micro_batch_size: 2", "micro_batch_size: yes"
    )
    told = fails(text, work, capsys)
    assert "learning_rate: a number is expected, found 'fast'" in told
    assert "lora_r: a whole number is expected, found 1.5" in told
    assert "num_epochs: a number is expected" in told
    assert "micro_batch_size: a number is expected, found True" in told
    told = fails(AXOLOTL_LORA.replace("lora_dropout: 0.05", "lora_dropout: 2"), work, capsys)
    assert "method.dropout" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\nb: 2", "line 2"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
        ("when: 2024-13-45", "month"),
        ("- a\n- b", "list"),
        ("just words", "str"),
        ("", "nothing"),
        ("# only a comment", "nothing"),
        ("learning_rate: 1e-4\nseed: 3", "neither Axolotl's nor LlamaFactory's"),
        ("title: x\nsteps: [a]", "fields title, steps"),
        ("base_model: a/b\nsequence_len: 5", "datasets is missing"),
        ("datasets: [{path: a/b}]\nsequence_len: 5", "base_model is missing"),
        ("dataset: x\ncutoff_len: 5", "model_name_or_path is missing"),
        ("base_model: a/b\ndatasets: [3]", "datasets[0]: a dataset with a path is expected"),
        ("base_model: a/b\ndatasets: [{type: alpaca}]", "datasets[0].path: text is expected"),
        ("model_name_or_path: a/b\ndataset: {a: 1}", "dataset: a list of names is expected"),
    ],
)
def test_wrong_files(
    text: str, expected: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in fails(text, work, capsys)


def test_files_that_cannot_be_read(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "none.yaml"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["import", str(work)]) == 2
    assert "Is a directory" in capsys.readouterr().err
    (work / "latin.yaml").write_bytes(b"base_model: caf\xe9")
    assert main(["import", "latin.yaml"]) == 2
    assert "0xe9" in capsys.readouterr().err
    assert "too large" in fails("#" * (MAX_BYTES + 1), work, capsys)
    (work / "data" / "dataset_info.json").write_text("{")
    assert "dataset_info.json" in fails("model_name_or_path: a/b\ndataset: x", work, capsys)


def test_output_is_never_overwritten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "train.yaml").write_text(AXOLOTL_LORA)
    assert main(["import", "train.yaml", "-o", "made.txt"]) == 2
    assert "made.txt.toml" in capsys.readouterr().err
    assert main(["import", "train.yaml", "-o", "made.toml"]) == 0
    assert main(["import", "train.yaml", "-o", "made.toml"]) == 2
    assert "there already" in capsys.readouterr().err


def test_what_is_printed_where(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "train.yaml").write_text(AXOLOTL_LORA)
    assert main(["import", "train.yaml"]) == 0
    told = capsys.readouterr()
    assert tomllib.loads(told.out)["method"]["rank"] == 16
    assert "Axolotl, by its fields base_model, load_in_8bit" in " ".join(told.err.split())
    assert "sample_packing: True   not needed" in told.err
    assert main(["import", "train.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"recipe", "from", "untranslated"}
    assert (found["recipe"], found["from"]) == (told.out, "Axolotl")
    (row,) = [row for row in found["untranslated"] if row["field"] == "sample_packing"]
    assert row["value"] is True
    assert row["why"].startswith("not needed")


def test_names_and_values_cannot_break_out_of_a_comment(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"x\n[train]\nepochs": 9, "hub_model_id": float("inf"), "base_model": 'a"\\\x7f\n'}
    odd |= {"datasets": [{"path": "a/b", "type": "alpaca"}], "adapter": "lora"}
    found, recipe = imported(yaml.safe_dump(odd), work)
    assert recipe.train.epochs == 1
    assert recipe.model.name == 'a"\\\x7f\n'
    assert main(["import", "train.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == found.recipe


def test_endless_and_exploding_values_end(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 30))
    text = AXOLOTL_LORA + "b0: &b0 [x]\n" + bomb + "\nself: &self [*self]\nseeds: *self\n"
    found, _ = imported(text, work)
    assert max(len(str(value)) for value in listed(found).values()) < 1_000_000
    assert main(["import", "train.yaml", "--json"]) == 0
    for field in ("lora_r", "lora_target_modules", "datasets", "learning_rate", "micro_batch_size"):
        told = fails(
            "base_model: a/b\nself: &s [*s]\nadapter: lora\n" + f"{field}: *s\n", work, capsys
        )
        assert field in told


def test_the_tables_name_fields_that_exist() -> None:
    known = {field for field, *_ in describe_fields()}
    for tool in TOOLS:
        assert {target for target, _ in tool.fields.values()} <= known
        assert not tool.fields.keys() & tool.fixed.keys()
    shared = set.intersection(*(tool.names for tool in TOOLS))
    assert all(len(tool.names - shared) > 20 for tool in TOOLS)
