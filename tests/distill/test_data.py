"""Samples from folders, archives, text files and the built-in world, and the cache they are encoded into."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mean_encoders import Mean
from PIL import Image
from torch import Tensor

from twinshot_distill.data import cache as cache_module
from twinshot_distill.data.cache import CachedData, check_cache, fill_cache
from twinshot_distill.data.sources import SampleError, find_samples
from twinshot_distill.errors import TrainingError
from twinshot_distill.families.base import Embedding, batch_captions
from twinshot_distill.runfile import DataSettings


def picture_bytes(color: tuple[int, int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 20), color).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good pictures, one cut off, one that is none, one without a caption."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    (path / "a.png").write_bytes(picture_bytes((255, 0, 0)))
    (path / "a.txt").write_text("red\n")
    (path / "more" / "b.JPG").write_bytes(picture_bytes((0, 255, 0), "JPEG"))
    (path / "more" / "b.txt").write_text("green")
    (path / "c.webp").write_bytes(picture_bytes((0, 0, 255), "WEBP"))
    (path / "cut.png").write_bytes(np.random.default_rng(0).bytes(9) + picture_bytes((0, 0, 0))[9:40])
    (path / "cut.txt").write_text("cut")
    (path / "none.png").write_text("no picture")
    (path / "none.txt").write_text("none")
    (path / "silent.png").write_bytes(picture_bytes((9, 9, 9)))
    (path / "metadata.jsonl").write_text(json.dumps({"file_name": "c.webp", "text": "blue"}) + "\n \n")
    return path


def test_folders_are_read_in_order_with_captions_from_both_places(folder: Path) -> None:
    found = list(find_samples(DataSettings("folder", folder)))
    assert [(s.name, s.caption) for s in found] == [
        ("a.png", "red"),
        ("c.webp", "blue"),
        ("cut.png", "cut"),
        ("more/b.JPG", "green"),
        ("none.png", "none"),
        ("silent.png", ""),
    ]
    assert found[0].picture is not None
    pixels = found[0].picture(16, 8)
    assert pixels.shape == (8, 16, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    for bad in (found[2], found[4]):
        assert bad.picture is not None
        with pytest.raises(SampleError, match="cannot be read"):
            bad.picture(16, 8)


def test_pictures_are_turned_as_their_camera_says_and_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 20, 10))
    wide.save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("x")
    (sample,) = find_samples(DataSettings("folder", tmp_path))
    assert sample.picture is not None
    assert sample.picture(10, 10).min() > 200
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "x.png", exif=exif)
    (sample,) = find_samples(DataSettings("folder", tmp_path))
    assert sample.picture is not None
    assert sample.picture(10, 30)[15, 5].min() > 200


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, blob in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            file.addfile(info, io.BytesIO(blob))
    return path


def test_archives_are_read_sample_by_sample(tmp_path: Path) -> None:
    red, told = picture_bytes((255, 0, 0)), json.dumps({"caption": "from json"}).encode()
    archive(tmp_path / "b.tar", {"9.png": red, "9.json": b"{", "10.txt": b"no picture"})
    archive(tmp_path / "a.tar", {"0.jpg": red, "0.txt": b"first ", "1.json": told, "1.webp": red})
    found = list(find_samples(DataSettings("shards", tmp_path)))
    assert [(s.name, s.caption) for s in found] == [
        ("a.tar/0", "first"),
        ("a.tar/1", "from json"),
        ("b.tar/9", ""),
        ("b.tar/10", "no picture"),
    ]
    reads = [s.picture for s in found]
    assert reads[1] is not None
    assert reads[3] is not None
    assert reads[1](4, 4).shape == (4, 4, 3)
    with pytest.raises(SampleError):
        reads[3](4, 4)


def test_prompts_are_lines_or_json_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('a cat\n\n{"prompt": "a dog"}\n')
    found = list(find_samples(DataSettings("prompts", tmp_path / "p.txt")))
    assert [(s.caption, s.picture) for s in found] == [("a cat", None), ("a dog", None)]
    assert [s.name for s in found] == ["line 1", "line 3"]


def test_the_world_composes_the_same_scenes_every_time() -> None:
    first, second = (list(find_samples(DataSettings("composer", count=2))) for _ in range(2))
    assert [s.caption for s in first] == [s.caption for s in second]
    assert first[1].picture is not None
    assert second[1].picture is not None
    pixels = first[1].picture(64, 64)
    assert torch.equal(pixels, second[1].picture(64, 64))
    assert pixels.float().std() > 5


@pytest.mark.parametrize(
    ("kind", "make", "words"),
    [
        ("folder", lambda p: p.mkdir(), "holds no pictures"),
        ("shards", lambda p: p.mkdir(), "holds no archives"),
        ("shards", lambda p: p.write_bytes(b"x" * 2000), "damaged or no tar"),
        ("folder", lambda p: None, "does not exist"),
        ("prompts", lambda p: p.write_text("{oops"), "line 1, is not JSON"),
        ("prompts", lambda p: p.mkdir(), "source' cannot be read: .*text file"),
    ],
)
def test_sources_that_cannot_be_read_are_named(tmp_path: Path, kind: str, make: object, words: str) -> None:
    make(tmp_path / "source")  # type: ignore[operator]
    with pytest.raises(TrainingError, match=words):
        list(find_samples(DataSettings(kind, tmp_path / "source")))  # type: ignore[arg-type]


# In data and headers and after them, before the end; a broken header.
@pytest.mark.parametrize("kept", [1024, 1300, 1536, 2000, 2048, 2200, -1024])
def test_archives_that_break_off_are_named(tmp_path: Path, kept: int) -> None:
    whole = archive(tmp_path / "a.tar", {"0.png": b"x" * 500, "1.txt": b"y" * 500}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:kept] if kept > 0 else whole[:1024] + b"z" * 512)
    with pytest.raises(TrainingError, match=r"a.tar' is damaged"):
        list(find_samples(DataSettings("shards", tmp_path)))


def test_a_damaged_caption_list_is_named(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n[]\n')
    with pytest.raises(TrainingError, match=r"metadata.jsonl', line 2"):
        list(find_samples(DataSettings("folder", folder)))
    (folder / "metadata.jsonl").write_bytes(b"\xe9")
    with pytest.raises(TrainingError, match=r"metadata.jsonl' cannot be read: .*UTF-8"):
        list(find_samples(DataSettings("folder", folder)))


def test_the_cache_holds_what_the_encoders_made_and_counts_what_it_skipped(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DataSettings("folder", folder, empty_prompt="nothing", most_skipped=0.5)
    fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())
    data = CachedData(tmp_path / "cache")
    assert (len(data), data.skipped, data.latent_shape) == (3, 3, (3, 2, 2))
    said = capsys.readouterr().err
    assert "skipped cut.png: its picture cannot be read" in said
    assert "skipped silent.png: its caption is empty" in said
    latents, embeddings = data.draw(64, torch.Generator().manual_seed(0))
    words = {"".join(chr(int(c)) for c in e["tokens"][:, 0]) for e in embeddings}
    assert words == {"red", "green", "blue"}
    for latent, embedding in zip(latents, embeddings, strict=True):
        place = {"r": 0, "g": 1, "b": 2}[chr(int(embedding["tokens"][0, 0]))]
        assert latent[place].mean() > 0.95
    assert len(data.empty["tokens"]) == len("nothing")


def test_batches_are_drawn_by_their_chance_alone(tmp_path: Path, folder: Path) -> None:
    fill_cache(tmp_path / "c", DataSettings("folder", folder, most_skipped=0.5), (8, 8), "model", Mean())
    one, two = (CachedData(tmp_path / "c").draw(9, torch.Generator().manual_seed(4))[0] for _ in range(2))
    assert torch.equal(one, two)


def test_too_many_unusable_samples_stop_the_run(tmp_path: Path, folder: Path) -> None:
    settings = DataSettings("folder", folder)
    for _ in range(2):  # an already filled cache does not hide it
        with pytest.raises(
            TrainingError,
            match=r"3 of 6 samples cannot be used, such as cut.png.*allows 5%: .*remove .*cache'",
        ):
            fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())
    with pytest.raises(TrainingError, match="3 of 6"):
        check_cache(tmp_path / "cache", settings, (8, 8), "model")


def test_nothing_usable_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('{"prompt": ""}\n\n{"other": 1}\n')
    settings = DataSettings("prompts", tmp_path / "p.txt", most_skipped=1.0)
    with pytest.raises(
        TrainingError, match=r"No sample of 2 can be used, such as line 1: its caption is empty"
    ):
        fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())


def test_a_cache_of_something_else_is_refused(tmp_path: Path, folder: Path) -> None:
    settings = DataSettings("folder", folder, most_skipped=0.5)
    fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())
    assert check_cache(tmp_path / "cache", settings, (8, 8), "model")
    for size, source in (((16, 8), "model"), ((8, 8), "other")):
        with pytest.raises(TrainingError, match=r"was made with (size|checkpoint) = "):
            check_cache(tmp_path / "cache", settings, size, source)


def test_a_finished_cache_says_that_its_source_was_changed(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, cache = DataSettings("folder", folder, most_skipped=0.5), folder / "cache"
    fill_cache(cache, settings, (8, 8), "model", Mean())
    capsys.readouterr()
    assert check_cache(cache, settings, (8, 8), "model")
    assert not capsys.readouterr().err
    (folder / "none.png").write_bytes(picture_bytes((7, 7, 7)))
    assert check_cache(cache, settings, (8, 8), "model")
    assert "has changed since the cache" in capsys.readouterr().err
    cache.rename(tmp_path / "cache")
    folder.rename(tmp_path / "elsewhere")  # a cache needs its source no more
    assert check_cache(tmp_path / "cache", settings, (8, 8), "model")
    assert not capsys.readouterr().err


def test_a_cache_of_before_listings_is_taken_as_it_is(tmp_path: Path, folder: Path) -> None:
    settings, path = DataSettings("folder", folder, most_skipped=0.5), tmp_path / "cache" / "cache.json"
    fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())
    told = json.loads(path.read_text())
    del told["listing"]
    path.write_text(json.dumps(told))
    assert check_cache(tmp_path / "cache", settings, (8, 8), "model")


def test_an_unfinished_cache_of_a_changed_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on behind as many samples as it has read, which would be others now."""
    monkeypatch.setattr(cache_module, "_PART", 4)
    (tmp_path / "p.txt").write_text("".join(f"prompt {k}\n" for k in range(10)))
    settings = DataSettings("prompts", tmp_path / "p.txt")

    class Failing(Mean):
        def embed(self, prompts: Sequence[str]) -> list[Embedding]:
            if prompts == ["prompt 6"]:
                raise KeyboardInterrupt
            return super().embed(prompts)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(tmp_path / "cache", settings, (8, 8), "model", Failing())
    (tmp_path / "p.txt").write_text("".join(f"other {k}\n" for k in range(12)))
    with pytest.raises(TrainingError, match=r"has changed since the cache .* was begun.*remove"):
        fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())


