"""Several LoRA adapters over one base: each row gets what its own adapter gives it alone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

import tiny
from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.errors import InputError, MachineError
from retone.inference import row_lora
from retone.inference.decoding import TUNED, Decoder, Row
from retone.inference.engine import Engine
from retone.inference.row_lora import RowLora, add_adapter, remove_adapter
from retone.inference.sampling import Sampling
from retone.inference.service import Event, Service, Ticket, Unloaded
from retone.models.adapters import ADAPTER
from retone.models.methods import METHODS

# Other ranks, other modules, another scale; the last one moves the head, which is read by itself.
METHOD_OF: dict[str, dict[str, Any]] = {
    TUNED: {"rank": 4},
    "two": {"rank": 8, "alpha": 4, "targets": ["q_proj", "down_proj"]},
    "three": {"rank": 2, "rslora": True, "targets": ["v_proj", "lm_head"]},
}
NAMES = [*METHOD_OF, None]
SAID = ["The cat sleeps.", "Who plays the old piano while rain taps?", "A dog ran.", "When?"]


def base(**settings: Any) -> Any:
    return tiny.model(**{"initializer_range": 0.3, "tie_word_embeddings": False, **settings})


def saved(folder: Path, seed: int = 1, settings: Any = None, **method: Any) -> Path:
    """A peft folder whose adapter changes the answers."""
    kind = method.pop("kind", "lora")
    model = METHODS[kind].prepare(base(**settings or {}), tiny.method(kind, **method))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {
        name: saved(place / name, seed, **method)
        for seed, (name, method) in enumerate(METHOD_OF.items())
    }


def opened(folder: Path) -> Any:
    return PeftModel.from_pretrained(base(), folder, local_files_only=True).eval()


@pytest.fixture
def model(folders: dict[str, Path]) -> Any:
    """The base with all three."""
    made = opened(folders[TUNED])
    for name in ("two", "three"):
        add_adapter(made, name, folders[name])
    return made


def engine(model: Any) -> Engine:
    return Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def logits(model: Any, rows: int = 5) -> Any:
    ids = torch.randint(3, 320, (rows, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    "rows",
    [
        [TUNED, "two", None, "three", "two"],
        ["three", None, None, "two", "three"],
        [None, "two", "two", None, "two"],
        ["three"] * 5,
        [None] * 5,
    ],
)
def test_a_mixed_batch_gives_each_row_its_own_adapter(
    model: Any, folders: dict[str, Path], rows: list[str | None]
) -> None:
    """The plain twins: peft with that adapter switched on, and that adapter alone on the base."""
    alone = {name: logits(opened(folders[name])) for name in METHOD_OF} | {None: logits(base())}
    for name in METHOD_OF:
        model.set_adapter(name)
        torch.testing.assert_close(logits(model), alone[name], rtol=0, atol=0)
    model.set_adapter(TUNED)
    pairs = [(a, b) for a in NAMES for b in NAMES if a != b]
    assert all(not torch.allclose(alone[a], alone[b], atol=1e-2) for a, b in pairs)
    with RowLora(model).of(rows):
        found = logits(model)
    expected = torch.stack([alone[name][at] for at, name in enumerate(rows)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits(model), alone[TUNED], rtol=0, atol=0)


def test_no_product_is_computed_that_no_row_needs(model: Any) -> None:
    lean = RowLora(model)
    layers = {name.split(".")[-1]: each for name, each in model.named_modules()
              if hasattr(each, "lora_A")}  # fmt: skip
    for rows, idle in (
        ([None, None], {"q_proj", "v_proj", "down_proj", "lm_head"}),
        (["two", None], {"v_proj", "lm_head"}),
        (["three", "two"], set[str]()),
    ):
        with lean.of(rows):
            for name in ("q_proj", "v_proj", "down_proj", "lm_head"):
                plain = layers[name].forward == layers[name].base_layer.forward
                assert plain is (name in idle), (rows, name)


def asked(engine: Engine, names: list[str | None]) -> list[Row]:
    ids = [engine.template.prompt_ids([Message("user", text)]) for text in SAID]
    return [Row(prompt, Sampling(max_new_tokens=10), name) for prompt in ids for name in names]


def write(decoder: Decoder) -> None:
    while decoder.rows:
        decoder.step()


def alone(folders: dict[str, Path], rows: list[Row]) -> list[list[int]]:
    """What each row writes with nobody beside it, and no other adapter in the model."""
    found = []
    for row in rows:
        bare = engine(base() if row.adapter is None else opened(folders[row.adapter]))
        again = Row(row.prompt, row.sampling)
        decoder = bare.decoder()
        decoder.join([again])
        write(decoder)
        found.append(again.ids)
    return found


def test_answers_in_one_loop_are_those_of_each_alone(model: Any, folders: dict[str, Path]) -> None:
    """Some join late; adapters come and go while the others are written."""
    rows = asked(engine(model), NAMES)
    expected = alone(folders, rows)
    assert len({tuple(ids) for ids in expected}) > len(rows) // 2
    decoder = engine(model).decoder()
    decoder.join(rows[:6])
    decoder.step()
    add_adapter(model, "more", folders["two"])
    decoder.read_adapters()
    decoder.step()
    decoder.join(rows[6:])
    remove_adapter(model, "more")
    decoder.read_adapters()
    write(decoder)
    assert [row.ids for row in rows] == expected


def test_an_adapter_may_reach_layers_that_the_run_s_does_not(folders: dict[str, Path]) -> None:
    model = opened(folders["two"])
    before = logits(model)
    add_adapter(model, "wide", folders[TUNED])
    with RowLora(model).of([TUNED, "wide", None, "wide", TUNED]):
        found = logits(model)
    torch.testing.assert_close(found[1], logits(opened(folders[TUNED]))[1], rtol=1e-4, atol=2e-5)
    remove_adapter(model, "wide")
    assert RowLora.mixes(model)
    with RowLora(model).of([TUNED] * 5):
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=2e-5)


def flattening(kind: str) -> Any:
    """A random model whose MLP reads all tokens of a batch in one line: [rows * seq, hidden]."""
    torch.manual_seed(2)
    settings: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "opt":
        config = OPTConfig(**settings, ffn_dim=64, word_embed_proj_dim=32, init_std=0.3)
        return OPTForCausalLM(config).eval()
    moe = Qwen2MoeConfig(
        **settings, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, initializer_range=0.3,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(moe).eval()


def with_lora(model: Any, *names: str, **fields: Any) -> Any:
    """A model with random adapters."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, **fields)
    tuned = get_peft_model(model, config)
    for name in names:
        tuned.add_adapter(name, config)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return tuned.eval()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("opt", ["q_proj", "fc1", "fc2"]),
        ("moe", ["v_proj", "shared_expert.up_proj", "shared_expert_gate"]),
    ],
)
def test_a_model_that_lays_its_rows_in_one_line_is_mixed_too(kind: str, targets: list[str]) -> None:
    model = with_lora(flattening(kind), "two", target_modules=targets)
    rows = ["two", None, TUNED, TUNED, None]
    found = {}
    for name in (TUNED, "two"):
        model.set_adapter(name)
        found[name] = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    model.set_adapter(TUNED)
    assert RowLora.mixes(model)
    expected = torch.stack([plain[at] if n is None else found[n][at] for at, n in enumerate(rows)])
    with RowLora(model).of(rows):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    together = asked(engine(model), [TUNED, None, "two"])
    single = asked(engine(model), [TUNED, None, "two"])
    decoder = engine(model).decoder()
    decoder.join(together)
    write(decoder)
    for row in single:
        decoder.join([row])
        write(decoder)
    assert [row.ids for row in together] == [row.ids for row in single]
    assert single[0].ids != single[1].ids


