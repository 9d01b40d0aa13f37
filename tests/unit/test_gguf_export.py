"""What stands in GGUF files, and what is refused rather than written wrong, without llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

import tiny
from retone.errors import InputError, MachineError
from retone.models import gguf_export, gguf_quants
from retone.models.gguf_architectures import permute
from retone.models.gguf_export import convert_with_checkout, write_gguf
from retone.models.gguf_lora import write_lora_gguf
from retone.models.gguf_quants import gguf_kinds, pack, packed_bytes, type_of
from retone.models.gguf_vocabulary import Vocabulary, read_vocabulary


def write(folder: Path, kind: str = "f32", template: str = tiny.CHATML, **more: Any) -> GGUFReader:
    write_gguf(folder, folder / "a.gguf", kind, template=template, **{"name": "Tiny", **more})
    return GGUFReader(folder / "a.gguf")


def value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refused(folder: Path, code: str, *said: str) -> InputError:
    """The refusal of a model; nothing is left behind."""
    with pytest.raises(InputError) as error:
        write(folder)
    assert error.value.code == code
    for each in said:
        assert each in error.value.found
    assert not list(folder.glob("*gguf*")) + list(folder.glob(".*"))
    return error.value


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    counts = write_gguf(
        tmp_path, tmp_path / "out" / "a.gguf", "bf16",
        template=tiny.CHATML, name="Tiny", licence="Apache-2.0",
    )  # fmt: skip
    assert counts == {"BF16": 15, "F32": 5}
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.gguf"]
    reader = GGUFReader(tmp_path / "out" / "a.gguf")
    expected = {
        "general.architecture": "llama", "general.name": "Tiny", "general.license": "Apache-2.0",
        "general.file_type": 32, "general.quantization_version": 2, "llama.block_count": 2,
        "llama.context_length": 512, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 8,
        "llama.rope.dimension_count": 8, "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": tiny.CHATML,
    }  # fmt: skip
    assert {key: value(reader, key) for key in expected} == expected
    assert len(value(reader, "tokenizer.ggml.tokens")) == 320
    stored = load_file(tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in reader.tensors}
    q = stored["model.layers.1.self_attn.q_proj.weight"].bfloat16().float().numpy()
    packed = quants.dequantize(found["blk.1.attn_q.weight"].data, GGMLQuantizationType.BF16)
    assert np.array_equal(packed, permute(q, 4))
    assert not np.array_equal(packed, q)
    assert found["output_norm.weight"].tensor_type == GGMLQuantizationType.F32


def test_permuting_puts_both_halves_of_a_head_side_by_side() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]  # two heads of six
    assert permute(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_a_context_ends_where_a_window_would_begin(tmp_path: Path) -> None:
    """llama.cpp has no window for Mistral."""
    config = MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=64,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert value(write(tmp_path), "llama.context_length") == 64


# ---------------------------------------------------------------------------------------- refusals


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    change(tmp_path / "config.json", architectures=["MixtralForCausalLM"])
    error = refused(tmp_path, "gguf-not-covered", "MixtralForCausalLM", "LlamaForCausalLM")
    assert "--llama-cpp CHECKOUT" in error.remedy


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_act": "relu"}, "relu"),
        ({"quantization_config": {"quant_method": "awq"}}, "packed"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2}}, "dynamic"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                                 "original_max_position_embeddings": 64, "beta_fast": 16}},
            "beta_fast",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                              "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_not_compute_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tiny.folder(tmp_path)
    change(tmp_path / "config.json", **fields)
    refused(tmp_path, "gguf-not-covered", said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24"),
        ({"final_logit_softcapping": None}, "softcapping"),
        ({"layer_types": ["full_attention"] + ["sliding_attention"] * 2}, "layer_types"),
        ({"tie_word_embeddings": False}, "head"),
    ],
)
def test_gemmas_that_llama_cpp_does_not_know_are_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = Gemma2Config(**{
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "query_pre_attn_scalar": 8, **settings,
    })  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "gguf-not-covered", said)


def test_tensors_too_many_and_too_few_are_refused_together(tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    weights["model.router.weight"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(
        tmp_path, "gguf-not-covered", "blk.1.ffn_up.weight is missing", "q_norm", "model.router"
    )


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "gguf-not-covered", "model.norm.weight holds packed weights (I8)")


@pytest.mark.parametrize(("bad", "kind"), [(float("nan"), "q8_0"), (1e6, "f16")])
def test_weights_that_do_not_fit_leave_the_old_file(bad: float, kind: str, tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "a.gguf").write_text("older")
    with pytest.raises(InputError) as error:
        write(tmp_path, kind)
    assert error.value.code == "weights-out-of-range"
    assert "blk.1.ffn_up.weight" in error.value.found
    assert (tmp_path / "a.gguf").read_text() == "older"
    assert not list(tmp_path.glob(".*"))


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    tiny.folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "incomplete-model", "model.safetensors")


def test_unknown_kinds_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write(tiny.folder(tmp_path), "q4_k")
    assert 'did you mean "q4_k_m"?' in error.value.found


def test_a_disk_that_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.folder(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_export, "_take_name", full)
    with pytest.raises(MachineError, match=r"a\.gguf could not be written"):
        write(tmp_path)
    assert not list(tmp_path.glob("*gguf*")) + list(tmp_path.glob(".*"))


# ------------------------------------------------------------------------------------------- types


def test_rows_that_blocks_do_not_divide_get_another_type() -> None:
    def chosen(name: str, shape: tuple[int, ...], kind: str = "q4_k_m", tied: bool = False) -> str:
        return type_of(name, shape, gguf_kinds()[kind], layers=24, tied=tied).name

    assert chosen("blk.5.attn_q.weight", (512, 256)) == "Q4_K"
    assert chosen("blk.5.attn_q.weight", (512, 288)) == "Q5_0"
    assert chosen("blk.5.attn_q.weight", (512, 40)) == "F16"
    assert chosen("blk.5.attn_norm.weight", (256,)) == "F32"
    assert chosen("output.weight", (512, 256)) == "Q6_K"
    assert chosen("token_embd.weight", (512, 256)) == "Q4_K"
    assert chosen("token_embd.weight", (512, 256), tied=True) == "Q6_K"
    assert chosen("token_embd.weight", (512, 288), tied=True) == "Q8_0"
    more = [at for at in range(24) if chosen(f"blk.{at}.ffn_down.weight", (256, 256)) == "Q6_K"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert chosen("blk.5.attn_v.weight", (128, 288)) == "Q8_0"
    assert chosen("blk.5.attn_q.weight", (512, 288), "q5_k_m") == "Q5_1"
    assert chosen("blk.5.attn_q.weight", (512, 40), "q8_0") == "F16"


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_quantiser_of_the_wheel_packs_what_unpacks(kind: str) -> None:
    pytest.importorskip("xllamacpp", reason="K-quants are packed by the wheel xllamacpp")
    values = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    packed = pack(values, GGMLQuantizationType[kind])
    assert packed.nbytes == packed_bytes(values.shape, GGMLQuantizationType[kind])
    _, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    again = quants.dequantize(packed.reshape(6, 2 * size), GGMLQuantizationType[kind])
    error = float(np.sqrt(np.mean((again - values) ** 2)))
    assert error < {"Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.025}[kind]


def test_k_quants_need_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_quants, "find_spec", lambda _: None)
    gguf_quants._quantiser.cache_clear()
    with pytest.raises(MachineError) as error:
        write(tiny.folder(tmp_path), "q4_k_m")
    gguf_quants._quantiser.cache_clear()
    assert "pip install 'retone[llamacpp]'" in error.value.remedy
    assert error.value.code == "no-llamacpp"


# -------------------------------------------------------------------------------------- vocabulary


def vocabulary(folder: Path, tokenizer: Any, rows: int = 330, template: str = "") -> Vocabulary:
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    return read_vocabulary(folder, rows, template)


def edited(folder: Path, **parts: Any) -> None:
    """Change parts of the tiny tokenizer.json."""
    tiny.tokenizer().save_pretrained(folder)
    change(folder / "tokenizer.json", **parts)


def test_tokens_have_types_and_spare_embeddings_have_names(tmp_path: Path) -> None:
    found = vocabulary(tmp_path, tiny.tokenizer())
    assert found.tokens[320:] == [f"[PAD{at}]" for at in range(320, 330)]
    assert set(found.types[320:]) == {TokenType.UNUSED}
    assert set(found.types[:3]) == {TokenType.CONTROL}
    assert set(found.types[3:320]) == {TokenType.NORMAL}
    assert not found.scores
    assert len(found.merges) == 320 - 256 - 3


def test_a_turn_ends_on_the_templates_token(tmp_path: Path) -> None:
    """<|endoftext|> ends turns, <|im_end|> is the tokenizer's own end; the config has a third."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    template = "{% for m in messages %}{{ m.content }}\n<|endoftext|>{% endfor %}"
    found = vocabulary(tmp_path, tiny.tokenizer(), template=template)
    assert {key: found.ids[key] for key in ("eos", "eot", "eom")} == {"eos": 2, "eot": 0, "eom": 1}


