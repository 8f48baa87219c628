"""The sections of a config: frozen, with all defaults of the program that no named component has."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cervseg_jax.choices import BitDepth, MaskRule, OnBadFile
from cervseg_jax.heads import Head

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, values not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """What network is built."""

    name: str
    image_size: tuple[PositiveInt, PositiveInt]
    """Height and width of the network's input, in pixels."""
    args: dict[str, Any] = {}
    """Arguments of the model's builder; `cervseg-jax models NAME` lists them."""
    heads: tuple[Head, ...] = ("mask",)
    """What it predicts: "mask", then any of "boundary", "distance" and "hover", learned from instance labels."""


class SyntheticConfig(Section):
    """Dataset of drawn cells, made on first use under `data.root`."""

    train: PositiveInt
    valid: PositiveInt
    test: PositiveInt
    size: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = (512, 512)
    """Height and width of the drawn images."""
    seed: Count = 0


class SplitConfig(Section):
    """How a folder with only `images` and `masks` is divided: whole groups, never single files."""

    valid: Fraction = 0.2
    test: Fraction = 0.2
    seed: Count = 0
    group_pattern: str | None = None
    """Regular expression searched in the file stem; its first group names the source. None: each stem is its own."""


class DataConfig(Section):
    """Where the images are and how they are read."""

    root: Path
    """Folder with `{train,valid,test}/{images,masks}`, or with `images` and `masks` if `split` is given."""
    synthetic: SyntheticConfig | None = None
    split: SplitConfig | None = None
    origin: str | None = None
    """Where to get the data; shown when `data.root` is missing."""
    mask_rule: MaskRule = "half_range"
    bit_depth: BitDepth = "auto"
    """Bits that 16-bit image files use: 12 scales 0..4095 to 0..255. "auto": the training takes the least of 8, 10, 12,
    14 and 16 that holds the values of all its images, and keeps it for inference."""
    on_bad_file: OnBadFile = "fail"
    threads: PositiveInt | None = None
    """Threads that read, augment and write images; None: one for each CPU core that the process may use, at most 16."""
    prefetch_batches: PositiveInt = 4
    """Batches that training reads ahead, or as many as there are threads, if these are more."""
    cache_gib: NonNegative = 2.0
    """Training keeps decoded images of the network's size in memory, up to so many GiB; 0: none."""


class OperationConfig(Section):
    """One augmentation, applied to a sample with a probability."""

    name: str
    probability: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    args: dict[str, Any] = {}


class AugmentConfig(Section):
    """Augmentation of the training part, in order."""

    operations: tuple[OperationConfig, ...] = ()


