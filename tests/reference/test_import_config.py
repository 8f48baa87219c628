"""Configs as the reference's users have them, with every way of writing that occurs."""

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from cervseg_jax.config import load_config
from cervseg_jax.errors import ConfigError
from cervseg_jax.losses import LOSSES
from cervseg_jax.models import build_model, functionalize
from cervseg_jax.reference.config import import_config
from cervseg_jax.reference.families import FAMILIES
from cervseg_jax.reference.ini import read_ini

CLUSTERED = """
; the published experiment
[model]
model          = "TensorflowUNet"
generator      = False
image_width    = 512
image_height   = 512
image_channels = 3
input_normalize = False
normalization  = False
num_classes    = 1
base_filters   = 16
base_kernels   = (9,9)
num_layers     = 8
dropout_rate   = 0.05
learning_rate  = 0.00007
clipvalue      = 0.5
dilation       = (3,3)
loss           = "bce_dice_loss"
metrics        = ["dice_coef"]
show_summary   = False
[dataset]
datasetclass   = "BaseImageMaskDataset"
[train]
epochs         = 100
batch_size     = 2
patience       = 10
metrics        = ["dice_coef", "val_dice_coef"]
model_dir      = "./models"
eval_dir       = "./eval"
image_datapath = "../../../dataset/Clustered-Cervical-Cell/train/images/"
mask_datapath  = "../../../dataset/Clustered-Cervical-Cell/train/masks/"
learning_rate_reducer = True
reducer_factor = 0.3
reducer_patience = 4
epoch_change_infer = True
num_infer_images = 6
[eval]
image_datapath = "../../../dataset/Clustered-Cervical-Cell/valid/images/"
mask_datapath  = "../../../dataset/Clustered-Cervical-Cell/valid/masks/"
[test]
image_datapath = "../../../dataset/Clustered-Cervical-Cell/test/images/"
mask_datapath  = "../../../dataset/Clustered-Cervical-Cell/test/masks/"
[augmentor]
angles = [90. 180, 270,]
[mask]
binarize = False
threshold = 60
"""

SMALL = "[model]\nimage_width = 64\nimage_height = 64\nbase_filters = 4\nnum_layers = 3\ndropout_rate = 0.05\n"


def write(tmp_path, text, name="a.config"):
    path = tmp_path / name
    path.write_text(text)
    return path


def converted(tmp_path, text):
    recipe, notes = import_config(write(tmp_path, text))
    target = tmp_path / "a.yaml"
    target.write_text(recipe)
    return load_config(target), {note.key: note for note in notes}


def test_the_published_experiment(tmp_path):
    folder = tmp_path / "projects" / "unet" / "clustered"
    folder.mkdir(parents=True)
    config, notes = converted(folder, CLUSTERED)
    shipped = load_config("configs/clustered.yaml")
    assert config.model == shipped.model
    same = ("epochs", "batch_size", "learning_rate", "clip_value", "loss", "metrics", "early_stop_patience", "seed")
    for key in same:
        assert getattr(config.train, key) == getattr(shipped.train, key), key
    assert (config.train.plateau.factor, config.train.plateau.patience) == (0.3, 4)
    assert config.train.steps_per_epoch is None
    assert config.data.root == tmp_path.resolve() / "dataset" / "Clustered-Cervical-Cell"
    assert config.data.mask_rule == "any_nonzero"
    assert config.infer.num_infer_images == 6
    assert notes["model.clipvalue"].status == "renamed"
    assert notes["model.learning_rate"].status == "kept"
    assert notes["train.model_dir"].status == "ignored"
    assert set(notes) == set(read_ini(folder / "a.config"))  # no key without an account


def test_tiled_inference_and_colors(tmp_path):
    tiled = (
        "[tiledinfer]\noverlapping = 64\nsplit_size = 1024\nbitwise_blending = False\nbinarize = True\n"
        "threshold = 102\n"
        'algorithm = "cv2.THRESH_OTSU"\n[segmentation]\ncolorize = True\nblack = "black"\nwhite = "green"\n'
    )
    config, notes = converted(tmp_path, CLUSTERED + tiled)
    assert config.infer.tiled.overlap_px == 128
    assert not config.infer.tiled.blend_whole
    assert config.infer.threshold == pytest.approx(0.4)
    assert config.infer.threshold_rule == "otsu"
    assert config.infer.colors == ("black", "green")
    assert "network's size" in notes["tiledinfer.split_size"].message
    assert "--output color" in notes["segmentation.colorize"].message


VARIANTS = {
    "misspelt dilation": ('model = "TensorflowSharpUNet"\nfilters = [4,8]\ndiation = (2,2)\n', ("dilation", 2)),
    "dotted activation": ('model = "TensorflowUNet"\nself.activation = "mish"\n', ("activation", "mish")),
    "colons": ('model: "TensorflowUNet"\nbase_kernels: (5,5)\n', ("kernel_size", 5)),
    "inline comment": ('model = "TensorflowUNet" ; mine\ndilation = (2,2) # wide\n', ("dilation", 2)),
    "twice": ('model = "TensorflowUNet"\nbase_kernels = (3,3)\nbase_kernels = (7,7)\n', ("kernel_size", 7)),
    "capitals": ('MODEL = "TensorflowUNet"\nNormalization = True\n', ("batch_norm", True)),
    "scaled input": ('model = "TensorflowUNet"\n', ("input_range", "unit")),
    "attention": ('model = "TensorflowAttentionUNet"\n', ("dropout_rate", 0.05)),
    "multires": ('model = "TensorflowMultiResUNet"\n', ("levels", 3)),
    "unet 3+": ('model = "TensorflowUNet3Plus"\n', ("fused_width", 3)),
    "u2": ('model = "TensorflowU2Net"\n', ("deep_supervision", False)),
    "xception": ('model = "TensorflowXceptionLikeUNet"\n', ("levels", 3)),
    "swin": (
        'model = "TensorflowSwinUNet"\nfilter_num_begin = 8\ndepth = 2\nnum_heads = [2,4]\nwindow_size = [4,2]\n'
        "num_mlp = 16\nshift_window = True\n",
        ("num_heads", (2, 4)),
    ),
    "transformer": (
        'model = "TensorflowTransUNet"\nfilter_num = [4,8,16]\nembed_dim = 16\nnum_mlp = 32\nnum_heads = 2\n'
        "num_transformer = 1\nactivation = None\n",
        ("embed_width", 16),
    ),
}


