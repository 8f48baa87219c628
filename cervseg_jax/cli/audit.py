"""`cervseg-jax audit`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import DatasetArgument, Quiet
from cervseg_jax.errors import ConfigError, FindingsError

EXAMPLE = "cervseg-jax audit data/clustered"


def audit(
    dataset: DatasetArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file for the findings. Default: DATASET/audit.json.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Check a dataset for errors and leakage.

    Finds unpaired and damaged files, wrong masks, duplicates and near-duplicates across splits. Exits with 1 on a
    finding.
    """
    from cervseg_jax.console import Reporter, short_path
    from cervseg_jax.curation.audit import audit as audit_dataset
    from cervseg_jax.files import write_json
    from cervseg_jax.storage.address import Address, as_path

    reporter = Reporter(quiet=quiet)
    dataset, out = as_path(dataset), None if out is None else as_path(out)
    if out is None and isinstance(dataset, Address) and dataset.is_on_web_server:
        raise ConfigError(f"audit: {dataset} is on a web server, where no file can be written; --out FILE is needed")
    report = audit_dataset(dataset.absolute(), progress=reporter.progress)
    target = out or dataset / "audit.json"
    write_json(target, report.to_json())
    for line in report.lines():
        print(line)
    reporter.info(f"written to {short_path(target)}")
    if report.findings:
        raise FindingsError(f"{len(report.findings)} findings in {dataset}")
