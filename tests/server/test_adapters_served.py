"""The built-in checkpoint behind HTTP: adapters come and go, and pictures with and without them never mix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors import safe_open
from safetensors.numpy import save_file

from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.schedule import Steps
from twinshot_server.app import create_app
from twinshot_server.settings import Settings

OPERATOR = {"Authorization": "Bearer operators-secret"}
BODY: dict[str, Any] = {"prompt": "a red car", "seed": 7}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    from twinshot_engine.config import EngineConfig
    from twinshot_engine.engine import Engine

    engine = Engine.load(EngineConfig(device="cpu", steps=(1, Steps(2, "multi"))))
    settings = Settings.model_validate({"admin_key": "operators-secret"})
    app = create_app(settings, engine)
    with TestClient(app) as client:
        app.state.service.dispatcher.ready.result(60)
        yield client


def write_adapter(path: Path, module: str = "layers.0.feed_forward.w2", widen: int = 0) -> None:
    (file,) = (BUILTIN_FOLDER / "transformer").glob("*.safetensors")
    with safe_open(file, "pt") as stored:
        rows, columns = stored.get_slice("layers.0.feed_forward.w2.weight").get_shape()
    rng = np.random.default_rng(1)
    down = rng.normal(size=(4, columns + widen)).astype(np.float32)
    up = rng.normal(size=(rows, 4)).astype(np.float32)
    save_file({f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}, path)


def draw(client: TestClient, **fields: Any) -> bytes:
    answer = client.post("/generate", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_adapters_come_and_go_while_pictures_are_drawn(client: TestClient, tmp_path: Path) -> None:
    write_adapter(tmp_path / "ink.safetensors")
    source = {"source": f"{tmp_path / 'ink.safetensors'}:0.5"}
    bare = draw(client)
    loaded = client.put("/admin/adapters/ink", json=source, headers=OPERATOR)
    assert loaded.json() == {"adapters": ["ink"]}
    inked = draw(client, adapter="ink")
    assert inked != bare
    assert [draw(client), draw(client, adapter="ink"), draw(client)] == [bare, inked, bare]
    assert client.delete("/admin/adapters/ink", headers=OPERATOR).json() == {"adapters": []}
    refused = client.post("/generate", json=BODY | {"adapter": "ink"})
    assert (refused.status_code, refused.json()["param"]) == (422, "adapter")
    assert draw(client) == bare


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widen": 1}, "'transformer.layers.0.feed_forward.w2.lora_B.weight'"),
        ({"module": "transformer_blocks.0.attn.to_q"}, "the adapter was made for another family"),
        (None, "There is no adapter"),
    ],
)
def test_what_does_not_fit_is_told_to_who_loads_it(
    client: TestClient, tmp_path: Path, change: dict[str, Any] | None, said: str
) -> None:
    path = tmp_path / "wrong.safetensors"
    if change is not None:
        write_adapter(path, **change)
    answer = client.put("/admin/adapters/wrong", json={"source": str(path)}, headers=OPERATOR)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert client.get("/admin/adapters", headers=OPERATOR).json() == {"adapters": []}


def test_guidance_is_for_steps_that_are_advertised_with_it(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["steps"], model["guided_steps"]) == ([1, 2], [2])
    plain = draw(client, steps=2)
    assert draw(client, steps=2, guidance=1.0) == plain
    assert draw(client, steps=2, guidance=4.0) != plain
    refused = client.post("/generate", json=BODY | {"guidance": 4})
    assert (refused.status_code, refused.json()["param"]) == (422, "guidance")
