"""A tiny random Z-Image checkpoint, written by diffusers and transformers rather than by our own code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine

# The networks here are too small to gain from threads, and lose much where others use the cores.
torch.set_num_threads(1)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
MAX_TOKENS = 192
TEXT_CHANNELS = 48
LATENT_CHANNELS = 8

TRANSFORMER = {
    "in_channels": LATENT_CHANNELS,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": TEXT_CHANNELS,
    "axes_dims": [8, 12, 12],
    "axes_lens": [512, 64, 64],
}
VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    "shift_factor": 0.1,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few words; it can spell any text."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(["a photo of a red apple and two blue vases", "user\nassistant\n"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=special[0], eos_token=special[2], model_max_length=MAX_TOKENS
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_text_model() -> Qwen3Model:
    """Build a three-layer Qwen3 with grouped keys."""
    config = Qwen3Config(
        hidden_size=TEXT_CHANNELS,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=400,
        max_position_embeddings=1024,
    )
    return Qwen3Model(config).eval()


def shake(module: torch.nn.Module, std: float = 0.1) -> None:
    """Add noise to every parameter, so that no zero or one hides a mistake."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)


def write_checkpoint(folder: Path) -> None:
    """Save random parts as a ``ZImagePipeline`` folder, then add TwinFlow's second time embedder."""
    torch.manual_seed(7)
    transformer, vae = ZImageTransformer2DModel(**TRANSFORMER), AutoencoderKL(**VAE)
    shake(transformer)
    shake(vae, 0.05)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ZImagePipeline(scheduler, vae, make_text_model(), make_tokenizer(), transformer).save_pretrained(folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = load_file(weights)
    second = {
        name.replace("t_embedder.", "t_embedder_2."): w for name, w in stored.items() if "t_embedder." in name
    }
    stored |= {name: w + 0.1 * torch.randn_like(w) for name, w in second.items()}
    save_file(stored, weights, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that takes prompts of any length."""
    made = make_tokenizer()
    made.model_max_length = 4096
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder; do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint folder of the test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="session")
def engine(tiny: Path) -> Engine:
    """An engine on the tiny checkpoint, on the CPU in fp32."""
    return Engine.load(EngineConfig(str(tiny), device="cpu"))


@pytest.fixture(
    scope="session",
    params=[
        "tiny",
        pytest.param(
            "builtin",
            marks=pytest.mark.skipif(not BUILTIN_FOLDER.exists(), reason="no built-in checkpoint yet"),
        ),
    ],
)
def folder(request: pytest.FixtureRequest, tiny: Path) -> Path:
    """Each checkpoint folder that should behave like stock diffusers."""
    return tiny if request.param == "tiny" else BUILTIN_FOLDER


@pytest.fixture
def load() -> Callable[[Path], Engine]:
    """Load a folder on the CPU."""
    return lambda folder: Engine.load(EngineConfig(str(folder), device="cpu"))


@pytest.fixture
def write_card() -> Callable[..., None]:
    """Write a ``twinshot.json`` into a folder."""

    def write(folder: Path, **content: object) -> None:
        (folder / "twinshot.json").write_text(json.dumps(content))

    return write
