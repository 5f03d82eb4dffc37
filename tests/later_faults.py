"""Further faults for ``mutations.py``, as ``Fault`` takes them: estimates, monitors, guard, growth, starts, model test."""

from __future__ import annotations

# fmt: off
LATER = (
    ("dry run: memory is of no share", "vmreid/engine/estimate.py",
          "share, size = -(-count // world), BF16 if low else FP32", "share, size = count, BF16 if low else FP32",
          "tests/engine/test_estimate.py::test_what_each_stage_shares_over_ranks"),
    ("dry run: the run's recipe is written all the same", "launcher/train.py",
          "from vmreid.engine.prepare import flat, make_plan\n", "from vmreid.engine.prepare import flat, prepare as make_plan\n",
          "tests/launcher/test_dry_run.py"),
    ("monitors: states in the scan's reverse order", "vmreid/engine/scan_statistics.py",
          "delta_BKDL.flip(3).cumsum(3).flip(3) - delta_BKDL", "delta_BKDL.cumsum(3) - delta_BKDL",
          "tests/engine/test_monitors.py::test_the_last_states_are_the_scans_own"),
    ("monitors: the update is taken before the step", "vmreid/engine/trainer.py",
          "        if monitor:\n            monitor.after()\n", "", "tests/engine/test_monitors.py"),
    ("guard: only its own rank's fault is told", "vmreid/engine/guard.py",
          "return min((fault for fault in faults if fault), key=lambda fault: (fault.order, fault.rank), default=None)",
          "return faults[dist.get_rank()]", "tests/engine/test_guard.py::test_nan_in_one_pixel"),
    ("guard: a step with a bad gradient is taken without ZeRO", "vmreid/engine/start.py",
          "    elif not norm.isfinite():\n        return norm\n", "", "tests/engine/test_guard.py::test_nan_in_a_backward_alone"),
    ("growth: new blocks begin at random", "vmreid/engine/growth.py",
          "                    nn.init.zeros_(parameter)\n", "                    pass\n", "tests/distributed/test_growth.py"),
    ("growth: the optimizer begins anew", "vmreid/engine/trainer.py",
          "        carry_optimizer(before, self.engine)\n", "",
          "tests/distributed/test_growth.py::test_what_the_optimizer_knows_stays"),
    ("growth: new blocks share the old ones' step count", "vmreid/engine/growth.py",
          "phases.setdefault(f\"model.backbone.{name}\", phase)", "phases.setdefault(f\"model.backbone.{name}\", 0)",
          "tests/distributed/test_growth.py"),
    ("start: other step sizes change nothing", "vmreid/models/initialise.py",
          "elif name.startswith(\"dt_bias\") and", "elif name.startswith(\"bias_dt\") and", "tests/models/test_start.py"),
    ("model test: directions are not looked at in the middle", "vmreid/doctor/directions.py",
          "if changed != set(order[place:]):", "if not changed:", "tests/test_vision_mamba.py"),
    ("study: a finished run is trained again", "vmreid/study/missing.py",
          "if state_of(plan.checkpoint).step < steps:", "if state_of(plan.checkpoint).step <= steps:",
          "tests/launcher/test_study.py::test_what_is_missing_is_made_once"),
    ("study: a piece that did nothing begins again", "vmreid/study/pieces.py",
          "if missing[run.folder] is todo:", "if code:", "tests/launcher/test_study.py::test_a_piece_that_does_nothing"
          "_and_says_that_all_is_well_is_begun_once"),
    ("study: spikes are held against the steps to come", "vmreid/report/convergence.py",
          "before = losses[step - WINDOW : step]", "before = losses[step : step + WINDOW]", "tests/report/test_convergence.py"),
)
# fmt: on
