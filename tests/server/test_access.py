"""Keys, their limits, and what surrounds every request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import until

from twinshot_server.access.keys import KeyRing
from twinshot_server.access.limits import Limits
from twinshot_server.errors import ApiError
from twinshot_server.settings import Settings, SettingsError

BODY = {"prompt": "a"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    digest = hashlib.sha256(b"bobs-secret").hexdigest()
    path = tmp_path / "keys.toml"
    path.write_text(
        f"""
        [ann]
        secret = "anns-secret"
        rate = 0.001
        burst = 2

        [bob]
        sha256 = "{digest}"
        concurrency = 1

        [operator]
        secret = "operators-secret"
        admin = true
        """
    )
    return path


@pytest.fixture
def guarded(make_client: Callable[..., TestClient], key_file: Path) -> TestClient:
    return make_client(api_keys_file=key_file)


def test_without_keys_everybody_may_draw_and_nobody_may_administrate(client: TestClient) -> None:
    assert client.post("/generate", json=BODY).status_code == 200
    assert client.get("/admin/adapters").status_code == 401
    assert client.get("/admin/adapters", headers=bearer("anything")).status_code == 401


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_a_key_is_needed_once_there_are_any(path: str, guarded: TestClient) -> None:
    for headers in ({}, bearer("wrong"), bearer(""), {"Authorization": "anns-secret"}, {"X-API-Key": "x"}):
        response = guarded.post(path, json=BODY, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.headers["x-request-id"]
        assert "Authorization: Bearer" in response.text
    for headers in (
        bearer("bobs-secret"),
        {"X-API-Key": "bobs-secret"},
        {"Authorization": "bearer bobs-secret"},
    ):
        assert guarded.post(path, json=BODY, headers=headers).status_code == 200


def test_what_needs_no_key(guarded: TestClient) -> None:
    for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/startupz", "/health", "/metrics"):
        assert guarded.get(path).status_code == 200, path
    assert guarded.get("/v1/models").status_code == 401


def test_keys_hold_below_a_mount_point_too(make_client: Callable[..., TestClient]) -> None:
    app = make_client(api_keys="ann=anns-secret").app
    mounted = TestClient(app, root_path="/pictures")
    for path in ("/generate", "/v1/models", "/admin/adapters", "/realtime", "/nothing", "//generate"):
        assert mounted.get(f"/pictures{path}").status_code == 401, path
    assert mounted.get("/pictures/livez").status_code == 200
    assert mounted.get("/pictures/v1/models").json()["error"]["code"] == "invalid_key"
    assert mounted.get("/pictures/v1/models", headers=bearer("anns-secret")).status_code == 200


def test_admin_calls_have_their_own_key(guarded: TestClient) -> None:
    assert guarded.get("/admin/adapters", headers=bearer("bobs-secret")).status_code == 403
    assert guarded.get("/admin/adapters", headers=bearer("operators-secret")).json() == {"adapters": []}


def test_requests_are_counted_by_the_keys_name_never_by_the_key(guarded: TestClient) -> None:
    guarded.post("/generate", json=BODY, headers=bearer("bobs-secret"))
    guarded.post("/generate", json=BODY, headers=bearer("guess"))
    text = guarded.get("/metrics").text
    assert 'twinshot_requests_total{key="bob",model="fake",outcome="ok"} 1.0' in text
    assert 'twinshot_requests_total{key="none",model="fake",outcome="denied"} 1.0' in text
    assert "secret" not in text
    assert "guess" not in text


def test_a_keys_rate(guarded: TestClient) -> None:
    statuses = [guarded.post("/generate", json=BODY, headers=bearer("anns-secret")) for _ in range(3)]
    assert [each.status_code for each in statuses] == [200, 200, 429]
    assert statuses[2].json()["code"] == "rate_limited"
    assert int(statuses[2].headers["retry-after"]) > 100
    assert guarded.post("/generate", json=BODY, headers=bearer("bobs-secret")).status_code == 200


def test_a_keys_concurrency(guarded: TestClient, engine: Any) -> None:
    engine.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(guarded.post, "/generate", json=BODY, headers=bearer("bobs-secret"))
        until(engine.busy.is_set)
        second = guarded.post("/generate", json=BODY, headers=bearer("bobs-secret"))
        engine.release()
        assert first.result(10).status_code == 200
    assert (second.status_code, second.json()["code"]) == (429, "too_many_at_once")
    assert guarded.post("/generate", json=BODY, headers=bearer("bobs-secret")).status_code == 200


def test_a_bucket_fills_with_time() -> None:
    now = [0.0]
    limits = Limits(rate=2.0, burst=3, concurrency=None, clock=lambda: now[0])

    def passes() -> bool:
        try:
            with limits.request():
                return True
        except ApiError:
            return False

    assert [passes() for _ in range(4)] == [True, True, True, False]
    now[0] += 0.5
    assert [passes() for _ in range(2)] == [True, False]
    now[0] += 100
    assert [passes() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\n", "needs secret or sha256"),
        ('[a]\nsecret = "long-enough"\nsha256 = "x"\n', "sha256"),
        ('[a]\nsecret = "short"\n', "secret"),
        ('[a]\nsecret = "long-enough"\nrate = 0\n', "rate"),
        ('[a]\nsecret = "long-enough"\ncolour = 1\n', "colour"),
        ('["a b"]\nsecret = "long-enough"\n', "'a b' has a wrong name"),
        ("a = 1\n", "'a' has a wrong entry"),
        ("[a\n", "cannot read"),
    ],
)
def test_a_wrong_key_file_is_told_without_its_secrets(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        KeyRing.load(Settings(api_keys_file=path))
    assert "long-enough" not in str(caught.value)
    assert "short" not in str(caught.value).replace("too_short", "")


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        KeyRing.load(Settings(api_keys_file=tmp_path / "nothing"))


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_API_KEYS", "ann=anns-secret, bob=bobs=secret")
    monkeypatch.setenv("TWINSHOT_ADMIN_KEY", "operators-secret")
    ring = KeyRing.load(Settings())
    found = {key: ring.find(key) for key in ("anns-secret", "bobs=secret", "operators-secret", "x", "\ud800")}
    assert {key: caller.name for key, caller in found.items() if caller} == {
        "anns-secret": "ann",
        "bobs=secret": "bob",
        "operators-secret": "admin",
    }
    assert not ring.is_open
    assert "secret" not in repr(Settings())


def test_browsers_are_told_to_be_careful(client: TestClient) -> None:
    for path in ("/", "/generate", "/nothing", "/livez"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"


def test_other_sites_may_call_only_if_named(make_client: Callable[..., TestClient]) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed, opened = make_client(), make_client(cors_origins="https://a.example")
    assert "access-control-allow-origin" not in closed.options("/generate", headers=asked).headers
    assert (
        opened.options("/generate", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
    )
    answer = opened.post("/generate", json=BODY, headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "X-Seed" in answer.headers["access-control-expose-headers"]
    other = opened.post("/generate", json=BODY, headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_admin_adapters_of_an_engine_that_has_them(
    make_client: Callable[..., TestClient], engine: Any
) -> None:
    engine.adapters = []
    engine.load_adapter = lambda name, _source: engine.adapters.append(name)
    engine.unload_adapter = engine.adapters.remove
    client = make_client(admin_key="operators-secret")
    operator = bearer("operators-secret")
    loaded = client.put("/admin/adapters/ink", json={"source": "/x"}, headers=operator)
    assert loaded.json() == {"adapters": ["ink"]}
    assert client.get("/v1/models").json()["data"][0]["adapters"] == ["ink"]
    assert client.post("/generate", json=BODY | {"adapter": "ink"}).status_code == 200
    assert engine.batches[-1][0].adapter == "ink"
    assert client.delete("/admin/adapters/ink", headers=operator).json() == {"adapters": []}
    assert client.post("/generate", json=BODY | {"adapter": "ink"}).status_code == 422
    refused = client.put("/admin/adapters/a%20b", json={"source": "/x"}, headers=operator)
    assert (refused.status_code, refused.json()["param"]) == (422, "name")


def test_adapters_of_an_engine_that_has_none(make_client: Callable[..., TestClient]) -> None:
    client = make_client(admin_key="operators-secret")
    answer = client.put("/admin/adapters/ink", json={"source": "/x"}, headers=bearer("operators-secret"))
    assert (answer.status_code, answer.json()["detail"]) == (422, "This engine takes no adapters.")


def test_finding_a_key_looks_at_all_of_them(key_file: Path) -> None:
    ring = KeyRing.load(Settings(api_keys_file=key_file))
    compared: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
        assert ring.find("anns-secret") is not None
    assert len(compared) == 3
