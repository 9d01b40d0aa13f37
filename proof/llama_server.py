"""llama.cpp's own server over a GGUF file: python proof/llama_server.py FILE; prints its address.

On loopback, on a free port, without its pages, with the key of LLAMA_KEY; ends with its stdin.
"""

from __future__ import annotations

import os
import sys

import xllamacpp


def main() -> None:
    """Serve until stdin closes."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    threads = len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx = 4, 4 * 2048
    params.hostnames, params.port, params.ui, params.verbosity = ["127.0.0.1"], 0, False, -1
    params.use_jinja, params.api_keys = True, [os.environ["LLAMA_KEY"]]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"\n{server.listening_address}/v1\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # the server's threads would be waited for


if __name__ == "__main__":
    main()