FAMILY_VARIANTS = ("attention", "multires", "unet 3+", "u2", "xception", "swin", "transformer")
"""Compile for long; `test_import_weights` takes the same families through both importers in the quick run."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in FAMILY_VARIANTS else name for name in VARIANTS],
)
def test_ways_of_writing_load_and_train_one_step(tmp_path, name, rng):
    import jax

    lines, (key, value) = VARIANTS[name]
    config, _ = converted(tmp_path, SMALL + lines)
    assert config.model.args[key] == value
    apply, params, model_state = functionalize(
        build_model(config.model.name, image_size=config.model.image_size, args=config.model.args)
    )
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    masks, loss = jnp.asarray(rng.random((2, 64, 64, 1)) < 0.3, jnp.float32), LOSSES[config.train.loss]

    def objective(params):
        return loss(apply(params, model_state, images, key=jax.random.key(0))[0][0], masks, jnp.ones(2))

    value, gradients = jax.jit(jax.value_and_grad(objective))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_lists_without_commas_are_repaired(tmp_path):
    text = (
        SMALL
        + 'model = "TensorflowUNet"\n[augmentor]\nangles = [90. 180, 270,]\n[deformation]\nsigmoids = [8.0 10.0]\n'
    )
    entries = read_ini(write(tmp_path, text))
    assert entries["augmentor.angles"].value == [90.0, 180, 270]
    assert entries["deformation.sigmoids"].value == [8.0, 10.0]
    assert "missing commas inserted" in entries["deformation.sigmoids"].repairs[0]


def test_old_sections_and_keys_get_their_names(tmp_path):
    entries = read_ini(write(tmp_path, SMALL + "[transformer]\nalpah = 1300\n[train]\ncreate_backups = True\n"))
    assert entries["deformation.alpha"].value == 1300
    assert entries["train.create_backup"].value is True
    assert "misspelled as train.create_backups" in entries["train.create_backup"].repairs


def test_online_augmentation(tmp_path):
    text = SMALL.replace("[model]", '[model]\nmodel = "TensorflowUNet"\ngenerator = True')
    text += "[train]\nsteps_per_epoch = 80\n[augmentor]\nvflip = False\nshears = [0.1]\ndeformation = True\n"
    config, _ = converted(tmp_path, text + "barrdistortion = True\n[barrdistortion]\nradius = 0.3\namount = 0.3\n")
    names = [operation.name for operation in config.augment.operations]
    assert names == ["flip", "rotate90", "affine", "elastic", "bulge"]
    assert config.augment.operations[2].args["max_shear"] == 0.1
    assert config.train.steps_per_epoch == 80


def test_optimizers_and_metrics(tmp_path):
    text = SMALL + 'model = "TensorflowUNet3Plus"\noptimizer = "AdamW"\nloss = "basnet_hybrid_loss"\n'
    config, notes = converted(tmp_path, text + 'metrics = ["dice_coef", "sensitivity", "specificity", "made_up"]\n')
    assert (config.train.weight_decay, config.train.l2_penalty, config.train.loss) == (0.004, 1e-4, "basnet_hybrid")
    assert config.train.metrics == ("dice_coef", "recall_pooled", "specificity_pooled", "dice_mean")
    assert "made_up" in notes["model.metrics"].message


def test_nothing_is_executed(tmp_path):
    trap = tmp_path / "trap"
    text = SMALL + f'model = "TensorflowUNet"\nactivation = open({str(trap)!r}, "w")\nloss = "bce_dice_loss"\n'
    with pytest.raises(ConfigError, match="activation"):
        converted(tmp_path, text)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no keys"),
        ("[model]\nnonsense\n", "line 2 is neither"),
        ("key = 1\n", "line 1 is neither"),
        (SMALL + 'model = "TensorflowUnet"\n', "did you mean 'TensorflowUNet'"),
        (SMALL + 'model = "TensorflowUNet"\nloss = "my_loss"\n', "model.loss: unknown 'my_loss'"),
        (SMALL + 'model = "TensorflowUNet"\n[train]\nimage_datapath = "a\0b"\n', "its data paths hold a zero byte"),
        ('[model]\nmodel = "TensorflowUNet"\n', "image_height and model.image_width are required"),
    ],
)
def test_what_cannot_be_converted(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        import_config(write(tmp_path, text))


def test_a_missing_file_and_another_encoding(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        import_config(tmp_path / "none.config")
    path = tmp_path / "latin.config"
    path.write_bytes((SMALL + 'model = "TensorflowUNet" ; größer\n').encode("latin-1"))
    assert yaml.safe_load(import_config(path)[0])["model"]["name"] == "unet"


def test_all_families_are_known():
    assert len(FAMILIES) == 13