class Experts(nn.Module):
    """Routed experts that are linear layers, each of which sees its own tokens only."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(wide, wide) for _ in range(2)])


def test_adapters_of_routed_experts_are_not_mixed() -> None:
    parameters = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    assert not RowLora.mixes(with_lora(flattening("moe"), **parameters))
    model = base()
    model.model.layers[0].mlp = Experts(32)
    assert RowLora.mixes(with_lora(model, target_modules=["q_proj"]))
    model = base()
    model.model.layers[0].mlp = Experts(32)
    assert not RowLora.mixes(with_lora(model, target_modules=["q_proj", "experts.1"]))


def broken(folder: Path, how: str) -> Path:
    """An adapter's folder that cannot be loaded beside others."""
    methods: dict[str, dict[str, Any]] = {
        "dora": {"dora": True},
        "bias": {"bias": "lora_only", "settings": {"attention_bias": True}},
        "ia3": {"kind": "ia3"},
        "other shapes": {"settings": {"hidden_size": 64}},
        "fewer layers": {"settings": {"num_hidden_layers": 1}, "targets": ["q_proj"]},
        "more layers": {"settings": {"num_hidden_layers": 3}},
        "trained head": {"train_also": ["lm_head"]},
    }
    saved(folder, **methods.get(how, {}))
    config = folder / "adapter_config.json"
    fields = json.loads(config.read_text())
    if how == "embedding":
        fields["target_modules"] = ["embed_tokens"]
    elif how == "moves the base":
        fields["init_lora_weights"] = "pissa"
    elif how == "no such module":
        fields["target_modules"] = ["nobody"]
    config.write_text("{" if how == "no JSON" else json.dumps(fields))
    if how == "no numbers":
        tensors = load_file(folder / ADAPTER)
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, folder / ADAPTER)
    elif how == "weights of the base":
        tensors = load_file(folder / ADAPTER)
        name = "base_model.model.model.embed_tokens.weight"
        save_file({**tensors, name: torch.ones(320, 32)}, folder / ADAPTER)
    elif how == "cut off":
        (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes()[:-100])
    elif how == "a pickle":
        (folder / ADAPTER).rename(folder / "adapter_model.bin")
    elif how == "nothing":
        shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize(
    ("how", "code", "found"),
    [
        ("dora", "not-plain-lora", "use_dora"),
        ("bias", "not-plain-lora", "bias"),
        ("ia3", "not-plain-lora", "IA3"),
        ("trained head", "not-plain-lora", "modules_to_save"),
        ("weights of the base", "not-plain-lora", "embed_tokens"),
        ("moves the base", "unusable-adapter", "pissa"),
        ("a pickle", "unusable-adapter", "pickle"),
        ("nothing", "unusable-adapter", ADAPTER),
        ("no JSON", "unusable-adapter", "adapter_config.json"),
        ("other shapes", "wrong-adapter", ""),
        ("fewer layers", "wrong-adapter", "tensors do not fit"),
        ("more layers", "wrong-adapter", "tensors do not fit"),
        ("no such module", "wrong-adapter", "nobody"),
        ("embedding", "wrong-adapter", ""),
        ("no numbers", "wrong-adapter", "not finite"),
        ("cut off", "wrong-adapter", ADAPTER),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_nothing_is_left_of_it(
    folders: dict[str, Path], tmp_path: Path, how: str, code: str, found: str
) -> None:
    model = opened(folders["two"])
    before = logits(model)
    with pytest.raises(InputError) as refused:
        add_adapter(model, "bad", broken(tmp_path / "bad", how))
    assert refused.value.code == code
    assert found in refused.value.found
    assert "\n" not in refused.value.found
    assert list(model.peft_config) == [TUNED]
    assert not [name for name, _ in model.named_parameters() if ".bad." in name]
    assert RowLora.mixes(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    add_adapter(model, "bad", folders["three"])


@pytest.mark.parametrize("method", [{"kind": "ia3"}, {"dora": True}])
def test_what_is_served_alone_stays_alone(
    folders: dict[str, Path], tmp_path: Path, method: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="beside what is served"):
        add_adapter(opened(saved(tmp_path / "own", **method)), "two", folders["two"])


def test_an_adapter_that_memory_does_not_hold_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folders[TUNED])
    monkeypatch.setattr(
        row_lora.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})
    )
    with pytest.raises(MachineError, match="MB are free"):
        add_adapter(model, "two", folders["two"])
    assert list(model.peft_config) == [TUNED]


