"""Baselines of the benchmark: the same work in PyTorch, and in Keras' own training loop."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import keras
import numpy as np

from cervseg_jax.bench.subject import random_batch
from cervseg_jax.engine.experiment import configured_loss, configured_model
from cervseg_jax.errors import ConfigError
from cervseg_jax.models import check_model_args
from cervseg_jax.schema import Config

FIT_BATCHES = 3
"""Batches per call of `fit` and `predict`, so that their start-up time counts little."""


class Baseline(NamedTuple):
    """Train step and prediction of another program."""

    step: Callable[[], None]
    forward: Callable[[], None]
    num_batches: int
    """Batches per call."""


def prepare_keras(config: Config) -> Baseline:
    """Prepares the same Keras model, trained by `fit` and run by `predict`, with Keras' Adam and gradients.

    Args:
      config: the recipe; heads other than the mask are left out.

    Returns:
      The baseline.
    """
    config = config.model_copy(update={"model": config.model.model_copy(update={"heads": ("mask",)})})
    model = configured_model(config)
    loss = configured_loss(config)

    def keras_loss(masks: Any, logits: Any) -> Any:
        return loss(logits, masks, jnp.ones(logits.shape[0]))

    optimizer: Any = keras.optimizers.Adam(config.train.learning_rate, clipvalue=config.train.clip_value)
    model.compile(optimizer, loss=[keras_loss] * len(model.outputs))
    batch = random_batch(config)
    images = np.concatenate([np.asarray(batch.image, np.float32)] * FIT_BATCHES)
    masks = np.concatenate([np.asarray(batch.mask, np.float32)] * FIT_BATCHES)
    targets: Any = masks if len(model.outputs) == 1 else [masks] * len(model.outputs)
    size = config.train.batch_size
    silent: Any = 0

    def step() -> None:
        model.fit(images, targets, batch_size=size, shuffle=False, verbose=silent)

    def forward() -> None:
        model.predict(images, batch_size=size, verbose=silent)

    return Baseline(step, forward, FIT_BATCHES)


def prepare_torch(config: Config) -> Baseline:
    """Prepares the U-Net in PyTorch: channels last, compiled on GPUs, autocast for bfloat16.

    Args:
      config: the recipe of a `unet`.

    Returns:
      The baseline.

    Raises:
      ConfigError: if the recipe has another network.
    """
    if config.model.name != "unet":
        raise ConfigError(f"bench --against torch: supports the model unet only, got {config.model.name}")
    import torch  # pyright: ignore[reportMissingImports]

    args = check_model_args("unet", config.model.image_size, config.model.args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = torch_unet(args).to(device, memory_format=torch.channels_last)
    run = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.Adam(model.parameters(), config.train.learning_rate, eps=1e-7)
    batch = random_batch(config)
    images = torch.tensor(batch.image).permute(0, 3, 1, 2).to(device)
    masks = torch.tensor(batch.mask).permute(0, 3, 1, 2).to(device, torch.float32)
    precision = torch.autocast(device, torch.bfloat16, enabled=config.runtime.precision == "bfloat16")

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with precision:
            logits = run(images.float().contiguous(memory_format=torch.channels_last)).float()
        probs = torch.sigmoid(logits)
        dice = (2 * (probs * masks).sum() + 1) / (probs.sum() + masks.sum() + 1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks) + 1 - dice
        loss.backward()
        if config.train.clip_value is not None:
            torch.nn.utils.clip_grad_value_(model.parameters(), config.train.clip_value)
        optimizer.step()
        loss.item()

    def forward() -> None:
        model.train(False)
        with torch.inference_mode(), precision:
            torch.sigmoid(run(images.float().contiguous(memory_format=torch.channels_last)).float()).cpu()

    return Baseline(step, forward, 1)


def torch_unet(args: Mapping[str, Any]) -> Any:
    """Returns the U-Net as a PyTorch module that maps [b, 3, h, w] in 0..255 to logits [b, 1, h, w].

    Args:
      args: all arguments of the `unet` builder.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def conv(channels: int, level: int) -> list[Any]:
        filters, size = args["base_filters"] * 2**level, max(3, args["kernel_size"] - 2 * level)
        spread = max(1, args["dilation"] - level)
        act = nn.ReLU(inplace=True) if args["activation"] == "relu" else nn.Mish(inplace=True)
        layers = [nn.Conv2d(channels, filters, size, padding="same", dilation=spread), act]
        return [*layers, nn.BatchNorm2d(filters, eps=1e-3)] if args["batch_norm"] else layers

    def block(channels: int, level: int) -> Any:
        filters, rate = args["base_filters"] * 2**level, args["dropout_rate"] * level
        drop = [nn.Dropout(rate)] if rate else []
        return nn.Sequential(*conv(channels, level), *drop, *conv(filters, level))

    class TorchUNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels, base = args["levels"], args["base_filters"]
            widths = [base * 2**level for level in range(levels)]
            self.encoder = nn.ModuleList(block(3 if not i else widths[i - 1], i) for i in range(levels))
            upper = range(levels - 1)
            self.up = nn.ModuleList(nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in upper)
            self.decoder = nn.ModuleList(block(2 * widths[i], i) for i in upper)
            self.head = nn.Conv2d(base, 1, 1)

        def forward(self, x: Any) -> Any:
            x = x / 255 if args["input_range"] == "unit" else x
            skips = []
            for level, block in enumerate(self.encoder):
                x = block(x)
                if level < len(self.encoder) - 1:
                    skips.append(x)
                    x = nn.functional.max_pool2d(x, 2)
            for level in reversed(range(len(self.decoder))):
                x = self.decoder[level](torch.cat([self.up[level](x), skips[level]], 1))
            return self.head(x)

    return TorchUNet()


BASELINES: Mapping[str, Callable[[Config], Baseline]] = {"keras": prepare_keras, "torch": prepare_torch}
"""Baselines by the name that `bench --against` takes."""


def installed_baselines(names: Sequence[str]) -> list[str]:
    """Checks that the packages of the requested baselines are installed, and returns their names.

    Args:
      names: keys of `BASELINES`.

    Raises:
      ConfigError: if a package is not installed.
    """
    for name in names:
        if name != "keras" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"bench --against {name}: is not installed: pip install {name}")
    return list(names)
