from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import dispatcher_of, until

from twinshot_server.answers import GenerateResult
from twinshot_server.processes.messages import Cost

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
    (image,) = result.images
    assert base64.b64decode(image.image) == client.post("/generate", json=BODY).content
    assert (image.seed, result.width, result.height, result.steps, result.format) == (7, 64, 32, 1, "png")
    assert result.request_id == response.headers["x-request-id"]
    assert image.timings_ms.denoise == 2.0


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


def test_several_pictures_count_up_their_seeds(client: TestClient) -> None:
    response = client.post("/generate", json=BODY | {"n": 3, "seed": 2**32 - 2})
    result = GenerateResult.model_validate_json(response.content)
    assert [image.seed for image in result.images] == [2**32 - 2, 2**32 - 1, 0]
    assert [image.index for image in result.images] == [0, 1, 2]
    for image in result.images:
        alone = client.post("/generate", json=BODY | {"seed": image.seed})
        assert base64.b64decode(image.image) == alone.content


def test_requests_that_wait_share_a_batch_if_asked_for(
    make_client: Callable[..., TestClient], engine: Any
) -> None:
    client = make_client(batching="fast")
    dispatcher_of(client).costs.install(Cost((64, 32), 1, count, 0.01) for count in (1, 2, 4, 8))
    engine.hold()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/generate", json=BODY)
        assert engine.busy.wait(10)
        response = pool.submit(client.post, "/generate", json=BODY | {"n": 4})
        until(lambda: dispatcher_of(client).running == 5)
        engine.release()
        assert {image["batch"] for image in response.result(10).json()["images"]} == {4}
        assert first.result(10).status_code == 200
    assert [len(batch) for batch in engine.batches] == [1, 4]


@pytest.mark.parametrize(
    "prompt", ["👩‍🚀 🌲", "赤い車", "éè\nline\ttab", "'; DROP TABLE;--", "<script>", "{0} %s"]
)
def test_any_text_is_a_prompt(prompt: str, client: TestClient, engine: Any) -> None:
    assert client.post("/generate", json={"prompt": prompt}).status_code == 200
    assert engine.batches[-1][0].prompt == prompt


def test_a_full_queue_says_when_to_come_back(make_client: Callable[..., TestClient], engine: Any) -> None:
    client = make_client(max_queue=1)
    engine.hold()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.post, "/generate", json=BODY)]
        until(engine.busy.is_set)
        waiting += [pool.submit(client.post, "/generate", json=BODY) for _ in range(2)]
        until(lambda: dispatcher_of(client).waiting == 1)
        response = client.post("/generate", json=BODY)
        engine.release()
        assert all(each.result(10).status_code == 200 for each in waiting)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert 1 <= int(response.headers["retry-after-ms"]) <= 1000 * int(response.headers["retry-after"])
    assert response.json()["code"] == "queue_full"
    assert "1 images wait already" in response.json()["detail"]


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client: TestClient, engine: Any) -> None:
    dispatcher_of(client).costs.install([Cost((64, 32), 1, 1, 5.0)])
    response = client.post("/generate", json=BODY | {"deadline_ms": 1000})
    assert (response.status_code, response.json()["code"]) == (429, "deadline_unreachable")
    assert "wanted within" in response.json()["detail"]
    assert engine.batches == []


def test_a_deadline_that_passes_is_told(client: TestClient, engine: Any) -> None:
    engine.hold()
    response = client.post("/generate", json=BODY | {"deadline_ms": 300})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    engine.release()


def events_of(response: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of server-sent events."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", response.text)
    assert "".join(f"event: {name}\ndata: {data}\n\n" for name, data in found) == response.text
    return [(name, json.loads(data)) for name, data in found]


@pytest.mark.parametrize("ask", [{"headers": {"Accept": "text/event-stream"}}, {"json": {"stream": True}}])
def test_events_tell_the_whole_story(ask: dict[str, Any], client: TestClient) -> None:
    body = BODY | {"n": 2, "format": "jpeg"} | ask.get("json", {})
    response = client.post("/generate", json=body, headers=ask.get("headers"))
    assert (response.status_code, response.headers["x-seed"]) == (200, "7")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    assert [name for name, _ in events if name != "started"] == ["queued", "image", "image", "done"]
    assert [data["index"] for name, data in events if name == "started"] == [0, 1]
    queued, done = events[0][1], events[-1][1]
    assert queued["request_id"] == done["request_id"] == response.headers["x-request-id"]
    assert queued["predicted_ms"] > 0
    assert (done["format"], done["width"], done["steps"]) == ("jpeg", 64, 1)
    # Each is told as soon as it is finished, whichever that is first.
    images = {data["index"]: data for name, data in events if name == "image"}
    for index, seed in enumerate((7, 8)):
        alone = client.post("/generate", json=BODY | {"seed": seed, "format": "jpeg"})
        assert images[index]["seed"] == seed
        assert base64.b64decode(images[index]["image"]) == alone.content


def test_what_fails_in_a_stream_is_told_in_the_stream(client: TestClient, engine: Any) -> None:
    engine.failure = RuntimeError("secret")
    events = events_of(client.post("/generate", json=BODY | {"stream": True}))
    name, problem = events[-1]
    assert (name, problem["status"], problem["code"]) == ("error", 500, "internal_error")
    assert "secret" not in problem["detail"]
    metrics = client.get("/metrics").text
    assert 'twinshot_requests_total{key="anonymous",model="fake",outcome="error"} 1.0' in metrics


def test_what_is_refused_before_the_stream_has_its_own_status(client: TestClient) -> None:
    response = client.post("/generate", json=BODY | {"stream": True, "size": "512x512"})
    assert response.status_code == 422
