"""What an owner writes on an adaptation: its name, and whether it is pinned."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_NAME = 200

Name = Annotated[str, Field(max_length=MAX_NAME)]


class Label(BaseModel):
    """The name of an adaptation, and whether it is kept until it is deleted."""

    model_config = ConfigDict(frozen=True)

    name: Name = ""
    """Empty if it has none."""
    pinned: bool = False
