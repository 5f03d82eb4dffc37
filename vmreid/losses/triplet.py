"""Batch-hard triplet loss (Hermans et al., arXiv 1703.07737, equation 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def batch_hard_triplet(feature_BF: torch.Tensor, ids_B: torch.Tensor, margin: float | None) -> torch.Tensor:
    """Mean over anchors of the hinge (or soft margin, ``margin=None``) on hardest positive minus hardest negative distance.

    ``feature_BF`` fp32, ``ids_B`` int64. Distances are Euclidean; an anchor is its own positive at distance 0 where it
    has no other. Returns a scalar; a batch of one identity, which has no negatives, gives 0.
    """
    same_BB = ids_B[:, None] == ids_B[None, :]
    feature_BF = feature_BF - feature_BF.detach().mean(dim=0)  # changes no distance, and spares them the cancellation below
    squares_B = feature_BF.square().sum(dim=1)
    squared_BB = squares_B[:, None] + squares_B[None, :] - 2 * feature_BF @ feature_BF.T
    distance_BB = squared_BB.clamp_min(1e-12).sqrt()  # the root's gradient at 0 is infinite
    other_BB = ~torch.eye(len(ids_B), dtype=torch.bool, device=ids_B.device)  # the distance to oneself is rounding noise
    hardest_positive_B = distance_BB.masked_fill(~(same_BB & other_BB), 0).amax(dim=1)
    # without negatives it is infinitely far, and neither the softplus nor the hinge has a gradient
    hardest_negative_B = distance_BB.masked_fill(same_BB, torch.inf).amin(dim=1)
    difference_B = hardest_positive_B - hardest_negative_B
    return F.softplus(difference_B).mean() if margin is None else F.relu(difference_B + margin).mean()
