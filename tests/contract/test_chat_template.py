"""The template contract, on the templates and tokenizers of real models.

Where a model's own tokenizer is not at hand, its template is paired with another model's, to which
the template's special tokens are added: such a model is marked as a stand-in vocabulary.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retone.batch import EncodedRow
from retone.chat_template import ChatTemplate, RowRejected, pin_date, prints_date
from retone.conversation import Message
from retone.errors import InputError

ROOT = Path(__file__).parents[2]
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
}
REFUSED = ("hermes-3-tools", "deepseek-r1-distill")
TRAINABLE = [name for name in MODELS if name not in REFUSED]
OWN_TOKENIZER = [name for name in TRAINABLE if not MODELS[name].stand_in]
DOCUMENTED = list(MODELS)[:13]


def _id(name: str) -> str:
    return f"{name}-stand-in-vocabulary" if MODELS[name].stand_in else name


def each(names: Sequence[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [pytest.param(name, id=_id(name)) for name in names])


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tokenizer of a model, loaded once, with its template set."""
    if not SHARED.exists():
        pytest.skip(f"no tokenizers in {SHARED}")
    loaded: dict[str, Any] = {}

    def folder(vocabulary: str) -> Path:
        target: Path = tmp_path_factory.getbasetemp() / vocabulary
        if not target.exists():
            target.mkdir()
            for file in (SHARED / "tokenizers" / vocabulary).iterdir():
                packed = file.suffix == ".gz"
                content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
                (target / file.name.removesuffix(".gz")).write_bytes(content)
        return target

    def load(name: str) -> Any:
        if name not in loaded:
            model = MODELS[name]
            reader = PreTrainedTokenizerFast if model.as_file else AutoTokenizer
            tokenizer = reader.from_pretrained(folder(model.vocabulary))
            if model.added:
                tokenizer.add_special_tokens({"extra_special_tokens": list(model.added)})
            if model.stand_in:
                tokenizer.bos_token = model.bos
                tokenizer.eos_token = model.eos or tokenizer.eos_token
            if model.template:
                file = SHARED / "templates" / f"{model.template}.jinja"
                inline = "{" in model.template
                tokenizer.chat_template = model.template if inline else file.read_text()
            loaded[name] = tokenizer
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def template_of(tokenizer_of: Callable[[str], Any]) -> Callable[[str], ChatTemplate]:
    """The chat template of a model, probed once."""
    probed: dict[str, ChatTemplate] = {}

    def probe(name: str) -> ChatTemplate:
        if name not in probed:
            probed[name] = ChatTemplate(tokenizer_of(name), name=name, date=DAY)
        return probed[name]

    return probe


def chat(*contents: str, system: str = "") -> list[Message]:
    """Messages by user and assistant in turn."""
    roles = ("user", "assistant")
    turns = [Message(roles[at % 2], content) for at, content in enumerate(contents)]  # type: ignore[arg-type]
    return [Message("system", system), *turns] if system else turns


SINGLE = chat("Where is the key?", "Under the mat, it is.")
MULTI = chat("Hello!", "Good day.", "How are you?", "Well, thank you.\n\nAnd you?", "Fine.", "Ha!")
WITH_SYSTEM = chat("Hello!", "Good day.", system="Be brief.")
NO_SYSTEM_ROLE = ("gemma-2", "mistral-nemo")  # refused, or dropped once an answer follows
OPENINGS = {"qwen3": "<think>\n\n</think>\n\n", "gpt-oss": "<|channel|>final<|message|>"}


def ids_of_transformers(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], prompt: bool = False
) -> tuple[int, ...]:
    """What the tokenizer's own method makes of the messages."""
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
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], opening: str = ""
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
        expected = opening + messages[turn].content + stop_text
        assert expected in (after, tokenizer.decode(ids))
        weights = {row.loss_weights[at] for at in run}
        assert weights == {messages[turn].weight}
        assert (row.source, row.row) == ("chats.jsonl", 7)
        assert row.loss_weights[0] == 0
    return rows


@each(TRAINABLE)
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_contract(name: str, messages: list[Message], tokenizer_of: Any, template_of: Any) -> None:
    assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))


@each([name for name in TRAINABLE if name not in NO_SYSTEM_ROLE])
def test_contract_with_a_system_message(name: str, tokenizer_of: Any, template_of: Any) -> None:
    assert_contract(tokenizer_of(name), template_of(name), WITH_SYSTEM, OPENINGS.get(name, ""))


