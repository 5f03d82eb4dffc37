"""``python -m launcher.doctor``: what this machine has and lacks; with ``--backbone`` its test; with ``--replay`` a stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmreid.command import Parser, run


def main(words: Sequence[str]) -> int:
    """0; 1 where something is missing or a check fails. Rank 0 looks; further ranks have nothing to do."""
    parser = Parser(prog="python -m launcher.doctor", description=__doc__)
    parser.add_argument("--backbone", help="test this one: shapes, gradients, directions, scan, first loss, one batch, growth")
    parser.add_argument("--recipe", default="note", help="name such as note, or YAML file; its sizes are tested")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="any other value of the recipe")
    parser.add_argument("--replay", type=Path, metavar="RUN/non_finite/STEP", help="find again where a value was not finite")
    given = parser.parse_args(words)

    from vmreid.distributed import place_from_environment

    if place_from_environment().rank:
        return 0
    if given.replay:
        return _replay(given.replay)
    if given.backbone:
        return _test(given.backbone, given.recipe, given.set)
    return _look()


def _look() -> int:
    from vmreid.doctor.machine import facts
    from vmreid.text_table import aligned

    found = list(facts())
    marks = {True: "ok", None: "-", False: "MISSING"}
    print(aligned(("what", "", ""), [(fact.name, marks[fact.fine], fact.words) for fact in found]))
    return int(any(fact.fine is False for fact in found))


def _test(backbone: str, recipe_name: str, assignments: Sequence[str]) -> int:
    from vmreid.distributed import own_device
    from vmreid.doctor.model_test import model_test
    from vmreid.kernels import choose_backend
    from vmreid.models.registry import BACKBONES, check_backbone, scans_maps
    from vmreid.recipes import load_recipe
    from vmreid.report.measure import seconds_by_tokens
    from vmreid.timing import fitted_exponent

    recipe = load_recipe(recipe_name, {"model.backbone": ("--backbone", backbone)}, assignments)
    model, device = recipe.model.from_scratch(), own_device()
    check_backbone(model)
    backend, reason = choose_backend(model.scan_backend, device, scans_maps(model))
    print(f"{backbone} on {device}" + (f"; selective scan: {reason}" if BACKBONES[backbone].d_state else ""), flush=True)
    holds = []
    for check in model_test(model, recipe.data.image_size, backend, device):
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check.name}: {check.words}", flush=True)
        holds.append(check.holds)
    seconds = seconds_by_tokens(model, backend, device)
    times = ", ".join(f"{tokens}: {1000 * each:.0f} ms" for tokens, each in seconds.items())
    print(f"      growth over tokens: forward + backward of two pictures, {times}; n^{fitted_exponent(seconds):.2f}")
    return int(not all(holds))


def _replay(place: Path) -> int:
    from vmreid.distributed import place_from_environment, start_process_group
    from vmreid.engine.guard import replay

    here = place_from_environment()
    start_process_group(here)
    fault = replay(place, here.device)
    if fault is None:
        print(f"{place}: forward and backward are finite here")
        return 0
    print(f"{place}: the first value that is not finite is in {fault.where}{fault.in_pictures()}")
    return 1


if __name__ == "__main__":
    run(main)
