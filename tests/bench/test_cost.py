"""What the figures of `models` mean."""

import numpy as np
import pytest

from cervseg_jax.bench.cost import NUM_TIMED, cost_config, measure_cost
from cervseg_jax.models import build_model
from cervseg_jax.models.layers.blocks import num_params


def test_the_operations_are_those_of_the_convolutions():
    args = {"base_filters": 4, "levels": 2}
    model = build_model("unet", image_size=(32, 48), args=args)
    cost = measure_cost(cost_config("unet", args, (32, 48), batch_size=3))
    assert cost.trainable + cost.fixed == num_params(model)
    assert len(cost.step_seconds) == NUM_TIMED
    assert min(cost.step_seconds) <= cost.median_seconds <= max(cost.step_seconds)
    # Multiply-adds of all kernels at the size of what they make; zeros at the border are left out by the compiler.
    want = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            _, height, width, _ = layer.output.shape
            area = height * width // (4 if layer.name.endswith("_up") else 1)
            want += 2 * 3 * area * int(np.prod(layer.kernel.shape))
    assert cost.forward_flops == pytest.approx(want, rel=0.12)
    assert 2.0 < cost.step_flops / cost.forward_flops < 4.0
    activations = 3 * 32 * 48 * 4 * 4  # one feature map of the first level
    assert cost.activation_bytes > activations
