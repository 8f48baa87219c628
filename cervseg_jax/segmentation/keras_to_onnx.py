"""Converts a Keras file to ONNX on Keras' PyTorch backend: a program for a process of its own.

    KERAS_BACKEND=torch python -P keras_to_onnx.py MODEL.keras MODEL.onnx HEIGHT WIDTH OPSET

It must not import this package, which needs the JAX backend. The file is traced with an image of HEIGHT x WIDTH. A
model of free size gets free batch size, height and width; others are for one image of their size.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """Writes the ONNX file."""
    import keras
    import torch  # pyright: ignore[reportMissingImports]

    source, target, height, width, opset = arguments
    keras.config.set_image_data_format("channels_last")
    model: Any = keras.models.load_model(source)
    model.train(False)
    is_free = model.inputs[0].shape[1] is None
    axes = {0: "batch", 1: "height", 2: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that become constants; the result is compared afterwards
        torch.onnx.export(
            model,
            (torch.zeros((2 if is_free else 1, int(height), int(width), 3)),),
            target,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": axes, "probabilities": axes} if is_free else None,
            opset_version=int(opset),
            dynamo=not is_free,  # it does not know free sizes; without it, layer norms cannot be traced
            external_data=False,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
