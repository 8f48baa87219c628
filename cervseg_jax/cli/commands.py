"""What the commands do, one function each."""

from collections.abc import Sequence
from pathlib import Path

from cervseg_jax.console import Reporter, short_path
from cervseg_jax.errors import FindingsError
from cervseg_jax.runs.bucket import local_copies, local_copy


def run_infer(
    run: Path,
    images: Sequence[Path],
    out: Path,
    overrides: Sequence[str],
    *,
    others: Sequence[Path],
    outputs: Sequence[str],
    mpp: float | None,
    overwrite: bool,
    resume: bool,
    quiet: bool,
) -> None:
    """Makes masks, nuclei and measurements."""
    from cervseg_jax.segmentation.folder import InferRequest, infer_files
    from cervseg_jax.segmentation.outputs import DEFAULT_OUTPUTS, OUTPUTS

    reporter = Reporter(quiet=quiet)
    chosen = tuple(OUTPUTS) if "all" in outputs else tuple(dict.fromkeys(outputs)) or DEFAULT_OUTPUTS
    with local_copies([run, *others]) as (own, *local_others):
        request = InferRequest(
            own.folder,
            tuple(images),
            out,
            overrides=tuple(overrides),
            members=tuple(other.folder for other in local_others),
            outputs=chosen,
            mpp=mpp,
            overwrite=overwrite,
            resume=resume,
        )
        done, failed = infer_files(request, reporter=reporter)
    reporter.info(f"{done} images done: {', '.join(chosen)} and images.csv in {short_path(out)}")
    if failed:
        raise FindingsError(
            f"{failed} of {done + failed} files could not be read; see {short_path(out / 'failed.csv')}"
        )


def run_export(run: Path, out: Path | None, format_name: str, *, quiet: bool) -> None:
    """Writes the network for other programs."""
    from cervseg_jax.runs.weights import load_network
    from cervseg_jax.segmentation.export import export_network

    with local_copy(run) as local_run:
        network = load_network(local_run.folder / "best")
        folder = (out or local_run.folder / "export" / format_name).absolute()
        facts = export_network(network, folder, format_name)
    height, width = network.contract.image_size
    sizes = f"{height}x{width}" if facts["divisor"] is None else f"height and width multiples of {facts['divisor']}"
    Reporter(quiet=quiet).info(
        f"{local_run.display_path(folder / facts['file'])}: {facts['bytes'] / 2**20:.1f} MiB, for images of {sizes}; "
        f"read back, largest difference of probabilities {facts['max_difference']:.1g}; "
        "contract.json and example.py beside it"
    )


def run_synth(out: Path, *, num_images: int, seed: int, size: tuple[int, int], quiet: bool) -> None:
    """Draws images."""
    from cervseg_jax.curation.dataset_folder import write_scenes

    reporter = Reporter(quiet=quiet)
    with reporter.progress("drawing", num_images) as advance:
        write_scenes(out.absolute(), num_images=num_images, seed=seed, size=size, on_progress=advance)
    reporter.info(f"{num_images} images written to {short_path(out)}")
