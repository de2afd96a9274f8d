"""The base classes of what the server answers with."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class WireObject(BaseModel):
    """A part of a response. Fields that a newer server adds are kept as well."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Event(WireObject):
    """Base class of the events of a stream."""

    name: ClassVar[str]
    """The type of the event in the stream."""
