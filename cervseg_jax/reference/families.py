"""Mapping from model classes of the reference to network names and builder arguments."""

from collections.abc import Callable, Mapping
from typing import Any

from cervseg_jax.reference.reader import Reader


def _second(value: Any) -> int:
    """Returns the last element of a pair such as base_kernels, or the value itself."""
    return int(value[-1] if isinstance(value, list | tuple) else value)


def _widths(reader: Reader, key: str, default: list[int], *, to: str) -> list[int]:
    return [int(value) for value in reader.get(f"model.{key}", default, to=to, kind=(list, tuple))]


def _base(reader: Reader) -> dict[str, Any]:
    return {
        "base_filters": int(reader.get("model.base_filters", 16, to="model.args.base_filters")),
        "levels": int(reader.get("model.num_layers", 5, to="model.args.levels")),
    }


def _dropout(reader: Reader, default: float) -> float:
    return float(reader.get("model.dropout_rate", default, to="model.args.dropout_rate"))


def _unet(reader: Reader) -> dict[str, Any]:
    pair = (int, list, tuple)
    return _base(reader) | {
        "kernel_size": _second(reader.get("model.base_kernels", (3, 3), to="model.args.kernel_size", kind=pair)),
        "dilation": _second(reader.get("model.dilation", (1, 1), to="model.args.dilation", kind=pair)),
        "dropout_rate": _dropout(reader, 0.0),
        "activation": str(reader.get("model.activation", "relu", to="model.args.activation", kind=str)).lower(),
        "batch_norm": bool(reader.get("model.normalization", False, to="model.args.batch_norm", kind=bool)),
        "input_range": "unit"
        if reader.get("model.input_normalize", True, to="model.args.input_range", kind=bool)
        else "raw",
    }


_REFERENCE = {"variant": "reference"}
_RAW = {"input_range": "raw"}


def _swin(reader: Reader) -> dict[str, Any]:
    heads = _widths(reader, "num_heads", [4, 8, 8, 8], to="model.args.num_heads")
    depth = int(reader.get("model.depth", 4, to="model.args.num_heads"))
    return {
        "embed_width": int(reader.get("model.filter_num_begin", 128, to="model.args.embed_width")),
        "num_heads": heads[:depth],
        "window": _widths(reader, "window_size", [4, 2, 2, 2], to="model.args.window")[:depth],
        "patch_size": _second(
            reader.get("model.patch_size", (4, 4), to="model.args.patch_size", kind=(int, list, tuple))
        ),
        "blocks_down": int(reader.get("model.stack_num_down", 2, to="model.args.blocks_down")),
        "blocks_up": int(reader.get("model.stack_num_up", 2, to="model.args.blocks_up")),
        "mlp_width": int(reader.get("model.num_mlp", 512, to="model.args.mlp_width")),
        "is_shifted": bool(reader.get("model.shift_window", False, to="model.args.is_shifted", kind=bool)),
        "is_masked": False,
        **_REFERENCE,
        **_RAW,
    }


def _trans(reader: Reader) -> dict[str, Any]:
    return {
        "filters": _widths(reader, "filter_num", [64, 128, 256, 512], to="model.args.filters"),
        "embed_width": int(reader.get("model.embed_dim", 768, to="model.args.embed_width")),
        "mlp_width": int(reader.get("model.num_mlp", 3072, to="model.args.mlp_width")),
        "num_heads": int(reader.get("model.num_heads", 12, to="model.args.num_heads")),
        "num_blocks": int(reader.get("model.num_transformer", 12, to="model.args.num_blocks")),
        **_REFERENCE,
        **_RAW,
    }


def _sharp(reader: Reader) -> dict[str, Any]:
    pair = (int, list, tuple)
    return {
        "filters": _widths(reader, "filters", [32, 64, 128, 256], to="model.args.filters"),
        "bottom_filters": int(reader.get("model.max_filter", 512, to="model.args.bottom_filters")),
        "kernel_size": _second(reader.get("model.base_ksize", (3, 3), to="model.args.kernel_size", kind=pair)),
        "dilation": _second(reader.get("model.dilation", (1, 1), to="model.args.dilation", kind=pair)),
        **_REFERENCE,
        **_RAW,
    }


def _unet3plus(reader: Reader) -> dict[str, Any]:
    base = _base(reader)
    return {
        "base_filters": base["base_filters"],
        "fused_width": base["levels"],
        "dropout_rate": _dropout(reader, 0.0),
        "deep_supervision": False,
        **_REFERENCE,
        **_RAW,
    }


def _efficient(reader: Reader) -> dict[str, Any]:
    size = str(reader.get("model.efficientnet", "B0", to="model.args.encoder", kind=str)).lower()
    return {"encoder": f"efficientnet_{size}", **_REFERENCE}


FAMILIES: Mapping[str, tuple[str, Callable[[Reader], dict[str, Any]]]] = {
    "TensorflowAttentionUNet": (
        "attention_unet",
        lambda reader: _base(reader) | {"dropout_rate": _dropout(reader, 0.1)} | _REFERENCE | _RAW,
    ),
    "TensorflowBASNet": ("basnet", lambda _: _REFERENCE | _RAW),
    "TensorflowDeepLabV3Plus": ("deeplab_v3plus", lambda _: dict(_REFERENCE)),
    "TensorflowEfficientNetB7UNet": ("efficientnet_b7_unet", lambda _: dict(_REFERENCE)),
    "TensorflowEfficientUNet": ("efficient_unet", _efficient),
    "TensorflowMultiResUNet": ("multires_unet", lambda reader: _base(reader) | _REFERENCE),
    "TensorflowSharpUNet": ("sharp_unet", _sharp),
    "TensorflowSwinUNet": ("swin_unet", _swin),
    "TensorflowTransUNet": ("trans_unet", _trans),
    "TensorflowU2Net": (
        "u2net",
        lambda reader: _base(reader) | {"deep_supervision": False} | _REFERENCE | _RAW,
    ),
    "TensorflowUNet": ("unet", _unet),
    "TensorflowUNet3Plus": ("unet3plus", _unet3plus),
    "TensorflowXceptionLikeUNet": ("xception_like_unet", lambda reader: _base(reader) | _RAW),
}
"""By class name in the reference: the network name here, and a function that reads its `model.args`."""
