"""The metric on several threads: the same ranks, and errors that come through."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from metric_inputs import near_ties, torch_threads

from vmreid.evaluation import counting, tiles, windows
from vmreid.evaluation.distances import METRICS, Metric
from vmreid.evaluation.ranking import rank_queries
from vmreid.evaluation.screen import products


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("most", [1, 1000])
def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch, metric: Metric, most: int) -> None:
    """Whichever takes which of many tiles, and with several at one query tile, whose windows are made again and again; also of
    features that ask for gradients."""
    query, gallery = near_ties()
    index, takers = torch.arange(len(gallery)), set()
    expected = rank_queries(query, gallery, index, metric).ranks
    for side in (query, gallery):
        side.features.requires_grad_()

    def slow(*given: Any) -> torch.Tensor:
        takers.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.001)
        return products(*given)

    monkeypatch.setattr(counting, "products", slow)
    monkeypatch.setattr(counting, "DOUBTS", most)
    monkeypatch.setattr(windows.Windows, "suit", lambda *given: False)
    monkeypatch.setattr(tiles, "QUERY_ROWS", 7)
    for threads in (1, 2, 3):
        takers.clear()
        with torch_threads(threads):
            assert rank_queries(query, gallery, index, metric, memory_gib=3e-4).ranks == expected
        assert len(takers) >= threads  # each block of queries has threads of its own
        assert {number for _, number in takers} == {1}


@pytest.mark.parametrize("where", ["products", "_Items"])
@pytest.mark.parametrize("own", [True, False])
def test_an_error_in_a_thread_is_raised_and_ends_the_others(monkeypatch: pytest.MonkeyPatch, where: str, own: bool) -> None:
    """Of the calling thread or of another, in a tile or in making one."""
    query, gallery = near_ties()
    given, calls, alive = getattr(counting, where), [], threading.active_count()

    def breaks(*arguments: Any) -> Any:
        calls.append(given)
        time.sleep(0.001)
        if len(calls) > 4 and (threading.current_thread() is threading.main_thread()) == own:
            raise RuntimeError("it broke")
        return given(*arguments)

    monkeypatch.setattr(counting, where, breaks)
    monkeypatch.setattr(tiles, "QUERY_ROWS", 7)
    with torch_threads(3):
        with pytest.raises(RuntimeError, match="it broke"):
            rank_queries(query, gallery, torch.arange(len(gallery)), "euclidean", memory_gib=3e-4)
        assert torch.get_num_threads() == 3
    assert len(calls) < 40
    assert threading.active_count() == alive
