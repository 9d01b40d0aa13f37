"""Candidates on the same rows, metrics, and what they show."""
