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


class MemoryBudget:
    """A bound on the bytes of documents in memory; the least recently used are evicted first.

    Args:
        max_bytes: the most that all documents together may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    @staticmethod
    def used(adaptations: Collection[Adaptation]) -> int:
        """Return the bytes of all documents that are in memory."""
        return sum(a.nbytes for a in adaptations if a.document is not None)

    def fits(self, adaptations: Collection[Adaptation], nbytes: int) -> bool:
        """Return whether a document of ``nbytes`` fits beside those in memory."""
        return self.used(adaptations) + nbytes <= self.max_bytes

    def evict(self, adaptations: Collection[Adaptation], nbytes: int = 0) -> list[Adaptation]:
        """Drop unused documents until ``nbytes`` more fit; return the adaptations that lost theirs.

        Fewer are dropped than needed when the others are in use.
        """
        # A document that is being stored is not in the store yet: dropped now, it would be lost.
        idle = [a for a in adaptations if a.document and not a.users and a.status.is_final]
        evicted = []
        for adaptation in sorted(idle, key=lambda a: a.last_used):
            if self.fits(adaptations, nbytes):
                break
            adaptation.document = None
            evicted.append(adaptation)
        return evicted
