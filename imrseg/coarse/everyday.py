"""Class vectors for everyday classes that ImageNet lacks, learned from image-level labels.

ImageNet has scuba divers and bridegrooms but no person, parks and barns but no sky or road. What an
image-level label says of a picture as a whole is not enough to learn where such a class is: there is
grass where there are cows. So the positions of a picture's last feature map share its labels among
themselves, by expectation-maximisation (EM-Adapt, Papandreou et al., ICCV 2015): a softmax says which of
the classes each position shows, the picture's labels say which it may show, and what remains
teaches the next round. Classes that are no use later, cows and dogs, explain their positions away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS, ALONE = 300, 75  # of Adam; how many of them before positions begin to teach
BATCH = 128  # pictures
RATE = 2e-3
COVERED = 15  # positions that a class covers at the least where it is present
NOTHING = 0.5  # price of a position that shows none of the classes
DECAY = 1e-3
NEVER = -100.0  # bias of a class that no picture shows


def learn(
    maps: np.ndarray, present: Tensor, groups: Sequence[Sequence[int]], everyday: Sequence[int], seed: int
) -> Tensor:
    """Where classes are, learned from which pictures show them.

    Args:
        maps: last feature maps of the pictures (N, C, h, w).
        present: (N, L), 1 where a picture shows a class, 0 where not, NaN where nobody said, which leaves
            the class out of that picture's softmax.
        groups: positions of the pictures of each data set; all are drawn from alike.
        everyday: the classes that are wanted.
        seed: of the draws.

    Returns:
        Directions (E, C): what a feature has to have to be told from all other classes. Zero for a class
        that no picture shows.
    """
    classes, generator = present.shape[1], torch.Generator().manual_seed(seed)
    weight = torch.zeros(classes + 1, maps.shape[1], requires_grad=True)  # the last is none of the classes
    bias = torch.zeros(classes + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], RATE)
    rows = [torch.tensor(group) for group in groups]
    covered = min(COVERED, maps.shape[2] * maps.shape[3])
    for i in range(ITERATIONS):
        parts = [torch.randint(len(r), (min(len(r), BATCH // len(rows)),), generator=generator) for r in rows]
        drawn = torch.cat([r[part] for r, part in zip(rows, parts, strict=True)])
        x = torch.from_numpy(maps[drawn.numpy()].astype(np.float32)).flatten(2).transpose(1, 2)
        said = F.pad(present[drawn], (0, 1), value=1.0).unsqueeze(1)
        found = (x @ weight.T + bias).masked_fill(said.isnan(), -torch.inf).log_softmax(-1)  # (B, h * w, L + 1)
        allowed = found.masked_fill(said != 1, -torch.inf)
        share = found.exp()
        most = share[..., :-1].topk(covered, 1).values.mean(1)[said[:, 0, :-1] == 1]
        loss = -allowed.logsumexp(-1).mean()  # no position shows what the picture does not
        loss = loss - most.clamp_min(1e-6).log().sum() / (2 * len(drawn))  # whatever it shows is somewhere
        loss = loss + NOTHING * share[..., -1].mean() + DECAY * weight.square().sum(1).mean()
        if i >= ALONE:
            loss = loss - (allowed.detach().softmax(-1) * found.clamp_min(-1e4)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    taught = (present[:, list(everyday)] == 1).any(0)
    return weight.detach()[list(everyday)] * taught.unsqueeze(1)


def calibrate(
    pooled: Tensor, present: Tensor, directions: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Class vectors beside ImageNet's: a class is in the picture when its logit beats the log-sum-exp of theirs.

    Args:
        pooled: mean features of the training pictures (N, C).
        present: (N, E), as above. directions: (E, C).
        weight, bias: ImageNet's class vectors (K, C) and (K,).

    Returns:
        weight (E, C), ImageNet's mean and the direction; bias (E,), by which image-level labels are told best. A class
        that no picture shows has a bias that no picture reaches.
    """
    own = weight.mean(0) + directions
    logits = pooled @ own.T - torch.logsumexp(pooled @ weight.T + bias, 1, keepdim=True)
    known = ~present.isnan()
    out = torch.zeros(len(own), requires_grad=True)
    optimizer = torch.optim.Adam([out], 0.1)
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits((logits + out)[known], present[known]).backward()
        optimizer.step()
    taught = (present == 1).any(0)
    return own, torch.where(taught, out.detach(), torch.full_like(out, NEVER))
