"""The decoding loop writes what each row would get alone, whoever joins, leaves or shares it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.inference.decoding import TUNED, Decoder, Row, adapter_of
from retone.inference.engine import Engine, TextStream
from retone.inference.row_lora import RowLora
from retone.inference.sampling import Sampling
from retone.models.methods import METHODS
from retone.training.kernels import fused_lora

SAID = [
    "The cat sleeps.",
    "Who plays the old piano at the window while rain taps?",
    "A dog ran.",
    "When and where does the assistant answer the system?",
]


def tuned_engine(kind: str = "lora", **fields: Any) -> Engine:
    """A tiny model with an adapter that changes its answers."""
    model = tiny.model(initializer_range=0.3)
    method = tiny.method(kind, **fields)
    model = METHODS[kind].prepare(model, method).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def plain_engine(**settings: Any) -> Engine:
    model = tiny.model(initializer_range=0.3, **settings)
    return Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def rows(engine: Engine, sampling: Sampling, tuned: bool = True) -> list[Row]:
    prompts = [engine.template.prompt_ids([Message("user", text)]) for text in SAID]
    return [Row(prompt, sampling, adapter_of(tuned=tuned)) for prompt in prompts]


def write(decoder: Decoder) -> None:
    while decoder.rows:
        decoder.step()


def alone(engine: Engine, row: Row) -> list[int]:
    again = Row(row.prompt, row.sampling, row.adapter)
    decoder = engine.decoder()
    decoder.join([again])
    write(decoder)
    return again.ids


def by_generate(engine: Engine, row: Row) -> list[int]:
    """The plain twin: transformers' own loop."""
    output = engine.model.generate(
        input_ids=torch.tensor([row.prompt]),
        attention_mask=torch.ones(1, len(row.prompt), dtype=torch.long),
        max_new_tokens=row.sampling.max_new_tokens,
        do_sample=False,
        repetition_penalty=row.sampling.repetition_penalty,
        eos_token_id=sorted(engine.template.stop_ids),
        pad_token_id=engine.template.stop_id,
    )
    ids: list[int] = output[0, len(row.prompt) :].tolist()
    return ids


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_loop_writes_what_generate_writes(attention: str, penalty: float) -> None:
    engine = plain_engine()
    engine.model.config._attn_implementation = attention
    together = rows(engine, Sampling(max_new_tokens=16, repetition_penalty=penalty))
    decoder = engine.decoder()
    decoder.join(together)
    write(decoder)
    assert [row.ids for row in together] == [by_generate(engine, row) for row in together]
    assert len({tuple(row.ids) for row in together}) > 1


def test_rows_that_join_late_write_the_same() -> None:
    """Each joins after the others have begun, some leave early, and one is the longest."""
    engine = plain_engine()
    together = rows(engine, Sampling(max_new_tokens=14))
    together[1].sampling = Sampling(max_new_tokens=3)
    expected = [alone(engine, row) for row in together]
    decoder = engine.decoder()
    for row in together:
        assert decoder.open
        decoder.join([row])
        decoder.step()
        decoder.step()
    write(decoder)
    assert [row.ids for row in together] == expected


def test_a_sliding_window_lets_nobody_join_midway() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=12, initializer_range=0.3,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    engine = Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))
    together = rows(engine, Sampling(max_new_tokens=20))
    expected = [alone(engine, row) for row in together]
    decoder = engine.decoder()
    decoder.join(together)
    assert not decoder.open
    write(decoder)
    assert decoder.open
    assert [row.ids for row in together] == expected


@pytest.mark.parametrize(
    ("kind", "fields", "mixed"),
    [
        ("lora", {}, True),
        ("lora", {"dora": True}, False),
        ("ia3", {}, False),
        ("prefix", {}, False),
        ("prompt", {}, False),
        ("bottleneck", {}, False),
    ],
)
def test_tuned_and_base_rows_in_one_loop(kind: str, fields: dict[str, Any], mixed: bool) -> None:
    """Plain LoRA in one pass, everything else side by side."""
    engine = tuned_engine(kind, **fields)
    assert RowLora.mixes(engine.model) is mixed
    sampling = Sampling(max_new_tokens=10)
    tuned, base = rows(engine, sampling), rows(engine, sampling, tuned=False)
    expected = [alone(engine, row) for row in (*tuned, *base)]
    decoder = engine.decoder()
    decoder.join([row for pair in zip(tuned, base, strict=True) for row in pair])
    write(decoder)
    assert [row.ids for row in (*tuned, *base)] == expected
    assert [row.ids for row in tuned] != [row.ids for row in base]
    assert [row.ids for row in base] == [
        alone(plain_engine(), Row(row.prompt, row.sampling)) for row in base
    ]


