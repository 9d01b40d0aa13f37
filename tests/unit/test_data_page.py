"""The data doctor's page: escaped, self-contained, and the same section as in the report."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from html_pages import NASTY, Page
from retone.data.findings import SEVERITIES, finding
from retone.evaluation import histogram
from retone.evaluation.data_page import DataReport, render_data_page
from retone.evaluation.report import ReportData, render_report

SOURCE = {
    "path": "pairs.csv", "shape": "pair", "read": 503, "used": 499, "rows": 499, "ended": 498,
    "dropped": {"no answer": 4}, "examples": {"no answer": ["row 12: <empty>"]},
    "tokens": {"trained": 8543, "masked": 19642, "cut": 12}, "longest_row": 85,
}  # fmt: skip
LENGTHS = {
    "edges": [0, 30, 60, 90], "counts": [101, 0, 398],
    "max_length": 100, "median": 64, "longest": 85, "over": 3,
}  # fmt: skip
FINDINGS = [
    finding("secret", 2, ["pairs.csv, row 8: key 1", "pairs.csv, row 9: key 2"]),
    finding("contradiction", 1200, [f"pairs.csv, row {n}: asked before" for n in range(1, 6)]),
    finding("mojibake", 4),
    finding("not-checked", 1),
]


def sample(**changes: Any) -> DataReport:
    """A small whole report; every number is invented."""
    data = DataReport(
        title="pairs.csv", created="2026-11-22T15:22:36+00:00",
        verdict="499 of 503 samples are trained on; 4 are left out",
        advice={"advice": "tune", "says": "Tune it.", "because": ["the rows share a style"]},
        sources=[SOURCE], lengths=LENGTHS,
        totals={"rows": 499, "trained": 8543, "masked": 19642, "cut": 12,
                "ended_share": 0.9996, "padding_share": 0.07126, "steps_per_epoch": 32},
        findings=[found.as_json() for found in FINDINGS],
        tokens=[[("<|user|>Hi\n", False), ("Hello.<|end|>", True), ("\n", False)]],
    )  # fmt: skip
    return replace(data, **changes)


NOTHING = sample(advice={}, sources=[], lengths={}, totals={}, findings=[], tokens=[])


def everywhere(text: str) -> DataReport:
    """A page with `text` wherever a model, a user or a file can have written something."""
    found = {**FINDINGS[0].as_json(), "code": text, "rows": [text], "message": text}
    return sample(
        title=text, created=text, verdict=f"{text[:3]}; {text}",
        advice={"advice": "tune", "says": text, "because": [text]},
        sources=[{**SOURCE, "path": text, "shape": text, "dropped": {text: 1},
                  "examples": {text: [text]}}],
        findings=[{**found, "remedy": text}, {**found, "remedy": f"retone {text}"}],
        tokens=[[(text, False), (text, True)]],
    )  # fmt: skip


def section_of(html: str) -> str:
    found = re.search(r'<section id="data">.*?</section>', html, re.DOTALL)
    assert found
    return found[0]


@pytest.mark.parametrize("name", NASTY)
def test_what_others_wrote_is_text_and_nothing_else(name: str) -> None:
    text = NASTY[name]
    plain = Page(render_data_page(everywhere("word")))
    page = Page(render_data_page(everywhere(text)))
    assert page.count("script") == 0
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert {key for _, a in page.elements for key in a} == {
        key for _, a in plain.elements for key in a
    }
    for element in ("p", "mark", "code", "li"):
        assert text in "".join(page.of[element]), element


def test_control_characters_and_broken_text_stay_readable() -> None:
    html = render_data_page(everywhere("a\x00b\x1b[31m\r\nc\ud800d\x85e\tf"))
    assert "a␀b␛[31m\nc\ufffdd\ufffde\tf" in Page(html).of["mark"]
    assert html.encode("utf-8")  # a lone surrogate would refuse


def test_the_policy_allows_no_script_and_nothing_is_fetched() -> None:
    html = render_data_page(sample())
    page = Page(html)
    policy = page.attributes("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert "script-src" not in policy
    assert "://" not in html
    assert "url(" not in html
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "script"} & {
        tag for tag, _ in page.elements
    }
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_the_report_shows_the_same_section() -> None:
    data = sample()
    report = ReportData("t", "t", "", "", False, "", ledger=[SOURCE], data=data)
    assert section_of(render_report(report)) == section_of(render_data_page(data))
    assert 'href="#data"' in render_report(report)


def test_a_report_without_the_doctor_shows_the_ledger_alone() -> None:
    old = {name: value for name, value in SOURCE.items() if name != "ended"}
    html = render_report(ReportData("t", "t", "", "", False, "", ledger=[old]))
    section = section_of(html)
    assert "503 rows read, 499 used" in section
    for gone in ("Findings", "Lengths", "trained end", "What is trained", "<mark>"):
        assert gone not in section


def test_the_verdict_stands_first_and_its_outlook_under_it() -> None:
    page = Page(render_data_page(sample()))
    assert page.of["h1"] == ["499 of 503 samples are trained on"]
    assert "4 are left out." in "".join(page.of["p"])
    assert "22 November 2026" in page.words
    assert Page(render_data_page(sample(verdict="All is well"))).of["h1"] == ["All is well"]


def test_advice_and_totals() -> None:
    page = Page(render_data_page(sample()))
    assert "Tune it." in page.of["p"]
    assert "the rows share a style" in page.of["li"]
    # A share is never rounded up to all of it.
    assert page.of["dd"] == ["499", "32", "8,543", "19,642", "12", "99.9%", "7.1%"]
    whole = Page(render_data_page(sample(totals={"ended_share": 1.0, "padding_share": 0.0})))
    assert whole.of["dd"] == ["100%", "0%"]


def test_the_end_of_the_answer_is_in_the_ledger_where_rows_are_trained() -> None:
    assert "rows with a trained end498 of 499" in Page(render_data_page(sample())).words
    tested = {**SOURCE, "rows": 0, "ended": 0}
    assert "rows with a trained end" not in section_of(
        render_data_page(sample(sources=[tested], totals={}))
    )


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_finding_says_its_severity_as_a_word(severity: str) -> None:
    found = {**FINDINGS[0].as_json(), "severity": severity}
    page = Page(render_data_page(sample(findings=[found])))
    assert page.of["span"] == [severity.capitalize()]
    assert f"1 {severity}." in page.of["p"]
    assert ("who worst" in str(page.attributes("span"))) == (severity == "error")


def test_findings_are_counted_and_show_their_rows() -> None:
    page = Page(render_data_page(sample()))
    assert "1 error, 2 warnings, 1 note." in page.of["p"]
    assert page.of["span"] == ["Error", "Warning", "Warning", "Note"]
    rows = [text for text in page.of["summary"] if text.startswith("examples, ")]
    assert rows == ["examples, 2 of 2", "examples, 5 of 1,200"]
    assert "pairs.csv, row 9: key 2" in page.of["p"]


def test_what_is_to_be_typed_is_set_as_code() -> None:
    page = Page(render_data_page(sample()))
    assert "retone inspect DATA --redact clean.jsonl" in page.of["code"]
    assert ", and revoke what was published" in page.of["p"]
    assert "retone inspect DATA --fix clean.jsonl" in page.of["code"]
    assert "pip install 'retone[languages]'" in page.of["code"]
    advice = "keep one answer to each question, unless several are right"
    assert advice in page.of["p"]
    assert advice not in page.of["code"]
    flag = {**FINDINGS[0].as_json(), "remedy": "--set data.bad_rows=drop, or mend them"}
    assert "--set data.bad_rows=drop" in Page(render_data_page(sample(findings=[flag]))).of["code"]


def test_no_findings_are_said() -> None:
    words = Page(render_data_page(sample(findings=[]))).words
    assert "None of the checks found anything." in words
    assert "None of the checks" not in Page(render_data_page(sample())).words


def test_trained_tokens_are_underlined_and_coloured() -> None:
    html = render_data_page(sample())
    page = Page(html)
    assert page.of["mark"] == ["Hello.<|end|>"]
    assert "&lt;|user|&gt;Hi\n<mark>Hello.&lt;|end|&gt;</mark>\n</p>" in html
    assert re.search(r"mark \{[^}]*color: var\(--tuned\); text-decoration: underline", html)


def test_the_histogram_is_a_table_and_words_too() -> None:
    page = Page(render_data_page(sample(sources=[])))
    assert [{"title", "desc"} <= inside for inside in page.drawings] == [True]
    said = "Half of the rows have at most 64 tokens, the longest has 85. max_length is 100."
    assert page.of["desc"] == [f"{said} 3 longer rows were left out."]
    assert page.of["th"] == ["tokens", "rows", "0 to 29", "30 to 59", "60 to 89"]
    assert page.of["td"] == ["101", "0", "398"]


def drawn(**changes: Any) -> str:
    return str(histogram.figure("lengths", {**LENGTHS, **changes}))


def test_bars_and_the_limit_stand_where_they_belong() -> None:
    figure = drawn()
    assert re.findall(r'<rect class="bar" x="([\d.]+)%" y="[\d.]+" width="([\d.]+)%"', figure) == [
        ("0", "30"),
        ("60", "30"),
    ]
    assert re.findall(r'<line class="limit" x1="([\d.]+)%"', figure) == ["100"]
    assert ">max_length 100<" in figure
    assert ">100 tokens<" in figure


def test_a_limit_far_away_is_named_at_the_edge_and_a_missing_one_is_not() -> None:
    far = drawn(max_length=2048)
    assert 'class="limit"' not in far
    assert ">max_length 2,048 →<" in far
    assert 'class="limit"' in drawn(max_length=135)  # one and a half times the last edge
    none = drawn(max_length=None, over=0)
    assert 'class="limit"' not in none
    assert "tuned-text" not in none
    assert "No max_length is set." in none


def test_one_row_among_many_is_still_seen() -> None:
    heights = re.findall(r'class="bar"[^>]* height="([\d.]+)"', drawn(counts=[1, 0, 1_000_000]))
    assert heights == ["2", "170"]


def test_lengths_of_one_token_each_are_named_by_it() -> None:
    lengths = {**LENGTHS, "edges": [7, 8, 9], "counts": [2, 1], "over": 1}
    page = Page(render_data_page(sample(lengths=lengths, sources=[])))
    assert page.of["th"][2:] == ["7", "8"]
    assert "1 longer row was left out." in page.of["desc"][0]


@pytest.mark.parametrize("lengths", [{}, {"edges": [0, 1], "counts": [0]}])
def test_no_rows_make_no_histogram(lengths: dict[str, Any]) -> None:
    page = Page(render_data_page(sample(lengths=lengths, sources=[])))
    assert page.count("svg") == 0
    assert "Lengths" not in page.words


def test_a_page_about_nothing_is_a_page() -> None:
    page = Page(render_data_page(NOTHING))
    assert page.count("h1") == 1
    assert page.of["h3"] == ["Findings"]
    assert page.count("table") == 0


def test_every_id_is_there_once() -> None:
    page = Page(render_data_page(sample(sources=[SOURCE, SOURCE])))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for drawing in page.attributes("svg"):
        assert set((drawing.get("aria-labelledby") or "").split()) <= set(ids)


def test_it_can_be_stored_and_drawn_again() -> None:
    data = sample()
    again = DataReport(**json.loads(json.dumps(asdict(data))))
    assert render_data_page(again) == render_data_page(data)
