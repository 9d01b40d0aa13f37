"""Answers from a model: batches, streams."""
