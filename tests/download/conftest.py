"""Fixtures of the download tests: a server, and a client that does not wait between attempts."""

import pytest
from tests.download.server import running

from histocrypt.download.transfer import Web


@pytest.fixture
def server():
    with running() as own:
        yield own


@pytest.fixture
def waits():
    """How long the client of the test would have waited, attempt by attempt."""
    return []


@pytest.fixture
def web(waits):
    with Web(read_s=1.0, connect_s=2.0, attempts=3, wait=waits.append) as own:
        yield own
