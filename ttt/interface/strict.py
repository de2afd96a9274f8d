"""The base of everything that a request can consist of."""

from itertools import islice

from pydantic import BaseModel, ConfigDict, model_validator

MAX_REPORTED = 32
"""Unknown fields of one object that are reported; the rest is ignored. Each costs time and space in
the error, and a body has room for tens of thousands."""


class StrictModel(BaseModel):
    """A model that refuses unknown fields and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_few_unknown_fields(cls, data: object) -> object:
        fields = cls.model_fields
        if not isinstance(data, dict) or len(data) <= len(fields) + MAX_REPORTED:
            return data
        known = {name: data[name] for name in fields if name in data}
        unknown = islice((name for name in data if name not in fields), MAX_REPORTED)
        return known | {name: data[name] for name in unknown}
