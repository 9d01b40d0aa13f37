"""Placeholders in rows are filled or refused, and the system prompt is put where there is none."""

from __future__ import annotations

from row_reading import HI, one, read, refused, said


def test_placeholders_are_filled_everywhere() -> None:
    values = {"name": "Ada", "author": "us {{name}}"}
    messages = [
        {"role": "system", "content": "You are {{ name }}."},
        {"role": "user", "content": [{"type": "text", "text": "{{name}}?"}]},
        {"role": "assistant", "content": "By {{author}}."},
    ]
    found = one({"messages": messages, "topic": "{{topic}}"}, values=values)
    assert [content for _, content in said(found.messages)] == [
        "You are Ada.", "Ada?", "By us {{name}}.",
    ]  # fmt: skip
    assert found.extra == {"topic": "{{topic}}"}
    found = one({"prompt": "Hi", "completion": "Yo"}, values=values, system="Be {{name}}.")
    assert found.messages[0].content == "Be Ada."


def test_placeholders_without_a_value_are_all_listed() -> None:
    rows = [
        {"prompt": "Who?", "completion": "{{name}} by {{author}}"},
        {"prompt": "{{town}}?", "completion": "{{name}}"},
    ]
    error = refused(*rows, values={"author": "us"}, system="Be {{mood}}.")
    assert error.code == "unfilled-placeholders"
    assert error.found == (
        "{{mood}} in data.system; {{name}} in rows.jsonl, row 1, completion; "
        "{{town}} in rows.jsonl, row 2, prompt"
    )
    assert error.remedy.startswith('--set \'data.values={mood="...", name="...", town="..."}\'')


def test_braces_can_be_kept_and_other_braces_are_left_alone() -> None:
    row = {"prompt": "Write {{x}}.", "completion": "f'{{}} { {a} } {{a.b}} {%x%}'"}
    found = one(row, values={"x": "{{x}}"})
    assert said(found.messages) == [("user", row["prompt"]), ("assistant", row["completion"])]


def test_the_system_prompt_is_put_where_there_is_none() -> None:
    own = {"messages": [{"role": "system", "content": "Be kind."}, *HI]}
    found = read(own, {"messages": HI}, system="Be brief.")
    firsts = [sample.messages[0].content for sample in found.samples]  # type: ignore[union-attr]
    assert firsts == ["Be kind.", "Be brief."]
    preference = one({"prompt": "Hi", "chosen": "a", "rejected": "b"}, system="Be brief.")
    assert said(preference.prompt) == [("system", "Be brief."), ("user", "Hi")]
    assert one({"text": "Once."}, system="Be brief.").text == "Once."
