"""What is wrong with a listed set, and what is odd about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from shards.sources.files import examples
from shards.sources.picture import Picture, Published, Splits
from vmreid.errors import UserError

LARGEST_CAMERA = 2**31 - 1


def check(splits: Splits, where: str) -> None:
    """Raise UserError for an empty split, an identity that both trains and tests, or a camera beyond any."""
    for name, pictures in splits.items():
        if not pictures:
            raise UserError(f"{where}: no pictures for {name}; check the folder and its pictures' suffixes")
        beyond = [picture.name for picture in pictures if picture.camid > LARGEST_CAMERA]
        if beyond:
            raise UserError(f"{where}: {len(beyond)} camera numbers beyond {LARGEST_CAMERA}: {examples(beyond)}; rename them")
    both = _pids(splits["train"]) & (_pids(splits["query"]) | _pids(splits["gallery"]))
    if both:
        names = [picture.name for picture in splits["train"] if picture.pid in both]
        raise UserError(f"{where}: {len(both)} identities both train and test, such as that of {names[0]}; keep each in one")


def unlike_published(splits: Splits, published: Published) -> Iterator[str]:
    """One line for each split whose counts are not those of its publishers."""
    for split, counts in published.items():
        pictures = splits[split]
        found = (len(_pids(pictures)), len(pictures), len({picture.camid for picture in pictures}))
        known = (counts.identities, counts.pictures, counts.cameras)
        if any(accepted and number not in accepted for number, accepted in zip(found, known, strict=True)):
            yield f"{split}: {_counted(*((number,) for number in found))}; published: {_counted(*known)}"


def _counted(*numbers: tuple[int, ...]) -> str:
    named = zip(numbers, ("identities", "pictures", "cameras"), strict=True)
    return ", ".join(f"{' or '.join(f'{number:,}' for number in accepted)} {what}" for accepted, what in named if accepted)


def hopeless_queries(splits: Splits) -> Iterator[str]:
    """A line where queries have no picture of their identity by another camera in the gallery, so cannot be answered."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for picture in splits["gallery"]:
        cameras[picture.pid].add(picture.camid)
    hopeless = [item.name for item in splits["query"] if not cameras.get(item.pid, set()) - {item.camid}]
    if hopeless:
        yield (
            f"{len(hopeless):,} of {len(splits['query']):,} queries have no positive by another camera in the gallery, so they "
            f"do not count: {examples(hopeless)}"
        )


def _pids(pictures: Iterable[Picture]) -> set[int]:
    return {picture.pid for picture in pictures}
