"""Make the miniature: autoencoder, flow matching, TwinFlow; one command, resumed where it stopped.

    python -m twinshot_distill.miniature.train out/miniature        # one H100-class GPU, about 25 minutes
    python -m twinshot_distill.miniature.train out/try --rehearsal  # any CPU, some minutes, no usable model

Each stage leaves its weights in the output folder; a stage whose file exists is skipped, and one that was
interrupted goes on from its last state. `progress.html` there shows how it goes.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from twinshot_distill.errors import TrainingError
from twinshot_distill.journal import Sampler
from twinshot_distill.miniature.autoencoder import channels_last, new_autoencoder, train_autoencoder
from twinshot_distill.miniature.configuration import Run, changed, read_run, rehearsal
from twinshot_distill.miniature.dataset import (
    SHORT,
    Captions,
    Corpus,
    LatentPool,
    build_corpus,
    frozen_encode,
)
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.flow_matching import train_flow
from twinshot_distill.miniature.preview import preview_prompts, sample_flow
from twinshot_distill.miniature.stages import forget_states
from twinshot_distill.miniature.tokenizer import build_tokenizer
from twinshot_distill.miniature.twinflow import train_twinflow
from twinshot_distill.pictures import save_sheet
from twinshot_distill.report import say
from twinshot_distill.tensor_files import save_tensors
from twinshot_distill.world.composer import Composer
from twinshot_engine.vae.kl import AutoencoderKL

_SECONDS_TO_FINISH = 35.0
_SHORTEST_STAGE = 60.0
_FLOW_STEPS = 24


def _save(module: nn.Module, path: Path) -> None:
    """Save in one move: a resumed run trusts every file it finds. Raises TrainingError on a full disk."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    partial = path.with_suffix(".partial")
    try:
        save_tensors(state, partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"'{path}' cannot be written: {error}; the stage's last state is kept, and the same command goes "
            "on from it."
        ) from error


def frozen(autoencoder: AutoencoderKL, device: torch.device) -> AutoencoderKL:
    """The autoencoder ready for use: on the device, channels last, no gradients."""
    return channels_last(autoencoder.to(device)).eval().requires_grad_(requires_grad=False)


