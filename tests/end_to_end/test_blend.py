"""Blends of adapters: as peft makes them, and what is refused (tiny model)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import tiny
from foreign_adapters import (
    CONFIGS,
    EXACT,
    base_model,
    logits,
    lora,
    same,
    saved,
    workplace,
)
from retone.cli import main
from retone.errors import InputError
from retone.run_dir import all_runs, find_run, read_json, write_json
from retone.workflows.adopt import NOT_PROVEN, adopt
from retone.workflows.blend import WAYS, blend
from retone.workflows.eject import eject


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path)


@pytest.fixture
def parts(work: Path) -> list[Path]:
    """Three adopted adapters of rank 4: a, b and c."""
    both = ["q_proj", "up_proj"]
    made = [
        saved(work / "a", work / "base", lora(target_modules=both)),
        saved(work / "b", work / "base", lora(target_modules=both, lora_alpha=16), seed=2),
        saved(work / "c", work / "base", lora(target_modules=both), seed=3),
    ]
    for folder in made:
        adopt(folder, sets=EXACT, offline=True)
    return made


def weighted(base: Path, folders: list[Path], weights: list[float], **how: Any) -> Any:
    """What peft itself makes of the folders."""
    model = PeftModel.from_pretrained(base_model(base), folders[0], folders[0].name)
    for folder in folders[1:]:
        model.load_adapter(folder, folder.name)
    names = [folder.name for folder in folders]
    torch.manual_seed(0)
    model.base_model.add_weighted_adapter(names, weights, "blend", **how)
    model.set_adapter("blend")
    return model.eval()


@pytest.mark.parametrize("how", WAYS)
def test_a_blend_answers_as_pefts_own(how: str, work: Path, parts: list[Path]) -> None:
    prunes = how.startswith(("ties", "dare", "magnitude"))
    density = 0.5 if prunes else None
    made = blend(["a=0.7", "b=-0.3", "c=0.5"], name="mix", how=how, density=density, offline=True)
    theirs = weighted(work / "base", parts, [0.7, -0.3, 0.5], combination_type=how, density=density)
    ours = PeftModel.from_pretrained(base_model(work / "base"), made.run.adapter)
    ids = range(3, 40)
    same(ours, theirs, ids)
    if not how.endswith("svd"):  # whose factors lie otherwise in memory when they are not reloaded
        assert torch.equal(logits(ours, ids), logits(theirs, ids))
    facts = read_json(made.run.manifest)["blended"]
    assert [(one["run"], one["weight"]) for one in facts["parents"]] == [
        ("a", 0.7), ("b", -0.3), ("c", 0.5),
    ]  # fmt: skip
    assert facts["how"] == how
    assert NOT_PROVEN in read_json(made.run.manifest)["base"]["note"]
    assert not (made.run.adapter / "base_model.json").exists()


def test_a_blend_is_a_run_like_any_other(
    work: Path, parts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = blend(["a=0.5", "b=0.5"], name="mix", how="cat", offline=True)
    assert made.as_json()["parameters"]["trained"] == 2 * 8 * (32 + 32 + 32 + 64)
    assert blend(["a=0.5", "b=0.5"], name="again", how="cat", offline=True) == made
    assert blend(["a=0.5", "b=0.4"], name="mix", how="cat", offline=True) != made
    assert main(["ask", "mix", "Hello."]) == 0
    assert main(["evaluate", "mix"]) == 2
    assert main(["evaluate", "mix", "--test", "rows.csv", "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["report"]).read_text()
    assert "blended (cat): 0.5 of a, 0.5 of b" in page


def test_a_blend_has_the_voices_of_its_parts(work: Path, parts: list[Path]) -> None:
    ada, bo = {"name": "Ada", "right": "yes"}, {"name": "Bo", "right": ""}
    for name, voices in (("a", [ada]), ("b", [bo, ada])):
        run = find_run(name)
        write_json(run.manifest, read_json(run.manifest) | {"voices": voices})
    made = blend(["a=0.5", "b=0.5", "c=1"], name="mix", how="cat", offline=True)
    assert read_json(made.run.manifest)["voices"] == [ada, bo]
    again = blend(["mix=0.5"], name="weak", offline=True)
    assert read_json(again.run.manifest)["voices"] == [ada, bo]


def test_what_was_blended_is_not_ejected(work: Path, parts: list[Path]) -> None:
    blend(["a=0.5", "b=0.5"], name="mix", how="cat", offline=True)
    with pytest.raises(InputError, match="mix was blended of other runs"):
        eject("mix", output=work / "out", offline=True)
    with pytest.raises(InputError, match="a was trained elsewhere"):
        eject("a", output=work / "out", offline=True)


def test_one_adapter_can_be_made_weaker(work: Path, parts: list[Path]) -> None:
    half = blend(["a=0.5"], name="half", offline=True).run
    whole = blend([f"{half.name}=2"], name="whole", offline=True).run
    ours = PeftModel.from_pretrained(base_model(work / "base"), whole.adapter)
    theirs = PeftModel.from_pretrained(base_model(work / "base"), parts[0])
    same(ours, theirs, range(3, 40))


def test_scales_of_rslora_and_of_layers_are_kept(work: Path, parts: list[Path]) -> None:
    own = {"target_modules": ["q_proj", "up_proj"], "lora_alpha": 6}
    root = saved(work / "root", work / "base", lora(**own, r=9, use_rslora=True))
    ranks = saved(
        work / "ranks", work / "base",
        lora(
            target_modules=".*(q|up)_proj",
            rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 5},
        ),
    )  # fmt: skip
    for how in ("cat", "svd"):
        rank = 32 if how == "svd" else None  # all of it
        made = blend(
            ["root=0.5", "ranks=1.5", "a=1"], name=how, how=how, rank=rank, offline=True
        ).run
        ours = PeftModel.from_pretrained(base_model(work / "base"), made.adapter).eval()
        for layer in ours.base_model.model.model.layers:
            for module in (layer.self_attn.q_proj, layer.mlp.up_proj):
                delta = module.get_delta_weight("default")
                assert torch.allclose(delta, deltas(work, module, layer, root, ranks), atol=1e-4)


def deltas(work: Path, module: Any, layer: Any, root: Path, ranks: Path) -> torch.Tensor:
    """0.5 root + 1.5 ranks + a, each by peft."""
    place = ("self_attn", "q_proj") if module is layer.self_attn.q_proj else ("mlp", "up_proj")
    index = layer.self_attn.layer_idx
    total: Any = 0
    for folder, weight in ((root, 0.5), (ranks, 1.5), (work / "a", 1.0)):
        model = PeftModel.from_pretrained(base_model(work / "base"), folder)
        owner = getattr(model.base_model.model.model.layers[index], place[0])
        total = total + weight * getattr(owner, place[1]).get_delta_weight("default")
    found: torch.Tensor = total
    return found


@pytest.mark.parametrize(
    ("given", "how", "told"),
    [
        (["a=0.5", "dora=0.5"], "linear", "dora has use_dora"),
        (["a=0.5", "ia3=0.5"], "cat", "ia3 is IA3, not LORA"),
        (["a=0.5", "biased=0.5"], "cat", "biased has modules_to_save, bias"),
        (["a=0.5", "whole=0.5"], "cat", "whole has base_model.model.*embed_tokens.base_layer"),
        (["a=0.5", "narrow=0.5"], "linear", r"needs one rank, found \[2, 4\]: take cat or svd"),
        (["a=0.5", "other=0.5"], "cat", "not the same base model: a "),
        (["a=0.5", "spoken=0.5"], "cat", "not the same chat template: a, spoken"),
        (["a=0.5", "a=0.5"], "cat", "a is named twice"),
        (["a=0.5"], "cat", "needs more than one run"),
        ([], "linear", "no run is named"),
        (["a", "b=1"], "linear", "'a'"),
        (["a=nan"], "linear", "a=nan"),
        (["a=1"], "lineal", 'did you mean "linear"'),
    ],
)
def test_what_cannot_be_blended_is_refused(
    given: list[str], how: str, told: str, work: Path, parts: list[Path]
) -> None:
    base = work / "base"
    for name in ("dora", "ia3"):
        if any(name in item for item in given):
            saved(work / name, base, CONFIGS[name]())
    if "biased=0.5" in given:
        saved(work / "biased", base, lora(bias="all", modules_to_save=["lm_head"]))
    if "whole=0.5" in given:
        saved(work / "whole", base, lora(target_modules=["q_proj", "embed_tokens"]))
    if "narrow=0.5" in given:
        saved(work / "narrow", base, lora(r=2))
    if "other=0.5" in given:
        saved(work / "other", tiny.folder(work / "base2", seed=4), lora())
    if "spoken=0.5" in given:
        folder = saved(work / "spoken", base, lora())
        (folder / "chat_template.jinja").write_text(tiny.CHATML.replace("\n", " \n"))
    before = len(all_runs())
    with pytest.raises(InputError, match=told):
        blend(given, name="mix", how=how, offline=True)
    assert "mix" not in [run.name for run in all_runs()]
    assert len(all_runs()) <= before + 1


@pytest.mark.parametrize(
    ("how", "density", "rank"),
    [("ties", None, None), ("ties", 1.5, None), ("ties", 0.0, None), ("linear", 0.5, None),
     ("cat", None, 4), ("svd", None, 0)],
)  # fmt: skip
def test_numbers_that_a_way_cannot_use_are_refused(
    how: str, density: float | None, rank: int | None
) -> None:
    with pytest.raises(InputError) as refused:
        blend(["a=1", "b=1"], name="mix", how=how, density=density, rank=rank)
    assert refused.value.code == "wrong-blend"
