"""Config sections: frozen pydantic models with the defaults of every key outside of component `args`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cervseg_jax.choices import BitDepth, MaskRule, OnBadFile
from cervseg_jax.heads import Head
from cervseg_jax.storage.address import as_path

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0, lt=2**32)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**32)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base class of all sections: immutable, strict types, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Scale(Section):
    """Scale of a network's input."""

    nucleus_px: PositiveFloat
    """Median diameter of nuclei, in pixels."""
    mpp: PositiveFloat | None = None
    """Micrometers per pixel; None: unknown."""


class ModelConfig(Section):
    """Network architecture, input size and heads."""

    name: str
    image_size: tuple[PositiveInt, PositiveInt]
    """Height and width of the network's input, in pixels."""
    args: dict[str, Any] = {}
    """Arguments of the model's builder; `cervseg-jax models NAME` lists them."""
    heads: tuple[Head, ...] = ("mask",)
    """Predicted maps: "mask", then any of "boundary", "distance", "hover", "rays" (last), from instance labels."""


class SyntheticConfig(Section):
    """Synthetic dataset, generated on first use under `data.root`."""

    train: PositiveInt
    valid: PositiveInt
    test: PositiveInt
    size: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = (512, 512)
    """Height and width of the images, in pixels."""
    seed: Count = 0


class SplitConfig(Section):
    """Random split of a folder with only `images` and `masks`; groups of images are never divided."""

    valid: Fraction = 0.2
    test: Fraction = 0.2
    seed: Count = 0
    group_pattern: str | None = None
    """Regular expression searched in the file stem; its first group names the source. None: one group per stem."""


class DataConfig(Section):
    """Dataset location and image reading."""

    root: Annotated[Path, AfterValidator(as_path)]
    """Folder or bucket address with `{train,valid,test}/{images,masks}`, or with `images` and `masks` for `split`."""
    synthetic: SyntheticConfig | None = None
    split: SplitConfig | None = None
    origin: str | None = None
    """Where to download the data; shown when `data.root` is missing."""
    mask_rule: MaskRule = "half_range"
    bit_depth: BitDepth = "auto"
    """Bits used in 16-bit files: 12 scales 0..4095 to 0..255; "auto": the fewest that fit all images of a training."""
    on_bad_file: OnBadFile = "fail"
    threads: PositiveInt | None = None
    """Threads that read, augment and write images, and find nuclei of slides; None: one per core, at most 16."""
    prefetch_batches: PositiveInt = 4
    """Batches that training prefetches; at least the number of threads."""
    nucleus_px: PositiveFloat | Literal["auto"] | None = None
    """Median diameter of nuclei at the network's input, in pixels; images are scaled by their annotations and seen in
    windows. "auto": that of `train.init_from`, or else 20. None: whole images are resized."""
    mpp: PositiveFloat | None = None
    """Micrometers per pixel of the image files; with `data.nucleus_px`, inference finds the scale by it and `--mpp`."""
    train_on_valid: bool = False
    """Train on the validation images too; the last weights are kept, as no images are left to select an epoch by."""
    cache_gib: NonNegative = 2.0
    """Memory in GiB for caching decoded images at the network's size during training; 0: no cache."""


class OperationConfig(Section):
    """An augmentation, applied to each sample with `probability`."""

    name: str
    probability: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    args: dict[str, Any] = {}


class WindowConfig(Section):
    """Random windows of scaled images, with `data.nucleus_px`; one window per image and pass."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.4)
    """Smallest and largest further magnification, log-uniform."""
    max_degrees: NonNegative = 180.0
    """Rotations are uniform in [-max_degrees, max_degrees]."""
    nucleus_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of windows that are centered near a random pixel of a nucleus; the others lie anywhere."""


class AugmentConfig(Section):
    """Augmentations of the training split, in order of application."""

    window: WindowConfig = WindowConfig()
    operations: tuple[OperationConfig, ...] = ()


