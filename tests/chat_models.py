"""Chat templates and tokenizers of real models, and the template contract as a function.

Where a model's own tokenizer is not at hand, its template is paired with another model's, to which
the template's special tokens are added: such a model is marked as a stand-in vocabulary.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from retone.batch import EncodedRow
from retone.chat_template import ChatTemplate
from retone.conversation import Message

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
DAY = datetime.date(2024, 7, 26)

BAR = "\uff5c"  # a full-width bar, in the special tokens of one family

SMOLLM2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


@dataclasses.dataclass(frozen=True)
class Model:
    """A template and the vocabulary it is tested with.

    Attributes:
        title: the row's name in the documentation.
        vocabulary: a folder of shared tokenizers.
        template: a file of shared templates, template text, or empty for the tokenizer's own.
        added: special tokens that the template needs and the vocabulary lacks.
        stand_in: the vocabulary is another model's.
        as_file: read tokenizer.json as it is; otherwise transformers may rebuild it.
    """

    title: str
    vocabulary: str
    template: str = ""
    added: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    stand_in: bool = True
    as_file: bool = False


CHATML = ("<|im_start|>", "<|im_end|>")
MODELS = {
    "smollm2": Model("SmolLM2 Instruct", "qwen3", SMOLLM2, eos="<|im_end|>"),
    "smollm3": Model("SmolLM3", "qwen3", "HuggingFaceTB-SmolLM3-3B", eos="<|im_end|>"),
    "hermes-3-tools": Model(
        "Hermes 3 (tool use)",
        "llama-3.1",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        CHATML,
        eos="<|im_end|>",
    ),
    "qwen2.5": Model("Qwen2.5 Instruct", "qwen3", "Qwen-Qwen2.5-7B-Instruct"),
    "qwen3": Model("Qwen3", "qwen3", "Qwen-Qwen3-0.6B", stand_in=False),
    "deepseek-r1-distill": Model(
        "DeepSeek R1 Distill",
        "qwen3",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        (
            f"<{BAR}User{BAR}>",
            f"<{BAR}Assistant{BAR}>",
            f"<{BAR}begin▁of▁sentence{BAR}>",
            f"<{BAR}end▁of▁sentence{BAR}>",
        ),
        f"<{BAR}begin▁of▁sentence{BAR}>",
        f"<{BAR}end▁of▁sentence{BAR}>",
    ),
    "gemma-2": Model(
        "Gemma 2",
        "qwen3",
        "google-gemma-2-2b-it",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
    ),
    "granite-4": Model(
        "Granite 4.0",
        "qwen3",
        "ibm-granite-granite-4.0",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
    ),
    "llama-3.1": Model(
        "Llama 3.1 Instruct", "llama-3.1", "meta-llama-Llama-3.1-8B-Instruct", stand_in=False
    ),
    "llama-3.2": Model(
        "Llama 3.2 Instruct", "llama-3.1", "meta-llama-Llama-3.2-3B-Instruct", stand_in=False
    ),
    "phi-3.5": Model(
        "Phi-3.5 mini", "phi-3-mini", "microsoft-Phi-3.5-mini-instruct", stand_in=False
    ),
    "mistral-nemo": Model(
        "Mistral Nemo",
        "qwen3",
        "mistralai-Mistral-Nemo-Instruct-2407",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
    ),
    "gpt-oss": Model(
        "gpt-oss",
        "qwen3",
        "openai-gpt-oss-120b",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
    ),
    "phi-3": Model("Phi-3 mini", "phi-3-mini", stand_in=False),
    "phi-3-as-file": Model("Phi-3 mini", "phi-3-mini", stand_in=False, as_file=True),
    "tinyllama": Model("TinyLlama Chat", "tinyllama", stand_in=False),
    "llama-3": Model("Llama 3 Instruct", "llama-3.1", stand_in=False),
}
REFUSED = ("hermes-3-tools", "deepseek-r1-distill")
TRAINABLE = [name for name in MODELS if name not in REFUSED]
OWN_TOKENIZER = [name for name in TRAINABLE if not MODELS[name].stand_in]
DOCUMENTED = list(MODELS)[:13]


@functools.cache
def tokenizer_of(name: str) -> Any:
    """The tokenizer of a model with its template set, or the tiny one; loaded once."""
    if name == "tiny":
        return tiny.tokenizer()
    if not SHARED.exists():
        pytest.skip(f"no tokenizers in {SHARED}")
    model = MODELS[name]
    reader = PreTrainedTokenizerFast if model.as_file else AutoTokenizer
    with tempfile.TemporaryDirectory() as folder:
        for file in (SHARED / "tokenizers" / model.vocabulary).iterdir():
            packed = file.suffix == ".gz"
            content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
            (Path(folder) / file.name.removesuffix(".gz")).write_bytes(content)
        tokenizer = reader.from_pretrained(folder)
    if model.added:
        tokenizer.add_special_tokens({"extra_special_tokens": list(model.added)})
    if model.stand_in:
        tokenizer.bos_token = model.bos
        tokenizer.eos_token = model.eos or tokenizer.eos_token
    if model.template:
        inline = "{" in model.template
        tokenizer.chat_template = model.template if inline else shared_template(model.template)
    return tokenizer


def shared_template(name: str) -> str:
    """The text of a public template."""
    return (SHARED / "templates" / f"{name}.jinja").read_text()


@functools.cache
def template_of(name: str) -> ChatTemplate:
    """The chat template of a model, probed once."""
    return ChatTemplate(tokenizer_of(name), name=name, date=DAY)


def _id(name: str) -> str:
    return f"{name}-stand-in-vocabulary" if MODELS[name].stand_in else name


def each(names: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrises `name`, saying which vocabularies are stand-ins."""
    return pytest.mark.parametrize("name", [pytest.param(name, id=_id(name)) for name in names])