class Trainer:
    """A run in an output folder: what the stages share, made once and only when a stage needs it."""

    def __init__(self, out: Path, run: Run, device: torch.device, budget: float | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.run, self.device, self.budget = out, run, device, budget
        self._started = time.monotonic()
        torch.manual_seed(run.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(out / "tokenizer")
        self._pool: LatentPool | None = None
        self._data: tuple[Corpus, Composer] | None = None

    def say(self, words: str) -> None:
        """Print a line with the seconds since the start."""
        say(f"[{time.monotonic() - self._started:6.0f} s] {words}")

    def data(self) -> tuple[Corpus, Composer]:
        """Scenes with captions, and what draws them."""
        if self._data is None:
            world, workers = self.run.world, self.run.world.workers or os.cpu_count() or 1
            corpus = build_corpus(self.out / "tokenizer", world.scenes, seed="train", workers=workers)
            composer = Composer(
                self.device,
                scene_variations=world.scene_variations,
                plain_variations=world.plain_variations,
                workers=workers,
            )
            self.say(f"{len(corpus)} scenes prepared")
            self._data = corpus, composer
        return self._data

    def pool(self, autoencoder: AutoencoderKL) -> LatentPool:
        """The latents both later stages train on."""
        if self._pool is None:
            self._pool = LatentPool(
                *self.data(),
                autoencoder,
                self.run.world.pool,
                self.run.world.refresh,
                self.run.world.refresh_steps,
                compiled=self.run.compiled,
            )
            self.say("latent pool filled")
        return self._pool

    def autoencoder(self) -> AutoencoderKL:
        """Stage 1, or its saved result."""
        path = self.out / "autoencoder.safetensors"
        if not path.exists():
            self.say("stage 1: autoencoder")
            trained = train_autoencoder(*self.data(), self.run, self.out)
            _save(trained, path)
            forget_states("autoencoder", self.out)
        model = new_autoencoder()
        model.load_state_dict(load_file(path))
        return frozen(model, self.device)

    def flow(self, autoencoder: AutoencoderKL) -> Denoiser:
        """Stage 2, or its saved result."""
        path = self.out / "flow.safetensors"
        if not path.exists():
            pool = self.pool(autoencoder)
            self.say("stage 2: flow matching")
            trained = train_flow(
                pool,
                self.tokenizer,
                self.run,
                self.out,
                device=self.device,
                sampler_of=partial(self._sampler, autoencoder, _FLOW_STEPS),
            )
            _save(trained, path)
            forget_states("flow", self.out)
            self._sampler(autoencoder, _FLOW_STEPS, trained)(self.out / f"flow_{_FLOW_STEPS}.webp")
            export(self.out / "flow_checkpoint", autoencoder, trained)
        return self._denoiser(path)

    def twinflow(self, autoencoder: AutoencoderKL, flow: Denoiser) -> Denoiser:
        """Stage 3, or its saved result."""
        path = self.out / "twinflow.safetensors"
        if not path.exists():
            pool, run = self.pool(autoencoder), self.run
            if self.budget is not None:
                left = self.budget - (time.monotonic() - self._started) - _SECONDS_TO_FINISH
                run = replace(run, twinflow=replace(run.twinflow, seconds=max(left, _SHORTEST_STAGE)))
            self.say(f"stage 3: TwinFlow, {run.twinflow.seconds:.0f} s")
            sampler_of = partial(self._sampler, autoencoder, 1)
            trained = train_twinflow(flow, pool, self.tokenizer, run, self.out, sampler_of=sampler_of)
            _save(trained, path)
            forget_states("twinflow", self.out)
            self._sampler(autoencoder, 1, trained)(self.out / "twinflow_1.webp")
        return self._denoiser(path)

    def _denoiser(self, path: Path) -> Denoiser:
        model = Denoiser()
        model.load_state_dict(load_file(path))
        return model.to(self.device)

    def _sampler(self, autoencoder: AutoencoderKL, steps: int, model: Denoiser) -> Sampler:
        """Draws the preview prompts with a model as it is."""
        prompts = preview_prompts(self.run.previews)

        def draw(path: Path) -> None:
            latents = sample_flow(model, self.tokenizer, prompts, steps=steps, guidance=2.0)
            with torch.no_grad():
                pictures = [autoencoder(part) for part in torch.split(latents, 16)]
            save_sheet(path, torch.cat(pictures))

        return draw


class _NoisePool:
    """Stands in for a `LatentPool` where only shapes matter."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    position = 0

    def renew(self, step: int) -> None:
        """Nothing to renew."""

    def refill(self, position: int) -> None:
        """Nothing to hold."""

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        """Noise and padding."""
        tokens = torch.zeros(count, width, dtype=torch.int32, device=self._device)
        return torch.randn(count, 8, 32, 32, device=self._device), Captions(
            tokens, tokens.sum(1) + SHORT // 2
        )


def fill_compilation_cache(out: Path, run: Run, device: torch.device) -> None:
    """Compile the shapes of stages 2 and 3, so that a process that trains them later finds them on disk."""
    trainer, pool = Trainer(out, run, device), _NoisePool(device)
    encoder = frozen(new_autoencoder(), device)
    pictures = torch.randn(run.world.refresh, 3, 256, 256, device=device)
    frozen_encode(encoder, compiled=run.compiled)(pictures)
    trainer.say("encoder compiled")
    brief = replace(
        run,
        flow=replace(run.flow, seconds=2, long_share=0.5),
        twinflow=replace(run.twinflow, seconds=2, long_share=0.5),
        save_seconds=0,
        sample_seconds=0,
    )
    flow = train_flow(pool, trainer.tokenizer, brief, out, device=device)
    trainer.say("stage 2 compiled")
    train_twinflow(flow, pool, trainer.tokenizer, brief, out)
    trainer.say("stage 3 compiled")


def main(
    out: Annotated[Path, typer.Argument(help="Folder for weights, previews and the exported checkpoint.")],
    rehearsal_only: Annotated[
        bool, typer.Option("--rehearsal", help="Run every stage at its smallest.")
    ] = False,
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Only fill the compilation cache.")
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="End after about this many seconds; stage 3 takes what is left.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, such as configs/miniature.toml.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: flow.batch=512; repeat.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
) -> None:
    """Train the miniature end to end and export it to OUT/checkpoint."""
    try:
        run = rehearsal() if rehearsal_only else read_run(config) if config else Run()
        run = changed(run, settings or [])
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--config, --set") from None
    try:
        train_miniature(out, run, torch.device(device), budget, compile_only=compile_only)
    except TrainingError as error:
        say(f"Error: {error}")
        raise typer.Exit(2) from None


def train_miniature(
    out: Path, run: Run, device: torch.device, budget: float | None = None, *, compile_only: bool = False
) -> None:
    """Train the miniature end to end and export it to `out/checkpoint`, or only compile what that takes."""
    if compile_only:
        fill_compilation_cache(out, run, device)
        return
    trainer = Trainer(out, run, device, budget)
    autoencoder = trainer.autoencoder()
    flow = trainer.flow(autoencoder)
    twinflow = trainer.twinflow(autoencoder, flow)
    export(out / "checkpoint", autoencoder, twinflow)
    trainer.say(f"exported to {out / 'checkpoint'}")


if __name__ == "__main__":
    typer.run(main)
