"""The trainer's parts on small inputs, and what the exported folder promises."""

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature import train
from twinshot_distill.miniature.autoencoder import new_autoencoder, psnr, reconstruction_loss
from twinshot_distill.miniature.configuration import Run, TwinFlowSettings, changed, read_run
from twinshot_distill.miniature.dataset import LONG, SHORT, Captions, LatentPool, build_corpus
from twinshot_distill.miniature.denoiser import Denoiser, empty_captions
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.flow_matching import draw_times, drop_captions
from twinshot_distill.miniature.stages import train_stage
from twinshot_distill.miniature.start import embeddings_for, start_autoencoder, start_denoiser
from twinshot_distill.miniature.tokenizer import LONGEST, build_tokenizer, templated
from twinshot_distill.miniature.twinflow import TwinFlowTrainee
from twinshot_distill.optimizer import _split
from twinshot_distill.world.captions import caption
from twinshot_distill.world.composer import Composer
from twinshot_distill.world.scenes import sample_training_scene
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


def test_tokenizer_is_reproducible_and_ignores_case(
    tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build_tokenizer(tmp_path)
    again, first = ((folder / "tokenizer.json").read_bytes() for folder in (tmp_path, tokenizer_folder))
    assert again == first
    assert tokenizer("A RED Car").input_ids == tokenizer("a red car").input_ids
    assert tokenizer.decode(tokenizer("ein Igel 🦔").input_ids) == "ein igel 🦔"


def test_template_is_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    turn = [{"role": "user", "content": "a dog"}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert chat == templated("a dog")


def test_captions_fit_their_buckets(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = Random(5)
    scenes = [sample_training_scene(rng) for _ in range(500)]
    longest = max(len(tokenizer(templated(caption(rng, scene))).input_ids) for scene in scenes)
    wordiest = max(len(tokenizer(templated(caption(rng, scene, wordy=True))).input_ids) for scene in scenes)
    assert longest <= SHORT < wordiest <= LONG == LONGEST


def test_corpus_repeats_by_seed_whatever_the_workers(tokenizer_folder: Path) -> None:
    one = build_corpus(tokenizer_folder, 60, seed="a", workers=1)
    two = build_corpus(tokenizer_folder, 60, seed="a", workers=2)
    other = build_corpus(tokenizer_folder, 60, seed="b", workers=1)
    assert len(one) == 60
    assert np.array_equal(one.short, two.short)
    assert np.array_equal(one.scenes.boxes, two.scenes.boxes)
    assert not np.array_equal(one.short, other.short)


def test_pool_replaces_its_oldest_latents_first(tokenizer_folder: Path, composer: Composer) -> None:
    corpus = build_corpus(tokenizer_folder, 12, seed="a", workers=1)
    pool = LatentPool(corpus, composer, new_autoencoder().eval(), 6, 2, compiled=False)
    before = pool._latents.clone()
    pool.refresh()
    kept = (pool._latents == before).flatten(1).all(1)
    assert kept.tolist() == [False, False, True, True, True, True]
    assert pool.position == 8
    after = pool._latents.clone()
    pool.refresh()
    pool.refill(8)
    assert torch.equal(pool._latents, after)
    latents, captions = pool.sample(5, LONG)
    assert latents.shape == (5, 8, 32, 32)
    assert captions.tokens.shape == (5, LONG)
    assert (captions.lengths > SHORT - 1).all()


def test_reconstruction_loss_and_psnr_know_a_perfect_copy() -> None:
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert reconstruction_loss(pictures, pictures) == 0
    assert reconstruction_loss(pictures + 0.1, pictures) > reconstruction_loss(pictures + 0.01, pictures)
    assert psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2)).item() == pytest.approx(
        20.0, abs=1e-4
    )


def test_times_of_flow_matching_cover_the_path() -> None:
    torch.manual_seed(0)
    t = draw_times(4000, torch.device("cpu"))
    assert 0 < t.min() < 0.05
    assert 0.95 < t.max() < 1
    assert 0.5 < t.mean() < 0.6


def test_dropped_captions_become_the_empty_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = empty_captions(tokenizer, 3, SHORT, torch.device("cpu"))
    assert tokenizer.decode(empty.tokens[0, : empty.lengths[0]]) == templated("")
    other = empty._replace(tokens=empty.tokens + 1, lengths=empty.lengths + 1)
    assert torch.equal(drop_captions(other, empty, 1.0).tokens, empty.tokens)
    assert torch.equal(drop_captions(other, empty, 0.0).lengths, other.lengths)


class FixedPool:
    """Noise with one caption for all."""

    position = 0

    def renew(self, step: int) -> None:
        del step
        self.position += 1

    def refill(self, position: int) -> None:
        self.position = position

    def sample(self, count: int, width: int) -> tuple[torch.Tensor, Captions]:
        tokens = torch.full((count, width), 5, dtype=torch.int32)
        return torch.randn(count, 8, 32, 32), Captions(tokens, torch.full((count,), 20))


def test_one_twinflow_step_trains_the_student_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    twin = TwinFlowTrainee(Denoiser(), FixedPool(), tokenizer, TwinFlowSettings(batch=4))
    # Fresh models predict zero; a little noise makes every term matter.
    models = (twin.student, twin.teacher, twin.start)
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    frozen = [p for model in (twin.teacher, twin.start, twin.averaged) for p in model.parameters()]
    terms = twin.loss_terms(0)
    assert set(terms) == {"base", "adv", "rectify"}
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    torch.autograd.backward(sum(terms.values()))
    assert all(parameter.grad is None for parameter in frozen)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in twin.student.layers.parameters())