class Held(Engine):
    """An engine whose loop waits for a signal before each step."""

    go: threading.Event

    def decoder(self) -> Decoder:
        made = super().decoder()
        step = made.step

        def held() -> None:
            self.go.wait(20)
            step()

        made.step = held  # type: ignore[method-assign]
        return made


@pytest.fixture
def service(folders: dict[str, Path]) -> Iterator[Service]:
    held = Held(opened(folders[TUNED]), tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="t"))
    held.go = threading.Event()
    held.go.set()
    made = Service(held)
    yield made
    held.go.set()
    made.close()


def ask(service: Service, adapter: str | None) -> tuple[Row, threading.Event]:
    done = threading.Event()

    def told(event: Event) -> None:
        assert not event.fault
        if event.finished:
            done.set()

    prompt = service.engine.template.prompt_ids([Message("user", SAID[1])])
    row = Row(prompt, Sampling(max_new_tokens=8), adapter)
    service.submit([Ticket(row, service.engine.template.parse, told)])
    return row, done


def test_adapters_come_while_answers_are_written_and_go_when_they_are(
    service: Service, folders: dict[str, Path]
) -> None:
    held = service.engine
    assert isinstance(held, Held)
    first = service.load_adapter(folders["two"])
    held.go.clear()
    row, done = ask(service, first)
    with pytest.raises(InputError) as refused:
        service.unload_adapter(first)
    assert refused.value.code == "adapter-in-use"
    loading = threading.Thread(target=service.load_adapter, args=[folders["three"]])
    loading.start()
    held.go.set()
    loading.join(20)
    assert not loading.is_alive()
    assert done.wait(20)
    assert [row.ids] == alone(folders, [Row(row.prompt, row.sampling, "two")])
    service.unload_adapter(first)
    with pytest.raises(Unloaded):
        ask(service, first)
    assert service.load_adapter(folders["two"]) != first  # who meant the old one never gets a new
    plain, done = ask(service, TUNED)
    assert done.wait(20)
    assert [plain.ids] == alone(folders, [plain])


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("where", ["peft", "laying together"])
def test_where_memory_ends_nothing_is_left_of_an_adapter(
    service: Service, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    where: str, error: Exception,
) -> None:  # fmt: skip
    model = service.engine.model

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        if where == "peft":
            patch.setattr(model, "load_adapter", full)
        else:
            patch.setattr(row_lora, "_Layer", full)
        with pytest.raises(MachineError) as refused:
            service.load_adapter(folders["two"])
    assert refused.value.code == "no-room"
    assert list(model.peft_config) == [TUNED]
    assert not [name for name, _ in model.named_parameters() if ".loaded" in name]
    row, done = ask(service, TUNED)
    assert done.wait(20)
    assert [row.ids] == alone(folders, [row])
    row, done = ask(service, service.load_adapter(folders["two"]))
    assert done.wait(20)
    assert [row.ids] == alone(folders, [Row(row.prompt, row.sampling, "two")])


def test_a_service_that_ends_lets_nobody_wait(service: Service, folders: dict[str, Path]) -> None:
    from retone.inference.service import Busy

    service.close()
    with pytest.raises(Busy):
        service.load_adapter(folders["two"])
