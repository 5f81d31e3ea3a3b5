"""Addresses, keys, timeouts: from arguments, the environment and `with_options`."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from asking import Asker
from canned import Recorder

from twinshot import AsyncClient, Client, TwinshotError

CLIENTS = [Client, AsyncClient]


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_address_may_come_from_the_environment(
    kind: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind().base_url == "http://127.0.0.1:8000"
    monkeypatch.setenv("TWINSHOT_BASE_URL", "http://elsewhere:9/")
    assert kind().base_url == "http://elsewhere:9"
    assert kind("http://here:8").base_url == "http://here:8"
    monkeypatch.setenv("TWINSHOT_BASE_URL", "")
    assert kind().base_url == "http://127.0.0.1:8000"


def test_the_key_may_come_from_the_environment(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Recorder()
    ask(server, "generate", "a", settings={"api_key": "mine"})
    monkeypatch.setenv("TWINSHOT_API_KEY", "theirs")
    ask(server, "generate", "a")
    ask(server, "generate", "a", settings={"api_key": "mine"})
    keys = [request.headers["Authorization"] for request in server.requests]
    assert keys == ["Bearer mine", "Bearer theirs", "Bearer mine"]


def test_a_server_may_live_below_a_path(ask: Asker) -> None:
    server = Recorder()
    for address in ("https://host/pictures", "https://host/pictures/"):
        ask(server, "generate", "a", settings={"base_url": address})
    assert {str(request.url) for request in server.requests} == {"https://host/pictures/generate"}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"base_url": "localhost:8000"},
            "base_url is 'localhost:8000'; it must look like http://127.0.0.1:8000",
        ),
        ({"base_url": "ftp://host"}, "base_url is 'ftp://host'"),
        ({"base_url": "http://"}, "base_url is 'http:"),
        ({"base_url": "http://host:port"}, "base_url is no address"),
        ({"base_url": "http://ho\nst"}, "base_url is no address"),
        ({"api_key": "a\nb"}, "is there a line break in it"),
        ({"api_key": "schlüssel"}, "api_key has characters that no key has"),
        ({"timeout": 0}, "timeout is 0; it must be a number of seconds above 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"max_retries": -1}, "max_retries is -1; it must be 0 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_told(
    kind: type[Client | AsyncClient], settings: dict[str, object], said: str
) -> None:
    with pytest.raises(TwinshotError, match=said) as caught:
        kind(**settings)  # type: ignore[arg-type]
    assert "schlüssel" not in str(caught.value)
    if "base_url" not in settings:
        with pytest.raises(TwinshotError, match=said):
            kind("http://server").with_options(**settings)  # type: ignore[arg-type]


def test_no_secret_is_shown(ask: Asker) -> None:
    client = Client("http://ann:password@host", api_key="a-secret")
    assert repr(client) == "Client('http://host')"
    assert "secret" not in repr(client._config)

    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    settings = {"base_url": "http://ann:password@host", "max_retries": 0, "api_key": "a-secret"}
    with pytest.raises(TwinshotError, match="no answer from http://host: refused"):
        ask(fail, "generate", "a", settings=settings)


def test_with_options_changes_a_copy_on_the_same_connections() -> None:
    server = Recorder()
    with Client("http://server", api_key="old", transport=httpx2.MockTransport(server)) as client:
        other = client.with_options(api_key="new", timeout=2)
        for each in (client, other, other.with_options()):
            each.generate("a")
    keys = [request.headers["Authorization"] for request in server.requests]
    assert keys == ["Bearer old", "Bearer new", "Bearer new"]
    timeouts = [request.extensions["timeout"] for request in server.requests]
    assert [(each["connect"], each["read"]) for each in timeouts] == [(5.0, 30.0), (2, 2), (2, 2)]
    with pytest.raises(RuntimeError, match="closed"):
        other.generate("a")


def test_an_async_client_can_be_closed_by_hand() -> None:
    async def main() -> None:
        client = AsyncClient("http://server", transport=httpx2.MockTransport(Recorder()))
        assert (await client.generate("a", seed=7)).seed == 7
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.generate("a")

    asyncio.run(main())
