"""Batches with a shared prefix answer and score as every row alone does (float32, tiny models)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import tiny
from retone.chat_template import ChatTemplate
from retone.conversation import Conversation, Message
from retone.data.batching import collate, common_prefix, micro_batches
from retone.evaluation.candidates import reference_likelihoods
from retone.inference.decoding import _Group
from retone.inference.engine import Engine
from retone.inference.sampling import Sampling
from retone.models.methods import METHODS
from retone.training.losses import row_losses

SYSTEM = Message("system", "Rewrite the sentence as Yoda would say it.")
SAID = ["The cat sleeps.", "Who plays the old piano at the window while rain taps?", "A dog ran."]


def engine(attention: str = "sdpa", **settings: Any) -> Engine:
    model = tiny.model(initializer_range=0.3, **settings)
    model.config._attn_implementation = attention
    return Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def shared(asked: Engine, prompts: list[Any]) -> int:
    """Leading tokens that are read once."""
    return _Group(asked.model, 0, lambda tuned: nullcontext())._shared(prompts)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_answers_as_each_prompt_alone(attention: str) -> None:
    asked = engine(attention)
    prompts = [[SYSTEM, Message("user", text)] for text in SAID]
    encoded = [asked.template.prompt_ids(prompt) for prompt in prompts]
    assert shared(asked, encoded) > 20
    sampling = Sampling(max_new_tokens=12)
    alone = [asked.tuned([prompt], sampling)[0] for prompt in prompts]
    assert asked.tuned(prompts, sampling) == alone
    assert len({answer.text for answer in alone}) == len(alone)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_learned_prompts_answer_in_a_batch_as_step_by_step(kind: str) -> None:
    """The likeliest token again and again, each from a pass over everything so far."""
    method = tiny.method(kind, virtual_tokens=5)
    model = METHODS[kind].prepare(tiny.model(initializer_range=0.3), method).eval()
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    asked = Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))
    prompts = [[SYSTEM, Message("user", text)] for text in (*SAID, "A cat ran.")]
    found = asked.tuned(prompts, Sampling(max_new_tokens=8))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(asked.template.prompt_ids(prompt))
        said: list[int] = []
        while len(said) < 8 and not (said and said[-1] in asked.template.stop_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + said])).logits[0, -1]
            said.append(int(logits.argmax()))
        assert (answer.text, answer.tokens) == (asked.template.parse(said), len(said))
    untuned = asked.base(prompts, Sampling(max_new_tokens=8))
    assert untuned != found
    plain = engine().tuned(prompts, Sampling(max_new_tokens=8))
    assert untuned == plain


def test_prompts_that_are_each_others_beginning() -> None:
    """The last token of every prompt stays its own, or there would be nothing to predict from."""
    asked = engine()
    ids = asked.template.prompt_ids([Message("user", SAID[0])])
    assert shared(asked, [ids, ids]) == len(ids) - 1
    assert shared(asked, [ids, ids[:5]]) == 4
    assert shared(asked, [ids]) == 0
    same = asked.tuned([[Message("user", SAID[0])]] * 2, Sampling(max_new_tokens=6))
    assert same[0] == same[1] == asked.tuned([[Message("user", SAID[0])]], Sampling(6))[0]


def test_common_prefix() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4, 5), (1, 2)]) == 2
    assert common_prefix([(1, 2), (1, 2)]) == 2
    assert common_prefix([(1,), (2,)]) == 0


def test_references_in_batches_cost_what_each_costs_alone() -> None:
    asked = engine()
    answers = ["Sleeps, the cat does.", "At the window, who plays, hmm?", "Ran, a dog did. Ran."]
    rows = [
        Conversation((SYSTEM, Message("user", a), Message("assistant", b)))
        for a, b in zip(SAID, answers, strict=True)
    ]
    together = reference_likelihoods(asked, rows, tuned=True, rephrase=tuple)
    for row, (nats, tokens, size) in zip(rows, together, strict=True):
        ((alone, count, length),) = reference_likelihoods(asked, [row], tuned=True, rephrase=tuple)
        assert (tokens, size) == (count, length)
        assert nats == pytest.approx(alone, rel=1e-5)
    assert reference_likelihoods(asked, [], tuned=True, rephrase=tuple) == []


@pytest.mark.parametrize("fast", [True, False])
def test_row_losses_are_those_of_the_rows(fast: bool) -> None:
    model, rows = tiny.model(initializer_range=0.3), tiny.rows(6)
    with torch.no_grad():
        together = row_losses(model, collate(rows, pad_id=0), fast=fast)
        alone = [row_losses(model, collate([row], pad_id=0), fast=fast) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_shared_tokens_do_not_count_against_the_limit() -> None:
    rows = tiny.rows(8, shortest=20, longest=20)
    sizes = [b.rows for b in micro_batches(rows, 0, most_rows=None, most_tokens=40)]
    assert sizes == [2, 2, 2, 2]
    sizes = [b.rows for b in micro_batches(rows, 0, most_rows=None, most_tokens=40, shared=10)]
    assert sizes == [4, 4]
