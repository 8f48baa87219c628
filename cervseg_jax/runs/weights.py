"""Trained weights on disk, with a contract that describes the network and its input.

A folder has a `contract.json` and the weights file that it names, with its checksum. The contract is replaced last and
atomically, so readers always see a matching pair.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cervseg_jax import __version__
from cervseg_jax.choices import BitDepth, MaskRule
from cervseg_jax.errors import CervsegError, CheckpointError
from cervseg_jax.files import make_folder, sha256_of, write_bytes, write_text
from cervseg_jax.heads import Head, num_maps
from cervseg_jax.models import Apply, Backend, build_abstract
from cervseg_jax.runs.new_heads import with_new_heads
from cervseg_jax.schema import Config, Scale
from cervseg_jax.typing import ModelState, Params

PREPROCESSING = (
    "RGB, 0..255 (16-bit files scaled from bit_depth), EXIF orientation applied; resized to image_size by area "
    "averaging where it shrinks, else bilinearly; the network scales inside"
)
SCALED_PREPROCESSING = PREPROCESSING.replace(
    "resized to image_size", "resized to scale.nucleus_px, in tiles of image_size,"
)
OUTPUT = "logits, float32 [batch, height, width, maps]"

_OLD_OUTPUT_CLAUSE = "; its output are logits"
"""Described the output in `preprocessing` up to release 0.1."""

POSTPROCESSING_FILE = "postprocessing.json"
"""Name of the file with the threshold and watershed parameters tuned for the weights, in the same folder."""
CONFIDENCE_FILE = "confidence.json"
"""Name of the file with the confidence of nuclei fitted for the weights, in the same folder."""
OLD_POSTPROCESSING_FILE = "separation.json"
"""Name of the same file in release 0.1; still read."""
TUNED_FILES = (POSTPROCESSING_FILE, OLD_POSTPROCESSING_FILE, CONFIDENCE_FILE)


class Contract(BaseModel):
    """Description of a weights file: network, expected input and origin."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str
    model_args: dict[str, Any]
    image_size: tuple[int, int]
    heads: tuple[Head, ...] = ("mask",)
    """Heads in channel order."""
    preprocessing: Annotated[str, BeforeValidator(lambda text: str(text).removesuffix(_OLD_OUTPUT_CLAUSE))]
    """What the network expects as input."""
    output: str = OUTPUT
    """What the network returns; contracts of release 0.1 lack it."""
    mask_rule: MaskRule
    bit_depth: BitDepth = 16
    """Bits used in 16-bit images, see `data.bit_depth`; contracts of earlier versions lack it and mean 16."""
    scale: Scale | None = None
    """Scale of the network's input; None: whole images are resized to `image_size`."""
    epoch: int
    step: int
    val_loss: float | None
    """None for imported weights."""
    version: str
    weights_file: str
    weights_sha256: str


class Network:
    """A loaded network: its pure function, weights and contract."""

    def __init__(
        self,
        contract: Contract,
        apply: Apply,
        params: Params,
        model_state: ModelState,
        *,
        precision: str = "float32",
    ) -> None:
        """Stores the function, its variables and the contract.

        Args:
          contract: description of the network.
          apply: pure function of the network, built for the backend "xla".
          params: trainable variables.
          model_state: BatchNorm statistics.
          precision: compute dtype of `apply`, "float32" or "bfloat16".
        """
        self.contract = contract
        self.apply = apply
        self.params = params
        self.model_state = model_state
        self.precision = precision
        self._applies: dict[Backend, Apply] = {"xla": apply}

    def apply_for(self, backend: Backend) -> Apply:
        """Returns the pure function for a backend; it accepts the same `params` and `model_state`."""
        if backend not in self._applies:
            self._applies[backend], _, _ = _build(self.contract, self.precision, backend)
        return self._applies[backend]


def _build(contract: Contract, precision: str, backend: Backend) -> tuple[Apply, Params, ModelState]:
    return build_abstract(
        contract.model_name,
        image_size=contract.image_size,
        args=contract.model_args,
        dtype=precision,
        num_maps=num_maps(contract.heads),
        backend=backend,
    )


