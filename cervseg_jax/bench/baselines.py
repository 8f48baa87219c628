"""The same work in other programs: a twin of the U-Net in PyTorch, and Keras' own training loop."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import keras
import numpy as np

from cervseg_jax.bench.subject import random_batch
from cervseg_jax.engine.experiment import configured_loss
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import num_maps
from cervseg_jax.models import build_model, check_model_args
from cervseg_jax.schema import Config

FIT_BATCHES = 3
"""Batches of a call of `fit` and `predict`, so that their own start counts little."""


class Baseline(NamedTuple):
    """Another program's train step and prediction."""

    step: Callable[[], None]
    forward: Callable[[], None]
    num_batches: int
    """Batches that one call works on."""


def prepare_keras(config: Config) -> Baseline:
    """The same Keras model, trained by `fit` and run by `predict`, with Keras' own Adam and gradients.

    Args:
      config: the recipe; heads besides the mask are left out.

    Returns:
      The peer.
    """
    model = build_model(
        config.model.name,
        image_size=config.model.image_size,
        args=config.model.args,
        dtype=config.runtime.precision,
        num_maps=num_maps(("mask",)),
    )
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
    """A twin of the U-Net in PyTorch: channels last, compiled on GPUs, autocast for bfloat16.

    Args:
      config: the recipe of a `unet`.

    Returns:
      The peer.

    Raises:
      ConfigError: for another network.
    """
    if config.model.name != "unet":
        raise ConfigError(f"bench --against torch: there is a twin of unet alone, not of {config.model.name}")
    import torch  # pyright: ignore[reportMissingImports]

    args = check_model_args("unet", config.model.image_size, config.model.args)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = torch_unet(args).to(place, memory_format=torch.channels_last)
    run = torch.compile(model) if place == "cuda" else model
    optimizer = torch.optim.Adam(model.parameters(), config.train.learning_rate, eps=1e-7)
    batch = random_batch(config)
    images = torch.tensor(batch.image).permute(0, 3, 1, 2).to(place)
    masks = torch.tensor(batch.mask).permute(0, 3, 1, 2).to(place, torch.float32)
    precision = torch.autocast(place, torch.bfloat16, enabled=config.runtime.precision == "bfloat16")

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
    """Returns the U-Net of `models.unet` as a PyTorch module, [b, 3, h, w] in 0..255 to logits [b, 1, h, w].

    Args:
      args: all arguments of `models.unet.unet`.
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

    class Twin(nn.Module):
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
            for number, block in enumerate(self.encoder):
                x = block(x)
                if number < len(self.encoder) - 1:
                    skips.append(x)
                    x = nn.functional.max_pool2d(x, 2)
            for number in reversed(range(len(self.decoder))):
                x = self.decoder[number](torch.cat([self.up[number](x), skips[number]], 1))
            return self.head(x)

    return Twin()


BASELINES: Mapping[str, Callable[[Config], Baseline]] = {"keras": prepare_keras, "torch": prepare_torch}
"""What `bench --against` knows."""


def installed_baselines(names: Sequence[str]) -> list[str]:
    """Returns the wanted peers that can be imported here.

    Args:
      names: keys of `BASELINES`.

    Raises:
      ConfigError: for one that is not installed.
    """
    for name in names:
        if name != "keras" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"bench --against {name}: is not installed here: pip install {name}")
    return list(names)
