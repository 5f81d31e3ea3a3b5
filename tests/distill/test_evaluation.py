"""Statistics, official layouts and the report, on an engine that draws nothing much."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grey_engine import DRAWING, SeedEngine, metadata, quiet
from PIL import Image

from twinshot_distill.charts import line_chart
from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluate import judge, second_opinion
from twinshot_distill.evaluation.builtin import Findings, mean_row, reseeded
from twinshot_distill.evaluation.html_report import score_curve, write_report
from twinshot_distill.evaluation.official import write_dpg, write_geneval
from twinshot_distill.evaluation.statistics import (
    corrected,
    judge_errors,
    mean_interval,
    pairwise_distance,
    shares_below,
    wilson,
)
from twinshot_distill.evaluation.trials import Trial, trials
from twinshot_distill.world.scenes import TASKS, Scene, is_unseen
from twinshot_distill.world.vocabulary import OBJECTS

SMALL_WORLD = {
    "objects": [entry.name for entry in OBJECTS if entry.code < "1f4"],
    "colors": ["red", "blue", "green", "yellow", "pink", "white"],
    "scenes": ["beach"],
}


def test_geneval_gets_the_folders_that_its_evaluator_reads(tmp_path: Path) -> None:
    engine: Any = SeedEngine()
    source = metadata(tmp_path / "m.jsonl", ["a photo of a cow", "a photo of two cows"])
    assert write_geneval(engine, source, tmp_path / "out", DRAWING, quiet) == 2
    folder = tmp_path / "out" / "00001"
    assert json.loads((folder / "metadata.jsonl").read_text())["prompt"] == "a photo of two cows"
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
    with Image.open(folder / "samples" / "0002.png") as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((16, 8), (9, 9, 9))
    assert {r.steps for r in engine.asked} == {2}
    # An interrupted run goes on with what is missing.
    (folder / "samples" / "0003.png").unlink()
    engine.asked.clear()
    assert write_geneval(engine, source, tmp_path / "out", DRAWING, quiet) == 1
    assert [(r.prompt, r.seed) for r in engine.asked] == [("a photo of two cows", 7 + k) for k in range(4)]


@pytest.mark.parametrize("as_folder", [True, False])
def test_dpg_gets_sheets_of_two_by_two(tmp_path: Path, *, as_folder: bool) -> None:
    source = tmp_path / "prompts"
    if as_folder:
        source.mkdir()
        (source / "part7.txt").write_text("a cow\n")
    else:
        source.write_text(json.dumps({"id": "part7", "prompt": "a cow"}) + "\n")
    engine: Any = SeedEngine()
    assert write_dpg(engine, source, tmp_path / "out", DRAWING, quiet) == 1
    with Image.open(tmp_path / "out" / "part7.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (16, 32, 3)
    corners = [pixels[0, 0, 0], pixels[0, 31, 0], pixels[15, 0, 0], pixels[15, 31, 0]]
    assert corners == [7, 8, 9, 10]
    assert engine.asked[0].prompt == "a cow"
    assert write_dpg(engine, source, tmp_path / "out", DRAWING, quiet) == 0


def test_prompts_that_cannot_be_drawn_are_told_before_the_first_is(tmp_path: Path) -> None:
    engine: Any = SeedEngine()
    source = metadata(tmp_path / "m.jsonl", ["a cow", "a cow " * 10, "a dog " * 10])
    with pytest.raises(TrainingError, match=r"grey cannot draw 2 of 3 requests, .*'a cow a cow.*too long"):
        write_geneval(engine, source, tmp_path / "out", DRAWING, quiet)
    assert not engine.asked


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "line 1, is not JSON"), ('{"id": 3}', "line 1, has no 'prompt'"), ("7", "line 1, is not JSON")],
)
def test_damaged_prompts_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    engine: Any = SeedEngine()
    with pytest.raises(TrainingError, match=words):
        write_dpg(engine, tmp_path / "p.jsonl", tmp_path / "out", DRAWING, quiet)


def test_ids_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "../x", "prompt": "a cow"}')
    engine: Any = SeedEngine()
    with pytest.raises(TrainingError, match=r"'\.\./x', which is no file name"):
        write_dpg(engine, tmp_path / "p.jsonl", tmp_path / "out", DRAWING, quiet)
    with pytest.raises(TrainingError, match="cannot be read"):
        write_dpg(engine, tmp_path / "none.jsonl", tmp_path / "out", DRAWING, quiet)
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(TrainingError, match=r"latin.txt' cannot be read: .*UTF-8"):
        write_dpg(engine, tmp_path, tmp_path / "out", DRAWING, quiet)


def test_wilsons_interval_is_the_published_one() -> None:
    low, high = wilson(0.9, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(1.0, 300)[0] == pytest.approx(0.98736, abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "quantile"), [(7, 2.446912), (12, 2.200985), (31, 2.042272)])
def test_a_means_interval_is_students(count: int, quantile: float) -> None:
    values = [float(k % 5) for k in range(count)]
    low, high = mean_interval(values)
    half = quantile * float(np.std(values, ddof=1)) / count**0.5
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=2e-3)
    assert mean_interval([0.3]) == (-math.inf, math.inf)


def test_a_judges_errors_are_taken_out() -> None:
    assert corrected(0.5, 0.9, 0.1) == pytest.approx(0.5)
    assert corrected(0.95, 0.9, 0.0) == 1.0
    assert corrected(0.05, 0.9, 0.1) == 0.0
    rate = {"task": "two", "level": "clean", "threshold": 0.2, "true_pass": 0.9, "false_pass": 0.1}
    card = {"measured": {"rates": [rate]}}
    assert judge_errors(card, "two", 0.2) == (0.9, 0.1)
    assert judge_errors(card, "two", 0.5) == (1.0, 0.0)


def test_diversity_is_zero_for_copies_and_known_for_flat_colours() -> None:
    flat = np.stack([np.full((80, 80, 3), value, np.uint8) for value in (0, 51, 102)])
    assert pairwise_distance(flat) == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    assert pairwise_distance(flat[[1, 1]]) == 0
    assert shares_below([0.1, 0.5, 0.9], 0.5) == pytest.approx(1 / 3)


def row(
    task: str, steps: int | str, score: float, audited: float | None = None, language: str = "en"
) -> dict[str, Any]:
    keys = ("corrected_score", "strict_score", "shuffled_score", "fidelity_median", "low_fidelity_share")
    common = {"combinations": "unseen", "language": language, "n": 50, "low": 0.0, "high": 1.0}
    second = {"auditor_score": audited, "disagreement": audited and 0.125}
    return {"task": task, "steps": steps, "score": score} | common | second | dict.fromkeys(keys, score / 2)


def test_more_seeds_of_a_prompt_count_up_and_keep_the_first_round() -> None:
    asked: Any = [Trial(None, "a", 5), Trial(None, "b", 2**32 - 1)]  # type: ignore[arg-type]
    again = reseeded(asked, 3)
    assert again[:2] == asked
    assert [(trial.prompt, trial.seed) for trial in again[2:]] == [("a", 6), ("b", 0), ("a", 7), ("b", 1)]


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    rows = [row("single", 1, 0.8), row("two <b>", 1, 0.6)]
    findings = Findings(
        [*rows, mean_row(rows), row("mean", "ceiling", 0.99), row("mean", 4, 0.9)],
        {1: (0.05, 0.04, 0.06)},
        {1: np.zeros((2, 8, 8, 3), np.uint8)},
        ["a cow & a dog", "a cat"],
    )
    facts = {"name": "tiny <1>", "checkpoint": "/models/tiny", "revision": None, "count": 50, "commit": "abc"}
    page = write_report(tmp_path / "r", findings, facts).read_text()
    assert "<h1>Evaluation of tiny &lt;1&gt;</h1>" in page
    assert "<dt>checkpoint</dt><dd>/models/tiny</dd><dt>revision</dt><dd>-</dd>" in page
    assert "<dt>count</dt><dd>50</dd><dt>commit</dt><dd>abc</dd>" in page
    assert "two &lt;b&gt;" in page
    assert "<b>" not in page
    assert "a cow &amp; a dog" in page
    assert "not a GenEval score" in page
    assert "1 step 0.0500 (0.0400 to 0.0600)" in page
    assert "The auditor's weights were not there: the verifier judged alone." in page
    assert page.count("<tr") == 1 + 5
    assert len(list((tmp_path / "r" / "pictures" / "1").iterdir())) == 2
    kept = json.loads((tmp_path / "r" / "scores.json").read_text())
    assert kept[2]["score"] == pytest.approx(0.7)
    assert kept[2]["n"] == 100
    assert kept[0]["checkpoint"] == "/models/tiny"
    assert (tmp_path / "r" / "curve.svg").read_text() == score_curve(findings.rows)


def test_the_second_judge_and_the_second_language_are_told_apart(tmp_path: Path) -> None:
    rows = [row("single", 1, 0.8, 0.7531), row("two", 1, 0.6, 0.5)]
    chinese = mean_row([row("single", 1, 0.4, language="zh"), row("two", 1, 0.2, 0.5, language="zh")])
    mean = mean_row(rows)
    assert (mean["auditor_score"], mean["disagreement"]) == (pytest.approx(0.62655, abs=1e-4), 0.125)
    assert chinese["auditor_score"] is None, "a mean of what was not measured everywhere says nothing"
    findings = Findings([*rows, mean, chinese], {}, {}, [])
    page = write_report(tmp_path, findings, {}).read_text()
    assert "<td>0.753</td><td>0.125</td>" in page
    assert "<td>-</td><td>-</td>" in page
    assert "judged alone" not in page
    assert {"unseen", "unseen, zh"} <= set(re.findall(r">(unseen[^<]*)<", score_curve(findings.rows)))


class Judging:
    """Says what it was told to say, of as many pictures as it is asked."""

    threshold = 0.2

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts = verdicts

    def check(self, images: Any, scenes: Sequence[Scene], threshold: float | None = None) -> list[bool]:
        return [self.verdicts[k % len(self.verdicts)] for k in range(len(scenes))]

    def fidelity(self, images: Any, scenes: Sequence[Scene]) -> list[float]:
        return [0.5] * len(scenes)


def test_judges_that_differ_are_counted() -> None:
    asked = trials("two", "unseen", 4, SMALL_WORLD)
    first: Any = Judging(True, True, False, False)
    second: Any = Judging(True, False, True, False)
    verdicts = judge(first, torch.zeros(4, 3, 64, 64), asked, second)
    assert verdicts.audited == [True, False, True, False]
    assert second_opinion(verdicts) == {"auditor_score": 0.5, "disagreement": 0.5}
    alone = judge(first, torch.zeros(4, 3, 64, 64), asked)
    assert second_opinion(alone) == {"auditor_score": None, "disagreement": None}


@pytest.mark.parametrize("task", TASKS)
def test_scenes_are_made_of_what_the_checkpoint_was_taught(task: str) -> None:
    asked = trials(task, "unseen", 12, SMALL_WORLD)
    assert len(asked) == 12
    for trial in asked:
        assert {item.noun for item in trial.scene.items} <= set(SMALL_WORLD["objects"])
        assert {item.color for item in trial.scene.items} <= {None, *SMALL_WORLD["colors"]}
        assert trial.scene.background in {None, "beach", *SMALL_WORLD["colors"]}
        assert task == "single" or is_unseen(trial.scene)
    assert asked == trials(task, "unseen", 12, SMALL_WORLD)


def test_languages_ask_for_the_same_scenes_with_the_same_seeds() -> None:
    english, chinese = (trials("position", "seen", 20, None, language) for language in ("en", "zh"))
    assert [trial.scene for trial in english] == [trial.scene for trial in chinese]
    assert [trial.seed for trial in english] == [trial.seed for trial in chinese]
    assert all(trial.prompt.isascii() for trial in english)
    assert not any(trial.prompt.replace("T恤", "").isascii() for trial in chinese)


def test_english_prompts_hold_no_words_for_things_outside_of_the_world() -> None:
    own = {
        word
        for entry in OBJECTS
        for name in (entry.name, entry.plural, *entry.synonyms)
        for word in name.split()
    }
    near = {word for entry in OBJECTS for word in entry.near} - own  # a "money bag" is of the world
    prompts = [trial.prompt.lower() for task in TASKS for trial in trials(task, "unseen", 150)]
    assert [text for text in prompts if near & set(re.findall(r"[a-z-]+", text))] == []


def test_a_vocabulary_that_no_scene_can_be_made_of_is_said() -> None:
    with pytest.raises(ValueError, match="no unseen scenes of the task 'two'"):
        trials("two", "unseen", 3, {"objects": ["dog"]})


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file")
    with pytest.raises(TrainingError, match="cannot be written"):
        write_report(tmp_path / "r", Findings([], {}, {}, []), {})


def test_charts_place_points_in_order_and_leave_out_what_is_not_finite() -> None:
    svg = line_chart(
        "t<", {"a": [(1, 0.0), (2, 1.0), (4, float("nan")), (4, 2.0)]}, x_label="x", logarithmic=True
    )
    points = svg.split('points="')[1].split('"')[0].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert len(points) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] > ys[1] > ys[2]
    assert "t&lt;" in svg
    assert line_chart("t", {"a": []}, x_label="x") == ""
    assert ">1.0" not in line_chart("t", {"a": [(1, 0.9), (2, 1.0)]}, x_label="x")


def texts(svg: str) -> list[tuple[float, float, float, str]]:
    """Left, right and baseline of each small text, as wide as its letters at most, and its words."""
    lift = float(re.findall(r"translate\(0 (\d+)\)", svg)[0])
    legend, drawing = svg.split("<g ")
    found = []
    for part, down in ((legend, 0.0), (drawing, lift)):
        for x, y, anchor, words in re.findall(
            r'<text x="([\d.]+)" y="([\d.]+)" font-size="11" text-anchor="(\w+)"[^>]*>([^<]*)', part
        ):
            width = 6.2 * len(words)
            left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            found.append((left, left + width, float(y) + down, words))
    return found


def test_legend_and_values_of_charts_do_not_lie_on_each_other() -> None:
    names = [
        f"{split}{language}{strict}"
        for split in ("unseen", "seen")
        for language in ("", ", zh")
        for strict in ("", ", strict")
    ]
    series = {name: [(1, 0.99 - 0.001 * k), (2, 1.0), (30, 1 - 0.02 * k)] for k, name in enumerate(names)}
    svg = line_chart("Score by steps", series, x_label="steps", logarithmic=True, marked=True)
    placed = texts(svg)
    assert {words for *_, words in placed} >= {*names, "1", "0.99", "0.983", "0.98"}
    for k, (left, right, y, words) in enumerate(placed):
        assert 0 <= left < right <= 560, words
        assert y > 18 + 11, f"{words} lies on the title"
        for other_left, other_right, other_y, other in placed[:k]:
            apart = right <= other_left or other_right <= left or abs(y - other_y) >= 11
            assert apart, f"{words!r} lies on {other!r}"
