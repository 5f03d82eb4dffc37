"""What all tests share: the pool of gloo ranks, and the reasons to skip."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pool import Pool

from vmreid.command import run

pytest_plugins = ["tests.kernels.emulated"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """``ranks.run(world, function, *args)``: results of the function on 1 to 4 gloo ranks, in rank order."""
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work: several threads would wait for each other on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger test data that does not come with the repository."""
    folder = os.environ.get("VMREID_TEST_DATA")
    if not folder:
        pytest.skip("VMREID_TEST_DATA names no folder of test data")
    return Path(folder)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command's ``main`` in this process: status, standard output, last line of standard error."""

    def call_main(main: Callable[[Sequence[str]], int | None], *words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["it", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            run(main)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, (output.err.splitlines() or [""])[-1]

    return call_main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