def test_the_beginning_is_added_only_where_prompts_have_it(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    start = "<|im_start|>"
    backend.post_processor = TemplateProcessing(f"{start} $A", None, [(start, 1)])
    tokenizer = tiny.tokenizer().__class__(
        tokenizer_object=backend, bos_token=start, eos_token="<|im_end|>"
    )
    assert vocabulary(tmp_path, tokenizer).flags["add_bos"]
    assert vocabulary(tmp_path, tokenizer, template=tiny.CHATML).flags["add_bos"]
    other = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert not vocabulary(tmp_path, tokenizer, template=other).flags["add_bos"]
    assert not vocabulary(tmp_path, tiny.tokenizer(), template=tiny.CHATML).flags["add_bos"]


SPLIT = {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pre_tokenizer": SPLIT}, r"\\w+"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True,
                               "trim_offsets": True}},
            "add_prefix_space",
        ),
    ],
)  # fmt: skip
def test_splits_that_llama_cpp_does_not_know_are_refused(
    parts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    edited(tmp_path, **parts)
    with pytest.raises(InputError) as error:
        read_vocabulary(tmp_path, 320, "")
    assert error.value.code == "gguf-tokenizer"
    assert said in error.value.found


def test_merges_that_scores_cannot_follow_are_refused(tmp_path: Path) -> None:
    """A token that is made at two ranks has one score only."""
    tokens = ["<unk>", *(f"<0x{at:02X}>" for at in range(256)), *"abc", "ab", "bc", "abc"]
    known = {token: at for at, token in enumerate(tokens)}
    for order, fine in (([0, 1, 2, 3], True), ([2, 0, 1, 3], False)):
        pairs = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
        merges = [pairs[at] for at in order]
        bpe = Tokenizer(models.BPE(known, merges, byte_fallback=True, unk_token="<unk>"))
        bpe.normalizer = normalizers.Replace(" ", "▁")
        bpe.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
        if fine:
            found = read_vocabulary(tmp_path, len(tokens), "")
            assert found.scores[-3:] == [0.0, -1.0, -2.0]
            assert found.types[:2] == [TokenType.UNKNOWN, TokenType.BYTE]
        else:
            with pytest.raises(InputError, match="merges of 'abc' at ranks 0 and 3"):
                read_vocabulary(tmp_path, len(tokens), "")


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="embeddings"):
        vocabulary(tmp_path, tiny.tokenizer(), rows=319)


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="eos_token"):
        read_vocabulary(tmp_path, 320, "")


