"""From soft masks to the answer."""

from __future__ import annotations

import numpy as np

AGGREGATES = ("vote", "mean")


def aggregate(masks: list[np.ndarray], how: str) -> np.ndarray:
    """One mask from the K that K supports lead to, float32 (H, W) in [0, 1].

    ``"vote"`` is the paper's (supplement equation 2): the sum of the masks binarised at 0.5,
    divided by max(1, its maximum). ``"mean"`` averages the soft masks. A single mask stays as it is.
    """
    if len(masks) == 1:
        return masks[0]
    if how == "vote":
        votes = (np.stack(masks) >= 0.5).sum(0, dtype=np.float32)
        return votes / max(1.0, float(votes.max()))
    return np.stack(masks).mean(0, dtype=np.float32)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 1 where both are empty."""
    union = int(np.count_nonzero(a | b))
    return 1.0 if union == 0 else int(np.count_nonzero(a & b)) / union
