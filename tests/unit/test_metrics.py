"""Metrics: published vectors, sacreBLEU's own corpus scores, and what is not a score."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from retone.evaluation.groups import group_scores
from retone.evaluation.matching import (
    equal_fields,
    exact_match,
    has_keyword,
    json_object,
    normalised,
    token_f1,
)
from retone.evaluation.metrics import METRICS, RowScores, row_scores, sacre_rows, sentence_scores

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HERE = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
THERE = ["The dog bit a man.", "It wasn't surprising.", "The man had just bitten him."]


def vectors(name: str) -> Any:
    path = DATA / "golden" / name
    if not path.exists():
        pytest.skip(f"the vectors are not here: {path}")
    return json.loads(path.read_text())


def value(rows: RowScores) -> float:
    found = rows.value
    assert found is not None, rows.reason
    return found


def golden(name: str, case: dict[str, Any], scorer: Any) -> float:
    references = list(zip(*case["refs"], strict=True))
    return value(sacre_rows(name, case["hyps"], references, scorer))


def test_every_sacrebleu_vector() -> None:
    known, checked = vectors("sacrebleu_vectors.json"), 0
    for case in known["corpus_bleu"]:
        found = golden("bleu", case, BLEU(**case["kwargs"]))
        assert found == pytest.approx(case["expected"], abs=1e-6)
        checked += 1
    for group, eps in (("eps", True), ("effective_order", False)):
        for case in known[f"corpus_chrf_beta3_{group}"]:
            found = golden("chrf", case, CHRF(beta=3, eps_smoothing=eps))
            assert found == pytest.approx(case["expected"], abs=1e-4)
            checked += 1
    for case in known["raw_sentence_bleu_smooth_floor_0_01"]:
        scorer = BLEU(smooth_method="floor", smooth_value=0.01, tokenize="none", force=True)
        found = value(sacre_rows("bleu", [case["hyp"]], [[case["ref"]]], scorer)) / 100
        assert found == pytest.approx(case["expected"], abs=1e-9)
        checked += 1
    assert checked == 26


def test_every_rouge_vector() -> None:
    checked = 0
    for case in vectors("rouge_vectors.json")["cases"]:
        scores = RougeScorer(list(case["expected_precision_recall_f"])).score(
            case["target"], case["prediction"]
        )
        for name, expected in case["expected_precision_recall_f"].items():
            assert list(scores[name]) == pytest.approx(expected)
            if name in METRICS and case["prediction"]:
                ours = row_scores([case["prediction"]], [case["target"]], only=[name])[name]
                assert value(ours) == pytest.approx(100 * expected[2])
            checked += 1
    assert checked == 12


@pytest.mark.parametrize(("name", "scorer"), [("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())])
def test_sums_of_rows_are_sacrebleus_corpus_score(name: str, scorer: Any) -> None:
    path = DATA / "style" / "yoda_sentences.csv"
    answers, references = THERE, HERE
    if path.exists():
        with path.open(newline="") as file:
            pairs = [(row["sentence"], row["translation"]) for row in csv.DictReader(file)][:200]
        answers, references = [a for a, _ in pairs], [b for _, b in pairs]
    rows = row_scores(answers, references, only=[name])[name]
    assert value(rows) == scorer.corpus_score(answers, [references]).score
    assert rows.metric.signature == str(scorer.get_signature())
    # Any weighted sum of rows is the corpus in which they stand as often.
    weights = np.random.default_rng(0).integers(0, 3, len(answers))
    drawn = rows.metric.reduce((weights @ rows.statistics)[None], int(weights.sum()))[0]
    repeated = [
        np.repeat(np.array(t, dtype=object), weights).tolist() for t in (answers, references)
    ]
    assert drawn == pytest.approx(scorer.corpus_score(repeated[0], [repeated[1]]).score)


def test_several_references_are_passed_on() -> None:
    both = [[a, b] for a, b in zip(HERE, THERE, strict=True)]
    both[0] = [HERE[0]]
    rows = row_scores(THERE, both)
    streams = [HERE, [None, *THERE[1:]]]
    assert value(rows["bleu"]) == BLEU().corpus_score(THERE, streams).score
    assert "nrefs:var" in rows["bleu"].metric.signature
    assert value(rows["exact"]) == pytest.approx(100)  # "a man" is "the man" in the first row
    assert value(rows["rougeL"]) < 100


def test_the_table_is_complete_and_in_order() -> None:
    rows = row_scores(
        THERE,
        HERE,
        keywords=[["dog"], [], ["man", "first"]],
        stopped=[True, True, False],
        likelihoods=[(2.0, 4, 10), (1.0, 3, 10), (3.0, 5, 20)],
    )
    forms = row_scores(["{}"], ["{}"])  # only references that are forms are read as forms
    assert list(rows) == [name for name in METRICS if not name.startswith("json_")]
    assert set(METRICS) - set(rows) == set(forms) & {"json_valid", "json_fields"}
    for name, found in rows.items():
        low, high = METRICS[name].bounds
        assert low <= value(found) <= high
        assert found.n == (2 if name == "keyword_recall" else 3)
    assert value(rows["keyword_recall"]) == pytest.approx(75)
    assert value(rows["stop_rate"]) == pytest.approx(200 / 3)
    assert value(rows["perplexity"]) == pytest.approx(math.exp(6 / 12))
    assert value(rows["bits_per_byte"]) == pytest.approx(6 / math.log(2) / 40)
    assert value(rows["length_ratio"]) == pytest.approx(14 / 14)
    assert [METRICS[n].higher_is_better for n in ("ter", "perplexity", "bleu", "length_ratio")] == [
        False,
        False,
        True,
        None,
    ]


def test_squad_normalisation_and_f1() -> None:
    assert normalised("The  quick, brown fox!") == "quick brown fox"
    assert exact_match("An apple.", "apple") == 1
    assert exact_match("apples", "apple") == 0
    # 2 of 3 and 2 of 4 words: 2 * 2 / 7
    assert token_f1("red green blue", "a red green dark cat") == pytest.approx(4 / 7)
    assert token_f1("word word", "word") == pytest.approx(2 / 3)
    assert token_f1("", "word") == 0
    assert token_f1("the", "a") == 1


@pytest.mark.parametrize(
    ("text", "keyword", "found"),
    [
        ("The catalogue is closed.", "cat", False),
        ("My CAT, asleep", "cat", True),
        ("New   York city", "new york", True),
        ("costs $5.00 today", "$5.00", True),
        ("costs $5.001 today", "$5.00", False),
        ("C++ and Rust", "C++", True),
        ("the Straße", "STRASSE", True),
        ("東京都に住む", "東京", True),
        ("", "cat", False),
    ],
)
def test_keywords_are_whole_words(text: str, keyword: str, found: bool) -> None:
    assert has_keyword(text, keyword) is found


def test_distinct_n_by_hand() -> None:
    rows = row_scores(["I see I", "I see you"], HERE[:2])
    assert value(rows["distinct_1"]) == pytest.approx(3 / 6)  # i see you
    assert value(rows["distinct_2"]) == pytest.approx(3 / 6)  # i-see see-i see-you
    assert not rows["distinct_1"].metric.resampled


def test_no_rows_no_score() -> None:
    for name, rows in row_scores([], [], keywords=[], stopped=[], likelihoods=[]).items():
        assert rows.value is None, name
        assert rows.reason == "no rows"


def test_empty_answers_are_a_reason_and_not_zero() -> None:
    rows = row_scores(["", " "], HERE[:2], keywords=[["dog"], []], stopped=[True, True])
    assert value(rows.pop("stop_rate")) == 100
    for found in rows.values():
        assert found.value is None
        assert found.reason == "all 2 answers are empty"
    one = row_scores(["", "It was not."], HERE[:2])
    assert all(found.value is not None for found in one.values())


def test_rows_without_a_reference_do_not_count() -> None:
    rows = row_scores(THERE, [HERE[0], None, " "])
    assert {name: found.n for name, found in rows.items()} == {
        **dict.fromkeys(rows, 1),
        "distinct_1": 3,
        "distinct_2": 3,
    }
    none = row_scores(THERE, [None] * 3)
    assert none["bleu"].reason == "no reference texts"
    assert none["distinct_1"].value is not None


def test_what_a_metric_cannot_read_is_a_reason() -> None:
    rows = row_scores(["東京", "大阪"], ["東京", "京都"])
    assert "a-z" in rows["rougeL"].reason
    long = " ".join(str(n) for n in range(70))
    assert "too long" in row_scores([long], [long])["ter"].reason
    keywords = row_scores(THERE, HERE, keywords=[[], [""], []])["keyword_recall"]
    assert keywords.reason == "no row carries keywords"
    broken = row_scores(THERE, HERE, likelihoods=[(math.nan, 1, 1)] * 3)["perplexity"]
    assert "finite" in broken.reason
    silent = row_scores(THERE, HERE, likelihoods=[(0.0, 0, 0)] * 3)["perplexity"]
    assert silent.reason == "nothing to count in these rows"


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="2 references for 3 answers"):
        row_scores(THERE, HERE[:2])
    with pytest.raises(ValueError, match="unknown metrics: blue"):
        row_scores(THERE, HERE, only=["blue"])
    with pytest.raises(ValueError, match="list of words"):
        row_scores(THERE, HERE, keywords=["dog", "it", "man"])


def test_sentence_scores() -> None:
    chrf = sentence_scores([HERE[0], THERE[1], ""], [HERE[0], HERE[1], None])
    assert chrf[0] == pytest.approx(100)
    assert chrf[1] == CHRF().sentence_score(THERE[1], [HERE[1]]).score
    assert chrf[2] is None
    assert sentence_scores(["a b"], ["a b"], "bleu") == [pytest.approx(100)]


TEXTS = st.lists(st.text("ab ", max_size=12), min_size=1, max_size=6)


@given(TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_score(texts: list[str], random: Any) -> None:
    pairs = list(zip(texts, ["a b", *texts[:-1]], strict=True))
    mixed = random.sample(pairs, len(pairs))
    one, other = (row_scores([a for a, _ in p], [b for _, b in p]) for p in (pairs, mixed))
    for name, rows in one.items():
        assert rows.value == pytest.approx(other[name].value)
        assert rows.value is None or math.isfinite(rows.value)


def test_forms_are_compared_field_by_field() -> None:
    wanted = ['{"name": "Bo", "nights": 2}', '{"name": null, "nights": 1}', '{"name": "A"}']
    said = ['{"nights": 2, "name": "Bo"}', '{"name": null, "nights": "1"}', 'Here: {"name": "A"}']
    found = row_scores(said, wanted)
    assert found["json_valid"].statistics[:, 0].tolist() == [1, 1, 0]
    assert found["json_fields"].statistics[:, 0].tolist() == [1, 0.5, 0]
    assert found["json_fields"].value == 50
    extra = '{"name": "Bo", "nights": 2, "why": "x"}'
    assert equal_fields(json_object(extra), {"name": "Bo", "nights": 2}) == pytest.approx(2 / 3)
    assert equal_fields(json_object('{"a": 1}'), {"a": None}) == 0  # null is a value, not absence
    assert equal_fields({}, {}) == 1
    assert "json_valid" not in row_scores(["{}"], ["no form"])


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1} and more', "{" * 5000, "null"])
def test_what_is_no_json_object(text: str) -> None:
    assert json_object(text) is None


def test_groups_are_scored_by_their_own_rows() -> None:
    found = {"tuned": row_scores(["a b", "c", "x", "y"], ["a b", "d", "x", "y"])}
    groups = group_scores(found, ["old", "old", "new", "new"], ["exact", "bleu"])
    assert list(groups) == ["old", "new"]
    assert groups["old"]["tuned"]["exact"]["value"] == 50
    assert groups["new"]["tuned"]["exact"]["value"] == 100
    assert groups["new"]["tuned"]["exact"]["n"] == 2
    assert group_scores(found, [""] * 4, ["exact"]) == {}
    keywords = {"tuned": row_scores(["a", "b"], ["a", "b"], keywords=[["a"], []])}
    assert groups_of(keywords) == {"one": {"tuned": {}}, "two": {"tuned": {}}}


def groups_of(found: dict[str, dict[str, RowScores]]) -> dict[str, Any]:
    """A metric that does not count every row cannot be told apart by group."""
    return group_scores(found, ["one", "two"], ["keyword_recall"])
