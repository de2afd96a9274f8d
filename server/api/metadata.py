"""Texts by name that a client gives a resource, which are returned as they are."""

from typing import Annotated

from pydantic import Field

Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16, description="Texts by name, which are returned as they are."),
]
