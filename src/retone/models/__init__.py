"""Base models: found and checked (locate, embedded), then loaded, made trainable and exported."""

import logging

# bitsandbytes, which peft imports where it is installed, asks for a package that fetches code.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
