"""GGUF files in llama.cpp itself: the same probabilities and the same ids as in transformers."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import tiny
from chat_models import SHARED, TRAINABLE, tokenizer_of
from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.inference.llama_cpp import LlamaServer
from retone.models.gguf_export import write_gguf
from retone.models.gguf_lora import write_lora_gguf
from retone.models.locate import locate

pytest.importorskip("xllamacpp", reason="llama.cpp runs from the wheel xllamacpp")

SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
    "max_position_embeddings": 1024, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BASE = {"rope_theta": 10_000.0}
LLAMA3 = {"rope_type": "llama3", **BASE, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", **BASE, "factor": 4.0, "original_max_position_embeddings": 256}
LONG = {"rope_type": "longrope", **BASE, "original_max_position_embeddings": 512,
        "short_factor": [1.0 + 0.1 * at for at in range(8)],
        "long_factor": [4.0 + 0.1 * at for at in range(8)]}  # fmt: skip
GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 8}
GEMMA3 = {**GEMMA, "rope_parameters": {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear rope": ("Llama", {"rope_parameters": {**YARN, "rope_type": "linear"}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3, yarn": ("Qwen3", {"rope_parameters": YARN, "head_dim": 32}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3, longrope": ("Phi3", {"rope_parameters": LONG, "sliding_window": 1024}),
    "phi3, part of a head": ("Phi3", {"rope_parameters": {**BASE, "rope_type": "default",
                                                        "partial_rotary_factor": 0.5}}),
    "gemma": ("Gemma", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", {**GEMMA3, "num_hidden_layers": 7}),
    "gemma3, other layers": ("Gemma3", {**GEMMA3, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]}),
}  # fmt: skip
IDS = [5, 61, 200, 33, 90, 14, 251, 118, 7, 300, 44, 180, 66, 29, 101, 210, 8, 77, 130, 45]


def saved(folder: Path, family: str, **settings: Any) -> Any:
    """A random model of a family, saved in several files with the tiny tokenizer."""
    name, own = FAMILIES[family]
    text = "TextConfig" if name == "Gemma3" else "Config"
    config = getattr(transformers, f"{name}{text}")(**{**SMALL, **own, **settings})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms and biases begin as ones and zeros
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape)
        # Never the likeliest: llama.cpp tells no probabilities behind a stop or half a character.
        words = tiny.tokenizer()
        broken = [at for at in range(320) if at < 3 or "\ufffd" in words.decode([at])]
        model.get_output_embeddings().weight[broken] = 0.0
    model.save_pretrained(folder, max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(folder)
    return model


def drift(model: Any, server: LlamaServer, ids: Sequence[int], starts: Sequence[int]) -> float:
    """The largest difference of a likely token's log-probability, behind each of the prefixes."""
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    worst = 0.0
    for length in starts:
        found = server.next_log_probs(ids[:length])
        own = expected[length - 1]
        best = int(own.argmax())
        # Two that are as likely may change places.
        assert next(iter(found)) == best or own[best] - own[next(iter(found))] < 0.01
        worst = max(worst, *(abs(float(own[token]) - each) for token, each in found.items()))
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_same_probabilities(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", family)
    write_gguf(tmp_path / "model", tmp_path / "a.gguf", "f32", template="", name="tiny")
    with LlamaServer(tmp_path / "a.gguf", context=256) as server:
        assert drift(model, server, IDS, range(1, len(IDS) + 1)) < 0.02


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.15), ("q5_1", 1.0), ("q4_0", 2.0), ("q6_k", 0.5),
     ("q5_k_m", 1.0), ("q4_k_m", 2.0)],
)  # fmt: skip
def test_a_kind_drifts_as_far_as_its_bits(kind: str, limit: float, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}
    model = saved(tmp_path / "model", "llama", **wide, initializer_range=0.03)
    write_gguf(tmp_path / "model", tmp_path / "a.gguf", kind, template="", name="tiny")
    with LlamaServer(tmp_path / "a.gguf", context=256) as server:
        with torch.no_grad():
            own = model(input_ids=torch.tensor([IDS])).logits[0, -1].float().log_softmax(-1)
        found = server.next_log_probs(IDS, top=320)
        apart = torch.tensor([abs(float(own[token]) - each) for token, each in found.items()])
    print(f"{kind}: {apart.max():.4f}")
    assert apart.max() < limit


