"""MLflow: one run a training, opened again by evaluation and resume."""

from vmreid.tracking.mlflow_run import MlflowRun

__all__ = ["MlflowRun"]
