"""A whole run from its file: encoders fill the cache, the loop trains, the result is exported."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from logging import ERROR
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import logging

from twinshot_distill.checkpointing import Keeper
from twinshot_distill.data.cache import (
    CachedData,
    check_cache,
    check_length,
    fill_cache,
    read_progress,
    readable,
)
from twinshot_distill.data.sources import SampleError
from twinshot_distill.errors import TrainingError
from twinshot_distill.exporting import export_adapter, export_checkpoint
from twinshot_distill.families import Family, find_family
from twinshot_distill.families.base import Embedding, Encoders, OpenModel
from twinshot_distill.journal import Journal, Sampler
from twinshot_distill.loop import Loop, LoopSettings
from twinshot_distill.lora import add_adapters
from twinshot_distill.optimizer import Optimizer
from twinshot_distill.pictures import save_sheet
from twinshot_distill.processes import Processes, joined
from twinshot_distill.report import say
from twinshot_distill.runfile import RunFile
from twinshot_distill.sharding import compile_blocks, place, recompute_blocks
from twinshot_distill.step import few_steps
from twinshot_distill.tensor_files import save_tensors
from twinshot_distill.trainees import Batches, Distillation, FullDistillation, LoraDistillation
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.opening import find_checkpoint

_POLL_SECONDS = 2.0
_SAMPLES = "samples.safetensors"


def distill(run: RunFile, out: Path, device: str, *, prepare_only: bool = False) -> None:
    """Train what a run file says and leave the result in a folder; an interrupted run goes on.

    Args:
        run: the settings.
        out: for states, the journal and the result: `checkpoint`, and with LoRA `adapter`.
        device: "cuda" or "cpu"; torchrun starts one process a GPU.
        prepare_only: only fill the cache.

    Raises:
        TrainingError: something that the message tells how to mend.
        CheckpointError: the checkpoint cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"The folder '{out}' cannot be made: {error}.") from error
    with joined(device) as (processes, own_device), _in_fixed_order(run.deterministic):
        checkpoint = find_checkpoint(run.checkpoint)
        family = find_family(checkpoint)
        _check_size(run, family)
        cache = run.data.cache or out / "cache"
        _prepare(run, cache, checkpoint, family, processes, own_device)
        if not prepare_only:
            _Run(run, out, cache, checkpoint, family, processes, own_device).train()


@contextmanager
def _in_fixed_order(wanted: bool) -> Iterator[None]:
    """Have torch replace or refuse kernels whose sums depend on who comes first, if that is wanted."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it first works.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    # It would also fill all new memory, in case somebody reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        first_sentence = str(error).partition(",")[0]
        raise TrainingError(
            f"deterministic = true: {first_sentence}. Set deterministic = false to train without it."
        ) from error
    finally:
        torch.use_deterministic_algorithms(mode=False)


def _check_size(run: RunFile, family: Family) -> None:
    if any(side % family.pixel_multiple for side in run.size):
        raise TrainingError(
            f"size {list(run.size)}: this family draws multiples of {family.pixel_multiple} pixels."
        )


def _prepare(
    run: RunFile,
    cache: Path,
    checkpoint: Checkpoint,
    family: Family,
    processes: Processes,
    device: torch.device,
) -> None:
    """Fill the cache in the first process; the others wait for it, however long that takes."""
    if not processes.first:
        while (
            (progress := read_progress(cache)) is None or not progress.done or not (cache / _SAMPLES).exists()
        ):
            time.sleep(_POLL_SECONDS)
        return
    cached = check_cache(cache, run.data, run.size, run.checkpoint)
    if cached and _sample_prompts(cache) == run.reporting.prompts:
        return
    say("reading text encoders and autoencoder")
    encoders = family.encoders(checkpoint, device)
    most = family.most_tokens(checkpoint) if family.most_tokens else None
    with _quiet_tokenizers():
        fill_cache(cache, run.data, run.size, run.checkpoint, encoders, most)
        _embed_samples(cache, run.reporting.prompts, encoders, most)


@contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """Long captions are told with their sample's name: transformers need not warn of them once more."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _embed_samples(
    cache: Path, prompts: tuple[str, ...], encoders: Encoders, most_tokens: int | None
) -> None:
    embedded = encoders.embed(prompts) if prompts else []
    try:
        for prompt, embedding in zip(prompts, embedded, strict=True):
            check_length(prompt, embedding, most_tokens)
    except SampleError as error:
        raise TrainingError(f"reporting.prompts: {error}.") from error
    tensors = {f"{row}/{k}": v.cpu().contiguous() for row, one in enumerate(embedded) for k, v in one.items()}
    try:
        save_tensors(tensors, cache / _SAMPLES, {str(row): prompt for row, prompt in enumerate(prompts)})
    except OSError as error:
        raise TrainingError(f"The cache '{cache}' cannot be written: {error}.") from error


