"""A network as a picture would show it: runs of layers at one resolution, and what feeds what."""

from typing import Any, NamedTuple

import keras


class Stage(NamedTuple):
    """Layers that follow each other at one resolution."""

    name: str
    """Of the first layer."""
    size: tuple[int, int]
    """Height and width of the result in pixels."""
    channels: int
    """Of the result."""
    num_layers: int
    """0 for the outputs of a nested model."""
    feeds: tuple[int, ...]
    """Positions of the stages that it reads."""


def stages_of(model: keras.Model) -> list[Stage]:
    """Joins the operations of a functional model into stages, in order of computation.

    An operation belongs to the stage of its inputs if they come from one stage and it keeps height and width;
    operations of one kind that read the same and make the same shape are one stage; the outputs of a nested model,
    such as an encoder, are a stage each.

    Args:
      model: a functional model on images.

    Returns:
      The stages; the first one is the input.

    Example:
      >>> from cervseg_jax.models import build_model
      >>> model = build_model("unet", image_size=(32, 32), args={"base_filters": 4, "levels": 2})
      >>> [(stage.size, stage.channels, stage.feeds) for stage in stages_of(model)]
      [((32, 32), 4, ()), ((16, 16), 8, (0,)), ((32, 32), 4, (1,)), ((32, 32), 1, (0, 2))]
    """
    stages: list[Stage] = []
    place: dict[int, int] = {}
    alike: dict[tuple[Any, ...], int] = {}
    nested: dict[tuple[Any, ...], int] = {}
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            # What others read of it are other tensors than its own outputs, but of the same shapes.
            for tensor in operation.outputs:
                feeds = (len(stages) - 1,)
                stages.append(Stage(operation.name, _size(tensor), tensor.shape[-1], 0, feeds))
                nested[_shape(tensor)] = len(stages) - 1
            continue
        # A layer may be called on one tensor or on a list of them.
        sources = {
            place.get(id(tensor), nested.get(_shape(tensor)))
            for tensor in _list(operation.input)
            if id(tensor) in place or _shape(tensor) in nested
        }
        feeds = tuple(sorted(source for source in sources if source is not None))
        for tensor in _list(operation.output):
            # Sequences and windows are the same image in another order.
            size = stages[feeds[0]].size if feeds and len(tensor.shape) != 4 else _size(tensor)
            channels = tensor.shape[-1]
            key = (type(operation), feeds, size, channels)
            follows = len(feeds) == 1 and stages[feeds[0]].size == size and stages[feeds[0]].num_layers > 0
            if follows or key in alike:
                number = feeds[0] if follows else alike[key]
                stage = stages[number]
                stages[number] = stage._replace(channels=channels, num_layers=stage.num_layers + 1)
            else:
                number = alike[key] = len(stages)
                stages.append(Stage(operation.name, size, channels, 1, feeds))
            place[id(tensor)] = number
    return stages


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _size(tensor: Any) -> tuple[int, int]:
    return tensor.shape[1], tensor.shape[2]


def _shape(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape)
