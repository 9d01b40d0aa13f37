"""`retone export` on a tiny model: every form, the gate, and faults that it has to catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from retone.cli import exporting, main
from retone.errors import InputError
from retone.evaluation.gate import Check, Gate, judge, limits_of, not_run
from retone.models.merging import largest_error
from retone.run_dir import find_run, read_json
from retone.workflows import export as module
from retone.workflows.blend import WAYS
from retone.workflows.export import FORMS, Exported, Order, export
from retone.workflows.load import load
from small_run import small_run

MODEL = {"hidden_size": 64, "intermediate_size": 256, "initializer_range": 0.02}
Plant = Callable[[Order, Path], None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `my`, that ends its answers."""
    folder = tmp_path_factory.mktemp("export")
    sets = ("method.rank=16", "train.max_steps=60", "evaluate.max_new_tokens=30")
    small_run(folder, *sets, **MODEL)
    return folder


@pytest.fixture
def work(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_what_was_trained_on_packed_weights_is_merged_into_the_unpacked(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("method.rank=16", "train.max_steps=60", f"model.quantization={quantization}")
    small_run(tmp_path, *sets, **MODEL)
    found = export("my", to="merged", output=tmp_path / "out")
    assert found.gate.ok, found.gate.rows()
    assert found.path is not None
    merged = AutoModelForCausalLM.from_pretrained(found.path)
    assert not hasattr(merged.config, "quantization_config")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    whole = PeftModel.from_pretrained(base, find_run("my").adapter)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged(ids).logits.float(), whole(ids).logits, rtol=0.02, atol=0.05
        )


def test_an_adapter_on_a_tied_head_is_merged_into_the_head_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("method.rank=16", "train.max_steps=60", 'method.targets=["q_proj", "lm_head"]')
    small_run(tmp_path, *sets, **MODEL)
    found = export("my", to="merged", output=tmp_path / "out")
    assert found.gate.ok, found.gate.rows()
    assert found.path is not None
    base, adapter = tmp_path / "base", find_run("my").adapter
    before, after = (load_file(path / "model.safetensors") for path in (base, found.path))
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    assert head not in before
    assert torch.equal(after[embeddings].float(), before[embeddings].float())
    error = largest_error(found.path, base, adapter)
    assert error is not None
    assert error[0] < limits_of("merged")["weights"]
    after[head] = after[embeddings].clone()  # as if the head's adapter had been forgotten
    save_file(after, found.path / "model.safetensors", {"format": "pt"})
    error = largest_error(found.path, base, adapter)
    assert error is not None
    assert error[0] > limits_of("merged")["weights"]
    assert error[1] == head


def test_the_adapter_is_standard(work: Path) -> None:
    found = export("my", to="adapter", output=work / "out-adapter")
    assert found.ok
    assert found.gate.complete
    assert found.path is not None
    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, found.path)
    own = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32),
        find_run("my").adapter,
    )
    ids = torch.arange(3, 40)[None]
    assert torch.equal(tuned(ids).logits, own(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_needs_nothing_of_ours(work: Path, dtype: str) -> None:
    found = export("my", to="merged", output=work / f"out-{dtype}", dtype=dtype)
    assert found.gate.complete, found.gate.rows()
    assert found.path is not None
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert str(model.dtype) == f"torch.{dtype}"
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    turns = [{"role": "system", "content": "Be Yoda."},
             {"role": "user", "content": "The hen sleeps"}]  # fmt: skip
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    told = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    answer = tokenizer.decode(told[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == load("my").answer("The hen sleeps")
    assert answer.endswith(" does")


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_llama_cpp_answers_the_same(work: Path, kind: str) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    found = export("my", to="gguf", kind=kind)
    assert found.gate.complete, found.gate.rows()
    run = find_run("my")
    assert found.path == run.exports / f"gguf-{kind}"
    stored = read_json(run.exports / f"gguf-{kind}.json")
    assert stored["gate"]["top-1"]["ok"] is True
    assert stored["gate"]["prompt ids"]["value"] == 20
    page = run.report.read_text("utf-8")
    assert f"gguf-{kind}" in page
    assert "drift" in page


def test_a_gguf_adapter_beside_its_base(work: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    found = export("my", to="lora", output=work / "out-lora")
    assert found.gate.complete, found.gate.rows()


def test_without_llama_cpp_the_gate_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retone.inference.llama_cpp.find_spec", lambda name: None)
    found = export("my", to="gguf", kind="f16", output=work / "out-unrun")
    assert found.ok
    assert not found.gate.complete
    checks = dict(found.gate.checks)
    assert checks.pop("weights").ok  # they are read, and not run
    assert all(check.ok is None for check in checks.values())
    assert all(check.told.startswith("not run") for check in checks.values())


# ------------------------------------------------------------------------------------- the faults


def _edit(name: str, change: Callable[[Any], None]) -> Plant:
    def plant(order: Order, folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return plant


def _wrong_template(order: Order, folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>\n", "<|im_end|>"))


def _doubled_bos(order: Order, folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text("<|endoftext|>" + file.read_text())


def _no_stop(content: dict[str, Any]) -> None:
    content["eos_token_id"] = 1


def _rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Plant:
    def plant(order: Order, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return plant


def _swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, other = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1))
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def _four_bits(tensors: dict[str, torch.Tensor]) -> None:
    """As if it had been merged into weights of 16 steps."""
    for name, tensor in tensors.items():
        if "proj" in name:
            step = tensor.abs().max() / 8
            tensors[name] = (tensor / step).round() * step


def _refusing_template(order: Order, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")


def _left_out(order: Order, folder: Path) -> None:
    """The adapter of one matrix was not merged."""
    name = "model.layers.1.self_attn.q_proj.weight"
    base = load_file(order.base.path / "model.safetensors")[name]
    _rewrite(lambda tensors: tensors.update({name: base.to(tensors[name].dtype)}))(order, folder)


def _nothing_merged(order: Order, folder: Path) -> None:
    base = load_file(order.base.path / "model.safetensors")
    _rewrite(lambda tensors: tensors.update(base))(order, folder)


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")


FAULTS: dict[str, tuple[Plant, str]] = {
    "wrong template": (_wrong_template, "prompt ids"),
    "doubled BOS": (_doubled_bos, "prompt ids"),
    "template that refuses": (_refusing_template, "prompt ids"),
    "no number": (_rewrite(_not_a_number), "weights"),
    "missing stop token": (_edit("generation_config.json", _no_stop), "stop"),
    "swapped tensor": (_rewrite(_swapped), "weights"),
    "a matrix without its adapter": (_left_out, "weights"),
    "merged into a quantised base": (_rewrite(_four_bits), "weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(work: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, check = FAULTS[fault]
    form = FORMS["merged"]

    def write(order: Order, folder: Path) -> None:
        form.write(order, folder)
        plant(order, folder)

    monkeypatch.setitem(module.FORMS, "merged", replace(form, write=write))
    found = export("my", to="merged", output=work / "out-fault")
    assert found.gate.checks[check].ok is False
    assert not found.ok
    assert found.path is None
    assert not (work / "out-fault").exists()
    assert read_json(find_run("my").exports / "merged.json")["ok"] is False


GGUF_FAULTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "swapped tensor": (_rewrite(_swapped), ("weights", "top-1")),
    "nothing merged": (_nothing_merged, ("weights", "top-1")),
    "merged into a quantised base": (_rewrite(_four_bits), ("weights",)),
}  # llama.cpp knows how answers of this template end, whatever the file says


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_fault_planted_in_a_gguf_file_is_caught(
    work: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    plant, checks = GGUF_FAULTS[fault]
    save = Order.save_merged

    def save_merged(order: Order, folder: Path, dtype: str) -> None:
        save(order, folder, dtype)
        plant(order, folder)

    monkeypatch.setattr(Order, "save_merged", save_merged)
    found = export("my", to="gguf", kind="f16", output=work / "out-fault")
    assert [found.gate.checks[name].ok for name in checks] == [False] * len(checks)
    assert found.path is None


def test_a_wrong_template_in_a_gguf_file_is_caught(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    write = module.write_gguf

    def other(*given: Any, template: str, **more: Any) -> Any:
        return write(*given, template=template.replace("<|im_end|>\n", "<|im_end|>"), **more)

    monkeypatch.setattr(module, "write_gguf", other)
    found = export("my", to="gguf", kind="f16", output=work / "out-fault")
    assert found.gate.checks["prompt ids"].ok is False
    assert found.path is None


def test_a_gguf_adapter_that_is_not_loaded_is_caught(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    from retone.workflows import export_gate

    server = export_gate.LlamaServer
    monkeypatch.setattr(
        export_gate, "LlamaServer", lambda file, lora, context: server(file, context=context)
    )
    found = export("my", to="lora", output=work / "out-fault")
    assert found.gate.checks["top-1"].ok is False
    assert found.path is None


def test_what_was_exported_before_outlives_a_blocked_export_elsewhere(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = export("my", to="merged", dtype="float32").path
    assert kept is not None
    form = FORMS["merged"]

    def write(order: Order, folder: Path) -> None:
        form.write(order, folder)
        _wrong_template(order, folder)

    monkeypatch.setitem(module.FORMS, "merged", replace(form, write=write))
    assert export("my", to="merged", output=work / "out-fault").path is None
    assert (kept / "model.safetensors").is_file()
    assert export("my", to="merged").path is None  # in the place of the older one
    assert not kept.exists()


def test_another_base_is_caught(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its hash, as every command does, but by what comes of it."""
    other = tiny.folder(work / "other", seed=1, **MODEL)
    form = FORMS["merged"]

    def write(order: Order, folder: Path) -> None:
        form.write(replace(order, base=replace(order.base, path=other)), folder)

    monkeypatch.setitem(module.FORMS, "merged", replace(form, write=write))
    found = export("my", to="merged", output=work / "out-other")
    assert found.gate.checks["weights"].ok is False
    assert found.gate.checks["top-1"].ok is False


def test_a_second_bos_of_the_engine_is_caught(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp puts a token before every prompt where the file tells it to."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    from retone.models.gguf_vocabulary import Vocabulary

    added = Vocabulary.add_to

    def with_bos(self: Vocabulary, writer: Any) -> None:
        added(self, writer)
        writer.kv_data[0].pop("tokenizer.ggml.add_bos_token", None)
        writer.add_bos_token_id(0)
        writer.add_add_bos_token(True)

    monkeypatch.setattr(Vocabulary, "add_to", with_bos)
    found = export("my", to="gguf", kind="f16", output=work / "out-bos")
    assert found.gate.checks["prompt ids"].ok is False
    assert found.path is None


@pytest.mark.parametrize(
    ("name", "hint"), [("gguf-q4_0", True), ("gguf-q8_0", False), ("merged", False)]
)
def test_finer_weights_are_named_where_packing_failed(
    work: Path, capsys: pytest.CaptureFixture[str], name: str, hint: bool
) -> None:
    Exported(find_run("my"), name, None, not_run("a test"), ()).show()
    told = capsys.readouterr().out
    assert "nothing was kept" in told
    assert ("--type q8_0" in told) is hint


def test_the_command_says_no_with_exit_code_1(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form = FORMS["merged"]

    def write(order: Order, folder: Path) -> None:
        form.write(order, folder)
        _wrong_template(order, folder)

    monkeypatch.setitem(module.FORMS, "merged", replace(form, write=write))
    assert main(["export", "my", "--to", "merged", "-o", str(work / "out-no"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["path"] is None
    assert told["gate"]["prompt ids"]["ok"] is False


def test_a_dry_run_for_the_hub(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["export", "my", "--to", "hub", "--licence", "Apache-2.0"]
    assert main(given) == 2
    assert "--repo" in capsys.readouterr().err
    assert main([*given, "--repo", "me/my", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "adapter_model.safetensors" in told
    assert "me/my (private)" in told
    assert "nothing was sent" in told
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    assert main([*given, "--repo", "me/my", "--dry-run", "--as", "lora"]) == 0
    assert "my-lora.gguf" in capsys.readouterr().out


def test_folders_for_ollama_and_docker(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    assert main(["export", "my", "--to", "ollama", "-o", "ollama", "--type", "bf16"]) == 0
    modelfile = (work / "ollama" / "Modelfile").read_text()
    assert "FROM ./my-bf16.gguf" in modelfile
    assert 'SYSTEM """Be Yoda."""' in modelfile
    assert "not run: Ollama itself" in capsys.readouterr().out
    given = ["export", "my", "--to", "docker", "-o", "docker"]
    assert main(given) == 2  # what may be given away is not known
    assert main([*given, "--licence", "Apache-2.0"]) == 0
    assert "USER" in (work / "docker" / "Dockerfile").read_text()
    capsys.readouterr()


METHODS = {  # method -> the forms that it takes
    "full": ("merged", "gguf"),
    "ia3": ("adapter", "merged", "gguf"),
    "prefix": ("adapter",),
    "bottleneck": (),
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods(work: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel runs the file")
    sets = (f"method.kind={method}", "train.max_steps=10", "train.learning_rate=1e-2")
    given = [word for one in sets for word in ("--set", one)]
    assert main(["run", "my.toml", "--name", method, *given]) == 0
    for form in ("adapter", "merged", "gguf"):
        if form in METHODS[method]:
            found = export(method, to=form, kind="f32", dtype="float32")
            assert found.gate.ok, found.gate.rows()
            assert found.gate.checks["top-1"].ok
        else:
            with pytest.raises(InputError):
                export(method, to=form)
    capsys.readouterr()


def test_nothing_that_stands_there_is_replaced(work: Path) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("years of work")
    for to in ("adapter", "docker"):
        assert main(["export", "my", "--to", to, "-o", "mine"]) == 2
    assert (work / "mine" / "thesis.txt").read_text() == "years of work"


def test_options_that_say_nothing_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "my", "--to", "merged", "--dry-run", "--repo", "a/b"]) == 2
    told = capsys.readouterr().err
    assert "--repo, --dry-run" in told
    assert main(["export", "my", "--to", "hub", "--repo", "a/b", "--dtype", "float32"]) == 2
    assert "no use for --dtype" in capsys.readouterr().err
    with pytest.raises(InputError, match="--base is what an adapter is merged into"):
        export("my", to="adapter", base=str(work / "base"))


def test_a_base_of_other_shapes_is_refused_at_once(work: Path) -> None:
    wider = tiny.folder(work / "wider", hidden_size=128)
    with pytest.raises(InputError, match="does not fit the base model"):
        export("my", to="merged", base=str(wider))


def test_a_merge_into_another_base_goes_to_the_hub_with_its_drift(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.folder(work / "near", **MODEL)  # the same weights, saved once more
    given = ["export", "my", "--to", "hub", "--repo", "me/my", "--as", "merged", "--dry-run"]
    assert main([*given, "--base", str(other), "--licence", "Apache-2.0"]) == 0
    assert "me/my (private)" in capsys.readouterr().out


def test_a_gate_of_nothing_or_of_no_numbers_does_not_pass() -> None:
    nothing = judge([], None, str, limits_of("merged"), lambda number: None)  # type: ignore[arg-type]
    assert nothing.checks["prompt ids"].ok is False
    broken = Gate({"drift": Check(float("inf"), 0.1, False, "no number")})
    assert Gate.from_json(json.loads(json.dumps(broken.as_json(), allow_nan=False))).ok is False


def test_the_command_line_names_what_there_is() -> None:
    assert set(exporting.FORMS) == set(FORMS)
    how = get_type_hints(exporting.blend_verb)["how"]
    assert set(get_args(how)) == set(WAYS)


def test_what_cannot_be_exported_is_refused(work: Path) -> None:
    bare = work / "runs" / "bare"
    bare.mkdir()
    for name in ("manifest.json", "resolved.json", "template_lock.json"):
        (bare / name).write_bytes((find_run("my").path / name).read_bytes())
    with pytest.raises(InputError, match="not trained yet"):
        export("bare", to="adapter")
    with pytest.raises(InputError, match="q4_k_x"):
        export("my", to="gguf", kind="q4_k_x")


def test_every_kind_of_weights_has_limits() -> None:
    from retone.models.gguf_quants import gguf_kinds

    for kind in ("adapter", "merged", "float32", "lora", *gguf_kinds()):
        limits = limits_of(kind)
        assert 0.5 < limits["top_1"] <= 1
        assert limits_of(kind, another_base=True)["top_1"] < limits["top_1"]