def test_a_stage_goes_on_from_its_last_state(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Interrupted after a save: weights, averages, the optimiser and the pool's place come back."""

    def stage() -> TwinFlowTrainee:
        torch.manual_seed(0)
        return TwinFlowTrainee(Denoiser(), FixedPool(), tokenizer, settings)

    settings, run = TwinFlowSettings(batch=4, seconds=0.01), replace(Run(), save_seconds=1e-9)
    first, again = stage(), stage()
    train_stage("twinflow", first, dict(first.student.named_parameters()), settings, run, tmp_path)
    assert list((tmp_path / "state" / "twinflow").iterdir())
    train_stage("twinflow", again, dict(again.student.named_parameters()), settings, run, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(first.student.parameters(), again.student.parameters(), strict=True)
    )
    assert first.numbers() == again.numbers()
    changed_settings = replace(settings, ema=0.5)
    with pytest.raises(TrainingError, match=r"stage.ema = 0.995, not 0.5"):
        train_stage(
            "twinflow", again, dict(again.student.named_parameters()), changed_settings, run, tmp_path
        )


def test_matrices_of_blocks_go_to_muon() -> None:
    named = dict(Denoiser().named_parameters())
    matrices, others = _split(named)
    assert len(matrices) + len(others) == len(named)
    assert len(matrices) == 10 * 7 + 3 * 7
    assert all(matrix.ndim == 2 for matrix in matrices)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("flow.bach=3", "flow.bach=3"),
        ("flow", "flow"),
        ("nothing.batch=3", "nothing.batch"),
        ("flow.batch=many", "'many'.*int"),
        ("flow.batch=1.5", "'1.5'.*int"),
        ("flow.optimizer=3", "flow.optimizer=3"),
        ("compiled=maybe", "'maybe'.*bool"),
    ],
)
def test_unknown_settings_are_named(assignment: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        changed(Run(), [assignment])


def test_settings_can_be_changed() -> None:
    run = changed(Run(), ["flow.batch=7", "twinflow.ema=.5", "compiled=false", "flow.seconds=2.5"])
    assert (run.flow.batch, run.twinflow.ema, run.compiled, run.flow.seconds) == (7, 0.5, False, 2.5)
    run = changed(run, ["twinflow.objective.rectify=.25", "twinflow.objective.distilled=any"])
    assert (run.twinflow.objective.rectify, run.twinflow.objective.distilled) == (0.25, ("any",))
    assert run.world == Run().world


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[flow]\nbach = 3", "unknown setting 'flow.bach=3'"),
        ("[flow]\nbatch = 1.5", "1.5 in 'flow.batch=1.5' is not a int"),
        ("[flow.optimizer]\nname = 3", "3 in 'flow.optimizer.name=3' is not a str"),
        ("[nothing]\nbatch = 3", "unknown setting .nothing="),
    ],
)
def test_mistakes_in_a_run_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_run(tmp_path / "run.toml")


