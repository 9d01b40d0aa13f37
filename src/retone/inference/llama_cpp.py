"""llama.cpp as it is shipped: its own server over a GGUF file, asked over loopback.

    with LlamaServer(file) as server:
        ids = server.prompt_ids(messages)          # rendered by llama.cpp from the file's template
        server.next_log_probs(ids)                 # what it would write next
        server.complete(ids, 64)                   # what it writes

The server comes from the wheel xllamacpp and runs in a process of its own, which ends with us.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from retone.conversation import Message
from retone.errors import MachineError

KEY = "RETONE_LLAMA_KEY"  # of the environment of the child, which alone is let in
SECONDS = 300.0  # an answer that takes longer is given up
TOP = 10  # tokens whose probabilities are told


class LlamaServer:
    """A running llama.cpp over one file: 127.0.0.1, a free port, no pages, a key of its own.

    Args:
        file: a GGUF model.
        lora: a GGUF adapter beside it.
        context: tokens of prompt and answer together.
        slots: prompts that are answered at once.
        key: that it lets in; one of its own when left out.

    Attributes:
        address: where its API begins, once it runs.

    Raises MachineError on entering: the wheel is not installed, or llama.cpp refuses the file.
    """

    def __init__(
        self, file: Path, *, lora: Path | None = None, context: int = 4096, slots: int = 1,
        key: str = "",
    ) -> None:  # fmt: skip
        self._command = [str(context), str(slots), str(file), *([str(lora)] if lora else [])]
        self._file = file
        self._key = key or secrets.token_hex(16)
        self.address = ""

    def __enter__(self) -> Self:
        if find_spec("xllamacpp") is None:
            raise MachineError(
                "llama.cpp is needed to run GGUF files", "not installed: xllamacpp",
                "pip install 'retone[llamacpp]'", "no-llamacpp",
            )  # fmt: skip
        self._log = tempfile.TemporaryFile()
        script = "import sys; from retone.inference.llama_cpp import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", script, *self._command],
            env={**os.environ, KEY: self._key},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        lines = (line.strip() for line in self._process.stdout)
        address = next((line for line in lines if line.startswith("http://")), "")
        if not address:
            self._end()
            raise self._refused()
        self.address = f"{address}/v1"
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._connection.close()
        self._end()
        self._log.close()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a chat prompt, rendered and tokenised by llama.cpp alone."""
        turns = [message.as_dict() for message in messages]
        text = self._post("/apply-template", {"messages": turns})["prompt"]
        return self.token_ids(text)

    def token_ids(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with `special` as the server reads a prompt: BOS added where the file
        says so, names of special tokens read as these."""
        asked = {"content": text, "add_special": special, "parse_special": special}
        ids: list[int] = self._post("/tokenize", asked)["tokens"]
        return ids

    def next_log_probs(self, ids: Sequence[int], top: int = TOP) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities (nats), the likeliest first.

        Empty where the server tells none, as for the first half of a character.
        """
        told = self._completion(ids, 1, n_probs=top).get("completion_probabilities") or [{}]
        return {one["id"]: one["logprob"] for one in told[0].get("top_logprobs", ())}

    def complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], bool]:
        """What it writes behind ids, greedily; and whether it stopped by itself before `tokens`."""
        told = self._completion(ids, tokens, return_tokens=True)
        return told["tokens"], told["stop_type"] == "eos"

    def read_as(self, messages: Sequence[Message]) -> int:
        """Tokens that a chat prompt has when it is really asked, whatever the steps alone say."""
        turns = [message.as_dict() for message in messages]
        asked = {"messages": turns, "max_tokens": 1, "temperature": 0}
        usage = self._post("/v1/chat/completions", asked)["usage"]
        return int(usage["prompt_tokens"])

    def _completion(self, ids: Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
        asked = {"prompt": list(ids), "n_predict": tokens, "temperature": 0, "cache_prompt": True}
        return self._post("/completion", {**asked, **more})

    def _post(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            self._connection.request("POST", path, json.dumps(asked), headers)
            response = self._connection.getresponse()
            told = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._end()
            raise self._refused() from error
        if response.status != 200:
            found = told.get("error", {}).get("message", told)
            raise MachineError(
                "llama.cpp refuses a request", f"{self._file.name}{path}: {found}",
                "the file may be of another version of llama.cpp: export it again", "llama-refuses",
            )  # fmt: skip
        return dict(told)

    def _end(self) -> None:
        """Let the process go: it ends with its stdin."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _refused(self) -> MachineError:
        """What it said in the end."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        told = [line.strip() for line in lines if "error" in line.lower()] or lines[-3:]
        return MachineError(
            "llama.cpp cannot run the file", f"{self._file}: {' '.join(told[-2:]).strip()[-400:]}",
            "export it again; a file that it never runs is a mistake of ours: please report it",
            "llama-failed",
        )  # fmt: skip


def serve(context: str, slots: str, file: str, lora: str = "") -> None:
    """The child: serve a file until stdin closes; the address is its first line."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    if lora:
        adapter = xllamacpp.CommonAdapterLoraInfo(lora, 1.0)
        params.lora_adapters = [adapter]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or 1
    params.n_parallel, params.n_gpu_layers = int(slots), 0
    params.n_ctx = int(slots) * int(context)
    params.hostnames, params.port, params.ui, params.verbosity = ["127.0.0.1"], 0, False, 0
    params.use_jinja, params.api_keys = True, [os.environ[KEY]]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"\n{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # the server's threads would be waited for
