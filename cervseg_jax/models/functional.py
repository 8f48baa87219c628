"""Conversion of a Keras model to a pure function over pytrees keyed by variable path."""

from typing import Protocol

import jax
import jax.numpy as jnp
import keras

from cervseg_jax.typing import ModelState, Params


class Apply(Protocol):
    """The pure forward pass of a network."""

    def __call__(
        self, params: Params, model_state: ModelState, images: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[list[jax.Array], ModelState]:
        """Runs the network.

        Args:
          params: trainable variables by path.
          model_state: BatchNorm statistics by path.
          images: in 0..255, [b, h, w, c], any real dtype.
          key: random key for dropout. With a key the network runs in training mode, without one in inference mode.

        Returns:
          Float32 logits [b, h, w, maps], the prediction first and then side outputs, and the new model state, which
          is unchanged in inference mode.
        """
        ...


def functionalize(model: keras.Model) -> tuple[Apply, Params, ModelState]:
    """Splits a Keras model into a pure function and its initial values.

    The seeds of dropout layers are not part of the state: each call feeds `fold_in(key, i)` to the i-th layer, so the
    randomness of a step depends on its key alone. The values are copies, so they can be donated.

    Args:
      model: a built model whose layers have explicit names.

    Returns:
      `apply`, the trainable variables and the BatchNorm statistics.

    Raises:
      ValueError: if two variables share a path.
    """
    trainable = [variable.path for variable in model.trainable_variables]
    fixed = [variable.path for variable in model.non_trainable_variables]
    seeds = {path for path, variable in zip(fixed, model.non_trainable_variables, strict=True) if _is_seed(variable)}
    seed_order = [path for path in fixed if path in seeds]
    state_paths = [path for path in fixed if path not in seeds]
    if len(set(trainable + state_paths)) != len(trainable) + len(state_paths):
        raise ValueError(f"functionalize: model {model.name!r} has variables with equal paths; name all layers")

    def apply(
        params: Params, model_state: ModelState, images: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[list[jax.Array], ModelState]:
        training = key is not None
        dropout_key = jax.random.key(0) if key is None else key
        feeds = dict(model_state)
        if seed_order:
            keys = {path: jax.random.fold_in(dropout_key, i) for i, path in enumerate(seed_order)}
            feeds |= {path: jax.random.key_data(value) for path, value in keys.items()}
        outputs, new_fixed, *_ = model.stateless_call(
            [params[path] for path in trainable],
            [feeds[path] for path in fixed],
            jnp.asarray(images, jnp.float32),
            training=training,
        )
        new_state = {path: value for path, value in zip(fixed, new_fixed, strict=True) if path not in seeds}
        # Keras unpacks lists of one.
        several = outputs if isinstance(outputs, list) else [outputs]
        return [logits.astype(jnp.float32) for logits in several], new_state if training else model_state

    values = {variable.path: jnp.copy(variable.value) for variable in model.variables}
    return apply, {path: values[path] for path in trainable}, {path: values[path] for path in state_paths}


def _is_seed(variable: keras.Variable) -> bool:
    return variable.path.rpartition("/")[2] == "seed_generator_state"