def save_weights(
    folder: Path,
    config: Config,
    params: Params,
    model_state: ModelState,
    *,
    epoch: int,
    step: int,
    val_loss: float | None,
    scale: Scale | None = None,
    tuned: Mapping[str, bytes] | None = None,
) -> None:
    """Writes weights and contract, replacing existing ones.

    Args:
      folder: target folder, created if missing.
      config: the recipe.
      params: trainable variables.
      model_state: BatchNorm statistics.
      epoch: 1-based epoch of the weights; 0 for imported weights.
      step: number of optimizer updates so far.
      val_loss: validation loss of the epoch; None if unknown.
      scale: scale of the network's input, for networks that see scaled windows.
      tuned: files as of `tuned_files`, for use until others are tuned.

    Raises:
      CheckpointError: if the disk is full or not writable; existing weights stay usable.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{path: np.asarray(value) for path, value in (params | model_state).items()})  # pyright: ignore
    data = buffer.getvalue()
    contract = Contract(
        model_name=config.model.name,
        model_args=config.model.args,
        image_size=config.model.image_size,
        heads=config.model.heads,
        preprocessing=PREPROCESSING if scale is None else SCALED_PREPROCESSING,
        mask_rule=config.data.mask_rule,
        bit_depth=config.data.bit_depth,
        scale=scale,
        epoch=epoch,
        step=step,
        val_loss=val_loss,
        version=__version__,
        weights_file=f"weights_epoch_{epoch:04d}.npz",
        weights_sha256=sha256_of(data),
    )
    make_folder(folder)
    try:
        write_bytes(folder / contract.weights_file, data)
        for name in TUNED_FILES:
            (folder / name).unlink(missing_ok=True)  # tuned for the previous weights
        for name, content in (tuned or {}).items():
            write_bytes(folder / name, content)
        write_text(folder / "contract.json", contract.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder}: the best weights could not be saved: {error.strerror}") from None
    for path in folder.glob("weights_epoch_*.npz"):
        if path.name != contract.weights_file:
            path.unlink()


def tuned_files(folder: Path) -> dict[str, bytes]:
    """Returns the files beside weights that hold tuned post-processing and confidence, by name."""
    return {name: (folder / name).read_bytes() for name in TUNED_FILES if (folder / name).is_file()}


def read_contract(folder: Path) -> Contract:
    """Reads the contract of a weights folder.

    Raises:
      CheckpointError: if it is missing, invalid or cannot be read.
    """
    path = folder / "contract.json"
    try:
        return Contract.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: holds no trained weights (no contract.json); has the run finished its first epoch?"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def load_network(folder: Path, *, precision: str = "float32") -> Network:
    """Builds the network of a contract and loads its weights.

    Args:
      folder: folder written by `save_weights`.
      precision: "float32" or "bfloat16" compute.

    Returns:
      The network.

    Raises:
      CheckpointError: if a file is missing or damaged, or the weights belong to another network.
    """
    contract = read_contract(folder)
    arrays = read_arrays(folder, contract)
    try:
        apply, params, model_state = _build(contract, precision, "xla")
    except CervsegError as error:
        raise CheckpointError(f"{folder / 'contract.json'}: the network cannot be built: {error}") from None
    variables = _convert_arrays(arrays, params, model_state, source=folder / contract.weights_file)
    return Network(contract, apply, *variables, precision=precision)


def load_arrays(
    folder: Path, params: Params, model_state: ModelState, *, heads: Sequence[Head] | None = None
) -> tuple[Params, ModelState]:
    """Reads stored weights for a network that is already built.

    Args:
      folder: folder written by `save_weights`.
      params: the network's trainable variables.
      model_state: its other variables.
      heads: heads of the network. If they begin with those of the stored weights, further ones keep the values of
        `params`; None: the heads must be equal.

    Returns:
      The stored trainable and other variables, with the dtypes of the arguments.

    Raises:
      CheckpointError: if a file is missing or damaged, or the weights belong to another network.
    """
    contract = read_contract(folder)
    arrays = read_arrays(folder, contract)
    if heads is not None:
        arrays = with_new_heads(arrays, contract.heads, heads, params)
    return _convert_arrays(arrays, params, model_state, source=folder / contract.weights_file)


def read_arrays(folder: Path, contract: Contract) -> dict[str, np.ndarray]:
    """Reads the stored arrays by variable path.

    Raises:
      CheckpointError: if the file is missing or damaged.
    """
    path = folder / Path(contract.weights_file).name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if sha256_of(data) != contract.weights_sha256:
        raise CheckpointError(f"{path}: is damaged (its checksum differs from the one in contract.json)")
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _convert_arrays(
    arrays: dict[str, np.ndarray], params: Params, model_state: ModelState, *, source: Path
) -> tuple[Params, ModelState]:
    check_arrays(arrays, params | model_state, source=source)
    return (
        {name: jnp.asarray(arrays[name], value.dtype) for name, value in params.items()},
        {name: jnp.asarray(arrays[name], value.dtype) for name, value in model_state.items()},
    )


def check_arrays(arrays: dict[str, np.ndarray], expected: dict[str, Any], *, source: Path) -> None:
    """Checks names and shapes of stored arrays against those of a network.

    Raises:
      CheckpointError: if they differ; names the first array that does.
    """
    for name in sorted(arrays.keys() | expected.keys()):
        if name not in expected or name not in arrays:
            problem = "has an array that the network lacks" if name in arrays else "lacks an array of the network"
            raise CheckpointError(f"{source}: {problem}: {name}; it was trained with another config")
        if arrays[name].shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"{source}: {name} has the shape {list(arrays[name].shape)}, "
                f"the network needs {list(expected[name].shape)}; it was trained with another config"
            )