@each(TRAINABLE)
def test_the_tail_after_the_stop_token_is_masked(name: str, template_of: Any) -> None:
    for row in template_of(name).encode(SINGLE):
        (run,) = trained_runs(row)
        assert not any(row.loss_weights[run.stop :])
        assert row.input_ids[run.stop - 1] == template_of(name).stop_id


@each(TRAINABLE)
def test_there_is_no_second_bos(name: str, tokenizer_of: Any, template_of: Any) -> None:
    tokenizer, template = tokenizer_of(name), template_of(name)
    printed = template.render(MULTI, add_generation_prompt=False).count(tokenizer.bos_token or "\0")
    assert printed <= 1
    for ids in (template.prompt_ids(MULTI[:3]), template.encode(MULTI)[-1].input_ids):
        assert ids.count(tokenizer.bos_token_id) == printed


@each(["qwen3", "gpt-oss"])
def test_a_template_that_changes_earlier_turns_makes_a_row_of_each(
    name: str, tokenizer_of: Any, template_of: Any
) -> None:
    template = template_of(name)
    assert template.strategy == "per_turn"
    assert template.strategy_reason
    rows = template.encode(MULTI)
    assert len(rows) == 3
    for row, end in zip(rows, (2, 4, 6), strict=True):
        assert row.input_ids == ids_of_transformers(tokenizer_of(name), template, MULTI[:end])
        assert len(trained_runs(row)) == 1
        assert template.parse(trained_ids(row)) == MULTI[end - 1].content


@each([name for name in TRAINABLE if name not in ("qwen3", "gpt-oss")])
def test_any_other_template_keeps_a_conversation_in_one_row(name: str, template_of: Any) -> None:
    template = template_of(name)
    assert (template.strategy, template.strategy_reason) == ("whole", "")
    (row,) = template.encode(MULTI)
    assert [template.parse([row.input_ids[at] for at in run]) for run in trained_runs(row)] == [
        message.content for message in MULTI[1::2]
    ]


def test_messages_after_the_last_answer_stay_in_the_row_and_are_masked(
    tokenizer_of: Any, template_of: Any
) -> None:
    template = template_of("smollm2")
    messages = [*SINGLE, Message("user", "Thanks.")]
    (row,) = template.encode(messages)
    assert row.input_ids == ids_of_transformers(tokenizer_of("smollm2"), template, messages)
    assert template.parse(trained_ids(row)) == SINGLE[1].content


# --- what ends an answer


@pytest.mark.parametrize(
    ("name", "stop", "others"),
    [
        ("phi-3", "<|end|>", {"<|endoftext|>"}),
        ("phi-3.5", "<|end|>", {"<|endoftext|>"}),
        ("gpt-oss", "<|return|>", set()),
        ("llama-3.1", "<|eot_id|>", set()),
        ("gemma-2", "<end_of_turn>", {"<eos>"}),
        ("tinyllama", "</s>", set()),
    ],
)
def test_the_stop_token_is_the_one_after_the_answer(
    name: str, stop: str, others: set[str], tokenizer_of: Any, template_of: Any
) -> None:
    tokens = tokenizer_of(name).convert_ids_to_tokens
    assert tokens(template_of(name).stop_id) == stop
    assert set(tokens(sorted(template_of(name).stop_ids))) == {stop, *others}


def test_phi_3_stops_on_its_end_token_although_another_one_pads_and_ends_texts(
    tokenizer_of: Any, template_of: Any
) -> None:
    tokenizer, template = tokenizer_of("phi-3"), template_of("phi-3")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 32000
    assert template.stop_id == 32007
    assert template.stop_ids == {32000, 32007}
    (row,) = template.encode(SINGLE)
    assert row.input_ids[-2:] == (32007, 32000)
    assert row.loss_weights[-2:] == (1.0, 0.0)


# --- contents: each holds, or the row is rejected for the reason given here