def test_models_other_than_bpe_are_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="WordLevel"):
        read_vocabulary(tmp_path, 2, "")


def test_special_tokens_that_take_white_space_are_refused(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    told = json.loads((tmp_path / "tokenizer.json").read_text())
    for side in ("lstrip", "rstrip"):
        added = [{**token, side: at == 1} for at, token in enumerate(told["added_tokens"])]
        edited(tmp_path, added_tokens=added)
        with pytest.raises(InputError, match="white space"):
            read_vocabulary(tmp_path, 320, "")


def test_a_name_is_not_read_as_something_about_tokens(tmp_path: Path) -> None:
    """llama.cpp looks for phi-3 in names, and fails where such tokens are missing."""
    found = vocabulary(tmp_path, tiny.tokenizer())
    assert found.name("my Phi-3 tuned") == "my phi 3 tuned"
    assert found.name("yoda") == "yoda"


def test_a_template_that_raises_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no users"):
        vocabulary(tmp_path, tiny.tokenizer(), template="{{ raise_exception('no users') }}")


# ------------------------------------------------------------------------------------------ adapter


def adapter(folder: Path, base: Path, **settings: Any) -> Path:
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], **settings})
    model = get_peft_model(tiny.model(tie_word_embeddings=False), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_an_adapter_carries_its_scale_and_its_order(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    tuned = adapter(tmp_path / "adapter", base, use_rslora=True)
    write_lora_gguf(tuned, base, tmp_path / "a.gguf", name="tuned")
    reader = GGUFReader(tmp_path / "a.gguf")
    assert value(reader, "general.type") == "adapter"
    assert value(reader, "adapter.type") == "lora"
    assert value(reader, "adapter.lora.alpha") == 16 / 2 * 4  # rank-stabilised: alpha / sqrt(r)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(found) == 4
    own = load_file(tuned / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    assert np.array_equal(found["blk.1.attn_q.weight.lora_a"], own[name.format("A")].numpy())
    expected = permute(own[name.format("B")].numpy(), 4)
    assert np.array_equal(found["blk.1.attn_q.weight.lora_b"], expected)


def test_adapters_that_are_more_than_lora_are_refused(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    for number, more in enumerate(({"use_dora": True}, {"target_modules": ["lm_head"]})):
        tuned = adapter(tmp_path / f"adapter{number}", base, **more)
        with pytest.raises(InputError) as error:
            write_lora_gguf(tuned, base, tmp_path / "a.gguf", name="tuned")
        assert error.value.code == "not-plain-lora"
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", hidden_size=64)
    tuned = adapter(tmp_path / "adapter", base)
    with pytest.raises(InputError, match=r"\(32, 32\), the base's \(64, 64\)"):
        write_lora_gguf(tuned, base, tmp_path / "a.gguf", name="tuned")


# ---------------------------------------------------------------------------- checkout of llama.cpp

CONVERTER = """
import pathlib, sys
from conversion import words
model, _, out, _, kind = sys.argv[1:]
if kind == "f16":
    sys.exit("ERROR: the model is not supported")
pathlib.Path(out).write_text(f"{pathlib.Path(model).name} {words} {kind}")
"""


def test_a_checkout_converts_what_this_does_not(tmp_path: Path) -> None:
    checkout, model = tmp_path / "llama.cpp", tmp_path / "model"
    checkout.mkdir()
    model.mkdir()
    with pytest.raises(InputError) as error:
        convert_with_checkout(checkout, model, tmp_path / "a.gguf", "bf16")
    assert error.value.code == "no-checkout"
    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (checkout / "conversion.py").write_text("words = 'as'")
    convert_with_checkout(checkout, model, tmp_path / "out" / "a.gguf", "bf16")
    assert (tmp_path / "out" / "a.gguf").read_text() == "model as bf16"
    with pytest.raises(MachineError, match="the model is not supported"):
        convert_with_checkout(checkout, model, tmp_path / "out" / "b.gguf", "f16")
    with pytest.raises(InputError, match=r"llama-quantize a\.gguf"):
        convert_with_checkout(checkout, model, tmp_path / "out" / "a.gguf", "q4_0")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.gguf"]
