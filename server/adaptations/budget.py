"""How many adaptations an owner may keep, and which documents stay in memory."""

from collections.abc import Collection

from refine_server.server.adaptations.adaptation import Adaptation
from refine_server.server.http.errors import ApiError

RETRY_SECONDS = 60


def require_place(
    own: Collection[Adaptation],
    everybodys: Collection[Adaptation],
    *,
    max_count: int,
    max_bytes: int | None,
) -> None:
    """Raise 429 if an owner cannot keep one more adaptation.

    Args:
        own: the adaptations of the owner.
        everybodys: those of all owners.
        max_count: the most that the owner may keep.
        max_bytes: the most that they may take together; None for any number.
    """
    if len(own) >= max_count:
        message = f"This API key keeps {max_count} adaptations, the maximum. Delete one first."
        raise ApiError(
            429,
            message,
            "too_many_adaptations",
            retry_after=RETRY_SECONDS,
            option="--max-adaptations",
        )
    if max_bytes is None:
        return
    # The size of one that still runs is not known: it counts as the largest one so far.
    largest = max((a.nbytes for a in everybodys), default=0)
    if sum(a.nbytes if a.status.is_final else largest for a in own) + largest > max_bytes:
        message = (
            f"The quota adaptation_bytes ({max_bytes}) of this API key is used up. Delete "
            "adaptations first."
        )
        raise ApiError(429, message, "quota_adaptation_bytes", retry_after=RETRY_SECONDS)


def used_bytes(adaptations: Collection[Adaptation]) -> int:
    """Return the bytes of all adaptations that are in memory."""
    return sum(a.nbytes for a in adaptations if a.document is not None)


def stored_bytes(adaptations: Collection[Adaptation]) -> int:
    """Return the bytes of all adaptations that are in the store."""
    return sum(a.stored_bytes for a in adaptations if a.stored)


def next_to_delete(
    adaptations: Collection[Adaptation], room: int, spared: Collection[Adaptation]
) -> Adaptation | None:
    """Return the next adaptation to delete from the store, so that the others fit.

    It is the least recently used one. None if they fit, or if the others are in use or pinned.

    Args:
        adaptations: of all owners.
        room: the most bytes that they may take in the store.
        spared: those that another server uses.
    """
    if stored_bytes(adaptations) <= room:
        return None
    idle = (a for a in adaptations if a.stored and not (a.users or a.is_pinned))
    idle = (a for a in idle if a.status.is_final)
    return min((a for a in idle if a not in spared), key=lambda a: a.last_used, default=None)


def evict(adaptations: Collection[Adaptation], room: int) -> list[Adaptation]:
    """Drop unused adaptations from memory, the least recently used first, until they fit.

    Fewer are dropped than needed when the others are in use.

    Args:
        adaptations: of all owners.
        room: the most bytes that they may take.

    Returns:
        Those that were dropped.
    """
    # One that is being stored is not in the store yet: dropped now, it would be lost.
    idle = [a for a in adaptations if a.document and not a.users and a.status.is_final]
    idle = [a for a in idle if a.stored or not a.is_pinned]  # it would be lost
    evicted = []
    for adaptation in sorted(idle, key=lambda a: a.last_used):
        if used_bytes(adaptations) <= room:
            break
        adaptation.document = None
        evicted.append(adaptation)
    return evicted