TRIMS = dict.fromkeys(("gemma-2", "llama-3.1", "llama-3.2"), "content-changed")
SWALLOWS = dict.fromkeys(("phi-3", "phi-3.5", "phi-3-as-file"), "tokens-merge-at-answer")
MARKS_SPACES = dict.fromkeys((*SWALLOWS, "tinyllama"), "tokens-do-not-invert")
COMPOSES = {
    name: "tokens-do-not-invert" for name in TRAINABLE if MODELS[name].vocabulary == "qwen3"
}
NEWLINE_JOINS = {
    "smollm2": "tokens-merge-at-answer",
    "smollm3": "content-changed",
    "qwen2.5": "tokens-merge-at-answer",
    "qwen3": "content-changed",
}
CONTENTS = {
    "unicode": ("Zoë läuft, 中文 и 🦜👩‍👩‍👧", {}),
    "newlines": ("one\ntwo\n\nthree\n\n\nfour", {}),
    "tabs": ("a\t\tb  c\r\nd", {}),
    "empty": ("", {}),
    "leading-space": ("  two before", TRIMS | SWALLOWS),
    "trailing-space": ("two after  ", TRIMS),
    "only-space": ("  ", TRIMS | SWALLOWS),
    "leading-newline": ("\nbelow", TRIMS | SWALLOWS | NEWLINE_JOINS),
    "trailing-newline": ("above\n", TRIMS),
    "decomposed-accent": ("cafe\u0301", COMPOSES),
    "space-marker": ("a\u2581b", MARKS_SPACES),
}


@each(TRAINABLE)
@pytest.mark.parametrize("kind", CONTENTS)
def test_content(name: str, kind: str, tokenizer_of: Any, template_of: Any) -> None:
    content, reasons = CONTENTS[kind]
    messages = chat("Say it.", content)
    if name not in reasons:
        assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))
        return
    with pytest.raises(RowRejected) as rejected:
        template_of(name).encode(messages)
    assert rejected.value.reason == reasons[name]
    assert rejected.value.detail


WORDS = st.lists(st.text("abcxyzÄé.,!?'中", min_size=1, max_size=8), min_size=1, max_size=8)
FEW = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@each(OWN_TOKENIZER)
@FEW
@given(words=WORDS)
def test_any_words_hold(name: str, words: list[str], tokenizer_of: Any, template_of: Any) -> None:
    messages = chat(" ".join(words[::-1]), " ".join(words), "More.", "\n".join(words))
    assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))


@each(OWN_TOKENIZER)
@FEW
@given(content=st.text(max_size=30))
def test_any_text_holds_or_is_rejected(
    name: str, content: str, tokenizer_of: Any, template_of: Any
) -> None:
    messages = chat(f"Repeat: {content}", content)
    try:
        template_of(name).encode(messages)
    except RowRejected as rejected:
        reason = rejected.reason
    else:
        reason = "holds"
        assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))
    broken = {"content-changed", "tokens-merge-at-answer", "tokens-do-not-invert"}
    assert reason in {"holds", *broken}


# --- special tokens in contents


@pytest.mark.parametrize(
    ("name", "token"),
    [("qwen3", "<|im_end|>"), ("phi-3", "<|end|>"), ("phi-3", "<|endoftext|>"), ("gpt-oss", "")],
)
def test_an_answer_that_spells_a_stop_token_is_rejected(
    name: str, token: str, tokenizer_of: Any, template_of: Any
) -> None:
    token = token or tokenizer_of(name).eos_token
    with pytest.raises(RowRejected) as rejected:
        template_of(name).encode(chat("What ends a turn?", f"The token {token} does."))
    assert rejected.value.reason == "stop-token-in-answer"


def test_an_answer_may_spell_another_special_token(tokenizer_of: Any, template_of: Any) -> None:
    messages = chat("What begins a turn?", "The token <|im_start|> does.")
    (row,) = assert_contract(tokenizer_of("smollm2"), template_of("smollm2"), messages)
    start = tokenizer_of("smollm2").convert_tokens_to_ids("<|im_start|>")
    assert start in trained_ids(row)


def test_a_question_may_spell_a_stop_token(tokenizer_of: Any, template_of: Any) -> None:
    messages = chat("What is <|im_end|> for?", "It ends a turn.")
    assert_contract(tokenizer_of("smollm2"), template_of("smollm2"), messages)


# --- loss weights


def test_a_turn_of_weight_0_is_context_only(tokenizer_of: Any, template_of: Any) -> None:
    messages = [MULTI[0], dataclasses.replace(MULTI[1], loss_weight=0.0), *MULTI[2:4]]
    for name in ("llama-3.1", "qwen3"):
        opening = OPENINGS.get(name, "")
        (row,) = assert_contract(tokenizer_of(name), template_of(name), messages, opening)
        assert template_of(name).parse(trained_ids(row)) == MULTI[3].content


