"""The loop, its losses, optimizers, checkpoints and fast paths."""