class PlateauConfig(Section):
    """Learning-rate reduction when `val_loss` stops improving, as Keras' ReduceLROnPlateau."""

    factor: Probability = 0.3
    patience: PositiveInt = 4
    min_delta: Annotated[float, Field(ge=0.0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0


class CosineConfig(Section):
    """Cosine decay of the learning rate, from `learning_rate` to `final_factor` times it."""

    final_factor: Fraction = 0.01


class TrainConfig(Section):
    """Training of the network."""

    epochs: PositiveInt
    batch_size: PositiveInt
    """Images per optimizer update on all devices of all hosts together."""
    grad_accum_steps: PositiveInt = 1
    """Micro-batches per update, computed one after the other to save memory; each has `batch_size` divided by this."""
    steps_per_epoch: PositiveInt | None = None
    """Updates per epoch, after which the validation images are scored; None: one pass over the training images."""
    learning_rate: Annotated[float, Field(gt=0.0)]
    clip_value: Annotated[float, Field(gt=0.0)] | None = None
    """Each gradient element is clipped to [-clip_value, clip_value]."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay (AdamW): each update subtracts `learning_rate * weight_decay` times every kernel."""
    l2_penalty: NonNegative = 0.0
    """Weight of the sum of squares of all kernels in the loss."""
    lr_multipliers: dict[str, NonNegative] = {}
    """Factors of the learning rate by prefix of layer names, such as `encoder_`; 0 freezes the layers."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of a moving average of the weights, which validation, previews and best weights then use; None: none."""
    init_from: Path | None = None
    """A run, in a folder or a bucket, whose best weights are the initial ones; ignored when a training resumes."""
    batch_norm_warmup: bool = True
    """Let BatchNorm's running statistics adapt faster in the first thousand steps than with a momentum of 0.99."""
    loss: str = "bce_soft_dice"
    loss_args: dict[str, Any] = {}
    head_weights: dict[Head, NonNegative] = {}
    """Weights of the losses of heads other than the mask; 1 by default."""
    touching_weight: NonNegative = 0.0
    """Weight of the mask's cross-entropy over the pixels between touching nuclei."""
    deep_supervision_weight: NonNegative = 1.0
    """Weight of the loss of each side output, for networks with deep supervision."""
    metrics: tuple[str, ...] = ("dice_coef", "dice_mean")
    """Columns of metrics.csv: `dice_coef` or any `<pixel score>_mean|_pooled`."""
    plateau: PlateauConfig | None = PlateauConfig()
    cosine: CosineConfig | None = None
    """Use it instead of `plateau`."""
    warmup_steps: Count = 0
    """Number of updates over which the learning rate grows linearly."""
    early_stop_patience: PositiveInt | None = 10
    """Number of epochs without a lower `val_loss` after which training stops; None: never."""
    seed: Count = 0
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every_epochs: PositiveInt | None = None
    """Also keep the checkpoint at the end of every N-th epoch; None: none."""
    save_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    """Longest time between two checkpoints; within an epoch one is saved when it has passed."""
    log_steps: PositiveInt = 50
    """Steps between two `steps` events in `log.jsonl`, with loss, norms and rates."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that get the values of `log.jsonl`; each needs the extra of its name."""


class EvalConfig(Section):
    """How `eval` scores. Masks and nuclei are made as `infer` says."""

    batch_size: PositiveInt = 4
    num_example_images: Count = 4
    """Images on each of the sheets of the worst, median and best ones."""


class PostprocessingConfig(Section):
    """Parameters of the watershed that divides the mask into nuclei."""

    boundary_threshold: Probability = 0.5
    """Boundary probability from which a pixel separates nuclei; used where the heads are mask and boundary alone."""
    min_saddle_depth: Fraction = 0.15
    """Two basins stay separate nuclei if the saddle between them lies at least this far below the lower peak, as a
    share of that peak's elevation."""
    smoothing_px: NonNegative = 1.0
    """Standard deviation of the Gaussian blur of the elevation, in pixels; 0: none."""
    min_area_px: Count = 30
    """Smaller nuclei are dropped."""
    max_hole_px: Count = 500
    """Holes up to this area are filled."""


class TiledConfig(Section):
    """Inference in tiles of the network's size, at constant scale."""

    overlap_px: Count | None = None
    """Overlap of neighboring tiles, over which they are blended; None: a quarter of the network's smaller side."""
    blend_whole: bool = False
    """Take the smaller of two mask probabilities: that of the tiles, and that of the whole image, resized."""


ThresholdRule = Literal["fixed", "otsu", "triangle"]

DEFAULT_THRESHOLD = 0.5
"""Used where `infer.threshold` is not set and none was tuned, and during training."""


class InferConfig(Section):
    """How images are predicted, and how probabilities become masks and nuclei: in `infer`, `eval`, tuning, previews."""

    batch_size: PositiveInt = 4
    threshold: Probability | None = None
    """Mask probability from which a pixel belongs to a nucleus. None: the value tuned on the validation images and
    stored with the weights, or 0.5 where there is none."""
    threshold_rule: ThresholdRule = "fixed"
    """Use `threshold`, or choose one for each image from the histogram of its probabilities."""
    num_infer_images: Count = 6
    """Validation images whose masks are written after every epoch."""
    tiled: TiledConfig | None = None
    """None: the whole image is resized to the network's size."""
    test_time_augmentation: bool = False
    """Average over flipped and transposed copies of each image."""
    colors: tuple[str, str] = ("black", "white")
    """Background and nuclei in the masks of `--output color`; names or `#rrggbb`."""
    postprocessing: PostprocessingConfig | None = None
    """None: as tuned on the validation images at the end of the training, or the defaults."""


class MeshConfig(Section):
    """Devices along each axis of the mesh: over the images of a batch, the weights, and the rows of an image."""

    data: PositiveInt = 1
    fsdp: PositiveInt = 1
    """Devices that weights and optimizer state are sharded over; the batch is sharded over them too."""
    spatial: PositiveInt = 1


class RuntimeConfig(Section):
    """Devices, precision and memory."""

    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig | None = None
    """Mesh of the training. None: as many devices along `data` as divide the batch, the rest along `spatial`."""
    require: Literal["any", "cpu", "gpu", "tpu"] = "any"
    remat: bool = False
    """Keep only the outputs of convolutions and matmuls for the gradient and rematerialize the rest, to save memory."""
    profile_steps: Count = 0
    """Number of steps to profile with JAX's profiler into RUN/profile, from the sixth step on; 0: none."""


class Config(Section):
    """One complete recipe."""

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    infer: InferConfig = InferConfig()
    runtime: RuntimeConfig = RuntimeConfig()
