"""Faults made on purpose, one at a time, each of which must turn a test red.

``.venv/bin/python tests/mutations.py > docs/mutations.md`` tries them all, prints the table, and exits with 1 if one survives.
A fault goes into a copy of the tree; the tree itself is only read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from later_faults import LATER

ROOT = Path(__file__).parents[1]
COPIED = ("launcher", "shards", "slurm", "vmreid", "tests", "ds_configs", "setup.cfg", "pyproject.toml")
GREEN, RED = 0, 1  # pytest's exit status; all others say that the tests did not run
HEADING = """# Mutation check

Each fault of `tests/mutations.py` was put into a copy of the code, alone, and beside it stands the test that turned red;
`.venv/bin/python tests/mutations.py > docs/mutations.md` makes this file.

| fault | file | test that turned red |
|---|---|---|"""


@dataclass(frozen=True)
class Fault:
    """``old``, which ``file`` holds once, becomes ``new``; ``test`` (a file or node) must notice."""

    what: str
    file: str
    old: str
    new: str
    test: str


SCAN, CROSS, SS2D = (f"vmreid/kernels/{name}.py" for name in ("torch_scan", "cross_scan", "ss2d"))
ONE_STATE, COMPILED = "vmreid/kernels/cuda/one_state.cu", "vmreid/engine/compiled.py"
MAMBA_V2, VMAMBA, VIM, PUBLISHED = (f"vmreid/models/{name}.py" for name in ("mamba_v2", "vmamba", "vim", "published"))
VMAMBA_NAMES, VIM_NAMES, TRANSREID_NAMES = (f"vmreid/models/{name}_names.py" for name in ("vmamba", "vim", "transreid"))
TRIPLET, LOSS = "vmreid/losses/triplet.py", "vmreid/engine/training_module.py"
SAMPLER, STREAM, RANGES, MANIFEST, REMOTE, CACHE = (
    f"vmreid/data/{name}.py" for name in ("identity_batches", "streams", "ranges", "manifest", "remote", "cache")
)
UNFINISHED = "shards/unfinished.py"
RANKING, PROTOCOL, FLOORS = "vmreid/evaluation/ranking.py", "vmreid/evaluation/protocol.py", "vmreid/evaluation/baselines.py"
COUNTING, SCREEN, WINDOWS = (f"vmreid/evaluation/{name}.py" for name in ("counting", "screen", "windows"))
PROTOCOLS = "vmreid/evaluation/protocols.py"
NEAREST_K, K_RECIPROCAL, JACCARD, REORDER, RERANK = (
    f"vmreid/evaluation/{name}.py" for name in ("nearest_k", "k_reciprocal", "jaccard", "reorder", "rerank")
)
EVALUATE, EXTRACT = "vmreid/evaluation/evaluate.py", "vmreid/evaluation/extraction.py"
DIRECTIONS = "vmreid/evaluation/directions.py"
LEDGER, UNCERTAINTY = "vmreid/evaluation/ledger.py", "vmreid/evaluation/uncertainty.py"
HISTOGRAM = "vmreid/evaluation/histogram.py"
RUN_PROTOCOLS, PAIRS = "vmreid/report/protocols.py", "vmreid/report/pairs.py"
SCHEDULE, MLFLOW = "vmreid/optim/schedule.py", "vmreid/tracking/mlflow_run.py"
CONFIG, CHECKPOINT, TRAINER = (f"vmreid/engine/{name}.py" for name in ("deepspeed_config", "checkpoint", "trainer"))

TEST_SCAN = "tests/kernels/test_selective_scan.py"
TEST_CROSS = "tests/kernels/test_cross_scan.py"
TEST_SS2D = "tests/kernels/test_ss2d.py"
TEST_MAMBA_V2 = "tests/models/test_backbones.py::test_ss2d_equals_a_loop_in_which_the_class_token_steps_from_the_last_states"
TEST_GRADIENTS = "tests/models/test_backbones.py::test_small_shape_and_a_gradient_at_every_parameter"
TEST_EVERY_PATCH = "tests/models/test_backbones.py::test_every_patch_reaches_the_feature"
TEST_PUBLISHED = "tests/models/test_published_names.py"
TEST_VMAMBA_NAMES = f"{TEST_PUBLISHED}::test_vmambas_names_find_their_places"
TEST_VIM_NAMES = f"{TEST_PUBLISHED}::test_vims_directions_are_stacked_and_the_middle_position_is_the_class_tokens"
TEST_TRANSREID = f"{TEST_PUBLISHED}::test_transreids_global_branch_is_the_backbone"
TEST_POSITIONS = f"{TEST_PUBLISHED}::test_the_number_of_positions_tells_the_map"
TEST_REFUSED = f"{TEST_PUBLISHED}::test_what_does_not_fit_a_vim_is_named"
TEST_TRIPLET = "tests/losses/test_triplet.py"
TEST_STEP = "tests/distributed/test_training_steps.py::test_one_step_is_the_same_on_1_2_and_3_ranks[VIT-S-1]"
TEST_CLIPPING = "tests/distributed/test_training_steps.py::test_clipping_comes_from_the_json"
TEST_RESUME = "tests/distributed/test_training_steps.py::test_six_steps_equal_three_and_resume_and_three[MAMBA-S-zero0_fp32-1]"
TEST_LOSS = "tests/distributed/test_training_steps.py::test_the_recipe_says_how_much_labels_are_smoothed"
TEST_SAMPLER, TEST_MIXED = "tests/data/test_identity_batches.py", "tests/data/test_mixed_sets.py"
TEST_KILLED = "tests/distributed/test_resume.py::test_killed_at_20_moments_the_log_and_the_weights_are_undisturbed"
TEST_FUSED, TEST_RECOMPUTE = "tests/kernels/test_fused.py", "tests/distributed/test_recompute.py"
TEST_FLAT = "tests/distributed/test_flat_backbone.py::test_the_same_is_trained_and_saved_under_the_same_names"
TEST_CLIPPING = "tests/distributed/test_training_steps.py::test_clipping_comes_from_the_json"
TEST_CHECKPOINTS = "tests/engine/test_checkpoints.py"
TEST_RESUMED = "tests/distributed/test_training_steps.py::test_six_steps_equal_three_and_resume_and_three"
TEST_METRIC = "tests/evaluation/test_ranking.py::test_by_hand"
TEST_LEDGER = "tests/launcher/test_score.py::test_the_ledger_says_what_was_scored"
TEST_UNCERTAINTY, TEST_HISTOGRAM = "tests/evaluation/test_uncertainty.py", "tests/evaluation/test_histogram.py"
TEST_PROTOCOLS = "tests/evaluation/test_protocols.py"
TEST_FINE = "tests/evaluation/test_ranking.py::test_equals_single_pairs_where_float32_fails"
TEST_RERANK = "tests/evaluation/test_rerank.py"
TEST_DENSE = f"{TEST_RERANK}::test_equals_the_dense_method"
TEST_FLOORS = "tests/evaluation/test_baselines.py"
TEST_EVALUATE = "tests/evaluation/test_evaluate.py"
TEST_SCHEDULE = "tests/optim/test_optim.py"
TEST_MLFLOW = "tests/tracking/test_mlflow_run.py::test_a_run_opened_again_goes_on_without_repeating_steps"

# fmt: off
FAULTS = (
    Fault("scan, forward: the state is lost at a chunk's border", SCAN,
          "states[0] = states[steps]", "states[0] = 0", TEST_SCAN),
    Fault("scan, forward: each token's input enters one step late", SCAN,
          "y[at] += _sum_states(C[at], states[1 : steps + 1])", "y[at] += _sum_states(C[at], states[:steps])", TEST_SCAN),
    Fault("scan, backward: the adjoint is lost at a chunk's border", SCAN,
          "g[-1] += carry", "g[-1] += 0", TEST_SCAN),
    Fault("scan, backward: delta's gradient lacks the way through the input", SCAN,
          "torch.addcmul(q.mul_(A).sum(3), dscaled_u, u[at])", "q.mul_(A).sum(3)", TEST_SCAN),
    Fault("cross scan: the fourth direction reads forwards", CROSS,
          "columns_back_BLC.flip(1)), dim=1)", "columns_back_BLC), dim=1)", TEST_CROSS),
    Fault("merge: columns are put back as rows", CROSS,
          "columns_BLD, 1, (width, height)).transpose(1, 2)", "columns_BLD, 1, (height, width))", TEST_CROSS),
    Fault("merge: the sum of the four directions, not their mean", CROSS,
          "cross_sum(y_BKDL, height, width) / DIRECTIONS", "cross_sum(y_BKDL, height, width)", TEST_CROSS),
    Fault("merge: the class token hears the first direction alone", MAMBA_V2,
          "cls_BKD.mean(dim=1)[:, None]", "cls_BKD[:, 0][:, None]", TEST_MAMBA_V2),
    Fault("cross scan, own maps: the third direction reads the first's", CROSS,
          "_by_rows(third_BHWC)", "_by_rows(first_BHWC)", TEST_CROSS),
    Fault("SS2D: the mean of the four directions, not their sum", SS2D,
          "*x_BHWD.shape[1:3])", "*x_BHWD.shape[1:3]) / DIRECTIONS", TEST_SS2D),
    Fault("SS2D: B and C change places", SS2D,
          "cross_scan_own(B_BHWKN), cross_scan_own(C_BHWKN)", "cross_scan_own(C_BHWKN), cross_scan_own(B_BHWKN)", TEST_SS2D),
    Fault("one state: a run's first state lacks the warp's other run", ONE_STATE,
          "if (at.half) h[0] = first_total[0] * h[0] + first_end[0], h[1]", "if (at.half) h[1]", TEST_FUSED),
    Fault("one state, backward: the pairs of the warps behind are left out", ONE_STATE,
          "behind[0] = pair.x * behind[0] + pair.z, behind", "behind[0] = pair.x * behind[0], behind", TEST_FUSED),
    Fault("one state: a direction takes the place of those before", ONE_STATE,
          "if (i) y0 += low(sum[j * LANES]), y1", "if (i) y1", TEST_FUSED),
    Fault("compiled: weights are saved as they were before training", CHECKPOINT,
          "    engine.module.show_parameters()\n", "", TEST_FLAT),
    Fault("compiled: nothing decays", COMPILED,
          "nn.Parameter(flats[0][None])", "nn.Parameter(flats[0])", TEST_FLAT),
    Fault("recompute: blocks keep all", "vmreid/engine/recompute.py",
          "        block.forward = forward", "        del forward", TEST_RECOMPUTE),
    Fault("without ZeRO: gradients are not clipped", "vmreid/engine/start.py",
          "if clipping and engine", "if False and engine", TEST_CLIPPING),
    Fault("a step's numbers are forgotten where a checkpoint is due", TRAINER,
          "self._saves():\n                self._account(taken, log)\n", "self._saves():\n", TEST_RESUMED),
    Fault("VMamba: blocks lack their MLP", VMAMBA,
          "x_BHWC + self.fc2(F.gelu(self.fc1(self.norm2(x_BHWC))))", "x_BHWC", TEST_GRADIENTS),
    Fault("VMamba: depth counts the blocks of the second stage", VMAMBA,
          "(2, 2, depth, 2)", "(2, depth, 2, 2)", TEST_VMAMBA_NAMES),
    Fault("Vim: a block does not read backwards", VIM,
          "(ahead_BDL + back_BDL.flip(2))", "(ahead_BDL + ahead_BDL)", TEST_EVERY_PATCH),
    Fault("Vim, published: the first position is taken for the class token's", VIM,
          "middle=True", "middle=False", TEST_VIM_NAMES),
    Fault("Vim, published: the directions change places", VIM_NAMES,
          'for direction in ("", "_b")', 'for direction in ("_b", "")', TEST_VIM_NAMES),
    Fault("VMamba, published: linear weights stay 1x1 convolutions", VMAMBA_NAMES,
          "value.shape[2:] == (1, 1)", "value.shape[2:] == (1,)", TEST_VMAMBA_NAMES),
    Fault("TransReID, published: the last block is the local branch's", TRANSREID_NAMES,
          '"b1.0."', '"b2.0."', TEST_TRANSREID),
    Fault("published: what is unknown is passed over", PUBLISHED,
          "given = {key: value for key, value in given.items() if key not in left}",
          "given = {key: value for key, value in given.items() if key not in left and key in module.state_dict()}", TEST_REFUSED),
    Fault("published: a map of positions is resized without antialiasing", PUBLISHED,
          "antialias=True", "antialias=False", TEST_POSITIONS),
    Fault("triplet: the nearest positive, not the hardest", TRIPLET,
          "masked_fill(~(same_BB & other_BB), 0).amax(dim=1)", "masked_fill(~(same_BB & other_BB), torch.inf).amin(dim=1)",
          TEST_TRIPLET),
    Fault("triplet: the farthest negative, not the hardest", TRIPLET,
          "masked_fill(same_BB, torch.inf).amin(dim=1)", "masked_fill(same_BB, 0).amax(dim=1)", TEST_TRIPLET),
    Fault("loss: label smoothing is ignored", LOSS,
          ", label_smoothing=smoothing", "", TEST_LOSS),
    Fault("loss: the gathered gradient lacks the factor of the ranks", LOSS,
          "grad_BF.chunk(world)[dist.get_rank()] * world", "grad_BF.chunk(world)[dist.get_rank()]", TEST_STEP),
    Fault("loss: every rank takes rank 0's slice of the gradient", LOSS,
          "grad_BF.chunk(world)[dist.get_rank()] * world", "grad_BF.chunk(world)[0] * world", TEST_STEP),
    Fault("sampler: K pictures of an identity are drawn with repetition", SAMPLER,
          "shuffled = random.permutation(length)", "shuffled = random.integers(0, length, length)", TEST_SAMPLER),
    Fault("sampler: one picture fewer than K", SAMPLER,
          "for k in range(self.pictures)", "for k in range(self.pictures - 1)", TEST_SAMPLER),
    Fault("sampler: every epoch has the same order", SAMPLER,
          "default_rng([ORDER, seed, epoch, number, turn])", "default_rng([ORDER, seed, number, turn])", TEST_SAMPLER),
    Fault("sampler: every epoch augments a picture alike", SAMPLER,
          "(self.seed, epoch, row, repetition)", "(self.seed, row, repetition)", TEST_SAMPLER),
    Fault("sampler: an identity's cameras are not taken in turns", SAMPLER,
          "shuffled[in_turns]", "shuffled", TEST_MIXED),
    Fault("sampler: every set has the same share", SAMPLER,
          "np.cumsum([0, *weights])", "np.cumsum([0] + [sum(weights) / len(weights)] * len(weights))", TEST_MIXED),
    Fault("sampler: every rank takes rank 0's part", STREAM,
          "first = (piece * self.world + self.rank) * self.places", "first = piece * self.world * self.places", TEST_SAMPLER),
    Fault("ranges: another picture's bytes are taken", RANGES,
          'if not data.startswith(b"%08d." % row):', "if not data:",
          "tests/data/test_remote.py::test_a_shard_of_another_size_or_content"),
    Fault("ranges: a picture's changed bytes are taken", RANGES,
          'if zlib.crc32(content) != entry["crc32"]:', "if len(content) != length:",
          "tests/data/test_streams.py::test_a_changed_picture_that_still_decodes"),
    Fault("evaluation: a changed shard is read", MANIFEST,
          "if not has_digest(file, digest):", "if False:",
          "tests/data/test_streams.py::test_evaluation_shard_cut_between_two_pictures"),
    Fault("remote: a passing failure is final", REMOTE,
          "if number == ATTEMPTS:", "if number:", "tests/data/test_remote.py::test_a_server_that_fails_and_recovers"),
    Fault("remote: a body that breaks off is taken for whole", REMOTE,
          "if length is not None and got != length:", "if got == 0:",
          "tests/data/test_remote.py::test_a_server_that_fails_and_recovers"),
    Fault("cache: what is over its limit stays", CACHE,
          "path.unlink(missing_ok=True)\n                taken -=", "taken -=", "tests/data/test_cache.py"),
    Fault("skip: what stands in is not counted", STREAM,
          'sample["replaced"] = int(sample["row"] != rows[k % len(rows)])', 'sample["replaced"] = 0',
          "tests/data/test_streams.py::test_skipped_pictures_are_replaced_and_counted"),
    Fault("shards.write, repeated: a shard is kept whatever its bytes", UNFINISHED,
          "path.is_file() and sha256_of(path) == record.shard.sha256", "path.is_file()",
          "tests/shards/test_unfinished.py::test_what_is_not_whole_is_written_again"),
    Fault("ranking: equal distances go to the larger gallery index", WINDOWS,
          "(index[probe] < own)", "(index[probe] > own)", TEST_METRIC),
    Fault("ranking: what float32 leaves in doubt is counted as it seems", SCREEN,
          "return 1.01 * bound_Q", "return 0.01 * bound_Q",
          "tests/evaluation/test_ranking.py::test_screen_is_within_its_bound"),
    Fault("ranking: far features are not shifted to their centre", SCREEN,
          "* scale - centre_F[f]", "* scale - 0 * centre_F[f]",
          "tests/evaluation/test_ranking.py::test_screen_is_within_its_bound"),
    Fault("ranking: a row that float64 screens again counts its own pairs too", COUNTING,
          "product_QG[left_out] = torch.inf", "product_QG[left_out] = 0 if dtype == torch.float64 else torch.inf", TEST_FINE),
    Fault("ranking: the query's own camera is not left out", RANKING,
          "positive = self._query.camids[rows][q] != self._part.camids_G[g]", "positive = q >= 0", TEST_METRIC),
    Fault("ranking: junk is ranked", COUNTING,
          "kept = (given.pids != JUNK)", "kept = (given.pids >= JUNK)", TEST_METRIC),
    Fault("metric: AP counts every hit as the first", PROTOCOL,
          "math.fsum(j / r for", "math.fsum(1 / r for", TEST_METRIC),
    Fault("metric: INP by the first positive, not the last", PROTOCOL,
          "len(rs) / rs[-1]", "len(rs) / rs[0]", TEST_METRIC),
    Fault("vehicleid: cameras count", PROTOCOLS,
          "torch.full_like(side.pids, n)", "torch.full_like(side.pids, 0 * n)", TEST_PROTOCOLS),
    Fault("vehicleid: chance is that of the gallery as given", DIRECTIONS,
          "chance(*one_match) if drawn else", "chance(*one_match) if not own else", "tests/evaluation/test_directions.py"),
    Fault("open set: a threshold may accept one wrong pair more", PROTOCOLS,
          "accepted_RS <= allowed_R.unsqueeze(1)", "accepted_RS <= 1 + allowed_R.unsqueeze(1)", TEST_PROTOCOLS),
    Fault("re-ranking: what the screen may be wrong about is not measured", NEAREST_K,
          "distance_RK[:, -1] + bound_R", "distance_RK[:, -1] - bound_R", f"{TEST_RERANK}::test_tiles_and_screen_do_not_matter"),
    Fault("re-ranking: equally near rows in any order", NEAREST_K,
          "order_RA = number_RA.argsort(dim=1)", "order_RA = number_RA.argsort(dim=1, descending=True)", TEST_DENSE),
    Fault("re-ranking: the farthest by the screen alone", NEAREST_K,
          "low_R = torch.maximum(farthest_R - bound_R, top_R - 2 * bound_R)", "low_R = top_R",
          f"{TEST_RERANK}::test_tiles_and_screen_do_not_matter"),
    Fault("re-ranking: neighbours need not be mutual", K_RECIPROCAL,
          "== rows[:, None, None]).any(dim=2)", ">= 0).any(dim=2)", TEST_DENSE),
    Fault("re-ranking: a member's set is taken whatever it shares", K_RECIPROCAL,
          "3 * common_RKH.sum(dim=2) > 2 *", "3 * common_RKH.sum(dim=2) > 0 *", TEST_DENSE),
    Fault("re-ranking: a member's set is of the k1 nearest, not half of them", K_RECIPROCAL,
          "half = round((count - 1) / 2) + 1", "half = count", TEST_DENSE),
    Fault("re-ranking: vectors are not averaged over the k2 nearest", RERANK,
          "if settings.k2 > 1 else", "if settings.k2 > 99 else", TEST_DENSE),
    Fault("re-ranking: lambda weighs the Jaccard distance", JACCARD,
          "jaccard * (1 - weight) + share * weight", "jaccard * weight + share * (1 - weight)", TEST_DENSE),
    Fault("re-ranking: what is moved counts at its old place too", REORDER,
          "after.long() - before.long()", "after.long()", TEST_DENSE),
    Fault("re-ranking: only this rank's positives share columns with the query", REORDER,
          "pairs = concatenate_over_ranks(torch.stack([q * items + self.gallery.index[item], overlap], dim=1))",
          "pairs = torch.stack([q * items + self.gallery.index[item], overlap], dim=1)",
          f"{TEST_RERANK}::test_the_same_on_any_ranks"),
    Fault("chance: mAP as m / n", FLOORS,
          "ap = (harmonic + (m - 1) / (n - 1).clamp_min(1) * (n - harmonic)) / n", "ap = m / n", TEST_FLOORS),
    Fault("chance: gallery pictures of the query's camera count as candidates", DIRECTIONS,
          "len(gallery) - own_QG.sum(dim=1)", "len(gallery) - 0 * own_QG.sum(dim=1)", TEST_EVALUATE),
    Fault("schedule: warm-up begins one step early, at rate 0", SCHEDULE,
          "optim.lr * (step + 1) / warmup", "optim.lr * step / warmup", TEST_SCHEDULE),
    Fault("schedule: the cosine ends one step too late", SCHEDULE,
          "max(1, steps - 1 - warmup)", "max(1, steps - warmup)", TEST_SCHEDULE),
    Fault("clipping: the JSON's gradient_clipping does not reach DeepSpeed", CONFIG,
          "        **config,\n", '        **{**config, "gradient_clipping": 1.0},\n', TEST_CLIPPING),
    Fault("resume: the optimizer's state is not restored", CHECKPOINT,
          "tag=source.name)", "tag=source.name, load_optimizer_states=False)", TEST_RESUME),
    Fault("resume: checkpoints at the ends of epochs alone", TRAINER,
          "train.checkpoint_steps or self.steps", "self.steps", TEST_KILLED),
    Fault("resume: begins again at step 0", TRAINER,
          "self.step = load_checkpoint(self.engine, plan.checkpoint, plan.form).step",
          "load_checkpoint(self.engine, plan.checkpoint, plan.form)", TEST_RESUME),
    Fault("resume: log lines after the checkpoint are kept", "vmreid/engine/step_log.py",
          ".splitlines(keepends=True)[:step]", ".splitlines(keepends=True)", TEST_RESUME),
    Fault("MLflow: a resumed run makes a new run", MLFLOW,
          'self._known.get("run_id", "")', '""', TEST_MLFLOW),
    Fault("MLflow: a resumed run logs steps twice", MLFLOW,
          'if "loss" not in values or step not in self._logged]', "]", TEST_MLFLOW),
    Fault("evaluation: the checkpoint's weights are not loaded", EVALUATE,
          "    model.load_state_dict(weights)\n", "", TEST_EVALUATE),
    Fault("evaluation: the untrained model stays in training mode", EVALUATE,
          "untrained.eval()", "untrained", TEST_EVALUATE),
    Fault("evaluation: camera ids and identities change places", EXTRACT,
          "ids, camids, row, view, kind =", "camids, ids, row, view, kind =", TEST_EVALUATE),
    Fault("evaluation: the mirror image is the picture itself", EVALUATE,
          "whole(filled_BCHW.flip(-1))", "whole(filled_BCHW)", "tests/evaluation/test_evaluate.py"),
    Fault("evaluation: every checkpoint's scores are the newest's", "launcher/evaluate.py",
          "chosen = [folder.checkpoint(name) for", "chosen = [folder.checkpoint(None) for",
          "tests/launcher/test_main_job.py::test_several_checkpoints_are_evaluated_on_several_sets"),
    Fault("features: kept ones serve whatever the pass was like", EVALUATE,
          '"pass": [recipe.evaluation.batch_size, recipe.evaluation.precision, recipe.evaluation.flip],', '"pass": [],',
          "tests/evaluation/test_feature_cache.py"),
    Fault("features: a shard's file holds its neighbour's pictures", "vmreid/evaluation/feature_cache.py",
          "[first, first + shard.pictures]", "[first + 1, first + 1 + shard.pictures]", "tests/evaluation/test_feature_cache.py"),
    Fault("evaluation: bf16 is passed over", EVALUATE,
          "enabled=bf16", "enabled=False", "tests/evaluation/test_evaluate.py"),
    Fault("evaluation: a pass is as large as what is left", EVALUATE,
          "missing = evaluation.batch_size - len(image_BCHW)", "missing = 0", "tests/evaluation/test_evaluate.py"),
    Fault("evaluation: views and types change places", EXTRACT,
          "zip(KINDS, (view, kind), strict=True)", "zip(KINDS, (kind, view), strict=True)",
          "tests/evaluation/test_evaluate.py::test_views_and_types_come_from_the_shards_to_each_query"),
    Fault("intervals: queries are drawn, not identities", UNCERTAINTY,
          "np.unique(pid_Q[valid_Q], return_inverse=True)", "np.unique(np.arange(valid_Q.sum()), return_inverse=True)",
          TEST_UNCERTAINTY),
    Fault("paired test: signs are flipped once for all identities", UNCERTAINTY,
          "np.where(drawn_RC, sum_C, -sum_C)", "np.where(drawn_RC[:, :1], sum_C, -sum_C)", TEST_UNCERTAINTY),
    Fault("distances: a pair on a bin's edge stays where the product puts it", HISTOGRAM,
          "<= doubt_Q[:, None]", "< 0", TEST_HISTOGRAM),
    Fault("distances: pictures of the query's own camera count as positive", HISTOGRAM,
          "masked_fill_(excluded_QG, 2 * BINS)", "masked_fill_(excluded_QG & False, 2 * BINS)", TEST_HISTOGRAM),
    Fault("precision over recall: not the best that follows", "vmreid/evaluation/precision_recall.py",
          "np.maximum.accumulate(precision_QM[:, ::-1], axis=1)[:, ::-1]", "precision_QM", TEST_HISTOGRAM),
    Fault("comparison: runs of different protocols are paired", PAIRS,
          "[name for name in protocol.runs if name in scores]", "list(scores)", "tests/report/test_report.py"),
    Fault("ledger: junk counts among the gallery's identities", LEDGER,
          "_counts(gallery_part[~junk])", "_counts(gallery_part)", TEST_LEDGER),
    Fault("comparison: every run counts as of the first's protocol", RUN_PROTOCOLS,
          "if protocol.ledger == own", "if True", "tests/report/test_report.py"),
    Fault("another world size: all groups count their steps in one tensor", CHECKPOINT,
          'values["step"] = values["step"].clone()', 'values["step"] = values["step"]',
          "tests/distributed/test_world_sizes.py::test_two_ranks_one_and_three[zero3_fp32]"),
    Fault("another world size: BNNeck forgets its statistics", CHECKPOINT,
          "buffer.copy_(weights[name])", "pass",
          "tests/distributed/test_world_sizes.py::test_two_ranks_one_and_three[zero1_fp32]"),
    Fault("checkpoint: what is damaged is taken", "vmreid/digests.py",
          "if digest != entries[name][1]:", "if False:", TEST_CHECKPOINTS),
    Fault("checkpoint: the best goes", CHECKPOINT,
          "path.name not in (*whole[-keep:], best)", "path.name not in whole[-keep:]", TEST_CHECKPOINTS),
    Fault("checkpoint: a save keeps what a killed one left", CHECKPOINT,
          "for old in (path, path.with_name(name + SUFFIX)):", "for old in ():", TEST_CHECKPOINTS),
    Fault("signal: the others do not hear of it", "vmreid/engine/stop.py",
          "self._work = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, async_op=True)", "pass",
          "tests/distributed/test_stop.py"),
    Fault("in training: every epoch's checkpoint is judged", TRAINER,
          "self.step % (epochs * self.steps_per_epoch) == 0", "self.step % self.steps_per_epoch == 0",
          "tests/evaluation/test_in_training.py"),
    Fault("extraction: what workers end with is lost", EXTRACT,
          "held = [rows[size:]] if len(rows) > size else []", "held = []", "tests/evaluation/test_extraction.py"),
    Fault("lengths: rounded as the processor has it", "vmreid/evaluation/distances.py",
          "return x.sqrt() if x.is_cuda else torch.from_numpy(np.sqrt(x.numpy()))", "return x.sqrt()",
          "tests/evaluation/test_ranking.py::test_lengths_are_rounded_as_ieee_754_asks"),
    Fault("job: a mistake starts again and again", "slurm/requeue.sh",
          "((code == RANK_LOST))", "((code != RANK_LOST))", "tests/slurm/test_scripts.py"),
    *(Fault(*each) for each in LATER),
)
# fmt: on


def run(fault: Fault | None, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """pytest's end over ``tests`` in a copy of the tree that has the fault."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        copy = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, copy / part)
        if fault:
            text = (copy / fault.file).read_text()
            assert text.count(fault.old) == 1, f"{fault.what}: {fault.file} holds {text.count(fault.old)} x {fault.old!r}"
            (copy / fault.file).write_text(text.replace(fault.old, fault.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": name, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def red_node(printed: str) -> str:
    """The failing test as pytest's summary names it."""
    line = next(line for line in printed.splitlines() if line.startswith(("FAILED ", "ERROR ")))
    return line.split(" ", 1)[1].split(" - ")[0]


def main() -> int:
    """Print the table; 1 if a fault survives."""
    begin = time.monotonic()
    clean = run(None, sorted({fault.test for fault in FAULTS}))
    if clean.returncode != GREEN:
        sys.exit(f"{clean.stdout}{clean.stderr}\nthe tests must be green before a fault is tried; mend them first")
    print(f"{time.monotonic() - begin:.0f} s  without a fault: green", file=sys.stderr, flush=True)
    print(HEADING)
    survivors = 0
    for number, fault in enumerate(FAULTS, 1):
        ended = run(fault, [fault.test])
        if ended.returncode not in (GREEN, RED):
            sys.exit(f"{ended.stdout}{ended.stderr}\n{fault.what}: the tests did not run")
        survived = ended.returncode == GREEN
        survivors += survived
        end = "SURVIVED" if survived else f"`{red_node(ended.stdout)}`"
        print(f"| {fault.what} | `{fault.file}` | {end} |", flush=True)
        print(f"{number}/{len(FAULTS)} {time.monotonic() - begin:.0f} s  {fault.what}: {end}", file=sys.stderr, flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
