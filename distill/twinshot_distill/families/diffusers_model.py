"""What families on diffusers' modules share: TwinFlow's second time embedder, and encoders by their pipeline.

The second embedder reads the target time r, and its output counts by the distance: E1(t) + E2(r) (t - r).
It lives beside the first as `<name>_2`, where the released checkpoints store it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_distill.errors import TrainingError
from twinshot_distill.families.base import Caption, Embedding, OpenModel
from twinshot_engine.checkpoint import Checkpoint

_STD = 0.02


class DiffusersModel(OpenModel):
    """A diffusers transformer with `transformer_blocks`.

    Attributes:
        embedder_name: of its time embedder, whose first argument is the scaled time.
        time_scale: from times in -1..1 to what the embedder reads.
        copies: whether a new second embedder starts as a copy of the first, or at random.
    """

    embedder_name: str
    time_scale: float
    copies: bool

    def __init__(self, transformer: nn.Module, *, single_time: bool) -> None:
        super().__init__(transformer, single_time=single_time)
        self._times: tuple[Tensor, Tensor] | None = None
        if not single_time:
            first = transformer.get_submodule(self.embedder_name)
            transformer.add_module(f"{self.embedder_name}_2", self._new_second(first))
            # A bound method, so that a copy of this model adds its own second embedder.
            first.register_forward_hook(self._add_second, with_kwargs=True)

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
        """Run the transformer with both times."""
        self._times = (t, r)
        out: Tensor = self.predict(x_t, t * self.time_scale, caption)
        self._times = None
        return out

    @abstractmethod
    def predict(self, x_t: Tensor, time: Tensor, caption: Caption) -> Tensor:
        """Call the transformer on latents [B, C, h, w] with the scaled time [B]."""

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        blocks: nn.ModuleList = self.transformer.get_submodule("transformer_blocks")  # type: ignore[assignment]
        return list(blocks)

    def _new_second(self, first: nn.Module) -> nn.Module:
        second = deepcopy(first)
        if not self.copies:
            for name, parameter in second.named_parameters():
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=_STD)
        return second

    def _add_second(self, _first: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if self._times is None:
            return out
        t, r = self._times
        second = self.transformer.get_submodule(f"{self.embedder_name}_2")
        ahead = second(r.to(args[0].dtype) * self.time_scale, *args[1:], **kwargs)
        gap = (t - r)[:, None]
        if isinstance(out, tuple):
            return tuple(one + two * gap.to(one.dtype) for one, two in zip(out, ahead, strict=True))
        return out + ahead * gap.to(out.dtype)


def open_diffusers(
    model: type[DiffusersModel], transformer_class: Any, checkpoint: Checkpoint, *, single_time: bool
) -> DiffusersModel:
    """Read a checkpoint's transformer; a stored second embedder is taken over."""
    folder = checkpoint.folder / "transformer"
    transformer = _read(transformer_class, folder, dtype=torch.float32)
    opened = model(transformer, single_time=single_time)
    prefix = f"{model.embedder_name}_2."
    stored = checkpoint.part("transformer")
    names = [name for name in stored.headers if name.startswith(prefix)]
    if names and not single_time:
        weights = {n.removeprefix(prefix): w.float() for n, w in stored.read(names, torch.device("cpu"))}
        transformer.get_submodule(prefix.rstrip(".")).load_state_dict(weights)
    opened.requires_grad_(requires_grad=True)
    return opened


def _read(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise TrainingError(f"'{folder}' cannot be read by diffusers: {error}") from error


class PipelineEncoders:
    """Text encoders and autoencoder of a diffusers pipeline."""

    def __init__(
        self,
        pipeline: Any,
        embed: Callable[[Any, Sequence[str]], list[Embedding]],
        scale: Callable[[Any], tuple[Tensor, Tensor]],
    ) -> None:
        """Use a pipeline.

        Args:
            pipeline: without its transformer, on its device.
            embed: from the pipeline and prompts to embeddings.
            scale: from the autoencoder's config to shift and factor of latents, as the transformer sees them:
                (latents - shift) * factor.
        """
        self._pipeline, self._embed = pipeline, embed
        shift, factor = scale(pipeline.vae.config)
        device = pipeline.vae.device
        self._shift, self._factor = shift.to(device), factor.to(device)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> list[Embedding]:
        """Embed as the pipeline does."""
        return self._embed(self._pipeline, prompts)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The mode of the latents, in the transformer's scale."""
        vae = self._pipeline.vae
        out = vae.encode(self._in(pictures.to(vae.device, vae.dtype)))
        latents = out.latent if hasattr(out, "latent") else out.latent_dist.mode()
        return (self._out(latents).float() - self._shift) * self._factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents in the transformer's scale."""
        vae = self._pipeline.vae
        raw = (latents.to(vae.device) / self._factor + self._shift).to(vae.dtype)
        return self._out(vae.decode(self._in(raw)).sample).float()

    def drop_text(self) -> None:
        """Let go of the text encoders."""
        names = [name for name in self._pipeline.components if name.startswith("text_encoder")]
        self._pipeline.register_modules(**dict.fromkeys(names))

    def _in(self, tensor: Tensor) -> Tensor:
        """Qwen-Image's autoencoder is a video one: a picture is a film of one frame."""
        return tensor.unsqueeze(2) if self._is_video else tensor

    def _out(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(2) if self._is_video else tensor

    @property
    def _is_video(self) -> bool:
        return hasattr(self._pipeline.vae.config, "z_dim")


def pipeline_encoders(
    pipeline_class: Any,
    embed: Callable[[Any, Sequence[str]], list[Embedding]],
    scale: Callable[[Mapping[str, Any]], tuple[Tensor, Tensor]],
    checkpoint: Checkpoint,
    device: torch.device,
) -> PipelineEncoders:
    """Read all of a checkpoint but its transformer."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipeline = _read(pipeline_class, checkpoint.folder, transformer=None, dtype=kind)
    return PipelineEncoders(pipeline.to(device), embed, scale)


def unpadded(tokens: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Rows of tokens [B, L, D] without what a mask [B, L] says is padding, as fp32."""
    if mask is None:
        return list(tokens.float())
    return [row[kept.bool()].float() for row, kept in zip(tokens, mask, strict=True)]
