"""The house: imports run downhill, heavy packages have one door each, files stay short. Sources are read, not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 400
LAYERS = (  # from the top; a unit imports itself and what lies in lower layers
    ("launcher",),
    ("vmreid.benchmarks", "vmreid.doctor", "vmreid.study"),
    ("vmreid.engine", "vmreid.report"),
    ("vmreid.evaluation", "vmreid.tracking"),
    ("vmreid.data", "vmreid.losses", "vmreid.models", "vmreid.optim"),
    ("vmreid.kernels",),
    ("vmreid.run_folder",),
    (
        "vmreid.command",
        "vmreid.compat",
        "vmreid.digests",
        "vmreid.distributed",
        "vmreid.graphs",
        "vmreid.precision",
        "vmreid.progress",
        "vmreid.recipes",
        "vmreid.text_table",
        "vmreid.timing",
        "vmreid.versions",
    ),
    ("vmreid.errors", "vmreid.lifeline"),
)
BASE = {unit for layer in LAYERS[6:] for unit in layer}
BESIDE = {"shards": {"vmreid.data", *BASE}}  # outside of the layers: launcher may import it, and it imports these alone
DOORS = {
    "causal_conv1d": {"vmreid.kernels"},
    "deepspeed": {"vmreid.engine"},
    "mamba_ssm": {"vmreid.kernels"},
    "matplotlib": {"vmreid.report"},
    "mlflow": {"vmreid.tracking"},
    "numba": {"vmreid.evaluation"},
    "scipy": {"vmreid.report"},
    "selective_scan_cuda": {"vmreid.kernels"},
    "timm": {"vmreid.models"},
    "torchvision": {"vmreid.compat", "vmreid.data"},
    "triton": {"vmreid.kernels"},
    "webdataset": {"shards", "vmreid.benchmarks", "vmreid.data"},
}


def unit_of(module: str) -> str:
    """``vmreid.data.streams`` belongs to ``vmreid.data``, ``shards.write`` to ``shards``."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "vmreid" else 1])


def allowed(unit: str) -> set[str]:
    """The units that a unit may import."""
    if unit in BESIDE:
        return {unit, *BESIDE[unit]}
    height = next(number for number, layer in enumerate(LAYERS) if unit in layer)
    below = {lower for layer in LAYERS[height + 1 :] for lower in layer}
    return {unit, *below, *(BESIDE if height == 0 else ())}


def imports(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module imports, wherever it stands: in functions, under TYPE_CHECKING, by text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            parent = [*start, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*parent, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def sources(root: Path) -> list[Path]:
    return sorted(path for top in ("launcher", "shards", "vmreid") for path in (root / top).rglob("*.py"))


def violations(root: Path) -> list[str]:
    """``file:line: what is wrong`` for every import that climbs, crosses, or goes round a door."""
    known = {unit for layer in LAYERS for unit in layer} | set(BESIDE)
    found = []
    for path in sources(root):
        relative = path.relative_to(root)
        module = list(relative.with_suffix("").parts)
        package, unit = module[:-1], unit_of(".".join(part for part in module if part != "__init__"))
        targets = list(imports(ast.parse(path.read_text()), package))
        if unit not in known:
            if targets or unit != "vmreid":  # vmreid/__init__.py is empty
                found.append(f"{relative}:1: {unit} belongs to no layer")
            continue
        for line, target in targets:
            top = target.partition(".")[0]
            if top in ("launcher", "shards", "vmreid") and unit_of(target) not in allowed(unit):
                found.append(f"{relative}:{line}: {unit} imports {target}")
            if unit not in DOORS.get(top, {unit}):
                found.append(f"{relative}:{line}: {unit} imports {top}, whose door is {', '.join(sorted(DOORS[top]))}")
    return found


def test_imports_run_downhill_and_heavy_packages_have_one_door() -> None:
    assert violations(ROOT) == []


def test_every_layer_and_every_door_is_there() -> None:
    """Else the rule above would hold of nothing."""
    units = {unit_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in sources(ROOT)}
    assert {unit for layer in LAYERS for unit in layer} | set(BESIDE) <= units
    assert all(owners <= units for owners in DOORS.values())


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("vmreid/models/a.py", "\nimport vmreid.engine.trainer", ":2: vmreid.models imports vmreid.engine.trainer"),
        ("vmreid/models/a.py", "from vmreid.data import streams", ":1: vmreid.models imports vmreid.data.streams"),
        ("vmreid/models/a.py", "from vmreid import data", ":1: vmreid.models imports vmreid.data"),
        ("vmreid/models/a.py", "from ..data import streams", ":1: vmreid.models imports vmreid.data.streams"),
        ("vmreid/models/a/b.py", "from ...report import rows", ":1: vmreid.models imports vmreid.report.rows"),
        ("vmreid/report/a.py", "from vmreid.engine.start import x", ":1: vmreid.report imports vmreid.engine.start.x"),
        ("vmreid/engine/a.py", "def f():\n    import launcher.train", ":2: vmreid.engine imports launcher.train"),
        ("vmreid/errors.py", "if TYPE_CHECKING:\n    from vmreid.recipes import R", ":2: vmreid.errors imports vmreid.recipes.R"),
        ("vmreid/data/a.py", "import shards.writer", ":1: vmreid.data imports shards.writer"),
        ("vmreid/data/a.py", "import_module('vmreid.engine')", ":1: vmreid.data imports vmreid.engine"),
        ("shards/a.py", "from vmreid.models import vit", ":1: shards imports vmreid.models.vit"),
        ("vmreid/data/a.py", "import timm.models", ":1: vmreid.data imports timm, whose door is vmreid.models"),
        ("launcher/a.py", "from mlflow import log_metric", ":1: launcher imports mlflow, whose door is vmreid.tracking"),
        ("vmreid/models/a.py", "__import__('mamba_ssm')", ":1: vmreid.models imports mamba_ssm, whose door is vmreid.kernels"),
        ("vmreid/fresh/a.py", "import math", ":1: vmreid.fresh belongs to no layer"),
        ("vmreid/__init__.py", "import torch", ":1: vmreid belongs to no layer"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == [file + complaint]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("launcher/a.py", "from vmreid.report.rows import Row\nfrom shards.writer import write_shards\nimport launcher.train"),
        ("vmreid/evaluation/a.py", "from vmreid.data.streams import Batch\nfrom . import ranking\nimport torch"),
        ("vmreid/kernels/a.py", "import triton\nfrom mamba_ssm.ops import x\nfrom vmreid.errors import UserError"),
        ("shards/a.py", "import webdataset\nfrom vmreid.data.manifest import Split\nfrom vmreid.progress import Reporter"),
        ("vmreid/__init__.py", '"""Only words."""'),
    ],
)
def test_a_right_import_is_not(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == []


def test_no_file_takes_minutes_to_scroll() -> None:
    files = [*sources(ROOT), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
