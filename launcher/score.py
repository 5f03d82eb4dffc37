"""``python -m launcher.score FEATURES.npz --metric euclidean|cosine --out FILE.json``: exact scores of any features.

One plain process, or several ranks (``deepspeed --module launcher.score …``, srun), each with its part of the gallery.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from launcher.rerank_option import add_rerank_option
from vmreid.command import Parser, above_0, check_out_file, run
from vmreid.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from vmreid.evaluation.features import Features
    from vmreid.evaluation.protocol import QueryRanks

SIDES = ("query", "gallery")
RANKS_UP_TO = 100  # queries; with more, the ranks of all positives would swell the file


def main(words: Sequence[str]) -> None:
    """All ranks. Score the features of one file and let rank 0 write the result."""
    from vmreid.recipes.schema import MEMORY_GIB, Protocol

    parser = Parser(prog="python -m launcher.score", description="Exact re-ID metric of features.")
    parser.add_argument(
        "features",
        type=Path,
        metavar="FEATURES.npz",
        help="query_features [n, F], query_pids [n], query_camids [n], and the same three of gallery",
    )
    parser.add_argument("--metric", required=True, choices=("euclidean", "cosine"), help="distance, in float64")
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), default="market1501", help="what is left out or drawn; default: market1501"
    )
    parser.add_argument(
        "--memory_gib",
        type=above_0,
        default=MEMORY_GIB,
        metavar="GIB",
        help=f"taken beyond the features; default: {MEMORY_GIB:g}",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json", help="where to write the scores")
    add_rerank_option(parser, "none")
    options = parser.parse_args(words)

    import torch

    from vmreid.distributed import place_from_environment, start_process_group, stop_process_group
    from vmreid.evaluation.ledger import ledger
    from vmreid.evaluation.protocol import summarise
    from vmreid.evaluation.protocols import scores_by
    from vmreid.evaluation.query_scores import QueryScores
    from vmreid.evaluation.ranking import rank_queries
    from vmreid.evaluation.rerank import check_settings, rerank
    from vmreid.run_folder import write_atomically

    place = place_from_environment()
    if place.rank == 0:
        check_out_file(options.out)
        if options.out.exists() and options.features.exists() and options.out.samefile(options.features):
            raise UserError(f"--out {options.out} is the features file itself; give another name")
        query, gallery = _load(options.features)
    start_process_group(place)
    if place.rank:
        query, gallery = _load(options.features)
    if options.rerank:
        check_settings(options.rerank, len(query) + len(gallery), options.protocol)
    index = torch.arange(len(gallery)).tensor_split(place.world)[place.rank]
    sides, where = (query, gallery[index], index, options.metric), (place.device, options.memory_gib)
    ranks = rank_queries(*sides, *where)
    scores, reranked = scores_by(options.protocol, ranks, *sides, *where), {}
    if options.rerank:
        again = rank_queries(*sides, *where, rerank(*sides, options.rerank, place.device))
        values = options.rerank.protocol()
        reranked = {"reranked": {**summarise(again), "protocol": values, "per_query": _per_query(again)}}
    conditions = {} if place.rank else _conditions(options.features, query, gallery)
    protocol = ledger(query, scores, gallery[index], options.metric, options.protocol, conditions)
    if place.rank == 0:
        report = {"metric": options.metric, **scores, "protocol": protocol, **reranked}
        if "spread" not in scores:  # over draws no query stays the same
            report |= {"intervals": QueryScores.of(query, ranks, {}).intervals(), "per_query": _per_query(ranks)}
        write_atomically(options.out, json.dumps(report, allow_nan=False) + "\n")
        print(
            f"{_in_words(scores)}  ({options.metric}, {scores['queries']} queries, {scores['invalid_queries']} of them invalid, "
            f"{scores['gallery']} gallery items) → {options.out}"
        )
        if reranked:
            stated = ", ".join(f"{name} {value}" for name, value in values.items())
            print(f"{_in_words(reranked['reranked'])}  (re-ranked: {stated})")
    stop_process_group()


def _load(path: Path) -> tuple[Features, Features]:
    """Query and gallery of the file, on the CPU.

    Raises:
        UserError: if the file is missing or no npz, or lacks a key, or an array has the wrong type or shape.
    """
    import numpy as np
    import torch

    from vmreid.evaluation.features import Features

    wanted = [f"{side}_{what}" for side in SIDES for what in ("features", "pids", "camids")]
    if not path.is_file():
        raise UserError(f"{path} is no file; give the npz file that holds the features")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in wanted if name not in archive]:
                raise UserError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(wanted)}")
            arrays = {name: archive[name] for name in wanted}
    except (PermissionError, UserError):
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own for a broken file
        raise UserError(f"{path} cannot be read as an npz file of plain arrays ({error}); write it by numpy.savez") from error

    sides = []
    for side in SIDES:
        features, pids, camids = (arrays[f"{side}_{what}"] for what in ("features", "pids", "camids"))
        _check_features(path, f"{side}_features", features)
        for name, ids in ((f"{side}_pids", pids), (f"{side}_camids", camids)):
            _check_ids(path, name, ids, len(features))
        wide = features.astype(np.float64 if features.dtype.itemsize == 8 else np.float32)
        ids = (torch.from_numpy(ids.astype(np.int64)) for ids in (pids, camids))
        sides.append(Features(torch.from_numpy(wide), *ids))
    return sides[0], sides[1]


def _check_features(path: Path, name: str, array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"{path}: {name} is {array.dtype}; it must be float16, float32 or float64")
    if array.ndim != 2:
        raise UserError(f"{path}: {name} has shape {array.shape}; it must be [n, F], one row a picture")


def _check_ids(path: Path, name: str, array: np.ndarray[Any, Any], rows: int) -> None:
    if array.dtype.kind not in "iu" or array.dtype.str[1:] == "u8":
        raise UserError(f"{path}: {name} is {array.dtype}; it must be an integer type that fits into int64")
    if array.shape != (rows,):
        raise UserError(f"{path}: {name} has shape {array.shape}; it must be ({rows},), one id for each feature row")


def _conditions(path: Path, query: Features, gallery: Features) -> dict[str, Any]:
    """What the ledger cannot know: which file, and whose pictures; features of other models may be of the same ones."""
    from vmreid.data.manifest import sha256_of

    ids = hashlib.sha256()
    for values in (query.pids, query.camids, gallery.pids, gallery.camids):
        ids.update(values.numpy().astype("<i8").tobytes())
    return {"ids_sha256": ids.hexdigest(), "features_sha256": sha256_of(path)}


def _in_words(scores: dict[str, Any]) -> str:
    return "  ".join(f"{key} {scores[key]:.4f}" for key in ("mAP", "mINP", "rank1", "rank5", "rank10"))


def _per_query(ranks: QueryRanks) -> dict[str, list[Any]]:
    """Scores of each query, None where it is invalid."""
    scores: dict[str, list[Any]] = {
        "ap": [None if math.isnan(ap) else ap for ap in ranks.ap],
        "inp": [None if math.isnan(inp) else inp for inp in ranks.inp],
        "first_rank": [first or None for first in ranks.first_rank],
    }
    if len(ranks.ranks) <= RANKS_UP_TO:
        scores["ranks"] = [positives or None for positives in ranks.ranks]
    return scores


if __name__ == "__main__":
    run(main)
