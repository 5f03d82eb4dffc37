"""Backbones, the re-ID head, the registry that builds them by name, and the loading of published weights."""

from vmreid.models.registry import BACKBONES, build_backbone, scans_maps
from vmreid.models.reid import ReIDModel

__all__ = ["BACKBONES", "ReIDModel", "build_backbone", "scans_maps"]
