"""What the metric is measured beside: the matrix product alone, and a sort of each query's whole gallery."""

from __future__ import annotations

import torch

from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.screen import plain_products
from vmreid.evaluation.tiles import GALLERY_ROWS, QUERY_ROWS

SORTED = 256  # queries whose galleries are sorted together


def product(query: Features, gallery: Features) -> None:
    """All float32 products of queries and gallery, tile by tile, each over the last: no ranking takes less."""
    memory = torch.empty(QUERY_ROWS * GALLERY_ROWS, device=query.features.device)
    with plain_products(memory.device):
        for q_QF in torch.split(query.features, QUERY_ROWS):
            for g_GF in torch.split(gallery.features, GALLERY_ROWS):
                torch.mm(q_QF, g_GF.T, out=memory[: len(q_QF) * len(g_GF)].view(len(q_QF), len(g_GF)))


def sorted_mean_ap(query: Features, gallery: Features) -> float:
    """mAP by float32 products and torch's argsort of each query's gallery, on the device of the features."""
    total, valid = 0.0, 0
    for start in range(0, len(query), SORTED):
        some = query[start : start + SORTED]
        order_QG = torch.mm(some.features, gallery.features.T).argsort(dim=1, descending=True)
        same_QG = gallery.pids[order_QG] == some.pids.unsqueeze(1)
        kept_QG = ~(same_QG & (gallery.camids[order_QG] == some.camids.unsqueeze(1))) & (gallery.pids[order_QG] != JUNK)
        positive_QG = same_QG & kept_QG
        precision_QG = positive_QG.cumsum(dim=1) / kept_QG.cumsum(dim=1).clamp_min(1)
        number_Q = positive_QG.sum(dim=1)
        ap_Q = (precision_QG.double() * positive_QG).sum(dim=1) / number_Q.clamp_min(1)
        total, valid = total + float(ap_Q.sum()), valid + int((number_Q > 0).sum())
    return total / valid