def test_a_turn_carries_its_own_weight(tokenizer_of: Any, template_of: Any) -> None:
    messages = [MULTI[0], dataclasses.replace(MULTI[1], loss_weight=0.25), *MULTI[2:4]]
    (row,) = assert_contract(tokenizer_of("llama-3.1"), template_of("llama-3.1"), messages)
    assert [row.loss_weights[run.start] for run in trained_runs(row)] == [0.25, 1.0]


# --- rejected rows


@pytest.mark.parametrize(
    ("name", "messages", "reason", "detail"),
    [
        ("smollm2", chat("Hello?"), "no-assistant-turn", "1 messages"),
        ("smollm2", [], "no-assistant-turn", "0 messages"),
        (
            "smollm2",
            [SINGLE[0], Message("assistant", "Masked.", loss_weight=0)],
            "nothing-trained",
            "weight 0",
        ),
        (
            "smollm2",
            [Message("user", "Hi", loss_weight=1), SINGLE[1]],
            "weight-on-other-role",
            "by user",
        ),
        ("smollm2", [Message("assistant", "Hi!")], "no-prompt", "begins with"),
        ("smollm2", chat("Hi", "half a pair: \ud83d"), "not-unicode", "surrogate"),
        ("gemma-2", WITH_SYSTEM, "template-error", "System role not supported"),
        ("gemma-2", [*SINGLE, SINGLE[1]], "template-error", "must alternate"),
        ("mistral-nemo", WITH_SYSTEM, "prompt-not-prefix", "Be brief."),
        ("qwen3", chat("Hi", "Hm.</think>Yes."), "content-changed", "Hm."),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_rejected_row(
    name: str, messages: list[Message], reason: str, detail: str, template_of: Any
) -> None:
    with pytest.raises(RowRejected, match=reason) as rejected:
        template_of(name).encode(messages)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail


# --- refused templates

CHATML_LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{% endfor %}"
CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(content: str) -> str:
    """A ChatML template that writes `content` for each message m."""
    return CHATML_LOOP.replace("%s", content) + CHATML_PROMPT


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (chatml("{{ m.content | upper }}"), "content-changed"),
        (chatml("{{ m.content }}").replace("<|im_end|>", "(over)"), "no-stop-token"),
        (
            chatml("{{ m.content }}")
            .replace("{{ m.role }}\n", "{{ m.role }}: ")
            .replace("assistant\n", "assistant: "),
            "tokens-merge-at-answer",
        ),
        (chatml("{{ m.content }}") + "<think>", "prompt-not-prefix"),
        ("{% for m in messages %}", "template-error"),
    ],
)
def test_refused_template(
    template: str, reason: str, tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("qwen3")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError, match="Crafted") as refused:
        ChatTemplate(tokenizer, name="Crafted")
    assert refused.value.code == "template-refused"
    assert refused.value.found.startswith(f"{reason}: ")


def test_a_turn_that_ends_unlike_the_probe_is_rejected(
    tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("qwen3")
    moody = chatml("{{ m.content }}").replace("|im_end|>\n", "|im_end|>{{ '!' in m.content }}\n")
    monkeypatch.setattr(tokenizer, "chat_template", moody)
    template = ChatTemplate(tokenizer)
    assert_contract(tokenizer, template, SINGLE)
    with pytest.raises(RowRejected, match="no-stop-token"):
        template.encode(chat("Hello?", "Hello!"))


@each(REFUSED)
def test_refused_model(name: str, template_of: Any) -> None:
    reason = {"deepseek-r1-distill": "prompt-not-prefix", "hermes-3-tools": "template-error"}[name]
    with pytest.raises(InputError) as refused:
        template_of(name)
    assert refused.value.code == "template-refused"
    assert refused.value.found.startswith(f"{reason}: ")


@pytest.mark.parametrize("template", [None, {"tool_use": chatml("{{ m.content }}")}])
def test_a_tokenizer_without_a_chat_template_is_refused(
    template: Any, tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_of("qwen3"), "chat_template", template)
    with pytest.raises(InputError) as refused:
        ChatTemplate(tokenizer_of("qwen3"))
    assert refused.value.code == "no-chat-template"


def test_a_tokenizer_without_offsets_is_refused(tokenizer_of: Any) -> None:
    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer_of("qwen3"), name)

        def __call__(self, text: str, **options: Any) -> Any:
            raise NotImplementedError("offsets need a fast tokenizer")

    with pytest.raises(InputError, match="slow-tokenizer") as refused:
        ChatTemplate(Slow())
    assert refused.value.code == "template-refused"


