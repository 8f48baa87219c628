"""Stored weights for a network with more heads."""

from collections.abc import Mapping, Sequence

import numpy as np

from cervseg_jax.heads import Head
from cervseg_jax.typing import Params


def with_new_heads(
    arrays: Mapping[str, np.ndarray], stored_heads: Sequence[Head], heads: Sequence[Head], params: Params
) -> dict[str, np.ndarray]:
    """Completes stored arrays by the initial values of heads that they lack: whole layers, or last channels.

    Args:
      arrays: stored arrays by variable path.
      stored_heads: heads of the stored weights.
      heads: heads of the network; unless they begin with the stored ones and have more, nothing is completed.
      params: initial values of the network's trainable variables.
    """
    complete = dict(arrays)
    if len(heads) <= len(stored_heads) or tuple(heads[: len(stored_heads)]) != tuple(stored_heads):
        return complete
    for name, value in params.items():
        if not name.partition("/")[0].endswith("head"):
            continue
        initial, stored = np.array(value), arrays.get(name)
        if stored is not None and stored.shape[:-1] == initial.shape[:-1] and stored.shape[-1] <= initial.shape[-1]:
            initial[..., : stored.shape[-1]] = stored
        complete[name] = initial
    return complete
