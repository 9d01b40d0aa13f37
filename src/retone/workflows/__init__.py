"""One function per verb, readable from top to bottom."""
