"""Losses over the global batch: identity cross entropy and batch-hard triplet."""

from vmreid.losses.triplet import batch_hard_triplet

__all__ = ["batch_hard_triplet"]