# --- thinking and other openings


def test_a_thinking_block_in_one_conversation_makes_rows_of_its_turns(
    tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("qwen3")
    forgetful = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    monkeypatch.setattr(tokenizer, "chat_template", chatml(forgetful))
    template = ChatTemplate(tokenizer)
    assert template.strategy == "whole"
    assert len(assert_contract(tokenizer, template, MULTI)) == 1
    thinking = chat("Two and two?", "<think>Count.</think>Four.", "And one?", "Five.")
    assert len(assert_contract(tokenizer, template, thinking)) == 2


def test_an_answer_that_brings_its_own_thinking_is_trained_whole_and_read_without_it(
    tokenizer_of: Any, template_of: Any
) -> None:
    template = template_of("qwen3")
    content = "<think>\nA mat, then a key.\n</think>\n\nUnder the mat."
    (row,) = template.encode(chat("Where is the key?", content))
    assert tokenizer_of("qwen3").decode(trained_ids(row)) == f"{content}<|im_end|>"
    assert template.parse(trained_ids(row)) == "Under the mat."


@pytest.mark.parametrize(
    ("name", "generated", "answer"),
    [
        ("qwen3", "<think>\nLet me see.\n</think>\n\nYes.<|im_end|>", "Yes."),
        ("qwen3", "<think>\nLet me see", "<think>\nLet me see"),
        ("qwen3", "Yes.<|im_end|>\n<|im_start|>user", "Yes."),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes.<|return|>",
            "Yes.",
        ),
        ("phi-3", "Yes.<|endoftext|>", "Yes."),
        ("phi-3", "Yes.<|end|><|endoftext|>No.", "Yes."),
        ("llama-3.1", "No end in sight", "No end in sight"),
        ("llama-3.1", "", ""),
    ],
)
def test_parse(name: str, generated: str, answer: str, tokenizer_of: Any, template_of: Any) -> None:
    ids = tokenizer_of(name)(generated, add_special_tokens=False)["input_ids"]
    assert template_of(name).parse(ids) == answer


@each(OWN_TOKENIZER)
def test_parse_survives_half_a_character(name: str, tokenizer_of: Any, template_of: Any) -> None:
    ids = tokenizer_of(name)("🦜", add_special_tokens=False)["input_ids"]
    for cut in (ids[:-1], ids[-1:]):
        assert "\ufffd" in template_of(name).parse(cut)


def test_text_between_the_answer_and_its_stop_token_is_trained_and_not_read(
    tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("qwen3")
    monkeypatch.setattr(tokenizer, "chat_template", chatml("{{ m.content }}\nEND\n"))
    template = ChatTemplate(tokenizer)
    (row,) = template.encode(SINGLE)
    assert tokenizer.decode(trained_ids(row)) == f"{SINGLE[1].content}\nEND\n<|im_end|>"
    assert template.parse(trained_ids(row)) == SINGLE[1].content


# --- dates


def test_a_template_that_prints_the_date_prints_the_pinned_one(
    tokenizer_of: Any, template_of: Any
) -> None:
    for name, printed in (("llama-3.2", "26 Jul 2024"), ("gpt-oss", "2024-07-26")):
        template = template_of(name)
        assert template.date == DAY
        assert f"ate: {printed}\n" in template.render(SINGLE, add_generation_prompt=True)
        assert prints_date(tokenizer_of(name).chat_template)
        later = ChatTemplate(tokenizer_of(name), date=datetime.date(2025, 1, 2))
        assert later.prompt_ids(SINGLE[:1]) != template.prompt_ids(SINGLE[:1])


def test_without_a_date_today_is_pinned(tokenizer_of: Any) -> None:
    before = datetime.date.today()
    template = ChatTemplate(tokenizer_of("llama-3.2"))
    assert template.date in {before, datetime.date.today()}


def test_a_template_that_prints_no_date_has_none(tokenizer_of: Any, template_of: Any) -> None:
    assert not prints_date(tokenizer_of("smollm2").chat_template)
    assert template_of("smollm2").date is None
    assert template_of("smollm2").text == tokenizer_of("smollm2").chat_template


@pytest.mark.parametrize(
    "code", ["%d %b %Y", "%Y-%m-%d", "%A, %B %d, %Y", "%-d %B", "%H:%M:%S", "%F %T", "%j, 5 %%"]
)
@pytest.mark.parametrize("day", [DAY, datetime.date(2025, 2, 3)])
def test_a_pinned_date_prints_as_the_calendar_does(
    code: str, day: datetime.date, tokenizer_of: Any
) -> None:
    template = pin_date(f"{{{{ strftime_now({code!r}) }}}}", day)
    printed = tokenizer_of("qwen3").apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False
    )
    assert printed == datetime.datetime.combine(day, datetime.time()).strftime(code)


