"""Rendering gives, byte for byte, the texts that two other programs expect of public templates."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from retone.rendering import RowRejected, pin_date, render_chat

GOLDEN = Path(__file__).parents[2].parent / "shared" / "data" / "golden"
DAY = datetime.date(2025, 7, 10)  # the day on which the one dated text was written

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden files in {GOLDEN}")

# Cases that a program which hands every row to the model's own template cannot reproduce.
# JavaScript: a message whose content is null keeps that key there; transformers drops it.
JAVASCRIPT_DIFFERENCES = {"meetkai/functionary-medium-v2.2": "has no attribute 'content'"}
# C++: that program repairs conversations; here the template's refusal stands.
CPP_REFUSED = {
    "mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)": "alternate",
    "google/gemma-7b-it": "System role not supported",
}
# C++: the template leaves a system message out, that program puts it back into the user turn.
CPP_SYSTEM_LEFT_OUT = {"Phi-3-mini"}


def _read(name: str) -> Any:
    path = GOLDEN / name
    return json.loads(path.read_text()) if path.exists() else {}


def _named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


JAVASCRIPT = [case for group in _read("hfjs_chat_template_golden.json").values() for case in group]
CPP_FILE = _read("llamacpp_chat_template_golden.json")
CPP = CPP_FILE.get("cases", [])
CPP_WITH_TEMPLATE = [case for case in CPP if "template_str" in case]
CPP_SPECIAL = {*CPP_REFUSED, *CPP_SYSTEM_LEFT_OUT}


def render(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """Render as transformers does: without the keys of a message that are null."""
    given = [{key: value for key, value in each.items() if value is not None} for each in messages]
    return render_chat(pin_date(template, DAY), given, **variables)


def render_javascript(case: dict[str, Any]) -> str:
    # Where a case leaves this open, one template asks for the generation prompt by itself.
    variables = {"add_generation_prompt": "Jamba" in case["name"], **case["data"]}
    return render(case["chat_template"], variables.pop("messages"), **variables)


def render_cpp(case: dict[str, Any]) -> str:
    string = r'"(?:[^"\\]|\\.)*"'
    pairs = re.findall(rf"\{{({string}), ({string})\}}", case.get("extra_conversation", ""))
    extra = [{"role": json.loads(role), "content": json.loads(text)} for role, text in pairs]
    return render(
        case["template_str"],
        CPP_FILE["conversation"] + extra,
        add_generation_prompt=True,
        bos_token=case.get("bos_token", ""),
        eos_token=case.get("eos_token", ""),
    )


def expected_cpp(case: dict[str, Any]) -> str:
    return str(case["expected_output_jinja"] or case["expected_output"])


@pytest.mark.parametrize(
    "case", _named([case for case in JAVASCRIPT if case["name"] not in JAVASCRIPT_DIFFERENCES])
)
def test_javascript_case(case: dict[str, Any]) -> None:
    assert render_javascript(case) == case["target"]


@pytest.mark.parametrize(
    "case", _named([case for case in JAVASCRIPT if case["name"] in JAVASCRIPT_DIFFERENCES])
)
def test_javascript_known_difference(case: dict[str, Any]) -> None:
    assert any(message["content"] is None for message in case["data"]["messages"])
    with pytest.raises(RowRejected, match=JAVASCRIPT_DIFFERENCES[case["name"]]):
        render_javascript(case)


@pytest.mark.parametrize(
    "case", _named([case for case in CPP_WITH_TEMPLATE if case["name"] not in CPP_SPECIAL])
)
def test_cpp_case(case: dict[str, Any]) -> None:
    assert render_cpp(case) == expected_cpp(case)


@pytest.mark.parametrize(
    "case", _named([case for case in CPP_WITH_TEMPLATE if case["name"] in CPP_REFUSED])
)
def test_cpp_case_that_the_template_refuses(case: dict[str, Any]) -> None:
    with pytest.raises(RowRejected, match=CPP_REFUSED[case["name"]]) as rejected:
        render_cpp(case)
    assert rejected.value.reason == "template-error"


@pytest.mark.parametrize(
    "case", _named([case for case in CPP_WITH_TEMPLATE if case["name"] in CPP_SYSTEM_LEFT_OUT])
)
def test_cpp_case_whose_template_leaves_the_system_message_out(case: dict[str, Any]) -> None:
    system = CPP_FILE["conversation"][0]["content"]
    assert render_cpp(case) == expected_cpp(case).replace(f"{system}\n", "")


def test_every_case_is_accounted_for() -> None:
    javascript = {
        "all": len(JAVASCRIPT),
        "differ": sum(case["name"] in JAVASCRIPT_DIFFERENCES for case in JAVASCRIPT),
    }
    assert javascript == {"all": 35, "differ": 1}
    cpp = {
        "all": len(CPP),
        "without a template": len(CPP) - len(CPP_WITH_TEMPLATE),
        "refused": sum(case["name"] in CPP_REFUSED for case in CPP),
        "system left out": sum(case["name"] in CPP_SYSTEM_LEFT_OUT for case in CPP),
    }
    assert cpp == {"all": 24, "without a template": 2, "refused": 2, "system left out": 1}


def test_every_case_that_plain_rendering_matches_is_a_case_that_must_pass() -> None:
    matching = {case["name"] for case in [*JAVASCRIPT, *CPP] if case["plain_jinja_matches"]}
    assert matching.isdisjoint(CPP_SPECIAL)
    assert matching & set(JAVASCRIPT_DIFFERENCES) == set(JAVASCRIPT_DIFFERENCES)
