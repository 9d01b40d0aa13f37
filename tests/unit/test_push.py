"""Exported folders to a hub on 127.0.0.1, through the real client; and back again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from hub_server import HubRepo
from hub_uploads import READ_TOKEN, TOKEN, UploadHub
from retone.errors import CheckFailed, InputError, MachineError
from retone.models.locate import locate
from retone.models.saving import load_tuned
from retone.run_dir import Run, read_json, write_json
from retone.workflows import push as push_module
from retone.workflows.card import write_card
from retone.workflows.load import open_run
from retone.workflows.push import push, require_pushable
from small_run import small_run

# The client of the hub (2.4) sends files in a way that its own library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
PASSED = {"logits": {"value": 0.0, "limit": 1e-5, "ok": True, "told": "4 prompts"}}
FAILED = PASSED | {"prompt_ids": {"value": "2 of 4", "limit": "4 of 4", "ok": False, "told": ""}}
NOT_RUN = {"logits": {"value": None, "limit": 1e-5, "ok": None, "told": "no memory"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("push"))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy, whose files a test may change; its base is under Apache-2.0."""
    shutil.copytree(trained.path, tmp_path / "runs" / "my")
    run = Run(tmp_path / "runs" / "my")
    licensed(run, "Apache-2.0")
    return run


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """The run's adapter, exported."""
    folder = tmp_path / "adapter"
    shutil.copytree(run.adapter, folder)
    write_card(run, "adapter", PASSED, folder)
    return folder


