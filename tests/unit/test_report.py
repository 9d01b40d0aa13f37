"""The report: everything escaped, nothing fetched, every picture also in words and numbers."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from html_pages import NASTY, Page
from retone.evaluation import numbers, plots
from retone.evaluation.page import csp_hash
from retone.evaluation.report import ReportData, render_report

CANDIDATES = [
    {"name": "copy", "label": "prompt copied", "what": "the prompt itself"},
    {"name": "base", "label": "base model", "what": "before training"},
    {"name": "prompted", "label": "base + prompt", "what": "with a system prompt"},
    {"name": "tuned", "label": "tuned", "what": "after training"},
]
METRICS = [
    {"name": n, "label": label, "higher_is_better": True, "signature": f"sig:{n}", "unit": "0-100"}
    for n, label in (("bleu", "BLEU"), ("chrf", "chrF"))
]
SOURCE = {
    "path": "pairs.csv", "shape": "pair", "read": 503, "used": 499, "rows": 499,
    "dropped": {"no answer": 3, "answer would be cut": 1},
    "examples": {"no answer": ["row 12: <empty>"]},
    "tokens": {"trained": 8543, "masked": 19642, "cut": 12}, "longest_row": 85,
}  # fmt: skip


def number(value: float, half: float, n: int = 84) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def row(prompt: str, gain: float | None = 1.0, showcase: bool = False) -> dict[str, Any]:
    answers = {"copy": prompt, "base": "a base answer", "tuned": f"tuned: {prompt}"}
    reference = "" if showcase else "the reference"
    text = {"prompt": prompt, "reference": reference, "answers": answers}
    return {**text, "showcase": showcase, "gain": gain}


def sample(**changes: Any) -> ReportData:
    """A small whole report; every number is invented."""
    lead = {**number(38.5, 4.4), "p": 0.0004, "resolved": True}
    curves = [{"step": n, "loss": 2.0 / n, "lr": 1e-3 / n} for n in range(1, 41)]
    for line in curves[7::8]:
        line["eval_loss"] = 1.0 / line["step"]
    data = ReportData(
        title="yoda", run_name="yoda-2", created="2026-11-22T15:22:36+00:00", task="rewrite",
        verdict="tuned beats copying by +38.5 BLEU (95 % CI 34.1 to 42.9, n=84)", resolved=True,
        base_note="These are Q4_1 weights, unpacked.",
        candidates=CANDIDATES, metrics=METRICS,
        scores={
            "copy": {"bleu": number(36.2, 3.1), "chrf": number(74.3, 2.0)},
            "base": {"bleu": number(8.6, 1.7), "chrf": number(36.3, 1.0)},
            "prompted": {"bleu": number(18.2, 2.4), "chrf": {"value": None, "reason": "not run"}},
            "tuned": {"bleu": number(74.7, 3.9), "chrf": number(86.6, 2.4)},
        },
        differences={"tuned-copy": {"bleu": lead, "chrf": lead}},
        rows=[row("one", 5.0), row("two", None, True), row("three", -4.0), row("four", 30.4)],
        curves=curves, best_step=40, ledger=[SOURCE],
        settings=[
            {"field": "train.learning_rate", "value": 0.001, "because": "LoRA on a small model"},
            {"field": "train.minutes", "value": None, "because": ""},
        ],
        training={
            "steps": 96, "seconds": 523.7, "rows": 1497, "tokens": 84555, "peak_bytes": 4090896384,
            "parameters": {"trained": 2442240, "total": 136957248},
        },
        seconds={"train": 523.7, "evaluate": 75.2},
        seeds=[{"seed": 1, "scores": {"bleu": 73.1}}],
        provenance={"base sha256": "a672" * 16, "git": None},
        commands=[{"command": "retone chat yoda-2", "what": "Talk to it."}],
        notes=["Differences below 5 BLEU cannot be told from luck."],
    )  # fmt: skip
    return replace(data, **changes)


def everywhere(text: str) -> ReportData:
    """A report with `text` wherever a model, a user or a file can have written something."""
    data = sample()
    return replace(
        data,
        title=text, run_name=text, verdict=text, base_note=text, task=text, notes=[text],
        interval=text,
        candidates=[{**c, "label": text, "what": text} for c in CANDIDATES],
        metrics=[{**m, "label": text, "signature": text, "unit": text} for m in METRICS],
        rows=[{**row(text, 1.0, True), "reference": text, "answers": dict.fromkeys(
            ("copy", "base", "tuned"), text)}],
        ledger=[{**data.ledger[0], "path": text, "shape": text, "dropped": {text: 1},
                 "examples": {text: [text]}}],
        settings=[{"field": text, "value": text, "because": text},
                  {"field": text, "value": [text], "because": ""}],
        provenance={text: text}, commands=[{"command": text, "what": text}],
        seconds={text: 1.0}, created=text,
    )  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_what_others_wrote_is_text_and_nothing_else(name: str) -> None:
    text = NASTY[name]
    plain, page = Page(render_report(everywhere("word"))), Page(render_report(everywhere(text)))
    assert page.count("script") == 1
    # A long label of a plot takes a second line of it: <text>. Everything else is as it was.
    assert [tag for tag, _ in page.elements if tag != "text"] == [
        tag for tag, _ in plain.elements if tag != "text"
    ]
    assert {key for _, a in page.elements for key in a} == {
        key for _, a in plain.elements for key in a
    }
    assert text in page.of["p"], "an answer is not there as it was written"
    assert text in page.of["code"]


def test_control_characters_and_broken_text_stay_readable() -> None:
    data = sample(rows=[row("a\x00b\x1b[31m\r\nc\ud800d\x85e\tf")])
    html = render_report(data)
    assert "a␀b␛[31m\nc\ufffdd\ufffde\tf" in Page(html).of["p"]
    assert html.encode("utf-8")  # a lone surrogate would refuse
    assert not re.search("[\x00-\x08\x0b-\x1f]", html)


def test_answers_keep_their_lines_and_their_direction() -> None:
    html = render_report(sample())
    texts = [a for a in Page(html).attributes("p") if a.get("class") == "text"]
    assert texts
    assert all(a["dir"] == "auto" for a in texts)
    assert re.search(r"\.text \{[^}]*white-space: pre-wrap; unicode-bidi: isolate", html)


def test_the_policy_allows_our_script_alone() -> None:
    html = render_report(sample())
    page = Page(html)
    policy = page.attributes("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    (script,) = page.of["script"]
    assert f"script-src '{csp_hash(script)}';" in policy
    assert csp_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_nothing_is_fetched() -> None:
    html = render_report(everywhere("see https://example.com/x and <img src=//evil>"))
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use"} & {
        tag for tag, _ in page.elements
    }
    assert not [a for _, a in page.elements if {"src", "xlink:href", "srcset", "action"} & set(a)]
    assert all((a["href"] or "").startswith("#") for a in page.attributes("a"))
    style = "".join(page.of["style"])
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in style + "".join(page.of["script"])


def test_every_link_leads_somewhere() -> None:
    page = Page(render_report(sample()))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.attributes("a")} <= set(ids)
    for drawing in page.attributes("svg"):
        assert set((drawing.get("aria-labelledby") or "").split()) <= set(ids)


def test_every_picture_has_a_title_a_description_and_a_table() -> None:
    page = Page(render_report(sample()))
    # headline, two metrics, loss, learning rate, tokens
    assert len(page.drawings) == 6
    assert all({"title", "desc"} <= inside for inside in page.drawings)
    described = " ".join(page.of["desc"])
    assert "prompt copied 36.2, base model 8.6" in described
    assert "validation, lowest 0.0250" in described
    cells = " ".join("".join(page.of["td"]).split()) + " ".join(page.of["td"])
    for value in ("36.2", "74.7", "no score", "+38.5", "8,543 (30%)", "0.025"):
        assert value in cells, value


def test_dark_paper_and_phone_have_their_styles() -> None:
    html = render_report(sample())
    for query in ("(prefers-color-scheme: dark)", "print", "(max-width: 34rem)"):
        assert f"@media {query}" in html
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    used = set(re.findall(r"var\((--[a-z]+)\)", html))
    assert used <= set(re.findall(r"(--[a-z]+):", html))


def test_all_rows_are_there_without_javascript() -> None:
    page = Page(render_report(sample(rows=[row(f"prompt {n}", float(n)) for n in range(45)])))
    rows = page.attributes("li")
    assert len(rows) == 45
    assert not [a for a in rows if "hidden" in a]
    hidden = [a.get("id") for _, a in page.elements if "hidden" in a]
    assert hidden == ["controls", "more"]  # what would do nothing
    assert "All 45 prompts" in page.words


def test_rows_come_with_the_biggest_gain_first() -> None:
    rows = Page(render_report(sample())).attributes("li")
    assert [a["data-place"] for a in rows] == ["3", "0", "2", "1"]
    assert [a["data-gain"] for a in rows] == ["30.4", "5.0", "-4.0", ""]


def test_a_prompt_given_back_is_not_shown_twice() -> None:
    words = Page(render_report(sample(rows=[row("Only once.")], candidates=CANDIDATES[:1]))).words
    assert words.count("Only once.") == 1


def test_the_note_on_the_weights_stands_near_the_top() -> None:
    html = render_report(sample())
    assert 0 < html.index("Q4_1 weights") < html.index("<nav") < html.index('id="showcase"')
    order = ["showcase", "scores", "answers", "training", "data", "cost", "settings", "provenance"]
    places = [html.index(f'<section id="{name}"') for name in [*order, "next"]]
    assert places == sorted(places)


def test_the_verdict_is_set_apart_from_its_bracket_and_its_outlook() -> None:
    page = Page(render_report(sample()))
    assert "".join(page.of["h1"]).strip() == "tuned beats copying by +38.5 BLEU"
    assert "(95 % CI 34.1 to 42.9, n=84)" in page.of["span"]
    assert "The difference is more than the luck of these rows (p < 0.001)." in page.words
    lead = {**number(0.4, 3), "p": 0.02, "p_adjusted": 0.61, "resolved": False}
    unresolved = sample(
        verdict="not resolved: tuned against copying is +0.4 BLEU; these rows resolve about 5",
        resolved=False,
        differences={"tuned-copy": {"bleu": lead}},
    )
    words = Page(render_report(unresolved)).words
    assert "may be the luck of these rows (p = 0.61). These rows resolve about 5." in words
    assert "p = 0.61, not resolved" in words


def test_numbers_carry_what_their_interval_supports() -> None:
    bare = {"low": None, "high": None}
    assert numbers.digits_of([number(74.7, 3.9), number(8.6, 12)]) == 1
    assert numbers.digits_of([number(0.357, 0.05)]) == 3
    assert numbers.digits_of([number(9000, 1000)]) == 0
    assert numbers.digits_of([{"value": 61.2, **bare}]) == 1
    assert numbers.digits_of([{"value": 0.5, **bare}]) == 3
    assert numbers.digits_of([number(0, 0)]) == 3
    assert numbers.digits_of([]) == 3


def test_numbers_as_people_read_them() -> None:
    minus = "\N{MINUS SIGN}"
    assert [numbers.plain(v, 1) for v in (-0.04, -1.26, 2.0)] == ["0.0", f"{minus}1.3", "2.0"]
    assert numbers.plain(12345.6, 0) == "12,346"
    assert [numbers.signed(v, 1) for v in (38.52, -0.4, 0.01)] == ["+38.5", f"{minus}0.4", "0.0"]
    spans = [numbers.span(v) for v in (6.24, 59.7, 523.7, 7300)]
    assert spans == ["6.2 s", "1 min 0 s", "8 min 44 s", "2 h 1 min"]
    assert [numbers.size(v) for v in (999, 4090896384)] == ["999 B", "4.09 GB"]


def test_a_missing_score_says_so_and_says_why() -> None:
    words = Page(render_report(sample())).words
    assert "base + prompt no score" in words
    assert "not run" in words
    scores = {"tuned": {"bleu": {"value": float("nan"), "low": None, "high": None, "n": 0}}}
    words = Page(render_report(sample(scores=scores, seeds=[]))).words
    assert "no score not computed" in words.replace("scorenot", "score not")
    assert "nan" not in words.split()


def test_a_metric_can_have_its_better_end_below_or_none() -> None:
    ends = zip(METRICS, (False, None), strict=True)
    metrics = [{**metric, "higher_is_better": better} for metric, better in ends]
    words = Page(render_report(sample(metrics=metrics))).words
    assert "0-100, lower is better, 84 rows" in words
    assert "0-100, 84 rows" in words


EMPTY = ReportData("t", "t", "", "no verdict: nobody to compare with", False, "")
EDGES = {
    "nothing": EMPTY,
    "no validation loss": sample(curves=[{"step": 1, "loss": 1.0, "lr": 0.0}], best_step=None),
    "one step": sample(curves=[{"step": 1, "loss": 2.5, "lr": 1e-5}]),
    "only validation": sample(curves=[{"step": 1, "eval_loss": 2.5}], best_step=1),
    "one candidate": sample(candidates=CANDIDATES[-1:], differences={}),
    "no intervals": sample(scores={"tuned": {"bleu": {"value": 3, "low": None, "n": 1}}}),
    "the widest interval": sample(scores={"tuned": {"bleu": number(50, 50)}}),
    "equal scores": sample(scores={c["name"]: {"bleu": number(0.0, 0.0)} for c in CANDIDATES}),
    "negative scores": sample(scores={c["name"]: {"bleu": number(-5, 1)} for c in CANDIDATES}),
    "no showcase": sample(rows=[row("one")]),
    "one row": sample(rows=[row("one", None, True)]),
    "no scores": sample(scores={}, differences={}),
    "an unscored headline": sample(scores={"base": {"chrf": number(1, 1)}}, differences={}),
    "an empty source": sample(ledger=[{**SOURCE, "read": 0, "tokens": {}, "dropped": {}}]),
    "long labels": sample(candidates=[{**c, "label": c["label"] * 30} for c in CANDIDATES]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_are_drawn(name: str) -> None:
    html = render_report(EDGES[name])
    page = Page(html)
    assert page.count("h1") == 1
    numbers = [v for _, a in page.elements for v in a.values() if v in ("nan%", "inf%", "nan")]
    assert numbers == []
    assert "None" not in page.words.replace("sig:", "")
    for drawing in page.drawings:
        assert {"title", "desc"} <= drawing


def test_a_section_without_data_is_left_out() -> None:
    html = render_report(EMPTY)
    assert "<section" not in html
    assert "<figure" not in html
    assert Page(html).count("a") == 0


def test_no_mark_stands_outside_its_plot() -> None:
    for name, data in EDGES.items():
        for value in re.findall(r'\bc?x[12]?="([-\d.]+)%"', render_report(data)):
            assert -0.01 <= float(value) <= 100.01, name


def test_five_hundred_rows_and_ten_thousand_steps_stay_small() -> None:
    curves = [{"step": n, "loss": 1 + 1 / n, "eval_loss": None, "lr": 1} for n in range(1, 10_001)]
    long = {c["name"]: "a few words of an answer " * 12 for c in CANDIDATES}
    rows = [{**row(f"prompt {n}", float(n)), "answers": long} for n in range(500)]
    html = render_report(sample(rows=rows, curves=curves))
    assert len(html.encode()) < 1_500_000
    assert "metrics.jsonl" in html  # says that the table is thinned


def test_a_report_can_be_stored_and_drawn_again() -> None:
    data = sample()
    again = ReportData(**json.loads(json.dumps(asdict(data))))
    assert render_report(again) == render_report(data)


def test_axes_have_round_ticks() -> None:
    assert plots.axis([8.6, 79.0]).ticks == (0, 20, 40, 60, 80)
    assert plots.axis([50.1, 51.9]).ticks == (50, 50.5, 51, 51.5, 52)
    assert plots.axis([]).ticks == (0, 0.2, 0.4, 0.6, 0.8, 1.0)
    steps = plots.axis([1, 96], 4, tight=True)
    assert (steps.low, steps.high, steps.ticks) == (0, 96, (0, 25, 50, 75))
    assert steps.at(96) == 100


def test_a_running_mean_keeps_the_length_and_the_level() -> None:
    assert plots.smoothed([1.0] * 7, 3) == [1.0] * 7
    assert plots.smoothed([0.0, 3.0, 0.0], 3) == [1.5, 1.0, 1.5]
    assert plots.smoothed([], 3) == []


def test_groups_of_rows_stand_under_the_scores() -> None:
    cell = {"bleu": {**number(61.5, 4.0), "n": 9}}
    rare = {"bleu": {"value": None, "low": None, "high": None, "n": 1, "reason": "one row"}}
    groups = {"old <b>": {"tuned": cell, "base": rare}, "new": {"tuned": cell, "base": cell}}
    words = Page(render_report(sample(groups=groups))).words
    assert "BLEU by group" in words
    assert "old <b>" in words
    assert "61.5" in words
    assert "one row" in words
    assert "by group" not in Page(render_report(sample())).words
