"""Settings of all tests: one thread, a fixed seed."""

import pytest
import torch
from pair import Pair

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pair():
    """Two processes that run functions together."""
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def only_safe_loading(monkeypatch):
    """Whatever torch.load is asked for, it may not unpickle."""
    load, asked = torch.load, []

    def watched(*args, **kwargs):
        asked.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    yield
    assert asked
    assert all(asked)
