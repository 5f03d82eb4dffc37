"""Under which protocols runs were evaluated. Scores of different ones stand in one table only with a mark and a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmreid.evaluation.ledger import OF_ONE_RESULT

Ledger = Mapping[str, Any]
DIGITS = 12  # of a digest


@dataclass(frozen=True)
class Protocol:
    """What some runs were evaluated under. ``number``: from 1, in the order of the runs; ``ledger``: what agrees among them.

    ``differs``: by key, the first protocol's value and this one's; None: not stated.
    """

    number: int
    runs: list[str]
    ledger: dict[str, Any]
    differs: dict[str, tuple[Any, Any]]


def protocols_of(ledgers: Mapping[str, Ledger]) -> list[Protocol]:
    """The protocols of runs, whose ledgers are given by name."""
    found: list[Protocol] = []
    for name, whole in ledgers.items():
        own = {key: value for key, value in whole.items() if key not in OF_ONE_RESULT}
        same = next((protocol for protocol in found if protocol.ledger == own), None)
        if same:
            same.runs.append(name)
        else:
            found.append(Protocol(len(found) + 1, [name], own, _differences(found[0].ledger, own) if found else {}))
    return found


def number_of(name: str, protocols: Sequence[Protocol]) -> int:
    """Of the protocol that a run was evaluated under."""
    return next(protocol.number for protocol in protocols if name in protocol.runs)


def marked(name: str, number: int, protocols: Sequence[Protocol]) -> str:
    """A line's name, with the number of its protocol where there are several."""
    return f"{name} [protocol {number}]" if len(protocols) > 1 else name


def warnings_of(protocols: Sequence[Protocol]) -> list[str]:
    """A sentence on each protocol that is not the first's."""
    return [
        f"protocol {other.number} ({', '.join(other.runs)}) differs from protocol 1 ({', '.join(protocols[0].runs)}), "
        "so their scores are not comparable: "
        + "; ".join(f"{key} {_short(key, here)} (1: {_short(key, first)})" for key, (first, here) in other.differs.items())
        for other in protocols[1:]
    ]


def _differences(first: Ledger, here: Ledger) -> dict[str, tuple[Any, Any]]:
    keys = [*first, *(key for key in here if key not in first)]
    return {key: (first.get(key), here.get(key)) for key in keys if first.get(key) != here.get(key)}


def _short(key: str, value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return str(value)[:DIGITS] if key.endswith(("_digest", "_sha256")) else str(value)
