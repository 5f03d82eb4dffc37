"""Parameter groups, optimizers and the learning-rate schedule."""

from vmreid.optim.groups import build_optimizer, parameter_groups
from vmreid.optim.schedule import learning_rate

__all__ = ["build_optimizer", "learning_rate", "parameter_groups"]
