"""Pages of lists, by the id of the last resource that a client has seen."""

from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar

from fastapi import Query

from refine_server.server.http.errors import ApiError


class _Resource(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Resource)

After = Annotated[
    str | None,
    Query(max_length=128, description="The id of the last resource of the page before."),
]


def page(resources: Sequence[R], after: str | None, limit: int) -> tuple[list[R], bool]:
    """Return a page of resources, and whether more follow.

    Args:
        resources: all of them, in the order of the list.
        after: the page begins behind the resource with this id; None: at the first.
        limit: the most resources of a page.

    Raises:
        ApiError: there is no resource with the id ``after``.
    """
    first = 0
    if after is not None:
        ids = [resource.id for resource in resources]
        if after not in ids:
            message = f"after: there is nothing with the id {after!r} in this list"
            raise ApiError(404, message, "not_found", param="after")
        first = ids.index(after) + 1
    return list(resources[first : first + limit]), first + limit < len(resources)
