"""The OpenAPI document, with what FastAPI does not find by itself."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from refine_server.server.http.respond import SCHEMAS


def add_schemas(app: FastAPI, models: Iterable[type[BaseModel]]) -> None:
    """Let the app's OpenAPI document describe models that only events of streams have.

    Args:
        app: its routes refer to the models by their names.
        models: the data of events.
    """
    wanted = [(model, "serialization") for model in models]
    _, found = models_json_schema(wanted, ref_template=SCHEMAS + "{model}")  # type: ignore[arg-type]
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        for name, schema in found["$defs"].items():
            document["components"]["schemas"].setdefault(name, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
