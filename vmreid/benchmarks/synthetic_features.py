"""Features with the structure of re-ID's, of any number: identities and cameras, some identities easy and some hard.

A picture's feature is identity + camera + noise in ``HIDDEN`` directions, of unit length. How wide an identity's noise is, a
log-normal number says, so that some are found at once and others lie among strangers, as a trained model's do: at MSMT17's
size mAP is 0.69 and Rank-1 0.83. The features are a pure function of their numbers.
"""

from __future__ import annotations

import torch

from vmreid.evaluation.features import Features

HIDDEN = 48
PICTURES, CAMERAS = 27, 15  # gallery pictures of an identity, and cameras: MSMT17's
CAMERA, NOISE, SPREAD, PICTURE = 0.3, 0.7, 0.5, 0.1
BATCH = 16384  # made at once, so that little stands beside the features


def synthetic_features(queries: int, gallery: int, dim: int) -> tuple[Features, Features]:
    """Both sides, float32 of ``dim`` dimensions, on the CPU."""
    generator, identities = torch.Generator().manual_seed(0), max(2, gallery // PICTURES)
    basis_HF = torch.randn(HIDDEN, dim, generator=generator)
    identity_PH = torch.randn(identities, HIDDEN, generator=generator)
    camera_CH = CAMERA * torch.randn(CAMERAS, HIDDEN, generator=generator)
    noise_P1 = NOISE * (SPREAD * torch.randn(identities, 1, generator=generator)).exp()

    def side(number: int) -> Features:
        pids, camids = (torch.randint(high, (number,), generator=generator) for high in (identities, CAMERAS))
        feature_NF = torch.empty(number, dim)
        for start in range(0, number, BATCH):
            pid, camid = pids[start : start + BATCH], camids[start : start + BATCH]
            width_B1 = noise_P1[pid] * (PICTURE * torch.randn(len(pid), 1, generator=generator)).exp()
            hidden_BH = identity_PH[pid] + camera_CH[camid] + width_B1 * torch.randn(len(pid), HIDDEN, generator=generator)
            feature_NF[start : start + BATCH] = torch.nn.functional.normalize(hidden_BH @ basis_HF)
        return Features(feature_NF, pids, camids)

    return side(queries), side(gallery)
