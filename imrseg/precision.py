"""The numbers that networks compute in: which a device takes, and where bfloat16 is worth it."""

from __future__ import annotations

import torch

from imrseg.errors import InputError

PRECISIONS = ("float32", "bfloat16", "float16")


def check_precision(name: str, device: torch.device) -> torch.dtype:
    """The torch type for a user's word.

    Raises:
        InputError: there is none of that name, or not on this device.
    """
    accepted = PRECISIONS if device.type == "cuda" else PRECISIONS[:2]
    if name not in accepted:
        raise InputError(f"There is no precision “{name}” on {device}. Accepted: {', '.join(accepted)}.")
    return getattr(torch, name)


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` is a processor for whose bfloat16 PyTorch has no fast convolutions.

    What it falls back to takes eight times as long as float32, in training and in inference, on one that ends at AVX2.
    """
    if device.type != "cpu":
        return False
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
