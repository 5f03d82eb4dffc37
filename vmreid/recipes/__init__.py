"""Recipes: what to train and how, one YAML file each, typed and checked when read."""

from vmreid.recipes.load import dump_recipe, find_recipe, load_recipe, recipe_names, value_origins
from vmreid.recipes.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "find_recipe", "load_recipe", "recipe_names", "value_origins"]
