"""Read a recipe, lay command-line values over it, check it, and say on one line what is wrong and where it came from."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vmreid.errors import UserError
from vmreid.recipes.schema import ONE_SET, SEVERAL_SETS, Recipe, WeightedShards

FOLDER = Path(__file__).parent


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as text and ``2024-01-01`` as a date; people mean a number and a name."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def recipe_names() -> list[str]:
    """Names of the recipes that come with vmreid."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, flags: Mapping[str, Any], assignments: Sequence[str]) -> Recipe:
    """Read recipe ``name`` (one of ``recipe_names()`` or a YAML file) and override it.

    ``flags`` maps dotted keys to text given by a flag of its own, such as ``{"optim.lr": ("--lr", "1e-4")}``;
    ``assignments`` are the ``key=value`` texts of ``--set``, laid over last. A relative path in a recipe file is read
    from that file's folder. Raises UserError with value, rule and origin.
    """
    path = find_recipe(name)
    values = _read(path)
    _resolve_paths(values, path.parent)
    origins: dict[str, str] = {}
    for key, (flag, text) in flags.items():
        _assign(values, key, text, flag, origins)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set {assignment}: needs the form key=value, such as --set optim.lr=1e-4")
        _assign(values, key.strip(), text, "--set", origins)
    try:
        return Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise UserError(_explain(error, path, origins)) from None


def value_origins(name: str, flags: Mapping[str, Any], assignments: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Where ``load_recipe`` has the value of each dotted key from: a flag, ``--set``, the recipe's file, or the definition."""
    values = _read(find_recipe(name))
    given = {key: f"{flag} {text}" for key, (flag, text) in flags.items()}
    given |= {key.strip(): f"--set {key}={text}" for key, _, text in (words.partition("=") for words in assignments)}

    def origin(key: str) -> str:
        for word, text in reversed(given.items()):
            if key == word or key.startswith(f"{word}."):
                return text
        section: Any = values
        for part in key.split("."):
            if not isinstance(section, dict) or part not in section:
                return "default"
            section = section[part]
        return find_recipe(name).name

    return {key: origin(key) for key in keys}


def dump_recipe(recipe: Recipe) -> str:
    """YAML text that ``load_recipe`` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_yaml(text: str) -> Any:
    """A YAML value as the recipes read it."""
    return yaml.load(text, Loader=_Loader)


def find_recipe(name: str) -> Path:
    """The YAML file of a recipe given by name or path. Raises UserError where there is none."""
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    raise UserError(f"recipe {name}: neither a file nor one of {', '.join(recipe_names())}{suggestion(name, recipe_names())}")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, such as in {FOLDER / 'note.yaml'}")
    return values


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    data = values.get("data")
    shards = data.get("shards") if isinstance(data, dict) else None
    for section, key in (
        (values, "deepspeed_config"),
        (data, "shards"),
        *((each, "shards") for each in (shards if isinstance(shards, list) else [])),
        (values.get("model"), "weights"),
    ):
        if isinstance(section, dict) and isinstance(section.get(key), str) and (folder / section[key]).exists():
            section[key] = str((folder / section[key]).resolve())


def _assign(values: dict[str, Any], key: str, text: str, flag: str, origins: dict[str, str]) -> None:
    *parents, leaf = key.split(".")
    section: Any = values
    schema: type[BaseModel] | None = Recipe
    for depth, parent in enumerate([*parents, leaf]):
        known = list(schema.model_fields) if schema else []
        if parent not in known:
            raise UserError(_unknown(".".join([*parents, leaf][: depth + 1]), known, f"{flag} {key}"))
        assert schema is not None
        if parent is leaf and depth == len(parents):
            break
        annotation = schema.model_fields[parent].annotation
        schema = _section(annotation)
        if schema is not annotation and section.get(parent) is None:
            section[parent] = {}
        section = section.setdefault(parent, {})
        if schema and not isinstance(section, dict):
            raise UserError(f"{flag} {key}: {parent} = {section} is set already, and not to a mapping; leave out one of the two")
    assert schema is not None
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = text
    several = isinstance(value, list) and key == "data.shards"
    section[leaf] = text if _takes_text(schema.model_fields[leaf].annotation) and value is not None and not several else value
    origins[key] = f"--set {key}={text}" if flag == "--set" else f"{flag} {text}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be null; None where it holds a value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _takes_text(annotation: Any) -> bool:
    return annotation is str or any(map(_takes_text, get_args(annotation)))


def _explain(error: ValidationError, path: Path, origins: Mapping[str, str]) -> str:
    faults = error.errors()  # a misspelt key is a missing one too: tell of the former
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    parts = [str(part) for part in first["loc"] if part not in (ONE_SET, SEVERAL_SETS)]
    key = ".".join(parts)
    origin = next((text for name, text in origins.items() if key == name or key.startswith(name + ".")), None)
    if first["type"] == "extra_forbidden":
        section: Any = WeightedShards if parts[:2] == ["data", "shards"] else Recipe
        for part in parts[:-1] if section is Recipe else ():
            section = _section(section.model_fields[part].annotation)
        return _unknown(key, list(section.model_fields), origin or str(path))
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error":
        involved = [text for name, text in origins.items() if name in rule]
        return f"{' '.join(involved) or path}: {rule}"
    if first["type"] == "missing" and not isinstance(first["loc"][-1], int):
        return f"{origin or path}: {key} is missing; the recipe {FOLDER / 'note.yaml'} shows every key"
    value, where = first["input"], key
    if first["type"] == "missing":
        where, rule = ".".join(parts[:-1]), "a list with more values"
    elif first["type"] == "too_long":
        rule = f"a list of {first['ctx']['max_length']} values"
    elif rule == "a valid array":
        rule = "a list"
    elif rule == "an object":
        rule = "a section with keys of its own"
    given = origin or f"{path}: {where} = {json.dumps(value)}"
    return f"{given}: {where} must be {rule}"


def _unknown(key: str, known: Sequence[str], where: str) -> str:
    leaf = key.rpartition(".")[2]
    if leaf in ("gradient_clipping", "gradient_accumulation_steps", "bf16", "zero_optimization", "torch_autocast"):
        return f"{where}: {key} belongs to the DeepSpeed JSON (see ds_configs/); write it there and name it by --deepspeed_config"
    section = key.rpartition(".")[0]
    inside = f"{section} has" if section else "the sections are"
    return f"{where}: unknown key {key}; {inside} {', '.join(known) or 'no keys below'}{suggestion(leaf, known)}"


def suggestion(name: str, known: Sequence[str]) -> str:
    """``"; did you mean X?"`` for the nearest of ``known``, or nothing."""
    near = difflib.get_close_matches(name.upper(), [item.upper() for item in known], n=1, cutoff=0.5)
    return f"; did you mean {next(item for item in known if item.upper() == near[0])}?" if near else ""
