"""Tokens that llama.cpp writes for prompts on stdin, and the seconds: one JSON object on stdout.

python benchmarks/llama.py FILE.gguf TOKENS < prompts.json     # lists of token ids
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp


def main() -> None:
    """Load, warm up, write."""
    file, tokens = sys.argv[1], int(sys.argv[2])
    prompts = json.load(sys.stdin)
    found: dict[str, Any] = {"info": xllamacpp.get_system_info().strip()}
    if prompts:
        server = loaded(file, len(prompts))
        one(server, prompts[0], 4)
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            found["tokens"] = sum(pool.map(lambda ids: one(server, ids, tokens), prompts))
        found["seconds"] = time.perf_counter() - start
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the server's threads would be waited for


def loaded(file: str, slots: int) -> Any:
    """llama.cpp's server with a slot for each prompt, and as many threads as there are cores."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    threads = len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx = slots, 512 * slots
    params.cache_prompt, params.warmup, params.ui, params.verbosity = False, True, False, -1
    return xllamacpp.Server(params)


def one(server: Any, ids: list[int], tokens: int) -> int:
    """Tokens written for one prompt."""
    asked = {"prompt": ids, "n_predict": tokens, "ignore_eos": True, "temperature": 0,
             "cache_prompt": False}  # fmt: skip
    told = server.handle_completions(asked)
    found = json.loads(told) if isinstance(told, str | bytes) else told
    return int(found.get("tokens_predicted") or found["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
