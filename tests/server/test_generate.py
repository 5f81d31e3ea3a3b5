from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from twinshot_server.schemas import GenerateResult

BODY = {"prompt": "a red car", "seed": 7}


def test_a_prompt_becomes_a_png_of_the_models_own_size(client: TestClient, engine: Any) -> None:
    response = client.post("/generate", json=BODY)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (64, 32), (7, 7, 7))
    assert engine.batches[-1][0].prompt == "a red car"


@pytest.mark.parametrize("size", [{"size": "32x32"}, {"width": 32, "height": 32}])
def test_size_can_be_asked_for(size: dict[str, Any], client: TestClient) -> None:
    response = client.post("/generate", json=BODY | size | {"steps": 2})
    assert Image.open(io.BytesIO(response.content)).size == (32, 32)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_format_by_body_and_by_accept(name: str, client: TestClient) -> None:
    by_body = client.post("/generate", json=BODY | {"format": name})
    by_accept = client.post("/generate", json=BODY, headers={"Accept": f"image/{name}"})
    assert by_body.headers["content-type"] == by_accept.headers["content-type"] == f"image/{name}"
    assert by_body.content == by_accept.content
    assert Image.open(io.BytesIO(by_body.content)).format == name.upper()


def test_json_holds_the_same_file_and_the_facts(client: TestClient) -> None:
    response = client.post("/generate", json=BODY, headers={"Accept": "application/json"})
    assert response.headers["content-type"] == "application/json"
    result = GenerateResult.model_validate_json(response.content)
    assert base64.b64decode(result.image) == client.post("/generate", json=BODY).content
    assert (result.seed, result.width, result.height, result.steps, result.format) == (7, 64, 32, 1, "png")
    assert result.request_id == response.headers["x-request-id"]
    assert result.timings_ms.denoise == 2.0


def test_headers_tell_seed_and_stages(client: TestClient) -> None:
    headers = client.post("/generate", json=BODY).headers
    assert headers["x-seed"] == "7"
    assert headers["cache-control"] == "no-store"
    stages = re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"])
    assert [name for name, _ in stages] == ["queue", "text", "denoise", "decode", "encode"]
    assert float(dict(stages)["denoise"]) == 2.0


def test_a_random_seed_is_told_and_draws_the_same_again(client: TestClient) -> None:
    first, second = (client.post("/generate", json={"prompt": "a red car"}) for _ in range(2))
    assert first.headers["x-seed"] != second.headers["x-seed"]
    again = client.post("/generate", json={"prompt": "a red car", "seed": int(first.headers["x-seed"])})
    assert again.content == first.content


def test_a_sane_request_id_is_kept_and_others_are_replaced(client: TestClient) -> None:
    kept = client.post("/generate", json=BODY, headers={"X-Request-Id": "job-1.a_B"})
    assert kept.headers["x-request-id"] == "job-1.a_B"
    for hostile in ["", "a b", "a" * 65, 'x"}']:
        replaced = client.post("/generate", json=BODY, headers={"X-Request-Id": hostile})
        assert re.fullmatch("[0-9a-f]{32}", replaced.headers["x-request-id"])


def test_requests_that_wait_share_a_batch(client: TestClient, engine: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    dispatcher = client.app.state.service.dispatcher  # type: ignore[attr-defined]
    engine.hold()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/generate", json=BODY)
        assert engine.busy.wait(10)
        rest = [pool.submit(client.post, "/generate", json=BODY | {"seed": seed}) for seed in (1, 2, 3)]
        while dispatcher.waiting < 3:
            pass
        engine.release()
        assert {future.result(10).status_code for future in [first, *rest]} == {200}
    assert [len(batch) for batch in engine.batches] == [1, 3]


@pytest.mark.parametrize(
    "prompt", ["👩‍🚀 🌲", "赤い車", "éè\nline\ttab", "'; DROP TABLE;--", "<script>", "{0} %s"]
)
def test_any_text_is_a_prompt(prompt: str, client: TestClient, engine: Any) -> None:
    assert client.post("/generate", json={"prompt": prompt}).status_code == 200
    assert engine.batches[-1][0].prompt == prompt


def test_a_full_queue_says_when_to_come_back(make_client: Callable[..., TestClient], engine: Any) -> None:
    client = make_client(max_queue=1)
    dispatcher = client.app.state.service.dispatcher  # type: ignore[attr-defined]
    engine.hold()
    from twinshot_engine.types import GenerateRequest

    dispatcher.submit(GenerateRequest("a", 1, 64, 32))
    assert engine.busy.wait(10)
    dispatcher.submit(GenerateRequest("a", 2, 64, 32))
    response = client.post("/generate", json=BODY)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "queue_full"
    assert "1 requests wait already" in response.json()["error"]["message"]
