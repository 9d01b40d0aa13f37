"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from retone.models.embedded import embedded_model
from retone.models.locate import cache_dir, model_table


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """The default model in the user's own cache: fetched once per machine, kept between runs."""
    spec = model_table()["smollm2-135m-instruct"].embedded
    assert spec is not None
    return embedded_model(spec, cache_dir(), offline=False)