def test_an_interrupted_cache_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_PART", 4)
    (tmp_path / "p.txt").write_text("".join(f"prompt {k}\n" for k in range(10)))
    settings = DataSettings("prompts", tmp_path / "p.txt")
    write, written = cache_module.save_tensors, list[Path]()

    def fill(tensors: dict[str, Tensor], path: Path) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(tensors, path)

    monkeypatch.setattr(cache_module, "save_tensors", fill)
    with pytest.raises(TrainingError, match=r"No space left.*is kept"):
        fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean())
    monkeypatch.setattr(cache_module, "save_tensors", write)
    encoders = Mean()
    fill_cache(tmp_path / "cache", settings, (8, 8), "model", encoders)
    assert encoders.embedded == [f"prompt {k}" for k in range(4, 10)]
    data = CachedData(tmp_path / "cache")
    assert len(data) == 10
    latents, _ = data.draw(3, torch.Generator())
    assert not latents.any()


def test_unfinished_and_damaged_caches_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"is not finished"):
        CachedData(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(TrainingError, match=r"cache.json' is damaged"):
        CachedData(tmp_path)


def test_a_caption_that_the_transformer_does_not_take_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text(f"{'x' * 64}\n{'y' * 65}\n")
    settings = DataSettings("prompts", tmp_path / "p.txt", most_skipped=0.5)
    fill_cache(tmp_path / "cache", settings, (8, 8), "model", Mean(), most_tokens=64)
    assert len(CachedData(tmp_path / "cache")) == 1
    assert "skipped line 2: its caption, 'yyy" in (said := capsys.readouterr().err)
    assert "has 65 tokens, more than the 64 that the transformer takes" in said
    settings = DataSettings("prompts", tmp_path / "p.txt", empty_prompt="z" * 65)
    with pytest.raises(TrainingError, match=r"data.empty_prompt: .*has 65 tokens"):
        fill_cache(tmp_path / "other", settings, (8, 8), "model", Mean(), most_tokens=64)


@pytest.mark.parametrize("name", ["part-00000.safetensors", "empty.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "no header"])
def test_a_missing_or_damaged_part_is_named_before_training(
    tmp_path: Path, folder: Path, name: str, damage: str
) -> None:
    cache = tmp_path / "cache"
    fill_cache(cache, DataSettings("folder", folder, most_skipped=0.5), (8, 8), "model", Mean())
    path = cache / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-2] if damage == "cut off" else b"")
    with pytest.raises(TrainingError, match=rf"{name}' is missing or damaged .*: remove the .*cache'"):
        CachedData(cache)


def test_a_part_that_goes_missing_during_training_is_named(tmp_path: Path, folder: Path) -> None:
    fill_cache(tmp_path / "c", DataSettings("folder", folder, most_skipped=0.5), (8, 8), "model", Mean())
    data = CachedData(tmp_path / "c")
    (tmp_path / "c" / "part-00000.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"part-00000.safetensors' is missing"):
        data.draw(2, torch.Generator())


def test_captions_are_padded_on_the_right_to_a_multiple() -> None:
    embeddings: list[Embedding] = [
        {"tokens": torch.ones(3, 2), "pooled": torch.zeros(5)},
        {"tokens": torch.ones(6, 2), "pooled": torch.ones(5)},
    ]
    caption = batch_captions(embeddings, 4, torch.device("cpu"))
    assert caption.tokens.shape == (2, 8, 2)
    assert caption.tokens.sum((1, 2)).tolist() == [6, 12]
    assert caption.mask.sum(1).tolist() == [3, 6]
    second = caption[slice(1, 2)].repeated(3)
    assert second.lengths.tolist() == [6, 6, 6]
    assert second.pooled is not None
    assert second.pooled.shape == (3, 5)
