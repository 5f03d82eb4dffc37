"""A checkpoint for another number of ranks: DeepSpeed's universal form, made once beside it and kept while it is."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from argparse import Namespace
from pathlib import Path

from vmreid.engine.start import import_deepspeed
from vmreid.errors import UserError
from vmreid.run_folder import WEIGHTS

SUFFIX = ".universal"


def universal_form(checkpoint: Path) -> Path:
    """Rank 0. The folder of the universal form, made where it is not there yet. Raises UserError where that fails."""
    form = checkpoint.with_name(checkpoint.name + SUFFIX)
    if form.is_dir():
        return form
    import_deepspeed()
    from deepspeed.checkpoint.ds_to_universal import main

    partial = form.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    words = Namespace(
        input_folder=str(checkpoint), output_folder=str(partial), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(words)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{checkpoint}: DeepSpeed cannot convert it for another number of ranks ({reason}); resume on as many as wrote it, "
            f"or begin a new run from its weights: --set model.weights={checkpoint / WEIGHTS}"
        ) from error
    finally:
        (checkpoint.parent / "latest_universal").unlink(missing_ok=True)
    partial.replace(form)
    return form