@pytest.fixture
def merged(run: Run, tmp_path: Path) -> Path:
    """A whole model, exported."""
    folder = tiny.folder(tmp_path / "merged")
    write_card(run, "merged", PASSED, folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody waits, the client's own storage and token are out of reach."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in (("HF_TOKEN_PATH", tmp_path / "no-token"), ("HF_HUB_OFFLINE", False),
                        ("HF_HUB_DISABLE_XET", True)):  # fmt: skip
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that starts the stand-in hub."""
    started = []

    def start(repos: dict[str, HubRepo] | None = None, **settings: Any) -> UploadHub:
        hub = UploadHub(repos, **settings)
        started.append(hub.__enter__())
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        return hub

    yield start
    for hub in started:
        hub.__exit__(None, None, None)


def licensed(run: Run, licence: str | None) -> None:
    manifest = read_json(run.manifest)
    manifest["base"] |= {"licence": licence}
    write_json(run.manifest, manifest)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_all_of_it_arrives_and_is_private(run: Run, folder: Path, served: Any) -> None:
    hub = served()
    pushed = push(run, folder, "me/my-model", gate=PASSED)
    repo = hub.repos["me/my-model"]
    assert repo.private
    assert repo.files == contents(folder)
    assert pushed.sent
    assert not pushed.public
    assert pushed.url.startswith(f"{hub.url}/me/my-model/commit/")
    creations = [json.loads(body) for path, body in hub.bodies if path == "/api/repos/create"]
    assert [one["visibility"] for one in creations] == ["private"]


def test_public_only_where_asked(run: Run, folder: Path, served: Any) -> None:
    hub = served()
    assert push(run, folder, "me/my-model", gate=PASSED, public=True).public
    assert not hub.repos["me/my-model"].private


def test_a_repository_that_is_public_already_takes_nothing_unasked(
    run: Run, folder: Path, served: Any
) -> None:
    hub = served({"me/open": HubRepo({}, private=False)})
    with pytest.raises(InputError, match="there already, and public"):
        push(run, folder, "me/open", gate=PASSED)
    assert hub.repos["me/open"].files == {}
    assert push(run, folder, "me/open", gate=PASSED, public=True).public
    assert hub.repos["me/open"].files == contents(folder)


def test_a_private_repository_stays_private_and_is_told_so(
    run: Run, folder: Path, served: Any
) -> None:
    hub = served({"me/closed": HubRepo({}, private=True)})
    assert not push(run, folder, "me/closed", gate=PASSED, public=True).public
    assert hub.repos["me/closed"].private


def test_an_adapter_and_a_whole_model_do_not_share_a_repository(
    run: Run, folder: Path, merged: Path, served: Any
) -> None:
    """transformers would load the adapter on its base, whatever the whole model is."""
    hub = served()
    for first, second in ((folder, merged), (merged, folder)):
        name = f"me/{first.name}"
        push(run, first, name, gate=PASSED)
        with pytest.raises(InputError, match="holds another form"):
            push(run, second, name, gate=PASSED)
        assert hub.repos[name].files == contents(first)
        push(run, first, name, gate=PASSED)  # its own form again


@pytest.mark.parametrize("breaks", [1, 8])
def test_a_broken_connection_is_taken_up_again(
    breaks: int, run: Run, folder: Path, served: Any
) -> None:
    """1: the client itself tries again; 8: it gives up, and the push begins anew."""
    hub = served(breaks=breaks)
    push(run, folder, "me/my-model", gate=PASSED)
    assert hub.breaks == 0
    assert hub.repos["me/my-model"].files == contents(folder)
    commits = [path for method, path in hub.requests if "/commit/" in path and method == "POST"]
    assert len(commits) == 1


def test_what_has_arrived_is_not_sent_again(run: Run, merged: Path, served: Any) -> None:
    hub = served(breaks=10_000)
    with pytest.raises(MachineError, match="cannot be reached"):
        push(run, merged, "me/my-model", gate=PASSED)
    assert hub.repos["me/my-model"].files == {}  # the repository is there, half a model is not
    hub.breaks = 0
    push(run, merged, "me/my-model", gate=PASSED)
    puts = [path for method, path in hub.requests if method == "PUT"]
    push(run, merged, "me/my-model", gate=PASSED)
    assert puts == [path for method, path in hub.requests if method == "PUT"]
    assert hub.repos["me/my-model"].files == contents(merged)


def test_a_dry_run_sends_nothing(
    run: Run, folder: Path, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = served()
    pushed = push(run, folder, "me/my-model", gate=PASSED, dry_run=True)
    pushed.show()
    assert hub.requests == []
    assert not pushed.sent
    assert pushed.files == {name: len(data) for name, data in contents(folder).items()}
    told = capsys.readouterr().out
    for part in (*pushed.files, "me/my-model (private)", "library_name: peft", "a dry run"):
        assert part in told
    assert push(run, folder, "me/my-model", gate=PASSED, dry_run=True, offline=True).files
    with pytest.raises(MachineError, match="cannot be reached"):
        push(run, folder, "me/my-model", gate=PASSED, offline=True)
    assert hub.requests == []


def test_the_token_is_in_no_file_log_or_output(
    run: Run, folder: Path, served: Any, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hub = served(breaks=1)
    push(run, folder, "me/my-model", gate=PASSED).show()
    with pytest.raises(MachineError) as refused:
        push(run, folder, "other/my-model", gate=PASSED)
    printed = capfd.readouterr()
    said = [printed.out, printed.err, caplog.text, str(refused.value)]
    said += [file.read_bytes().decode("latin1") for file in tmp_path.rglob("*") if file.is_file()]
    said += [body.decode("latin1") for _, body in hub.bodies]
    assert [text for text in said if TOKEN in text] == []


@pytest.mark.parametrize(
    ("token", "repo", "settings", "code"),
    [
        ("", "me/my-model", {}, "no-token"),
        ("hf_" + "x" * 34, "me/my-model", {}, "no-token"),
        (READ_TOKEN, "me/my-model", {}, "no-permission"),
        (TOKEN, "other/my-model", {}, "no-permission"),
        (TOKEN, "me/my-model", {"refuses": 402}, "hub-quota"),
        (TOKEN, "me/my-model", {"refuses": 503}, "hub-unreachable"),
        (TOKEN, "me/my-model", {"refuses": 418}, "hub-refused"),
    ],
)
def test_refusals_are_told_in_three_lines(
    token: str, repo: str, settings: Any, code: str, run: Run, folder: Path, served: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    hub = served(**settings)
    with pytest.raises(MachineError) as refused:
        push(run, folder, repo, gate=PASSED)
    assert refused.value.code == code
    assert len(str(refused.value).splitlines()) == 3
    assert hub.large == {}


def test_no_hub_at_all(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="cannot be reached"):
        push(run, folder, "me/my-model", gate=PASSED)


@pytest.mark.parametrize("name", ["my-model", "a/b/c", "me/my model", "me/-x", "me/x.git", "../x"])
def test_wrong_names_are_refused(name: str, run: Run, folder: Path, served: Any) -> None:
    hub = served()
    with pytest.raises(InputError, match="no repository of that name"):
        push(run, folder, name, gate=PASSED)
    assert hub.requests == []


@pytest.mark.parametrize("gate", [FAILED, NOT_RUN, {}])
def test_only_what_passed_its_gate_is_pushed(gate: Any, run: Run, folder: Path) -> None:
    with pytest.raises(CheckFailed, match="did not pass its checks") as refused:
        push(run, folder, "me/my-model", gate=gate, dry_run=True)
    again = f"retone export {run.name} --to hub --repo me/my-model --as adapter"
    assert again in refused.value.remedy
    assert ("retone[llamacpp]" in refused.value.remedy) == (gate is not FAILED)
    assert ("no memory" in refused.value.found) == (gate is NOT_RUN)


def test_only_an_exported_folder_is_pushed(run: Run, tmp_path: Path) -> None:
    for folder in (run.adapter, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="only what was exported"):
            push(run, folder, "me/my-model", gate=PASSED, dry_run=True)


def test_a_card_that_the_hub_refuses(run: Run, folder: Path, served: Any) -> None:
    hub = served()
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(InputError, match="does not take the model card") as refused:
        push(run, folder, "me/my-model", gate=PASSED)
    assert "hf upload me/my-model FOLDER --private" in refused.value.remedy
    assert hub.large == {}


# --- licences and voices ---


def pushed(run: Run, folder: Path, repo: str = "me/my-model", **more: Any) -> Any:
    return push(run, folder, repo, gate=PASSED, dry_run=True, **more)


def test_whole_models_need_a_licence_that_allows_it(run: Run, merged: Path) -> None:
    assert pushed(run, merged)
    licensed(run, "CC-BY-ND-4.0")
    with pytest.raises(InputError, match="does not allow giving away"):
        pushed(run, merged)
    for unknown in (None, "my-own-licence"):
        licensed(run, unknown)
        with pytest.raises(InputError, match="not known whether"):
            pushed(run, merged)
    licensed(run, None)
    assert pushed(run, merged, licence="mit")
    assert pushed(run, merged, licence="EUPL-1.2")
    for forbids in ("CC-BY-NC-ND-4.0", "cc-by-nd-4.0", "CC-BY-NC-ND-3.0-DE"):
        with pytest.raises(InputError, match="does not allow giving away") as refused:
            pushed(run, merged, licence=forbids)
        assert "--to hub --repo ORG/NAME --as adapter" in refused.value.remedy
    licensed(run, "CC-BY-ND-4.0")
    with pytest.raises(InputError, match="has another licence"):
        pushed(run, merged, licence="MIT")


def test_llamas_keep_their_name_and_notice(run: Run, merged: Path) -> None:
    licensed(run, "llama3.2")
    with pytest.raises(InputError, match='has to begin with "Llama"') as refused:
        pushed(run, merged)
    assert "Llama-my-model" in refused.value.remedy
    write_card(run, "merged", PASSED, merged)
    found = pushed(run, merged, "me/Llama-my-model")
    assert "NOTICE" in found.files
    assert "Meta Platforms" in (merged / "NOTICE").read_text()
    assert "license: llama3.2" in found.card


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("llama3", "Llama-3-x"),
        ("llama3.1", "llama-x"),
        ("llama3.2", "Llama-x"),
        ("LLAMA3.3", "Llama-x"),
    ],
)
def test_adapters_for_llamas_have_the_name_too(
    licence: str, name: str, run: Run, folder: Path
) -> None:
    licensed(run, None)
    with pytest.raises(InputError, match="has to begin with") as refused:
        pushed(run, folder, licence=licence)
    assert "--repo ORG/Llama-" in refused.value.remedy
    assert pushed(run, folder, f"me/{name}", licence=licence)


@pytest.mark.parametrize("licence", [None, "CC-BY-ND-4.0", "llama3.2", "my-own-licence"])
def test_adapters_of_plain_lora_go_anywhere_and_name_the_licence(
    licence: str | None, run: Run, folder: Path
) -> None:
    licensed(run, licence)
    write_card(run, "adapter", PASSED, folder)
    card = pushed(run, folder, "me/Llama-my-model").card
    assert f"Its licence: {licence or 'unknown'}" in card


@pytest.mark.parametrize(
    "tensor",
    ["base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.bias",
     "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
     "base_model.model.model.embed_tokens.base_layer.weight"],
)  # fmt: skip
def test_adapters_with_weights_of_the_base_are_held_to_its_licence(
    tensor: str, run: Run, folder: Path
) -> None:
    file = run.adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {tensor: torch.zeros(2)}, file)
    assert pushed(run, folder)
    licensed(run, "CC-BY-ND-4.0")
    with pytest.raises(InputError, match="does not allow giving away") as refused:
        pushed(run, folder)
    assert tensor in refused.value.found
    assert "without whole matrices" in refused.value.remedy


def test_what_can_be_said_before_an_export(run: Run) -> None:
    require_pushable(run, "me/my-model", "merged")
    licensed(run, "CC-BY-ND-4.0")
    require_pushable(run, "me/my-model", "adapter")
    with pytest.raises(InputError, match="does not allow"):
        require_pushable(run, "me/my-model", "merged")
    with pytest.raises(InputError, match="no repository of that name"):
        require_pushable(run, "my-model", "adapter")
    voiced(run, "")
    with pytest.raises(InputError, match="without a statement"):
        require_pushable(run, "me/my-model", "adapter", public=True)
    with pytest.raises(MachineError, match="cannot be reached"):
        require_pushable(run, "me/my-model", "adapter", offline=True)
    require_pushable(run, "me/my-model", "adapter", offline=True, dry_run=True)


def test_the_licence_is_that_of_the_weights_merged_into(run: Run, merged: Path) -> None:
    """Of another base than the run's own, which may be given away."""
    other = replace(locate(str(merged)), name="original", licence="CC-BY-ND-4.0")
    require_pushable(run, "me/my-model", "merged")
    with pytest.raises(InputError, match="does not allow") as refused:
        require_pushable(run, "me/my-model", "merged", base=other)
    assert "original" in refused.value.found
    with pytest.raises(InputError, match="does not allow"):
        pushed(run, merged, base=other)


