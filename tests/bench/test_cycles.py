"""Estimated cycles are read from a compiled program."""

from cervseg_jax.bench.cycles import OTHER, estimated_cycles

PROGRAM = """
  %a = f32[8] fusion(%b), metadata={op_name="jit(step)/jvp(unet)/conv1/relu"}, config={"estimated_cycles":"70"}
  %c = f32[8] fusion(%a), metadata={op_name="jit(step)/transpose(jvp(n))/conv1/add"}, config={"estimated_cycles":"30"}
  %d = f32[8] fusion(%c), metadata={op_name="jit(step)/transpose(jvp(conv2))/add"}, config={"estimated_cycles":"200"}
  %e = f32[8] copy(%d), config={"estimated_cycles":"5"}
  %f = f32[8] add(%e, %e), metadata={op_name="jit(step)/conv1/add"}
"""


def test_cycles_are_summed_by_layer_forward_and_backward():
    cycles = estimated_cycles(PROGRAM, {"conv1", "conv2"})
    assert cycles.total == 305
    assert list(cycles.by_layer.items()) == [("conv2", 200), ("conv1", 100), (OTHER, 5)]


def test_other_compilers_estimate_nothing():
    assert estimated_cycles("%a = f32[8] add(%b, %c)", {"conv1"}).total == 0