def test_pinning_changes_nothing_but_the_date(tokenizer_of: Any) -> None:
    template = "  {% if true %}a{% endif %}\n  b {{ '%' }}\n"
    hello = [{"role": "user", "content": "Hi"}]
    for text in (template, f"\n{template}"):
        plain, pinned = (
            tokenizer_of("qwen3").apply_chat_template(hello, chat_template=each, tokenize=False)
            for each in (text, pin_date(text, DAY))
        )
        assert plain == pinned


# --- the lock


def test_a_lock_is_json_and_verifies(template_of: Any) -> None:
    for name in TRAINABLE:
        lock = template_of(name).lock([SINGLE[:1], MULTI[:3]])
        assert template_of(name).verify_lock(json.loads(json.dumps(lock))) == []


def test_a_lock_notices_a_changed_template(
    tokenizer_of: Any, template_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("smollm2")
    lock = template_of("smollm2").lock([SINGLE[:1], WITH_SYSTEM[:2]])
    monkeypatch.setattr(tokenizer, "chat_template", SMOLLM2.replace("helpful", "gloomy"))
    template, prompt = ChatTemplate(tokenizer).verify_lock(lock)
    assert template.startswith("template_sha256 is ")
    assert prompt == "prompt 1 does not give the ids of the lock"


def test_a_lock_notices_another_date_and_other_stop_tokens(
    tokenizer_of: Any, template_of: Any
) -> None:
    lock = template_of("llama-3.2").lock([SINGLE[:1]])
    later = ChatTemplate(tokenizer_of("llama-3.2"), date=datetime.date(2025, 1, 2))
    assert [line.split()[0] for line in later.verify_lock(lock)] == ["date", "prompt"]
    assert template_of("llama-3.2").verify_lock({**lock, "stop_ids": [2]}) == [
        "stop_ids is [128009], the lock has [2]"
    ]


def test_a_lock_notices_a_prompt_that_is_refused(template_of: Any) -> None:
    lock = template_of("smollm2").lock([WITH_SYSTEM[:2]])
    assert "prompt 1 does not give the ids of the lock" in template_of("gemma-2").verify_lock(lock)


# --- the module and its documentation


def test_the_module_loads_without_torch_and_transformers() -> None:
    code = (
        "import sys, retone.chat_template\n"
        "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_every_reason_is_documented() -> None:
    source = (ROOT / "src" / "retone" / "chat_template.py").read_text()
    reasons = set(re.findall(r'RowRejected\(\s*"([a-z-]+)"', source))
    documented = set(
        re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "chat_templates.md").read_text(), re.M)
    )
    assert reasons == documented


def documented_table(tokenizer_of: Any, template_of: Any) -> str:
    """The Markdown table of what the code finds in each template."""

    def cell(text: str) -> str:
        return "`" + text.replace("|", "\\|").replace("`", "'") + "`"

    lines = ["| template | vocabulary | rows | stop token | why |", "|---|---|---|---|---|"]
    for name in DOCUMENTED:
        model = MODELS[name]
        vocabulary = "stand-in" if model.stand_in else "its own"
        try:
            template = template_of(name)
        except InputError as refused:
            rows, stop, why = "refused", "none", cell(refused.found)
        else:
            rows = {"whole": "whole", "per_turn": "one per turn"}[template.strategy]
            stop = cell(tokenizer_of(name).convert_ids_to_tokens(template.stop_id))
            why = cell(template.strategy_reason) if template.strategy_reason else ""
        lines.append(f"| {model.title} | {vocabulary} | {rows} | {stop} | {why} |")
    return "\n".join(line.replace("|  |", "| |") for line in lines)


def test_the_documented_table_is_what_the_code_finds(tokenizer_of: Any, template_of: Any) -> None:
    table = documented_table(tokenizer_of, template_of)
    assert table in (ROOT / "docs" / "chat_templates.md").read_text(), f"replace it by\n\n{table}\n"