def _sample_prompts(cache: Path) -> tuple[str, ...]:
    if not (cache / _SAMPLES).is_file():
        return ()
    with readable(cache / _SAMPLES), safe_open(cache / _SAMPLES, framework="pt") as file:
        told = file.metadata() or {}
    return tuple(told[str(row)] for row in range(len(told)))


def _sample_embeddings(cache: Path) -> list[Embedding]:
    embeddings: dict[str, dict[str, torch.Tensor]] = {}
    with readable(cache / _SAMPLES), safe_open(cache / _SAMPLES, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            row, name = key.split("/")
            embeddings.setdefault(row, {})[name] = file.get_tensor(key)
    return [embeddings[row] for row in sorted(embeddings, key=int)]


class _Run:
    """What one process trains."""

    def __init__(
        self,
        run: RunFile,
        out: Path,
        cache: Path,
        checkpoint: Checkpoint,
        family: Family,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.run, self.out, self.cache, self.checkpoint = run, out, cache, checkpoint
        self.family, self.processes, self.device = family, processes, device
        torch.manual_seed(run.seed)
        torch.set_float32_matmul_precision("high")

    def train(self) -> None:
        """Train and export."""
        with self.processes.in_turn():
            trainee = self._trainee()
        rows = self.run.batch * self.run.accumulate * self.processes.count
        counted = sum(p.numel() for p in trainee.parameters().values())
        self._say(
            f"training {counted / 1e6:.1f} M parameters, {rows} rows a step, "
            f"{trainee.objective.work:.2f} forward passes a row (flow matching: 3)"
        )
        loop = self._loop(trainee, rows)
        with closing(loop.journal):
            loop.run()
        self._export(trainee)

    def _say(self, words: str) -> None:
        if self.processes.first:
            say(words)

    def _trainee(self) -> Distillation:
        run = self.run
        data = CachedData(self.cache)
        model = self.family.open_model(self.checkpoint, run.lora is not None)
        batches = Batches(data, run.batch, self.family.token_multiple, self.device)
        put = partial(place, processes=self.processes, device=self.device)
        bf16 = run.precision == "bf16"
        trainee: Distillation
        if run.lora is None:
            trainee = FullDistillation(
                model, batches, run.objective, bf16=bf16, average=run.saving.average, place=put
            )
        else:
            self._add_adapters(model, bf16=bf16)
            trainee = LoraDistillation(model, batches, run.objective, bf16=bf16, place=put)
        if run.gradient_checkpointing:
            recompute_blocks(model)
        if run.compiled:
            compile_blocks(model)
        return trainee

    def _add_adapters(self, model: OpenModel, *, bf16: bool) -> None:
        lora = self.run.lora
        if lora is None:
            return
        if bf16:
            model.to(torch.bfloat16)
        try:
            add_adapters(model.transformer, lora, lora.targets or self.family.lora_targets)
        except ValueError as error:
            raise TrainingError(f"lora.targets: {error}.") from error

    def _loop(self, trainee: Distillation, rows: int) -> Loop:
        run, told = self.run, self.run.reporting
        sampler = self._sampler(trainee) if told.sample_seconds and self.processes.count == 1 else None
        return Loop(
            trainee,
            Optimizer(trainee.parameters(), run.optimizer),
            LoopSettings(run.length, run.accumulate, run.saving.steps, patience=run.patience, seed=run.seed),
            Keeper(self.out / "state", run.as_json(), self.processes, run.saving.keep),
            Journal(
                self.out,
                "distill",
                rows,
                told.seconds,
                sampler,
                told.sample_seconds,
                speaks=self.processes.first,
                prompts=told.prompts,
            ),
        )

    def _sampler(self, trainee: Distillation) -> Sampler:
        """Draws the run's prompts with the student, the same noise every time."""
        encoders = self.family.encoders(self.checkpoint, self.device)
        encoders.drop_text()
        captions = trainee.batches.captions(_sample_embeddings(self.cache))
        shape = (len(captions.lengths), *trainee.batches.data.latent_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

        @torch.no_grad()
        def draw(path: Path) -> None:
            student, steps = trainee.networks.student, self.run.reporting.sample_steps
            save_sheet(path, encoders.decode(few_steps(student, noise, captions, steps)))

        return draw

    def _export(self, trainee: Distillation) -> None:
        self._say("exporting")
        if isinstance(trainee, FullDistillation):
            export_checkpoint(
                self.checkpoint, trainee.exported.transformer, self.out / "checkpoint", self.processes
            )
            return
        transformer = trainee.model.transformer
        export_adapter(transformer, self.out / "adapter", self.processes)
        if self.run.saving.merge:
            export_checkpoint(self.checkpoint, transformer, self.out / "checkpoint", self.processes)