def test_a_run_file_replaces_what_it_says(tmp_path: Path) -> None:
    text = 'trainer = "miniature"\n[flow]\nseconds = 9\n[twinflow.objective]\ndistilled = ["any"]\n'
    (tmp_path / "run.toml").write_text(text)
    run = read_run(tmp_path / "run.toml")
    assert (run.flow.seconds, run.flow.batch) == (9.0, Run().flow.batch)
    assert run.twinflow.objective == replace(Run().twinflow.objective, distilled=("any",))


def test_exported_folder_draws_a_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export(tmp_path, new_autoencoder(), Denoiser())
    engine = Engine.load(EngineConfig(str(tmp_path), device="cpu"))
    assert engine.info.name == "twinshot-miniature"
    assert engine.info.sizes[0] == (256, 256)
    assert (tmp_path / "twinshot.json").read_text("utf-8").startswith('{\n"name":"')
    assert engine.generate([GenerateRequest("a dog", 1)]).images.shape == (1, 256, 256, 3)


def test_a_run_begins_with_an_exported_checkpoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    autoencoder, denoiser = new_autoencoder(), Denoiser()
    for parameter in denoiser.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    export(tmp_path, autoencoder, denoiser)
    begun, other = Denoiser(), new_autoencoder()
    start_denoiser(begun, tokenizer, tmp_path)
    start_autoencoder(other, tmp_path)
    for ours, theirs in ((begun, denoiser), (other, autoencoder)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name].bfloat16().float()), name
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"vae.*cannot be read.*start from an exported checkpoint"):
        start_autoencoder(other, tmp_path)


def test_new_words_begin_as_the_mean_of_what_spelled_them(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = torch.randn(len(tokenizer), 8)
    larger = deepcopy(tokenizer)
    larger.add_tokens(["zzqa"])
    spelled = tokenizer("zzqa").input_ids
    assert len(spelled) > 1
    moved = embeddings_for(larger, tokenizer, rows)
    assert torch.equal(moved[:-1], rows)
    torch.testing.assert_close(moved[-1], rows[spelled].mean(0))


def test_the_miniature_trains_where_little_more_than_torch_is_installed() -> None:
    """The machines that train it have torch, transformers, safetensors, numpy, Pillow, typer and rich."""
    absent = [
        "pydantic",
        "pydantic_settings",
        "diffusers",
        "fastapi",
        "structlog",
        "simplejpeg",
        "fpng",
        "httpx2",
    ]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from pathlib import Path\n"
        "import twinshot_distill.miniature.train as train\n"
        "import twinshot_distill.evaluate, twinshot_distill.contact_sheet\n"
        "from twinshot_distill.miniature.configuration import read_run\n"
        "read_run(Path(train.__file__).parents[1] / 'configs' / 'miniature.toml')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_never_reads_the_judges() -> None:
    """They are frozen and apart: not even an import leads from the trainer to them."""
    program = (
        "import sys, twinshot_distill.miniature.train\n"
        "judges = ('twinshot_distill.verifier', 'twinshot_distill.auditor')\n"
        "found = [name for name in sys.modules if name.startswith(judges)]\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_rehearsal_runs_every_stage_and_resumes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "twinshot_distill.miniature.train",
        str(tmp_path),
        "--rehearsal",
        "--device",
        "cpu",
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "checkpoint" / "model_index.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "exported" in again.stderr
    assert "stage" not in again.stderr


def test_an_interrupted_save_leaves_nothing_a_resumed_run_would_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(_state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(train, "save_tensors", fill_the_disk)
    with pytest.raises(TrainingError, match="no space"):
        train._save(torch.nn.Linear(1, 1), tmp_path / "flow.safetensors")
    assert not (tmp_path / "flow.safetensors").exists()
