"""What the ranks of the positives are worth: the protocol of Market-1501, single query.

For each query, gallery items with pid -1 (junk) go, and so do those with the query's own pid and camid. The rest is
ordered by distance, equal distances by gallery index. A query with no item of its pid left is invalid and counts in no
mean. AP, CMC: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015. INP: Ye et al., Deep Learning
for Person Re-identification: A Survey and Outlook, TPAMI 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vmreid.errors import UserError

CMC_LENGTH = 50


@dataclass(frozen=True)
class QueryRanks:
    """Per query the ascending ranks (from 1) of its positives, empty where the query is invalid.

    ``gallery``: items in the whole gallery, junk included.
    """

    ranks: list[list[int]]
    gallery: int

    @property
    def ap(self) -> list[float]:
        """Average precision, mean of j / rank_j, per query; NaN where invalid."""
        return [math.fsum(j / r for j, r in enumerate(rs, 1)) / len(rs) if rs else math.nan for rs in self.ranks]

    @property
    def inp(self) -> list[float]:
        """Inverse negative penalty, m / rank_m, per query; NaN where invalid."""
        return [len(rs) / rs[-1] if rs else math.nan for rs in self.ranks]

    @property
    def first_rank(self) -> list[int]:
        """Rank of the first positive, per query; 0 where invalid."""
        return [rs[0] if rs else 0 for rs in self.ranks]


def summarise(ranks: QueryRanks) -> dict[str, float | int | list[float]]:
    """Mean scores over the valid queries, as fractions: ``mAP mINP rank1 rank5 rank10 cmc`` (50 values), and counts.

    Raises:
        UserError: if no query is valid.
    """
    first_ranks = [first for first in ranks.first_rank if first]
    valid, queries = len(first_ranks), len(ranks.ranks)
    if not valid:
        needed = "a query needs a gallery item of its pid from another camera; check the pids and camids of both sides"
        empty = "the gallery is empty; give it items" if queries and not ranks.gallery else "give some queries"
        raise UserError(f"no valid query among {queries}: {needed if queries and ranks.gallery else empty}")
    cmc = [sum(first <= limit for first in first_ranks) / valid for limit in range(1, CMC_LENGTH + 1)]
    return {
        "mAP": math.fsum(ap for ap in ranks.ap if not math.isnan(ap)) / valid,
        "mINP": math.fsum(inp for inp in ranks.inp if not math.isnan(inp)) / valid,
        "rank1": cmc[0],
        "rank5": cmc[4],
        "rank10": cmc[9],
        "cmc": cmc,
        "queries": queries,
        "invalid_queries": queries - valid,
        "gallery": ranks.gallery,
    }
