"""Adapters of other tools under every verb (tiny model)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import tiny
from foreign_adapters import (
    CONFIGS,
    EXACT,
    base_model,
    edit,
    in_peft,
    logits,
    lora,
    same,
    saved,
    workplace,
)
from retone.cli import main
from retone.conversation import Message
from retone.errors import InputError
from retone.run_dir import all_runs, find_run, read_json
from retone.workflows.adopt import NOT_PROVEN, adopt, run_or_adapter
from retone.workflows.load import Tuned, load
from retone.workflows.serve import FrontDesk

ASKED = [Message("user", "The cat sleeps.")]
NOUNS = ("cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose", "hen")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path)


def prompt(tuned: Tuned) -> tuple[int, ...]:
    return tuned.engine.prompt_ids(ASKED)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adopted_adapter_answers_as_in_peft(name: str, work: Path) -> None:
    folder = saved(work / name, work / "base", CONFIGS[name]())
    run = adopt(folder, sets=EXACT, offline=True).run
    tuned = load(name, offline=True)
    assert tuned.resolved.recipe.model.dtype == "float32"
    ids = prompt(tuned)
    base = base_model(work / "base")
    with tuned.engine.model.disable_adapter():
        same(tuned.engine.model, base, ids)
    with pytest.raises(AssertionError):
        same(tuned.engine.model, base, ids)
    same(tuned.engine.model, in_peft(base, folder), ids)
    assert [found.name for found in all_runs()] == [run.name] == [name]
    assert tuned.ask("The cat sleeps.").text == load(run, offline=True).answer("The cat sleeps.")


def test_every_verb_takes_the_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(work / "my lora", work / "base", lora())
    assert main(["ask", "my lora", "Hello.", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["tokens"] > 0
    assert "the run my-lora now" in told.err
    assert NOT_PROVEN in " ".join(told.err.split())
    assert main(["batch", "my lora", "rows.csv", "-o", "answers.jsonl"]) == 0
    assert len((work / "answers.jsonl").read_text().splitlines()) == 6
    desk = FrontDesk(run_or_adapter("my lora"), offline=True)
    assert NOT_PROVEN in desk.open("my-lora").about()
    desk.close()
    assert [run.name for run in all_runs()] == ["my-lora"]
    capsys.readouterr()
    assert main(["test", "my lora"]) == 2  # it has no questions of its own
    assert "no sample questions" in capsys.readouterr().err
    assert main(["runs", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert listed["status"] == "trained"


def test_an_adapter_is_evaluated_on_a_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(work / "first", work / "base", lora())
    saved(work / "second", work / "base", lora(), seed=2)
    assert main(["evaluate", "first", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "no-rows"
    assert error["remedy"] == "retone evaluate first --test FILE"
    for name in ("first", "second"):
        assert main(["evaluate", name, "--test", "rows.csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"base", "prompted", "tuned"} <= found["scores"].keys()
    assert found["scores"]["tuned"]["chrf"]["n"] == 6
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert NOT_PROVEN in page
    assert "trained elsewhere" in page
    assert "method.rank" in page
    assert "train.learning_rate" not in page  # nobody knows
    assert read_json(find_run("first").training)["seconds"] is None
    assert main(["compare", "first", "second", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["scores"].keys() == {"first", "second"}
    assert not any(row["field"].startswith("train.") for row in compared["settings"])


def test_the_voices_that_its_model_card_names_are_kept(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora())
    told = "**This model speaks in the voice of a real person, "
    (folder / "README.md").write_text(
        f"# mine\n\n{told}Ada &lt;E.&gt;.** The right to it: not stated.\n\n"
        f"{told}Bo.** The right to it: His letter of 2026.\n"
    )
    run = adopt(folder, offline=True).run
    assert read_json(run.manifest)["voices"] == [
        {"name": "Ada <E.>", "right": ""}, {"name": "Bo", "right": "His letter of 2026."},
    ]  # fmt: skip
    plain = adopt(saved(work / "other", work / "base", lora(), seed=2), offline=True).run
    assert read_json(plain.manifest)["voices"] == []


def test_it_is_adopted_once_for_what_it_holds(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora())
    first = run_or_adapter("mine", offline=True)
    shutil.copytree(folder, work / "copy")
    assert run_or_adapter("copy", offline=True) == first
    edit(work / "copy", lora_alpha=99)
    assert run_or_adapter("copy", offline=True).name == "copy"
    saved(folder, work / "base", lora(), seed=2)  # trained again in the same place
    assert run_or_adapter("mine", offline=True).name == "mine-2"
    assert load(first, offline=True)  # whose own copy is as it was
    told = adopt(folder, name="quiet", sets=['data.system="Be brief."'], offline=True)
    assert run_or_adapter("mine", offline=True) == told.run
    assert load("mine", offline=True).system == "Be brief."
    assert adopt(folder, sets=['data.system="Be brief."'], offline=True) == told
    assert told.as_json()["proven"] is False
    assert told.as_json()["parameters"]["trained"] == 2 * 4 * (32 + 32)


def test_tokens_and_template_of_the_adapter_are_kept(work: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    tokenizer.add_tokens(["<|turn|>", "<|done|>"], special_tokens=True)
    tokenizer.eos_token = "<|done|>"
    tokenizer.chat_template = tiny.CHATML.replace("<|im_start|>", "<|turn|>").replace(
        "<|im_end|>", "<|done|>"
    )
    grown = base_model(work / "base")
    grown.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    grown.save_pretrained(work / "grown")
    folder = saved(work / "mine", work / "grown", lora(modules_to_save=["embed_tokens"]))
    tokenizer.save_pretrained(folder)
    tuned = load(adopt(folder, model="base", sets=EXACT, offline=True).run, offline=True)
    ids = prompt(tuned)
    assert ids[0] == 320  # <|turn|>
    base = base_model(work / "base")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    known = base.config.vocab_size - 2  # nobody trained the head's rows of the new tokens
    theirs = logits(in_peft(base, folder), ids)[..., :known]
    torch.testing.assert_close(logits(tuned.engine.model, ids)[..., :known], theirs)


def test_a_template_alone_is_kept_as_well(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora())
    template = tiny.CHATML.replace("message.role }}", "message.role | upper }}")
    template = template.replace("|>assistant", "|>ASSISTANT")
    (folder / "chat_template.jinja").write_text(template)
    tuned = load("mine", offline=True)
    assert "<|im_start|>USER" in tuned.engine.tokenizer.decode(prompt(tuned))
    chosen = tuned.resolved.chosen["model.template"]
    assert chosen.because == "the adapter's own chat template"


def test_embeddings_that_were_saved_whole_are_not_the_bases(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora(target_modules=["q_proj", "embed_tokens"]))
    tensors = load_file(folder / "adapter_model.safetensors")
    whole = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(
        tensors | {whole: torch.randn_like(tensors[whole])}, folder / "adapter_model.safetensors"
    )
    tuned = load(adopt(folder, sets=EXACT, offline=True).run, offline=True)
    base = base_model(work / "base")
    with tuned.engine.model.disable_adapter():
        same(tuned.engine.model, base, prompt(tuned))
    same(tuned.engine.model, in_peft(base, folder), prompt(tuned))


def test_a_base_that_is_not_here_is_asked_for(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora())
    edit(folder, base_model_name_or_path="/home/me/models/SmolLM2-135M-Instruct")
    with pytest.raises(InputError) as refused:
        run_or_adapter("mine", offline=True)
    assert refused.value.code == "base-not-found"
    assert "/home/me/models/SmolLM2-135M-Instruct" in refused.value.found
    assert 'did you mean "smollm2-135m-instruct"' in refused.value.problem
    assert refused.value.remedy.startswith("retone adopt mine --model MODEL")
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match="does not name its base model"):
        run_or_adapter("mine", offline=True)
    run = adopt(folder, model="base", offline=True).run
    assert run_or_adapter("mine", offline=True) == run


def test_another_base_is_refused(work: Path) -> None:
    folder = saved(work / "mine", work / "base", lora())
    tiny.folder(work / "wide", hidden_size=64)
    with pytest.raises(InputError) as refused:
        adopt(folder, model="wide", offline=True)
    assert refused.value.code == "adapter-misfit"
    assert all_runs() == []
    tokenizer = json.loads((work / "base" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(work / "base" / file, folder / file)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="2 tokens have other numbers"):
        adopt(folder, offline=True)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer cannot be read"):
        adopt(folder, offline=True)


def test_a_folder_without_an_adapter_is_no_run(work: Path) -> None:
    with pytest.raises(InputError, match="there is no run"):
        run_or_adapter("a text where a run should be " * 20)
    with pytest.raises(InputError, match='there is no run "base"'):
        run_or_adapter("base")
    with pytest.raises(InputError, match="holds no adapter"):
        adopt("base")


def test_the_adapter_of_a_run_knows_its_base(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"The {noun} sleeps,Sleeps the {noun} does\n" for noun in NOUNS)
    (work / "said.csv").write_text("prompt,completion\n" + rows)
    (work / "my.toml").write_text(
        f'model.name = "{work / "base"}"\ndata.train = "said.csv"\ntrain.max_steps = 1\n'
    )
    assert main(["train", "my.toml"]) == 0
    capsys.readouterr()
    trained = find_run("my")
    assert run_or_adapter(str(trained.adapter)) == trained
    shutil.copytree(trained.adapter, work / "given")
    given = adopt("given", offline=True, model="base")
    assert given.as_json()["proven"] is True
    assert NOT_PROVEN not in given.told
    tiny.folder(work / "other", seed=5)
    with pytest.raises(InputError) as refused:
        adopt("given", model="other", offline=True)
    assert refused.value.code == "other-base"