def chat(*contents: str, system: str = "") -> list[Message]:
    """Messages by user and assistant in turn."""
    roles = ("user", "assistant")
    turns = [Message(roles[at % 2], content) for at, content in enumerate(contents)]  # type: ignore[arg-type]
    return [Message("system", system), *turns] if system else turns


SINGLE = chat("Where is the key?", "Under the mat, it is.")
MULTI = chat("Hello!", "Good day.", "How are you?", "Well, thank you.\n\nAnd you?", "Fine.", "Ha!")
WITH_SYSTEM = chat("Hello!", "Good day.", system="Be brief.")
NO_SYSTEM_ROLE = ("gemma-2", "mistral-nemo")  # refused, or dropped once an answer follows
MERGED = "merged into the first user turn"
OPENINGS = {"qwen3": "<think>\n\n</think>\n\n", "gpt-oss": "<|channel|>final<|message|>"}


def ids_of_transformers(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], prompt: bool = False
) -> tuple[int, ...]:
    """What the tokenizer's own method makes of the messages, as the template can render them."""
    if template.system == MERGED and messages[0].role == "system":
        system, user, *later = messages
        messages = [Message("user", f"{system.content}\n\n{user.content}"), *later]
    encoding = tokenizer.apply_chat_template(
        [message.as_dict() for message in messages],
        chat_template=template.text,
        add_generation_prompt=prompt,
        tokenize=True,
    )
    return tuple(encoding["input_ids"])


def trained_runs(row: EncodedRow) -> list[range]:
    """Index ranges of neighbouring tokens that are trained."""
    runs: list[range] = []
    for at, weight in enumerate(row.loss_weights):
        if weight and runs and runs[-1].stop == at:
            runs[-1] = range(runs[-1].start, at + 1)
        elif weight:
            runs.append(range(at, at + 1))
    return runs


def trained_ids(row: EncodedRow) -> list[int]:
    pairs = zip(row.input_ids, row.loss_weights, strict=True)
    return [token for token, weight in pairs if weight]


def assert_contract(
    tokenizer: Any,
    template: ChatTemplate,
    messages: Sequence[Message],
    opening: str = "",
    lead: str = "",
) -> list[EncodedRow]:
    """Encode, and check every sentence of the contract with the tokenizer's own methods."""
    rows = template.encode(messages, source="chats.jsonl", row=7)
    turns = [at for at, message in enumerate(messages) if message.weight]
    whole = len(rows) == 1 and len(turns) > 1
    stop_text = tokenizer.decode([template.stop_id])
    spans = [(row, run) for row in rows for run in trained_runs(row)]
    for turn, (row, run) in zip(turns, spans, strict=True):
        shown = messages if whole or turn == len(messages) - 1 else messages[: turn + 1]
        assert row.input_ids == ids_of_transformers(tokenizer, template, shown)
        prompt = ids_of_transformers(tokenizer, template, messages[:turn], prompt=True)
        assert template.prompt_ids(messages[:turn]) == prompt
        assert row.input_ids[: run.start] == prompt
        ids = row.input_ids[run.start : run.stop]
        assert ids[-1] == template.stop_id
        assert template.stop_ids.isdisjoint(ids[:-1])
        assert template.parse(ids) == messages[turn].content
        before = tokenizer.decode(prompt)
        after = tokenizer.decode(row.input_ids[: run.stop]).removeprefix(before)
        expected = opening + messages[turn].content + lead + stop_text
        assert expected in (after, tokenizer.decode(ids))
        weights = {row.loss_weights[at] for at in run}
        assert weights == {messages[turn].weight}
        assert (row.source, row.row) == ("chats.jsonl", 7)
        assert row.loss_weights[0] == 0
    return rows
