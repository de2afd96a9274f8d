"""The bundled tiny model."""

import pytest

from refine_server.ttt.models import CausalLM, load


@pytest.fixture(scope="session")
def tiny() -> CausalLM:
    return load("tiny")
