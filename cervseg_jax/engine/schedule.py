"""Learning-rate schedule: linear warm-up and cosine decay, as a factor of the plateau rule's learning rate."""

import math


def lr_multiplier(step: int, *, warmup_steps: int, total_steps: int, final_factor: float | None) -> float:
    """Returns the factor of the learning rate at a step.

    Args:
      step: number of updates before this one.
      warmup_steps: number of steps over which the factor grows linearly to 1; 0 disables the warm-up.
      total_steps: number of steps of the whole training.
      final_factor: the factor decays to this along half a cosine after the warm-up; None keeps it at 1.

    Returns:
      A value in (0, 1].

    Example:
      >>> [round(lr_multiplier(step, warmup_steps=2, total_steps=6, final_factor=0.0), 2) for step in range(6)]
      [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]

    Reference: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if final_factor is None:
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))
