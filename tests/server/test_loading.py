"""From settings to what the engine is asked for."""

import pytest
from pydantic import ValidationError

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.schedule import any_step, few, multi_step, schedule_for
from twinshot_server.loading import engine_config
from twinshot_server.settings import Settings, SettingsError


def test_steps_name_their_schedules() -> None:
    config = engine_config(Settings(device="cpu", steps="1,any:4,multi:30"))
    assert config.steps == (1, 4, 30)
    assert [schedule_for(count) for count in config.steps] == [few(1), any_step(4), multi_step(30)]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("few:3", "3 steps have no few-step schedule"),
        ("4,any:4", "name a count twice"),
        ("0", "0 steps are not"),
    ],
)
def test_steps_that_cannot_be_are_told(steps: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        engine_config(Settings(device="cpu", steps=steps))


@pytest.mark.parametrize("steps", ["", "fast:4", "any", "1,,2", "1 2", "-1"])
def test_steps_that_are_no_list_are_refused(steps: str) -> None:
    with pytest.raises(ValidationError, match="steps"):
        Settings(steps=steps)


def test_adapters_come_as_a_list_or_with_blanks_between(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings.model_validate({"device": "cpu", "adapter": ["ink=/a b.safetensors:0.5", "/base"]})
    config = engine_config(given)
    assert config.named_adapters == {"ink": AdapterSource("ink", "/a b.safetensors", 0.5)}
    assert config.merged_adapters == (AdapterSource(None, "/base", 1.0),)
    monkeypatch.setenv("TWINSHOT_ADAPTER", "ink=/a /b:2")
    assert engine_config(Settings(device="cpu")).adapters == ("ink=/a", "/b:2")
    assert Settings.model_validate({"adapter": None}).adapter == ()


def test_little_memory_means_narrow_numbers_and_one_picture_a_pass() -> None:
    normal = Settings(device="cpu", batching="fast", max_batch=4)
    low = normal.model_copy(update={"memory": "low"})
    assert engine_config(normal).batch_sizes == (1, 2, 4)
    assert engine_config(low).batch_sizes == (1,)
    assert engine_config(low).placement().precision == "bf16"
    assert engine_config(low).placement().text_precision == "bf16"
    exact = low.model_copy(update={"precision": "fp32"})
    assert engine_config(exact).placement().precision == "fp32"
