"""Dropout from 16 random bits per value."""

from typing import Any

import jax
import jax.numpy as jnp
import keras


class Uint16Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` that draws 16 random bits per value instead of 32.

    Random bits are most of the cost of dropout. The rate is rounded to a multiple of 2**-16.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Sets values of [..., c] to zero at the given rate, and scales the rest so that the mean stays the same."""
        num_dropped = round(self.rate * 2**16)
        if not training or not num_dropped:
            return inputs
        *sizes, channels = inputs.shape
        words = jax.random.bits(self.seed_generator.next(), (*sizes, -(-channels // 2)), "uint32")
        halves = jax.lax.bitcast_convert_type(words, "uint16").reshape(*sizes, -1)[..., :channels]
        scale = jnp.asarray(2**16 / (2**16 - num_dropped), inputs.dtype)
        return jnp.where(halves >= num_dropped, inputs * scale, jnp.zeros((), inputs.dtype))