def voiced(run: Run, right: str) -> None:
    manifest = read_json(run.manifest)
    manifest["voices"] = [{"name": "A. <b>Person</b>", "right": right}]
    write_json(run.manifest, manifest)


def test_a_real_voice_is_not_published_without_the_right_to_it(run: Run, folder: Path) -> None:
    voiced(run, "")
    assert pushed(run, folder)
    with pytest.raises(InputError, match="without a statement") as refused:
        pushed(run, folder, public=True)
    assert str(run.manifest) in refused.value.remedy
    voiced(run, "her consent of May 2026")
    assert pushed(run, folder, public=True)
    write_card(run, "adapter", PASSED, folder)
    told = (folder / "README.md").read_text()
    assert "real person, A. &lt;b&gt;Person&lt;/b&gt;.** The right to it: her consent of" in told


# --- back again ---


def test_a_pushed_adapter_loads_in_plain_peft_with_equal_logits(
    run: Run, folder: Path, served: Any, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    served()
    push(run, folder, "me/my-model", gate=PASSED)
    fetched = snapshot_download("me/my-model", local_dir=tmp_path / "fetched")
    opened = open_run(run, offline=True)
    ours = load_tuned(run.tuned, opened.base, opened.load_folder)
    attention = opened.resolved.recipe.model.attention
    base = AutoModelForCausalLM.from_pretrained(
        opened.base.path, dtype=ours.dtype, attn_implementation=attention
    )
    plain = PeftModel.from_pretrained(base, fetched).eval()
    tokenizer = AutoTokenizer.from_pretrained(fetched)
    assert tokenizer.chat_template == opened.template.text
    ids = torch.tensor([tokenizer("Where is the cat?")["input_ids"]])
    with torch.no_grad():
        tuned = ours(ids).logits
        assert torch.equal(plain(ids).logits, tuned)
        with ours.disable_adapter():
            assert not torch.equal(ours(ids).logits, tuned)


def test_waits_grow() -> None:
    assert list(push_module.WAITS) == sorted(push_module.WAITS)
    assert len(push_module.WAITS) >= 3
