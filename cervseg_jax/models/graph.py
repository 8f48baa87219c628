"""The graph of a network for drawing: stages of layers at one resolution, and their connections."""

from typing import Any, NamedTuple

import keras


class Stage(NamedTuple):
    """Consecutive layers at one resolution."""

    name: str
    """Name of its first layer."""
    size: tuple[int, int]
    """Height and width of the result in pixels."""
    channels: int
    """Channels of the result."""
    num_layers: int
    """Number of layers; 0 for an output of a nested model."""
    feeds: tuple[int, ...]
    """Indices of its input stages."""


def stages_of(model: keras.Model) -> list[Stage]:
    """Groups the operations of a functional model into stages, in order of computation.

    An operation joins the stage of its inputs if these come from a single stage and it keeps height and width.
    Operations of the same type, inputs and output shape share a stage. Each output of a nested model, such as an
    encoder, is a stage of its own.

    Args:
      model: a functional model on images.

    Returns:
      The stages, the input first.

    Example:
      >>> from cervseg_jax.models import build_model
      >>> model = build_model("unet", image_size=(32, 32), args={"base_filters": 4, "levels": 2})
      >>> [(stage.size, stage.channels, stage.feeds) for stage in stages_of(model)]
      [((32, 32), 4, ()), ((16, 16), 8, (0,)), ((32, 32), 4, (1,)), ((32, 32), 1, (0, 2))]
    """
    stages: list[Stage] = []
    stage_of: dict[int, int] = {}
    similar: dict[tuple[Any, ...], int] = {}
    nested: dict[tuple[Any, ...], int] = {}
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            # Later layers read other tensors than `operation.outputs`, but tensors of the same shapes.
            for tensor in operation.outputs:
                feeds = (len(stages) - 1,)
                stages.append(Stage(operation.name, _size(tensor), tensor.shape[-1], 0, feeds))
                nested[_shape(tensor)] = len(stages) - 1
            continue
        # A layer may be called on one tensor or on a list of them.
        sources = {
            stage_of.get(id(tensor), nested.get(_shape(tensor)))
            for tensor in _list(operation.input)
            if id(tensor) in stage_of or _shape(tensor) in nested
        }
        feeds = tuple(sorted(source for source in sources if source is not None))
        for tensor in _list(operation.output):
            # Tensors that are not 4-D are sequences or windows of the same image.
            size = stages[feeds[0]].size if feeds and len(tensor.shape) != 4 else _size(tensor)
            channels = tensor.shape[-1]
            key = (type(operation), feeds, size, channels)
            follows = len(feeds) == 1 and stages[feeds[0]].size == size and stages[feeds[0]].num_layers > 0
            if follows or key in similar:
                index = feeds[0] if follows else similar[key]
                stage = stages[index]
                stages[index] = stage._replace(channels=channels, num_layers=stage.num_layers + 1)
            else:
                index = similar[key] = len(stages)
                stages.append(Stage(operation.name, size, channels, 1, feeds))
            stage_of[id(tensor)] = index
    return stages


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _size(tensor: Any) -> tuple[int, int]:
    return tensor.shape[1], tensor.shape[2]


def _shape(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape)
