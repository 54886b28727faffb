"""Adapters that all tests of this folder read."""

import pytest
from serve_parts import write_adapters


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    return write_adapters(tmp_path_factory.mktemp("adapters"))
