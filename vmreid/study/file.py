"""The study's YAML file, typed and checked, and the runs that it stands for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from vmreid.errors import UserError
from vmreid.recipes import Recipe, load_recipe
from vmreid.recipes.load import parse_yaml, suggestion
from vmreid.recipes.schema import Positive, Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Entry(Section):
    """What one name of ``runs`` stands for; what is left out is the study's."""

    backbone: str
    recipe: str | None = None
    data: str | None = None
    deepspeed_config: str | None = None
    seeds: Seeds | None = None
    set: tuple[str, ...] = ()  # after the study's own


class Study(Section):
    """All runs, each with every seed, under one budget unless an entry says otherwise."""

    recipe: str = "note"
    data: str | None = None
    deepspeed_config: str | None = None
    ranks: Positive = 1  # processes of a run, on this machine
    seeds: Seeds = (0,)
    set: tuple[str, ...] = ()  # key=value, as --set of launcher.train
    runs: Annotated[dict[str, Entry], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Study:
        for name in self.runs:
            if not NAME.fullmatch(name):
                raise ValueError(f"runs.{name}: a name has letters, digits and . _ + - only, since folders are called so")
        return self


@dataclass(frozen=True)
class Run:
    """One training of a study: the words for launcher.train, but for ``--out``."""

    name: str
    seed: int
    recipe: str
    flags: dict[str, tuple[str, str]]  # as ``load_recipe`` takes them
    assignments: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Below the study's."""
        return f"{self.name}-{self.seed}"

    def words(self) -> list[str]:
        """For the command line of launcher.train."""
        flags = [word for flag, text in self.flags.values() for word in (flag, text)]
        return ["--recipe", self.recipe, *flags, *(word for each in self.assignments for word in ("--set", each))]

    def resolved(self) -> Recipe:
        """The recipe. Raises UserError."""
        return load_recipe(self.recipe, self.flags, self.assignments)


def read_study(path: Path) -> Study:
    """Raises UserError with value, rule and way out."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a study's YAML, such as the one in README.md")
    try:
        values = parse_yaml(path.read_text())
        return Study.model_validate_json(json.dumps(values, default=str))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())}); mend the file") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first fault on one line."""
    fault = error.errors()[0]
    key, kind = ".".join(map(str, fault["loc"])), fault["type"]
    rule = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "extra_forbidden":
        known = list(Entry.model_fields if fault["loc"][0] == "runs" else Study.model_fields)
        return f"unknown key {key}; known are {', '.join(known)}{suggestion(key.rpartition('.')[2], known)}"
    if kind == "value_error":
        return rule
    if kind == "missing":
        return f"{key} is missing"
    given = f"{key} = {json.dumps(fault['input'], default=str)}" if key else "the file"
    return f"{given}: must be {rule}"


def runs_of(study: Study) -> list[Run]:
    """All runs of the first seed, then those of the second, and so on, so that each name is there early."""
    most = max(len(entry.seeds or study.seeds) for entry in study.runs.values())
    runs = []
    for place in range(most):
        for name, entry in study.runs.items():
            seeds = entry.seeds or study.seeds
            if place < len(seeds):
                runs.append(_run(study, name, entry, seeds[place]))
    return runs


def _run(study: Study, name: str, entry: Entry, seed: int) -> Run:
    given = {
        "model.backbone": ("--backbone", entry.backbone),
        "data.shards": ("--data", entry.data or study.data),
        "deepspeed_config": ("--deepspeed_config", entry.deepspeed_config or study.deepspeed_config),
    }
    flags = {key: (flag, text) for key, (flag, text) in given.items() if text is not None}
    assignments = (f"seed={seed}", *study.set, *entry.set)
    return Run(name, seed, entry.recipe or study.recipe, flags, assignments)