class PlateauConfig(Section):
    """Learning-rate reduction when `val_loss` stops improving, as in `keras.callbacks.ReduceLROnPlateau`."""

    factor: Probability = 0.3
    patience: PositiveInt = 4
    min_delta: Annotated[float, Field(ge=0.0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0


class CosineConfig(Section):
    """Cosine decay of the learning rate, from `learning_rate` to `final_factor` times it."""

    final_factor: Fraction = 0.01


class TrainConfig(Section):
    """Optimization, checkpoints and logging of a training."""

    epochs: PositiveInt
    batch_size: PositiveInt
    """Global batch size: images per optimizer update across all devices of all hosts."""
    grad_accum_steps: PositiveInt = 1
    """Micro-batches per update, computed sequentially to save memory; each has `batch_size` divided by this."""
    steps_per_epoch: PositiveInt | None = None
    """Updates per epoch; validation follows each epoch. None: one pass over the training images."""
    learning_rate: Annotated[float, Field(gt=0.0)]
    clip_value: Annotated[float, Field(gt=0.0)] | None = None
    """Each gradient element is clipped to [-clip_value, clip_value]."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay (AdamW): each update subtracts `learning_rate * weight_decay` times every kernel."""
    l2_penalty: NonNegative = 0.0
    """Weight of the L2 penalty in the loss: the sum of squares of all kernels."""
    lr_multipliers: dict[str, NonNegative] = {}
    """Learning-rate multipliers by layer name prefix, such as `encoder_`; 0 freezes the layers."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of a moving average of the weights that validation, previews and best weights use; None: off."""
    init_from: Path | None = None
    """A run (folder or bucket URL) whose best weights initialize the network; resuming needs it for `init_share`."""
    init_share: Fraction = 0.0
    """Share of the initial weights in those that are validated and stored, see `engine.state.mix_weights`."""
    batch_norm_warmup: bool = True
    """Let the running statistics of BatchNorm adapt faster than a momentum of 0.99 does in the first thousand steps."""
    loss: str = "bce_soft_dice"
    loss_args: dict[str, Any] = {}
    head_weights: dict[Head, NonNegative] = {}
    """Loss weight per head other than the mask; 1 by default."""
    touching_weight: NonNegative = 0.0
    """Weight of an additional cross-entropy of the mask over the pixels between touching nuclei."""
    deep_supervision_weight: NonNegative = 1.0
    """Loss weight of each side output, for networks with deep supervision."""
    metrics: tuple[str, ...] = ("dice_coef", "dice_mean")
    """Columns of metrics.csv: `dice_coef` or any `<pixel score>_mean|_pooled`."""
    plateau: PlateauConfig | None = PlateauConfig()
    cosine: CosineConfig | None = None
    """Cosine decay; replaces `plateau`."""
    warmup_steps: Count = 0
    """Updates of linear learning-rate warmup."""
    selection_epochs: PositiveInt = 1
    """Last epochs whose mean `val_loss` selects the best epoch and stops the training; several for few images."""
    early_stop_patience: PositiveInt | None = 10
    """Number of epochs without a lower `val_loss` after which training stops; None: never."""
    seed: Count = 0
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every_epochs: PositiveInt | None = None
    """Also keep the checkpoint at the end of every N-th epoch; None: none."""
    save_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    """Maximum minutes between checkpoints; one is also saved within an epoch when they have elapsed."""
    log_steps: PositiveInt = 50
    """Steps between `steps` events in `log.jsonl`, which record the loss, norms and rates."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that receive the values of `log.jsonl`; each needs the extra of the same name."""


class EvalConfig(Section):
    """Evaluation. Masks and nuclei are computed with the settings of `infer`."""

    batch_size: PositiveInt = 4
    num_example_images: Count = 4
    """Images per example sheet; there is one sheet each for the worst, median and best images."""


class PostprocessingConfig(Section):
    """Parameters of the watershed that splits the mask into nuclei.

    Pixels are those of the image; for weights of one scale (`data.nucleus_px`) those of the network's input.
    """

    boundary_threshold: Probability = 0.5
    """Boundary probability from which a pixel separates nuclei; used only if the heads are mask and boundary."""
    min_saddle_depth: Fraction = 0.15
    """Two basins stay apart if their saddle lies at least this share of the lower peak's elevation below that peak."""
    smoothing_px: NonNegative = 1.0
    """Standard deviation of the Gaussian blur of the elevation, in pixels; 0: none."""
    min_area_px: Count = 30
    """Minimum area of a nucleus, in pixels; smaller ones are removed."""
    max_hole_px: Count = 500
    """Maximum area of holes that are filled, in pixels."""
    min_score: Probability = 0.4
    """Centrality from which a pixel proposes a whole outline, with the head rays."""
    max_iou: Fraction = 0.3
    """Whole outlines whose intersection over union is larger are one nucleus."""


class TiledConfig(Section):
    """Inference in tiles of the network's size, at constant scale."""

    overlap_px: Count | None = None
    """Overlap of neighboring tiles, blended, in pixels; None: a quarter of the network's smaller side."""
    blend_whole: bool = False
    """Use the pixelwise minimum of the mask probabilities from the tiles and from the resized whole image."""


ThresholdRule = Literal["fixed", "otsu", "triangle"]

DEFAULT_THRESHOLD = 0.5
"""Mask threshold during training, and wherever `infer.threshold` is unset and none was tuned."""


class InferConfig(Section):
    """Prediction and postprocessing, as used by `infer`, `eval`, tuning and previews."""

    batch_size: PositiveInt = 4
    threshold: Probability | None = None
    """Mask probability from which a pixel belongs to a nucleus; None: that tuned on validation images, or else 0.5."""
    nucleus_px: PositiveFloat | Literal["auto"] = "auto"
    """Median diameter of nuclei in pixels, for weights of one scale; "auto": by the pixel size, or else estimated."""
    threshold_rule: ThresholdRule = "fixed"
    """Use `threshold` ("fixed"), or compute one per image from the histogram of its probabilities."""
    num_infer_images: Count = 6
    """Number of validation images whose predicted masks are written after every epoch."""
    tiled: TiledConfig | None = None
    """Tiled inference; None: the whole image is resized to the network's size."""
    test_time_augmentation: bool = False
    """Average predictions over flipped and transposed copies of each image."""
    colors: tuple[str, str] = ("black", "white")
    """Colors of background and nuclei in the masks of `--output color`; names or `#rrggbb`."""
    min_probability: Probability | None = None
    """Leave out nuclei of a lower probability, see `segmentation.confidence`."""
    precision: Probability | None = None
    """Leave out unsure nuclei until this share of the rest was right on the validation images."""
    recall: Probability | None = None
    """Leave out unsure nuclei while this share of the true ones was found on the validation images."""
    postprocessing: PostprocessingConfig | None = None
    """Watershed parameters; None: those tuned on the validation images after training, or else the defaults."""


class MeshConfig(Section):
    """Devices along each mesh axis, which shard the images of a batch, the weights, and the rows of an image."""

    data: PositiveInt = 1
    fsdp: PositiveInt = 1
    """Devices over which weights and optimizer state are sharded; the batch is sharded over them as well."""
    spatial: PositiveInt = 1


class RuntimeConfig(Section):
    """Devices, precision and memory."""

    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig | None = None
    """Device mesh for training. None: as many devices along `data` as divide the batch, the rest along `spatial`."""
    require: Literal["any", "cpu", "gpu", "tpu"] = "any"
    remat: bool = False
    """Store only convolution and matmul outputs for the backward pass and rematerialize the rest, to save memory."""
    profile_steps: Count = 0
    """Steps recorded by the JAX profiler into RUN/profile, starting with the sixth step; 0: off."""


class Config(Section):
    """A complete recipe."""

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    infer: InferConfig = InferConfig()
    runtime: RuntimeConfig = RuntimeConfig()
