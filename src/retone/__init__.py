"""retone: teach a small language model a tone, a persona or a domain's answers, and prove it took.

The Python API is the command line's functions:

    import retone
    run = retone.run("yoda")                      # prepare, train, evaluate
    print(retone.load("latest").answer("I can't find my keys."))

Names are loaded on first use, so that `import retone` costs no torch.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

# No telemetry, ours or a dependency's; huggingface_hub reads this when it is first imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# oneDNN keeps up to 1024 compiled products, one for each shape; rows of many lengths fill that with
# hundreds of megabytes. Read when the first product is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# bitsandbytes, which peft imports where it is installed, asks for a package that fetches code.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]

if TYPE_CHECKING:
    from retone.workflows.load import load
    from retone.workflows.run import run


def __getattr__(name: str) -> object:
    if name == "run":
        from retone.workflows.run import run

        return run
    if name == "load":
        from retone.workflows.load import load

        return load
    raise AttributeError(f"module 'retone' has no attribute {name!r}")