@pytest.mark.parametrize("family", ["llama, wide heads", "qwen3", "phi3", "gemma2"])
def test_an_adapter_stands_beside_its_base(family: str, tmp_path: Path) -> None:
    saved(tmp_path / "base", family)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules="all-linear")
    tuned = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    write_gguf(tmp_path / "base", tmp_path / "base.gguf", "f32", template="", name="tiny")
    write_lora_gguf(tmp_path / "adapter", tmp_path / "base", tmp_path / "a.gguf", name="tuned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    with LlamaServer(tmp_path / "base.gguf", lora=tmp_path / "a.gguf", context=256) as server:
        assert drift(model, server, IDS, [1, 9, 20]) < 0.02
        with model.disable_adapter(), pytest.raises(AssertionError):
            assert drift(model, server, IDS, [9, 20]) < 0.02  # it was on


# -------------------------------------------------------------------------------------- tokenizers

TEXTS = [
    "Hello, world!", "In 1998 there were 12345 of 7,000.5", "naïve café — “quoted” …",
    "日本語と中文", "ещё раз, Привет", "مرحبا", "🙂 👩\u200d👩\u200d👧 🇫🇷", "  two spaces",
    "behind  ", "a\n\nb\n\n1. x\n\t y", "I'll, you'RE, don't",
    "x = {'a': [1, 2]}  # code\n    return x", "\n", "<not> a | token",
    "", " ", "\u017f Ⅷ ½ ٣", "e\u0301", "\u200b\ufeff\x00", "a" * 70,
]  # fmt: skip


def file_for(folder: Path, tokenizer: Any, template: str = "") -> Path:
    """A file whose model knows as many tokens as the tokenizer, and 3 more."""
    tiny.model(vocab_size=len(tokenizer) + 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "a.gguf", "f16", template=template, name="words")
    return folder / "a.gguf"


def check_ids(tokenizer: Any, server: LlamaServer, texts: Sequence[str]) -> None:
    for text in texts:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert server.token_ids(text, special=False) == expected, text


def unpacked(name: str, folder: Path) -> Path:
    """A shared tokenizer as a folder; its tokenizer.json as it is."""
    source = SHARED / "tokenizers" / name
    if not source.is_dir():
        pytest.skip(f"no tokenizers in {SHARED}")
    folder.mkdir()
    for file in source.iterdir():
        packed = file.suffix == ".gz"
        content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        (folder / file.name.removesuffix(".gz")).write_bytes(content)
    return folder


def special_texts(tokenizer: Any) -> list[str]:
    """Texts in which special tokens stand between words."""
    names = [str(token) for token in tokenizer.added_tokens_decoder.values()][:12]
    return [f"{name}\nHello {name} there{name}{name} \n" for name in names]


REAL = {
    "llama-3.1": "<|begin_of_text|>", "qwen3": "", "phi-3-mini": "", "tinyllama": "",
}  # fmt: skip


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("name", REAL)
def test_a_real_tokenizer_gives_the_same_ids(name: str, as_file: bool, tmp_path: Path) -> None:
    """As it is on the hub, and as transformers rebuilds and saves it."""
    source = unpacked(name, tmp_path / "source")
    reader = PreTrainedTokenizerFast if as_file else AutoTokenizer
    tokenizer = reader.from_pretrained(source)
    template = tokenizer.chat_template
    with LlamaServer(file_for(tmp_path / "model", tokenizer, template)) as server:
        messages = [Message("user", " Hi 12"), Message("assistant", "Ho!"), Message("user", "Who?")]
        expected = tokenizer.apply_chat_template(
            [each.as_dict() for each in messages], add_generation_prompt=True
        )["input_ids"]
        assert server.prompt_ids(messages) == list(expected)
        assert server.read_as(messages) == len(expected)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_template_gives_the_same_prompt(name: str, tmp_path: Path) -> None:
    """As the run renders it, whatever llama.cpp hands to templates by itself."""
    if not SHARED.is_dir():
        pytest.skip(f"no tokenizers in {SHARED}")
    tokenizer = tokenizer_of(name)
    template = ChatTemplate(tokenizer, name=name, date=datetime.date(2024, 2, 3))
    folder = tmp_path / "model"
    messages = [Message("user", "Hi 12"), Message("assistant", "Ho!"), Message("user", "Who?")]
    with LlamaServer(file_for(folder, tokenizer, template.text)) as server:
        assert server.prompt_ids(messages) == list(template.prompt_ids(messages))


@pytest.mark.parametrize("name", REAL)
def test_plain_texts_have_the_same_ids(name: str, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(unpacked(name, tmp_path / "source"))
    texts = [text for text in TEXTS if name != "qwen3" or text != "e\u0301"]  # it composes accents
    with LlamaServer(file_for(tmp_path / "model", tokenizer)) as server:
        check_ids(tokenizer, server, texts)
        for text in special_texts(tokenizer):
            assert server.token_ids(text) == tokenizer(text).input_ids


def test_the_bundled_default_answers(tmp_path: Path) -> None:
    """Its own tokenizer, its own template, 4.5 bits a weight."""
    folder = locate("smollm2-135m-instruct", offline=True).path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    counts = write_gguf(
        folder, tmp_path / "a.gguf", "q4_0", template=tokenizer.chat_template, name="SmolLM2"
    )
    assert counts == {"F32": 61, "Q4_0": 210, "Q8_0": 1}
    messages = [Message("user", "What is the capital of France?")]
    with LlamaServer(tmp_path / "a.gguf") as server:
        check_ids(tokenizer, server, TEXTS)
        expected = tokenizer.apply_chat_template(
            [each.as_dict() for each in messages], add_generation_prompt=True
        )["input_ids"]
        assert server.prompt_ids(messages) == list(expected)
        said, stopped = server.complete(expected, 60)
        assert "Paris" in tokenizer.decode(said)
        assert stopped


def sentencepiece_like(prefix: str | None) -> Any:
    """BPE with byte fallback, trained on the tiny texts; Gemma's way where there is no prefix."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prefix is None:
        bpe.normalizer = normalizers.Replace(" ", "▁")
        bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    special = ["<unk>", "<bos>", "<eos>", "<end_of_turn>"]
    fallback = [f"<0x{at:02X}>" for at in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + fallback)
    bpe.train_from_iterator(tiny.TEXT * 3, trainer)
    told = json.loads(bpe.to_str())
    told["added_tokens"] = told["added_tokens"][: len(special)]
    bpe = Tokenizer.from_str(json.dumps(told))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.mark.parametrize("prefix", [None, "never", "always", "first"])
def test_byte_fallback_gives_the_same_ids(prefix: str | None, tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(prefix)
    # `always` puts nothing before a text that begins with a space; llama.cpp does
    texts = [text for text in TEXTS if prefix in (None, "never") or text[:1] != " "]
    with LlamaServer(file_for(tmp_path / "model", tokenizer)) as server:
        check_ids(tokenizer, server, [*tiny.TEXT, *texts])


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|over|>"])
def test_generation_stops_at_the_end_of_a_turn(eos: str, tmp_path: Path) -> None:
    """The token that ends a turn is one that llama.cpp does not know, and is not always eos."""
    source = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=source, eos_token=eos)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|over|>"]})
    template = "{% for m in messages %}{{ m.content }}<|over|>{% endfor %}"
    model = tiny.model(vocab_size=323, tie_word_embeddings=False)
    with torch.no_grad():  # it always says one thing
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<|over|>")] = 1.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "a.gguf", "f32", template=template, name="stops")
    with LlamaServer(tmp_path / "a.gguf") as server:
        said, stopped = server.complete([60, 61], 5)
        assert stopped
        assert len(said) < 2
