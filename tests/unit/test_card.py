"""The model card: a header that the hub reads, honest text, and nothing that names can inject."""

from __future__ import annotations

import ast
import gzip
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file

import tiny
from retone.models.locate import locate
from retone.recipe_file import load_recipe
from retone.run_dir import Run, read_json, write_json
from retone.teacher import outputs
from retone.workflows.card import hide_places, model_card, source_name, write_card
from retone.workflows.create import create
from retone.workflows.markdown import fenced, plain, unescaped
from small_run import NOUNS, small_run

GATE = {
    "prompt_ids": {"value": 1.0, "limit": 1.0, "ok": True, "told": "all the same"},
    "answers": {"value": None, "limit": 0.9, "ok": None, "told": "llama.cpp is not installed"},
    "logits": {"value": 0.25, "limit": 1e-3, "ok": False, "told": "too far"},
}
HOSTILE = (
    "x\n---\nlicense: mit\n---\n# Owned",
    "<script>alert(1)</script>",
    "![x](javascript:alert(1))",
    "[click](https://evil.example/)",
    "a | b | c\n|---|",
    "https://evil.example www.evil.example @everybody",
    "```\n# out of the fence\n```",
    "{{ title }} {% raw %} ${x} $$x$$",
    "*bold* _it_ ~~s~~ `code` \\ # head",
    "- item\n\n1. item\n\n> quote\n\n===",
    "\x00\x1b[31m\u202e\ud800 &lt;b&gt; <!-- -->",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("card"))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.path, tmp_path / "runs" / "my")
    return Run(tmp_path / "runs" / "my")


def changed(run: Run, file: str, **fields: Any) -> None:
    """Change fields of a file of the run, each named as section__field."""
    value = read_json(run.path / file)
    for name, new in fields.items():
        *sections, last = name.split("__")
        inner = value
        for section in sections:
            inner = inner[section]
        inner[last] = new
    write_json(run.path / file, value)


