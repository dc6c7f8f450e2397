"""Whether the hub can be reached: by an endpoint, through a proxy, with a name server that stumbles or is silent."""

import os
import socket
import threading
import time

import datasets
import huggingface_hub
import pytest

from nbutils.core.network import hub_answers
from tests.publish.fake_hub import FakeHub

pytestmark = pytest.mark.usefixtures("unasked")


@pytest.fixture
def server():
    """Something that answers every request with an error."""
    hub = FakeHub()
    yield hub.url
    hub.close()


# closed; never answers (RFC 5737); no addresses
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://192.0.2.1", "huggingface.co", "http://a:b"])
def test_without_the_hub_everything_is_offline_within_three_seconds(monkeypatch, server, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    started = time.monotonic()
    assert hub_answers() is False and time.monotonic() - started < 3
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.is_offline_mode() and datasets.config.HF_HUB_OFFLINE
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert hub_answers() is False, "and nobody asks again"


def test_an_answer_is_an_answer_and_a_proxy_is_asked_where_one_is_set(monkeypatch, server):
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert hub_answers() is True and not os.environ["HF_HUB_OFFLINE"]
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setenv("HF_ENDPOINT", "http://nobody.invalid")
    assert hub_answers() is True


def test_a_name_server_that_stumbles_is_asked_again(monkeypatch, server):
    found = socket.getaddrinfo

    def stumble(*arguments, **options):
        monkeypatch.setattr("socket.getaddrinfo", found)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", stumble)
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert hub_answers() is True


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [released.wait(60)][1:])
    started = time.monotonic()
    assert hub_answers() is False and not released.is_set() and time.monotonic() - started < 3
    released.set()