@pytest.mark.parametrize("fields", [{}, {"targets": ["q_proj", "down_proj"]}, {"rslora": True}])
def test_the_lean_pass_of_lora_is_peft_s(fields: dict[str, Any]) -> None:
    """Logits of tuned, base and mixed rows against peft's own forward pass, the plain twin."""
    model = tuned_engine("lora", **fields).model
    lean = RowLora(model)
    ids = torch.randint(3, 320, (4, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tuned = model(ids).logits
        with model.disable_adapter():
            base = model(ids).logits
        assert not torch.allclose(tuned, base, atol=1e-2)
        for who in ([TUNED] * 4, [None] * 4, [TUNED, None, None, TUNED]):
            with lean.of(who):
                found = model(ids).logits
            own = torch.tensor([name == TUNED for name in who])
            expected = torch.where(own[:, None, None], tuned, base)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(ids).logits, tuned, rtol=0, atol=0)


def test_answers_in_the_middle_of_training_leave_its_layers_alone() -> None:
    engine = tuned_engine()
    layer = next(m for m in engine.model.modules() if hasattr(m, "lora_A"))
    with fused_lora(engine.model) as layers:
        assert layers
        own = layer.forward
        engine.tuned([[Message("user", SAID[0])]], Sampling(max_new_tokens=3))
        assert layer.forward is own
    assert "forward" not in vars(layer)


def test_a_seed_gives_an_answer_whoever_else_is_written() -> None:
    engine = plain_engine()
    drawn = rows(engine, Sampling(max_new_tokens=12, temperature=1.2, top_p=0.9, top_k=40, seed=5))
    expected = [alone(engine, row) for row in drawn]
    greedy = rows(engine, Sampling(max_new_tokens=12))
    decoder = engine.decoder()
    decoder.join(drawn[:2])
    decoder.step()
    decoder.join([*greedy, *drawn[2:]])
    write(decoder)
    assert [row.ids for row in drawn] == expected
    other = Row(drawn[0].prompt, Sampling(max_new_tokens=12, temperature=1.2, seed=6))
    assert alone(engine, other) != expected[0]


def test_chances_are_those_of_a_plain_pass() -> None:
    engine = plain_engine()
    row = rows(engine, Sampling(max_new_tokens=5))[0]
    row.top = 3
    decoder = engine.decoder()
    decoder.join([row])
    write(decoder)
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*row.prompt, *row.ids]])).logits[0]
    every = torch.log_softmax(logits[len(row.prompt) - 1 : -1].float(), dim=-1)
    assert len(row.chances) == len(row.ids)
    for place, found in enumerate(row.chances):
        assert found.token == row.ids[place]
        assert found.log_probability == pytest.approx(float(every[place, found.token]), abs=1e-4)
        values, indices = every[place].topk(3)
        assert [token for token, _ in found.top] == indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_head_reads_one_position_of_each_row_at_once() -> None:
    """As [1, rows, hidden]: of a slice of [rows, seq, hidden] torch copies the weights for each."""
    engine = plain_engine()
    seen: list[tuple[int, ...]] = []
    head = engine.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, logits: seen.append(tuple(given[0].shape)))
    decoder = engine.decoder()
    decoder.join(rows(engine, Sampling(max_new_tokens=2)))
    count = len(decoder.rows)
    write(decoder)
    hidden = engine.model.config.hidden_size
    assert [shape for shape in seen if shape[1]] == [(1, count, hidden)] * 2


def test_an_answer_ends_where_the_context_does() -> None:
    engine = plain_engine(max_position_embeddings=40)
    row = rows(engine, Sampling(max_new_tokens=500))[0]
    decoder = engine.decoder()
    decoder.join([row])
    write(decoder)
    assert row.stopped or len(row.prompt) + len(row.ids) == 40


class Written:
    """Stands for a tokenizer: every id is a character."""

    def __init__(self, text: str) -> None:
        self.text = text

    def parse(self, ids: Any, *, finished: bool = True) -> str:
        return self.text[: len(ids)]


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("abc", (), ["a", "b", "c"]),
        ("abSTcd", ("ST",), ["a", "b"]),
        ("abSxcd", ("ST",), ["a", "b", "Sx", "c", "d"]),
        ("ab\N{REPLACEMENT CHARACTER}", (), ["a", "b"]),
        ("STab", ("ST",), []),
        ("aSTb", ("ST", "aST"), []),
    ],
)
def test_pieces_hold_back_what_may_be_a_stop(
    text: str, stop: tuple[str, ...], pieces: list[str]
) -> None:
    stream = TextStream(Written(text).parse, stop)
    row = Row((), Sampling())
    found = []
    for at in range(len(text)):
        row.ids.append(at)
        piece = stream.next(row)
        found += [piece] if piece else []
        if row.finished:
            break
    assert found == pieces
    assert row.finished is any(end in text for end in stop)


@pytest.mark.parametrize("who", [(True,), (False,), (False, True)])
def test_a_stream_says_what_the_answer_is(who: tuple[bool, ...]) -> None:
    engine = tuned_engine()
    messages = [Message("user", SAID[1])]
    sampling = Sampling(max_new_tokens=24)
    said = [""] * len(who)
    for at, piece in engine.stream(messages, sampling, tuned=who):
        assert piece
        said[at] += piece
    respond = {True: engine.tuned, False: engine.base}
    whole = [respond[one]([messages], sampling)[0].text for one in who]
    assert said == whole


def test_a_stop_text_ends_an_answer_in_a_batch() -> None:
    engine = plain_engine()
    prompts = [[Message("user", text)] for text in SAID]
    free = engine.tuned(prompts, Sampling(max_new_tokens=20))
    stop = free[0].text[3:5]
    found = engine.tuned(prompts, Sampling(max_new_tokens=20, stop=(stop,)))
    assert found[0].text == free[0].text.split(stop)[0]
    assert found[0].stopped
    assert found[0].tokens < free[0].tokens or not free[0].text.split(stop)[1]
    for one, other in zip(found, free, strict=True):
        assert one.text == other.text.split(stop)[0]