def header(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


class Elements(HTMLParser):
    """The names of the elements of a page, where their links go, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(card: str) -> Elements:
    """The card's body as a page, HTML in it taken as HTML, as the hub does."""
    body = card.split("---\n", 2)[2]
    return Elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def test_the_header_is_the_hubs(run: Run) -> None:
    changed(run, "manifest.json", base__repo="org/base", base__licence="Apache-2.0")
    stored = read_json(run.scores)
    stored["scores"]["tuned"][stored["headline"]] |= {"value": 1.5, "low": 1.0, "high": 2.25}
    write_json(run.scores, stored)
    found = header(model_card(run, "adapter", GATE))
    assert found["base_model"] == "org/base"
    assert found["base_model_relation"] == "adapter"
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "text-generation"
    assert {"retone", "lora"} <= set(found["tags"])
    (results,) = found["model-index"]
    head = results["results"][0]["metrics"][0]
    assert head["type"] == stored["headline"]
    assert head["value"] == round(stored["scores"]["tuned"][head["type"]]["value"], 4)
    assert "95 % interval 1 to 2.25, n=" in head["name"]
    others = [one["name"] for one in results["results"][0]["metrics"][1:]]
    assert others
    assert not [name for name in others if "None" in name]
    parsed = ModelCard(model_card(run, "adapter", GATE)).data  # as the hub's own library reads it
    assert parsed.eval_results[0].metric_type == stored["headline"]


@pytest.mark.parametrize(
    ("kind", "relation", "library"),
    [
        ("merged", "finetune", "transformers"),
        ("gguf", "quantized", None),
        ("lora", "adapter", None),
    ],
)
def test_every_kind_says_what_it_is(kind: str, relation: str, library: str, run: Run) -> None:
    changed(run, "manifest.json", base__repo="org/base")
    card = model_card(run, kind, None)
    assert header(card)["base_model_relation"] == relation
    assert header(card).get("library_name") == library
    assert ("from_pretrained" in card) == (kind == "merged")
    assert ("llama-server" in card) == (kind in ("gguf", "lora"))
    assert "Not checked against the model that was trained" in card


def test_it_tells_scores_data_settings_and_gate(run: Run) -> None:
    card = model_card(run, "adapter", GATE)
    text = page(card).text
    stored, manifest = read_json(run.scores), read_json(run.manifest)
    assert stored["verdict"] in text
    tuned = stored["scores"]["tuned"][stored["headline"]]
    assert f"On {tuned['n']} held-out rows" in text
    for sha256 in manifest["data_sha256"]["train"]:
        assert sha256 in text
    assert manifest["base"]["sha256"] in text
    assert "said.csv" in text
    assert "train.learning_rate" in text
    assert "prompt ids" in text
    assert "not run: llama.cpp is not installed" in text
    assert "failed: too far" in text
    assert "Be Yoda." in card
    assert str(run.path.parents[1]) not in card  # no path of this machine


def test_the_note_of_the_base_is_told(run: Run) -> None:
    changed(run, "manifest.json", base__note="These are the Q4_1 weights, unpacked.")
    assert "These are the Q4_1 weights, unpacked." in page(model_card(run, "merged", GATE)).text


def test_it_is_honest_where_tuning_was_not_worth_it(run: Run) -> None:
    changed(run, "evaluation/scores.json", resolved=False, verdict="not resolved: tuned against x")
    assert "do not show that tuning was worth it" in model_card(run, "adapter", GATE)
    told = "tuned loses to prompting by -3 BLEU"
    changed(run, "evaluation/scores.json", resolved=True, verdict=told)
    assert "Tuning did harm here" in model_card(run, "adapter", GATE)
    changed(run, "evaluation/scores.json", verdict="tuned beats prompting by +3 BLEU")
    assert "harm" not in model_card(run, "adapter", GATE).replace("mean harm", "")


def test_it_is_honest_where_nothing_was_evaluated(run: Run) -> None:
    run.scores.unlink()
    card = model_card(run, "adapter", GATE)
    assert "Not evaluated" in card
    assert "model-index" not in header(card)
    assert "## Scores" not in card


def test_what_another_tool_trained_is_not_made_up(run: Run) -> None:
    """As `retone adopt` leaves it: no rows, no times, no judgement of the data."""
    write_json(run.ledger, {"sources": []})
    (run.data / "diagnosis.json").unlink()
    run.scores.unlink()
    parameters = read_json(run.training)["parameters"]
    write_json(run.training, {"seconds": None, "best_step": None, "parameters": parameters})
    card = model_card(run, "adapter", GATE)
    assert "Not known: it was trained elsewhere" in card
    assert "train.epochs" not in page(card).text


def test_the_program_of_the_card_is_one(run: Run) -> None:
    """With quotes, lines and signs beyond the first plane in the system prompt."""
    system = "Say \"hi\"\n''' \\n \N{GRINNING FACE} ``` é"
    changed(run, "resolved.json", recipe__data__system=system)
    changed(run, "manifest.json", base__repo="org/base", base__revision="c" * 40)
    for kind in ("adapter", "merged"):
        card = model_card(run, kind, GATE)
        code = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
        assert code is not None
        tree = ast.parse(code[2])
        (messages,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "messages"
        )
        assert messages[0] == {"role": "system", "content": system}
        assert ("c" * 40 in code[2]) == (kind == "adapter")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_breaks_the_header_or_the_page(text: str, run: Run) -> None:
    quiet = page(model_card(run, "adapter", GATE))
    known = header(model_card(run, "adapter", GATE))
    encodable = text.encode("utf-8", "replace").decode()
    changed(run, "manifest.json", recipe=encodable, base__name=encodable, base__note=encodable,
            base__licence=encodable, machine__name=encodable)  # fmt: skip
    changed(run, "evaluation/scores.json", verdict=encodable, notes=[encodable])
    ledger = read_json(run.ledger)
    ledger["sources"][0] |= {"path": encodable, "shape": encodable}
    write_json(run.ledger, ledger)
    changed(run, "resolved.json", recipe__data__system=encodable)
    changed(run, "resolved.json", recipe__method__bias=encodable)
    gate = {encodable: {"value": encodable, "limit": encodable, "ok": None, "told": encodable}}
    card = model_card(run, "adapter", gate, None)
    found = header(card)
    assert found.keys() <= known.keys() | {"license_name"}
    assert found["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.-]*", found["license_name"])
    noisy = page(card)
    # The same elements: nothing that was written became markup, whatever the number of rows.
    assert set(noisy.names) <= set(quiet.names) | {"td", "li"}
    assert noisy.names.count("h1") == 1
    assert noisy.links == []
    outside = re.sub(
        r"^(`{3,}).*?^\1$", "", card.split("---\n", 2)[2], flags=re.DOTALL | re.MULTILINE
    )
    assert not re.search(r"@everybody|://evil|www\.evil", outside)  # what the hub makes links of


def test_plain_text_reads_as_it_was() -> None:
    for text in ("a_b*c", "1. one", "5.5 and -3", "- x", "Q4_1", "[a](b)", "<b> & c", "# no",
                 "~~s~~ `c` \\", "https://x.example", "| a |"):  # fmt: skip
        assert page("---\n---\n" + plain(text)).text.strip() == text
    assert plain("5.5") == "5.5"
    assert plain("a\nb") == "a b"


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a ```` b").startswith("`````\n")


def test_the_notice_of_a_licence_goes_along(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    changed(run, "manifest.json", base__licence="gemma")
    write_card(run, "merged", GATE, folder)
    assert "Gemma Terms of Use" in (folder / "NOTICE").read_text()
    changed(run, "manifest.json", base__licence="MIT")
    write_card(run, "merged", GATE, tmp_path / "other")
    assert not (tmp_path / "other" / "NOTICE").exists()


def data_card(data: Path, name: str, rights: str = "She agreed.") -> None:
    """The card that `retone synthesize` writes beside its rows."""
    from retone.teacher.persona import Persona

    persona = Persona.model_construct(name=name, real_person=True, rights=rights)

    class Endpoint:
        model, name = "m", "n"

    class Teacher:
        endpoint = Endpoint()

    facts = {"rows": 1, "ended": "done", "how": "asked", "spent": "nothing"}
    teacher: Any = Teacher()
    outputs.Outputs(data)._place(outputs.CARD).write_text(
        outputs.card_text("hers", persona, teacher, facts)
    )


HERS = [{"name": "Ada Example", "right": "She agreed."}]


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ("hers.jsonl", "hers.jsonl"),
        ("hers.v2.jsonl", "hers.v2.jsonl"),
        ("hers.v2.jsonl", "hers.v2.rewriting.jsonl"),
        ("hers.v2.jsonl", "hers.v2.jsonl.gz"),
        ("in/hers.jsonl", "in"),
        ("in/hers.v2.jsonl", "in/*.jsonl"),
    ],
)
def test_the_voice_of_a_real_person_is_kept_and_told(
    rows: str, source: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the card that synthesising wrote; whatever becomes of data and card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETONE_RUNS", str(tmp_path / "made"))
    (tmp_path / "in").mkdir()
    base = read_json(run.resolved)["recipe"]["model"]["name"]
    (tmp_path / "r.toml").write_text(f'model.name = "{base}"\ndata.train = "{source}"\n')
    lines = "".join(f'{{"prompt": "Is {n} odd?", "completion": "Who knows {n}"}}\n' for n in NOUNS)
    for name in (rows, source):
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
        elif name.endswith(".jsonl") and "*" not in name:
            (tmp_path / name).write_text(lines)
    data_card(tmp_path / rows, "Ada Example")
    made = create(load_recipe("r.toml"), name="hers", offline=True)
    for file in tmp_path.rglob("hers*.*"):
        file.unlink(missing_ok=True)
    assert read_json(made.manifest)["voices"] == HERS
    changed(run, "manifest.json", voices=read_json(made.manifest)["voices"])
    told = page(model_card(run, "adapter", GATE)).text
    assert "the voice of a real person, Ada Example. The right to it: She agreed." in told


def test_data_of_nobody_has_no_voice(run: Run) -> None:
    assert read_json(run.manifest)["voices"] == []
    assert "real person" not in model_card(run, "adapter", GATE)


def test_training_goes_on_in_the_voices_of_the_adapter(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run; and of the folder that a run was exported to, by the model card in it."""
    monkeypatch.setenv("RETONE_RUNS", str(run.path.parent))
    name = "A. <b>_Person_</b> (1)"
    changed(run, "manifest.json", voices=[{"name": name, "right": ""}, *HERS])
    exported = tmp_path / "exported"
    shutil.copytree(run.adapter, exported)
    write_card(run, "adapter", GATE, exported)
    base = read_json(run.resolved)["recipe"]["model"]["name"]
    train = Path(base).parent / "said.csv"
    for adapter in ("my", str(exported)):
        (tmp_path / "r.toml").write_text(
            f'model = {{ name = "{base}", adapter = "{adapter}" }}\n'
            f'data = {{ train = "{train}", '
            'columns = { prompt = "said", completion = "told" } }\n'
        )
        made = create(load_recipe(str(tmp_path / "r.toml")), name="on", fresh=True, offline=True)
        assert read_json(made.manifest)["voices"] == [{"name": name, "right": ""}, *HERS]


# --- places, bases, evaluations ---


def test_names_of_sources_have_no_places() -> None:
    for path in (
        "/home/me/x.csv",
        "../client/x.csv",
        "C:\\Users\\me\\x.csv",
        "D:/me/x.csv",
        "x.csv",
    ):
        assert source_name(path) == "x.csv"
    assert source_name("bundled:yoda/train.jsonl") == "bundled:yoda/train.jsonl"
    assert source_name("hub:org/name") == "hub:org/name"


@pytest.mark.parametrize(
    "named", ["/home/me/base", "../client/base", "C:\\client\\base",
              "/home/me/hub/models--org--name/snapshots/abc"],
)  # fmt: skip
@pytest.mark.parametrize("repo", [None, "org/base"])
def test_tuned_weights_name_their_base_as_the_run_does(
    named: str, repo: str | None, run: Run
) -> None:
    changed(run, "manifest.json", base__repo=repo, base__name="/home/me/base")
    changed(run, "adapter/adapter_config.json", base_model_name_or_path=named)
    changed(run, "adapter/base_model.json", name=named)
    hide_places(run.adapter, run)
    wanted = repo or "base"
    assert read_json(run.adapter / "adapter_config.json")["base_model_name_or_path"] == wanted
    assert read_json(run.adapter / "base_model.json")["name"] == wanted


def test_a_template_of_a_file_is_told_by_its_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETONE_RUNS", str(tmp_path / "made"))
    (tmp_path / "private").mkdir()
    template = tmp_path / "private" / "t.jinja"
    template.write_text(tiny.CHATML)
    base = read_json(run.resolved)["recipe"]["model"]["name"]
    (tmp_path / "r.toml").write_text(
        f'model = {{ name = "{base}", template = "{template}" }}\n'
        f'data = {{ train = "{Path(base).parent / "said.csv"}", '
        'columns = { prompt = "said", completion = "told" } }\n'
    )
    made = create(load_recipe(str(tmp_path / "r.toml")), name="own", offline=True)
    chosen = read_json(made.resolved)["chosen"]
    changed(run, "resolved.json", chosen=chosen)
    card = model_card(run, "adapter", GATE)
    assert "the file t.jinja" in card
    assert "private" not in card


def test_another_base_stands_in_the_card_in_place_of_the_runs(run: Run, tmp_path: Path) -> None:
    other = replace(
        locate(str(tiny.folder(tmp_path / "original", seed=9))),
        repo="org/original", revision="d" * 40, licence="gemma", note="The original weights.",
    )  # fmt: skip
    changed(run, "manifest.json", base__repo="org/packed", base__licence="MIT")
    card = model_card(run, "merged", GATE, base=other)
    assert header(card)["base_model"] == "org/original"
    assert header(card)["license"] == "gemma"
    text = page(card).text
    for told in ("original, tuned by lora", "d" * 40, other.sha256, "The original weights."):
        assert told in text
    assert f"tuned upon base, sha256 {read_json(run.manifest)['base']['sha256']}" in text
    assert "tuned upon" not in model_card(run, "merged", GATE)
    write_card(run, "merged", GATE, tmp_path / "out", base=other)
    assert "Gemma Terms of Use" in (tmp_path / "out" / "NOTICE").read_text()


def test_an_evaluation_on_another_file_is_told(run: Run) -> None:
    """As of adopted and blended runs, which have no rows of their own; the newest counts."""
    stored = read_json(run.scores)
    run.scores.unlink()
    for number, name in enumerate(("older-0123abcd", "my-rows-0123abcd")):
        file = run.evaluation(name) / "scores.json"
        write_json(file, stored | {"verdict": f"the verdict of {name}"})
        os.utime(file, (number, number))
    card = model_card(run, "adapter", GATE)
    assert "Not evaluated" not in card
    assert "rows of the test file my-rows;" in page(card).text
    assert "the verdict of my-rows" in page(card).text
    assert header(card)["model-index"][0]["results"][0]["dataset"]["name"] == "my-rows"


def executed(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the program of an adapter's card leaves, run in the folder that was exported."""
    shutil.copytree(run.adapter, folder)
    write_json(folder / "generation_config.json", {"eos_token_id": [7], "do_sample": False})
    monkeypatch.chdir(folder)
    card = model_card(run, "adapter", GATE)
    code = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert code is not None
    base = read_json(run.resolved)["recipe"]["model"]["name"]
    names: dict[str, Any] = {}
    exec(code[2].replace('"the folder of base"', repr(base)), names)
    return names


def test_the_program_of_an_adapter_makes_room_for_new_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer has two entries more than the base has embeddings."""
    run = small_run(tmp_path, vocab_size=318)
    rows = executed(run, tmp_path / "exported", monkeypatch)["model"].get_input_embeddings().weight
    saved = load_file(run.adapter / "adapter_model.safetensors")
    (trained,) = (tensor for name, tensor in saved.items() if "trainable_tokens" in name)
    assert len(rows) == 320
    torch.testing.assert_close(rows[318:], trained)


def test_the_program_of_an_adapter_stops_where_the_template_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's own configuration names another end, and peft reads no other."""
    names = executed(run, tmp_path / "exported", monkeypatch)
    assert names["model"].generation_config.eos_token_id == [7]
    assert names["ids"].shape[1] > names["prompt"]["input_ids"].shape[1]


def test_markdown_can_be_read_back() -> None:
    for text in ("A. <b>_Person_</b> (1)", "a & b @c", "1. x", "www.x.example", "\\ `x` *y*"):
        assert unescaped(plain(text)) == text
