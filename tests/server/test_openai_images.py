"""OpenAI's own Python package against our server, and every standard field."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

PATH = "/v1/images/generations"


@pytest.fixture
def sdk(client: TestClient) -> Iterator[openai.OpenAI]:
    """The package, with the application in place of the network."""
    with openai.OpenAI(
        base_url="http://testserver/v1", api_key="any", http_client=client, max_retries=0
    ) as made:
        yield made


def picture(encoded: str | None) -> Image.Image:
    assert encoded
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_generate(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(prompt="a red car", model="gpt-image-1", n=2, size="64x32")
    assert answer.data is not None
    assert [picture(each.b64_json).size for each in answer.data] == [(64, 32)] * 2
    assert (answer.size, answer.output_format, answer.background) == ("64x32", "png", "opaque")
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


def test_our_fields_pass_too(sdk: openai.OpenAI, client: TestClient) -> None:
    answer = sdk.images.generate(prompt="a red car", extra_body={"seed": 7, "steps": 2})
    assert answer.data is not None
    ours = client.post("/generate", json={"prompt": "a red car", "seed": 7, "steps": 2})
    assert base64.b64decode(answer.data[0].b64_json or "") == ours.content


def test_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.images.generate(prompt="a red car", stream=True, partial_images=2, output_format="webp")
    (event,) = list(stream)
    assert event.type == "image_generation.completed"
    assert picture(event.b64_json).format == "WEBP"
    assert (event.size, event.output_format, event.background) == ("64x32", "webp", "opaque")
    assert event.created_at > 1_700_000_000
    assert event.usage.total_tokens == 0


def test_models(sdk: openai.OpenAI) -> None:
    (model,) = list(sdk.models.list())
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "twinshot")


def test_errors_are_openais(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="512x512 is not supported") as caught:
        sdk.images.generate(prompt="a", size="512x512")
    assert (caught.value.param, caught.value.code) == ("size", "invalid_request")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_failure_in_a_stream_reaches_the_package(sdk: openai.OpenAI, engine: Any) -> None:
    engine.failure = RuntimeError("secret")
    with pytest.raises(openai.APIError, match="The engine failed on this request"):
        list(sdk.images.generate(prompt="a", stream=True))
    with pytest.raises(openai.InternalServerError, match="The engine failed on this request"):
        sdk.images.generate(prompt="a")


STANDARD: dict[str, list[object]] = {
    "model": ["gpt-image-1", "dall-e-3", None],
    "n": [1, 10, None],
    "size": ["auto", "64x32", None],
    "quality": ["auto", "standard", "hd", "low", "medium", "high", None],
    "background": ["auto", "opaque", None],
    "moderation": ["auto", "low", None],
    "style": ["vivid", "natural", None],
    "user": ["someone", None],
    "output_format": ["png", "jpeg", "webp", None],
    "output_compression": [0, 100, None],
    "response_format": ["b64_json", "url", None],
    "stream": [False, None],
    "partial_images": [0, 3, None],
}


@pytest.mark.parametrize(("field", "value"), [(key, value) for key in STANDARD for value in STANDARD[key]])
def test_every_standard_field_is_accepted(field: str, value: object, client: TestClient) -> None:
    response = client.post(PATH, json={"prompt": "a", field: value})
    assert response.status_code == 200, response.text


def test_quality_means_steps(client: TestClient, engine: Any) -> None:
    for quality in ("low", "auto", "medium", "high"):  # the fake engine can do one or two
        client.post(PATH, json={"prompt": "a", "quality": quality})
    assert [batch[0].steps for batch in engine.batches] == [1, 1, 2, 2]


def test_a_url_holds_the_file_itself(client: TestClient) -> None:
    data = client.post(PATH, json={"prompt": "a", "response_format": "url"}).json()["data"]
    head, _, encoded = data[0]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert picture(encoded).size == (64, 32)


def test_compression_is_quality(client: TestClient) -> None:
    def size(**fields: object) -> int:
        data = client.post(PATH, json={"prompt": "a", "seed": 1, "output_format": "jpeg", **fields}).json()
        return len(data["data"][0]["b64_json"])

    assert size(output_compression=0) <= size(output_compression=100)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"n": 11}, "n", "less than or equal to 10, not 11"),
        ({"n": 0}, "n", "not 0"),
        ({"size": "big"}, "size", "must look like 256x256"),
        ({"size": "63x32"}, "size", "is not supported"),
        ({"background": "transparent"}, None, "cannot be transparent"),
        ({"quality": "best"}, "quality", 'not "best"'),
        ({"output_format": "gif"}, "output_format", 'not "gif"'),
        ({"partial_images": 4}, "partial_images", "not 4"),
        ({"stream": "true"}, "stream", 'not "true"'),
        ({"nonsense": 1}, "nonsense", "known are prompt, model, n"),
    ],
)
def test_what_cannot_be(fields: dict[str, object], param: str | None, said: str, client: TestClient) -> None:
    body = json.dumps({"prompt": "a", **fields})
    response = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert said in error["message"]
    assert response.headers["content-type"] == "application/json"


def test_keys_as_openai_has_them(make_client: Callable[..., TestClient]) -> None:
    http = make_client(api_keys="ann=a-secret-key")
    right, wrong = (
        openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http)
        for key in ("a-secret-key", "another")
    )
    assert right.images.generate(prompt="a").data
    with pytest.raises(openai.AuthenticationError) as caught:
        wrong.images.generate(prompt="a")
    assert (caught.value.code, caught.value.type) == ("invalid_key", "authentication_error")
