"""From sources to encoded rows: every row accounted for, nothing on two sides, one or a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from retone.chat_template import ChatTemplate
from retone.config import DataSection
from retone.conversation import Conversation, Document, Message
from retone.data.preparing import PreparedData, prepare_data
from retone.data.spool import as_line, from_line
from retone.errors import InputError

DATASETS = ("yoda", "bookings", "handbook", "lamplight", "notebook")
COLUMNS = {
    "yoda": {"prompt": "plain", "completion": "yoda"},
    "bookings": {"prompt": "message", "completion": "form"},
}
LONG = " ".join(f"word{number}" for number in range(100))


def prepared(folder: Path, limit: int = 100_000, seed: int = 0, **data: Any) -> PreparedData:
    out = folder / f"prepared-{len(list(folder.iterdir()))}"
    out.mkdir()
    template = ChatTemplate(tiny.tokenizer())
    return prepare_data(DataSection(**data), template, out, limit=limit, seed=seed)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Where is house {at}?", "completion": f"Number {at} is here.", **more}
        for at in range(start, start + count)
    ]


def rows(data: PreparedData, split: str) -> list[dict[str, Any]]:
    lines = (data.folder / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def check_ledger(data: PreparedData) -> list[dict[str, Any]]:
    """The sources; what is read is used or dropped, and the splits hold what is used."""
    sources: list[dict[str, Any]] = data.ledger["sources"]
    for source in sources:
        assert source["read"] == source["used"] + sum(source["dropped"].values())
        assert set(source["examples"]) == set(source["dropped"])
    for split, name in (("validation", "validated"), ("test", "tested")):
        assert len(rows(data, split)) == sum(source[name] for source in sources)
    used = sum(source["used"] for source in sources)
    assert sum(len(rows(data, split)) for split in ("train", "validation", "test")) == used
    assert sum(source["rows"] for source in sources) == len(data.rows("train"))
    tokens = {name: sum(s["tokens"][name] for s in sources) for name in ("trained", "masked")}
    assert sum(tokens.values()) == data.rows("train").lengths.sum()
    assert tokens["trained"] == sum(row.trained for row in data.rows("train"))
    return sources


@pytest.mark.parametrize("name", DATASETS)
def test_no_bundled_row_is_lost(name: str, tmp_path: Path) -> None:
    """Neither as a duplicate nor because it is near a test row: all were written apart."""
    data = prepared(
        tmp_path,
        train=f"bundled:{name}/train.jsonl",
        test=f"bundled:{name}/test.jsonl",
        columns=COLUMNS.get(name, {}),
    )
    for source in check_ledger(data):
        assert source["dropped"] == {}
        assert source["read"] > 40


def test_all_reasons_are_counted(tmp_path: Path) -> None:
    answers = [{"prompt": "A", "completion": "B"}] * 2
    near = [{"prompt": LONG, "completion": LONG + end} for end in ("", " end")]
    held = [{"prompt": "In the test?", "completion": "Yes."}]
    broken = [{"prompt": "x", "completion": 3}]
    long = [{"prompt": "How?", "completion": "and " * 2000}]
    stop = [{"prompt": "Stop?", "completion": "Yes <|im_end|> no"}]
    train = write(tmp_path / "t.jsonl", pairs(20) + answers + near + held + broken + long + stop)
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"prompt": \n')
    test = write(tmp_path / "test.jsonl", [{**held[0], "completion": "No."}])
    data = prepared(tmp_path, 2000, train=train, test=test, bad_rows="drop")
    source, tested = check_ledger(data)
    assert source["dropped"] == {
        "duplicate": 1,
        "near-duplicate": 1,
        "also-in-test": 1,
        "unusable": 2,
        "longer-than-max-length": 1,
        "stop-token-in-answer": 1,
    }
    assert "t.jsonl, row 25" in source["examples"]["also-in-test"][0]
    assert tested["tested"] == tested["read"] == 1


def test_bad_rows_of_all_sources_come_at_once(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        bad = [{"prompt": "x", "completion": number} for number in range(3)]
        paths.append({"path": write(tmp_path / f"{name}.jsonl", pairs(3) + bad)})
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, train=paths)
    assert caught.value.problem.startswith("6 rows of the data")
    assert "a.jsonl, line 4" in caught.value.found
    assert "b.jsonl, line 5" in caught.value.found
    assert "(+1 more)" in caught.value.found


def test_nothing_left_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(5))
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, train=path, test=path)
    assert caught.value.code == "nothing-trained"
    assert "rows.jsonl: 5 rows read; also-in-test: 5" in caught.value.found
    assert "--test FILE" in caught.value.remedy
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "x", "completion": 3}])
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, train=bad, bad_rows="drop", format="pair")
    assert "unusable: 1" in caught.value.found


def test_split_by_keeps_topics_whole(tmp_path: Path) -> None:
    found = [row for topic in range(30) for row in pairs(4, 100 * topic, topic=f"t{topic}")]
    path = write(tmp_path / "rows.jsonl", found)
    data = prepared(tmp_path, train=path, split_by="topic", eval_fraction=0.2)
    check_ledger(data)
    topics = {split: {row["extra"]["topic"] for row in rows(data, split)} for split in
              ("train", "validation", "test")}  # fmt: skip
    assert len(topics["test"]) == 6
    assert len(topics["validation"]) == 1
    assert not topics["train"] & (topics["test"] | topics["validation"])
    with pytest.raises(InputError, match=r'topik \(did you mean "topic"\?\); there are topic'):
        prepared(tmp_path, train=path, split_by="topik")


def test_near_rows_never_stand_on_two_sides(tmp_path: Path) -> None:
    """Three variants of each of 40 texts, about 0.8 alike: kept, and each three together."""
    found = []
    for at in range(40):
        words = [f"w{at}-{place}" for place in range(40)]
        for variant in range(3):
            text = " ".join([*words, f"and {variant} ends"])
            found.append({"prompt": f"{variant} {text}", "completion": f"{text} {variant}"})
    path = write(tmp_path / "rows.jsonl", found)
    data = prepared(tmp_path, train=path, eval_fraction=0.2, validation_fraction=0.2)
    (source,) = check_ledger(data)
    assert source["dropped"] == {}
    for split in ("train", "validation", "test"):
        names = [row["messages"][0]["content"].split()[1] for row in rows(data, split)]
        assert len(names) == 3 * len(set(names)) > 0


def test_near_rows_of_two_topics_are_dropped_from_training(tmp_path: Path) -> None:
    found = [
        {"prompt": f"{LONG} {at // 2}x", "completion": f"{at} {LONG} {at // 2}", "topic": at % 2}
        for at in range(2)
    ]
    path = write(tmp_path / "rows.jsonl", found + pairs(8, topic=7))
    for seed in range(4):
        data = prepared(tmp_path, seed=seed, train=path, split_by="topic", deduplicate="near")
        (source,) = check_ledger(data)
        assert not source["dropped"] or set(source["dropped"]) <= {
            "near-duplicate", "also-in-test", "also-in-validation"
        }  # fmt: skip
        sides = {split: rows(data, split) for split in ("train", "validation", "test")}
        assert sum(any(LONG in str(row) for row in side) for side in sides.values()) == 1


def test_duplicates_may_be_kept_but_stay_on_one_side(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(20) * 3)
    data = prepared(tmp_path, train=path, deduplicate="none", eval_fraction=0.2)
    (source,) = check_ledger(data)
    assert source["used"] == 60
    assert source["tested"] == 12
    sides = [{json.dumps(r["messages"]) for r in rows(data, s)} for s in ("train", "test")]
    assert not sides[0] & sides[1]
    assert prepared(tmp_path, train=path, deduplicate="exact").ledger["sources"][0]["used"] == 20


def test_sample_weight_and_repeat(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", pairs(60, 1000 * n)) for n in range(3)]
    sources = [
        {"path": files[0], "sample": 40, "weight": 1.0},
        {"path": files[1], "weight": 3.0, "repeat": 2},
        {"path": files[2], "sample": 0.5},
    ]
    test = write(tmp_path / "test.jsonl", pairs(3, 9000))
    data = prepared(tmp_path, train=sources, test=test, validation_fraction=0)
    first, second, third, _ = check_ledger(data)
    assert first["dropped"] == {"not-sampled": 20}
    assert (first["rows"], second["rows"]) == (40, 120)  # 1 : 3, and nothing lost in vain
    assert second["used"] == 60
    assert third["used"] == third["rows"] == 30
    numbers = [row.row for row in data.rows("train") if row.source == "1.jsonl"]
    assert sorted(numbers) == sorted(list(range(1, 61)) * 2)


def test_the_order_of_rows_decides_nothing(tmp_path: Path) -> None:
    found = pairs(50) + pairs(10)
    one = prepared(tmp_path, train=write(tmp_path / "a.jsonl", found))
    other = prepared(tmp_path, train=write(tmp_path / "b.jsonl", found[::-1]))
    for split in ("train", "validation", "test"):
        sides = [{json.dumps(r["messages"]) for r in rows(d, split)} for d in (one, other)]
        assert sides[0] == sides[1]
    again = prepared(tmp_path, train=str(tmp_path / "a.jsonl"), seed=1)
    assert rows(again, "test") != rows(one, "test")


def test_documents_and_preferences(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(LONG + "\n\n" + LONG[::-1])
    good = [{"prompt": f"Q{n}?", "chosen": f"Good {n}.", "rejected": "Bad."} for n in range(20)]
    labelled = [{"prompt": f"K{n}?", "completion": "Yes.", "label": n % 2 == 0} for n in range(6)]
    sources = [
        {"path": str(tmp_path / "book.txt")},
        {"path": write(tmp_path / "good.jsonl", good)},
        {"path": write(tmp_path / "labelled.jsonl", labelled)},
    ]
    data = prepared(tmp_path, 64, train=sources, validation_fraction=0)
    book, chosen, kto = check_ledger(data)
    assert book["used"] == 1
    assert book["tested"] == 0
    assert book["rows"] > 5
    assert book["longest_row"] == 64
    assert chosen["used"] == 20
    assert kto["dropped"] == {"rejected-only": 3}
    assert all("Bad." not in json.dumps(row) for row in rows(data, "train"))


def test_test_prompts_that_cannot_be_written_are_dropped(tmp_path: Path) -> None:
    train = write(tmp_path / "rows.jsonl", pairs(20))
    test = write(tmp_path / "test.jsonl", pairs(2, 900))
    out = tmp_path / "out"
    out.mkdir()
    template = ChatTemplate(tiny.tokenizer())
    render = template.render

    def refuse(messages: Sequence[Message], **options: Any) -> str:
        from retone.chat_template import RowRejected

        if "901" in messages[0].content:
            raise RowRejected("template-error", "planted")
        return render(messages, **options)

    template.render = refuse  # type: ignore[method-assign]
    data = prepare_data(DataSection(train=train, test=test), template, out, limit=512, seed=0)
    assert check_ledger(data)[1]["dropped"] == {"template-error": 1}


@pytest.mark.parametrize(
    "sample",
    [
        Document("half a pair: \ud83d, and é", "book.txt", 1, {"title": "x"}),
        Conversation(
            (
                Message("system", "Be brief."),
                Message("user", "Weather?", loss_weight=0.0),
                Message(
                    "assistant", "", tool_calls=({"type": "function", "function": {"name": "f"}},)
                ),
                Message("tool", "21", name="f"),
                Message("assistant", "Warm.", 0.5, (("Wa", 1.0), ("rm.", 0.0)), (), "hm"),
            ),
            "a.jsonl",
            3,
            {"topic": "t", "n": [1, 2]},
            ({"type": "function", "function": {"name": "f", "parameters": {}}},),
        ),
        Conversation((Message("user", "Hi"), Message("assistant", "Ho"))),
    ],
)
def test_samples_come_back_as_they_were(sample: Conversation | Document) -> None:
    again = from_line(as_line(sample))
    assert again == sample
    assert again.extra == sample.extra


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's VmHWM")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Two files of as many rows, one of ten times the text: nearly the same peak."""
    code = """
        import random, re, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[3])
        import tiny
        from retone.chat_template import ChatTemplate
        from retone.config import DataSection
        from retone.data.preparing import prepare_data
        words, folder = int(sys.argv[1]), Path(sys.argv[2])
        rng = random.Random(0)
        with (folder / "rows.jsonl").open("w") as file:
            for row in range(3000):
                text = " ".join(f"w{rng.randrange(999)}" for _ in range(words))
                file.write('{"prompt": "%s", "completion": "%s"}\\n' % (row, text))
        (folder / "out").mkdir()
        class Template(ChatTemplate):
            def encode_batch(self, conversations, **_):  # the tokenizer's own memory is no matter
                return [[self._one] for _ in conversations]
        template = Template(tiny.tokenizer())
        (template._one,) = ChatTemplate(tiny.tokenizer()).encode(
            [tiny_message("user", "a"), tiny_message("assistant", "b")])
        prepare_data(DataSection(train=str(folder / "rows.jsonl")), template, folder / "out",
                     limit=512, seed=0)
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    """
    code = textwrap.dedent(code).replace("tiny_message", "Message")
    code = "from retone.conversation import Message\n" + code
    peaks = []
    for words in (30, 600):
        folder = tmp_path / str(words)
        folder.mkdir()
        tests = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code, str(words), str(folder), tests],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 60_000  # kB; the second file has 8 MB more, and its 3-grams 80
