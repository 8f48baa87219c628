"""Rates of inference on a folder of images: reading, network, nuclei and writing together, as `infer` runs them."""

import tempfile
from pathlib import Path
from typing import Any

import jax

from cervseg_jax.console import Reporter
from cervseg_jax.segmentation.folder import InferRequest, begin_call, prepare_call, process_share


def measure_inference(
    run: Path, images: Path, *, overrides: tuple[str, ...] = (), rounds: int, reporter: Reporter
) -> dict[str, Any]:
    """Runs `infer` on a folder several times, into a temporary folder, after a first time that compiles.

    Args:
      run: run folder with best weights.
      images: folder of images.
      overrides: `section.key=value` items on the run's config.
      rounds: number of repetitions.
      reporter: for messages.

    Returns:
      JSON values: the machine, and `rounds`, the rates and shares of each repetition, see `Throughput.to_json`.

    Raises:
      ConfigError: as `infer_files`.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        request = InferRequest(run, (images,), Path(folder) / "out", overrides, overwrite=True)
        call = prepare_call(request, reporter)
        for number in range(rounds + 1):
            reporter.info("compiling ..." if number == 0 else f"round {number} of {rounds} ...")
            share = begin_call(request, call, reporter)
            num_failed, throughput = process_share(request, call, share, reporter=Reporter(quiet=True))
            found.append({**throughput.to_json(), "num_failed": num_failed})
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
        "outputs": list(request.outputs),
        "rounds": found[1:],
    }
