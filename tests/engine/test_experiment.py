"""An experiment: one object from which training, `compile` and `bench` make their functions."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from cervseg_jax.bench.subject import random_batch
from cervseg_jax.bench.topology import collectives
from cervseg_jax.config import load_config
from cervseg_jax.engine.cost import StepCost, out_of_memory_advice
from cervseg_jax.engine.experiment import build_experiment
from cervseg_jax.errors import ConfigError
from cervseg_jax.runtime.mesh import make_mesh, train_mesh
from cervseg_jax.schema import MeshConfig


@pytest.fixture
def config(tiny_config):
    return load_config(tiny_config, ["train.ema_decay=0.9", "train.grad_accum_steps=2"])


def test_the_mesh_is_that_of_the_training_whatever_the_devices(config):
    assert build_experiment(config).mesh == train_mesh(config)
    some = jax.devices()[2:4]
    experiment = build_experiment(config, some)
    assert list(experiment.mesh.devices.flat) == some
    assert experiment.mesh.shape["data"] == 2  # a batch of four is computed in two parts


def test_the_abstract_state_is_the_shape_of_the_initial_one(config):
    experiment = build_experiment(config)
    state, abstract = experiment.initial_state(), experiment.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    assert state.ema_params.keys() == state.params.keys()
    again = build_experiment(config).initial_state()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True))


def test_the_compiled_step_takes_the_state_and_a_batch_of_its_shape_alone(config):
    experiment = build_experiment(config, jax.devices()[:1])
    steps = experiment.compile()
    batch = experiment.place_batch(random_batch(config))
    state, metrics = steps.train_step(experiment.initial_state(), batch, np.float32(1e-3))
    assert int(state.step) == 1 and np.isfinite(float(metrics.loss))
    assert float(steps.eval_step(state, batch).loss) > 0
    with pytest.raises(TypeError):
        half = jax.tree.map(lambda array: array[:2], batch)
        steps.train_step(state, half, np.float32(1e-3))


def test_operations_are_counted_without_the_loop_over_parts(config):
    mesh = make_mesh(MeshConfig(), batch_size=4)
    in_parts = replace(build_experiment(config), mesh=mesh)
    whole = config.model_copy(update={"train": config.train.model_copy(update={"grad_accum_steps": 1})})
    assert in_parts.step_flops() == replace(build_experiment(whole), mesh=mesh).step_flops() > 1e6


def test_a_lack_of_memory_names_the_keys_that_need_less(config):
    cost = StepCost(4, 1e9, 1, 3 * 2**30, 0.1, 0.2)
    with pytest.raises(ConfigError, match=r"needs 3\.0 GiB .*\n.*grad_accum_steps=4 .*runtime.remat=true"):
        with out_of_memory_advice(config, cost):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), out_of_memory_advice(config, cost):
        raise jax.errors.JaxRuntimeError("INTERNAL: other")


@pytest.mark.slow
def test_packed_layers_on_divided_rows_exchange_what_plain_ones_do(tiny_config):
    network = {"dropout_rate": 0.0, "levels": 3, "base_filters": 8, "kernel_size": 9, "dilation": 3}
    settings = ["model.image_size=[64, 64]", "train.batch_size=2"]
    settings += [f"model.args={network}", "runtime.mesh={data: 2, spatial: 4}"]
    config = load_config(tiny_config, settings)
    exchanged, results = [], []
    for backend in ("xla", "tpu"):
        experiment = build_experiment(config, backend=backend)
        step = experiment.lower_train_step().compile()
        exchanged.append(collectives(step.as_text()))
        batch = experiment.place_batch(random_batch(config))
        _, metrics = step(experiment.initial_state(), batch, np.float32(1e-3))
        results.append([float(metrics.loss), float(metrics.gradient_norm)])
    assert exchanged[0] == exchanged[1]
    assert exchanged[0]["collective-permute"]["count"] > 10
    assert exchanged[0]["large_gathers"] == {}
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
