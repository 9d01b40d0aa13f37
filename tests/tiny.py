"""A tiny random Llama and a small real tokenizer: real code paths in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retone.batch import EncodedRow
from retone.config import MethodSection

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "The cat sleeps on the old piano while rain taps at the window.",
    "Rewrite the sentence as Yoda would say it. On the old piano, the cat sleeps.",
    "Question, answer, system, user and assistant; who, what, where, when and why?",
]


@cache
def tokenizer() -> Any:
    """A byte-level BPE of 320 entries with ChatML."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def model(seed: int = 0, **settings: Any) -> Any:
    """A random Llama of two layers, hidden 32, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            **settings,
        }
    )
    return LlamaForCausalLM(config).eval()


def folder(path: Path, seed: int = 0, **settings: Any) -> Path:
    """The tiny model and tokenizer saved as a base model folder."""
    model(seed, **settings).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def method(kind: str = "lora", **fields: Any) -> MethodSection:
    """A [method] whose rank is filled, as `resolve` fills it."""
    filled: dict[str, Any] = {"rank": 8} if kind == "lora" else {}
    return MethodSection.model_validate({"kind": kind, **filled, **fields})


def rows(count: int, seed: int = 0, *, shortest: int = 6, longest: int = 24) -> list[EncodedRow]:
    """Random rows whose second half is trained, some tokens with weight 0.5."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(3, 320, (length,), generator=generator).tolist()
        half = length // 2
        weights = [0.0] * half + [1.0 if i % 3 else 0.5 for i in range(length - half)]
        made.append(EncodedRow(tuple(ids), tuple(weights), "random", number + 1))
    return made
