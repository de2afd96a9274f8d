"""Settings of an adaptation: bounds of each field, and changes of some fields."""

import pytest
from pydantic import ValidationError

from refine_server.ttt.interface.config import (
    AdaptConfig,
    DocumentAdaptConfig,
    OnDocument,
    OnQuerySpans,
    OnSpans,
    OptimizerConfig,
)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"optimizer": {"steps": 0}}, "optimizer.steps"),
        ({"rollouts": {"positions": 0}}, "rollouts.positions"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate"),
        ({"rollouts": {"reward": "luck"}}, "rollouts.reward"),
        ({"unknown": 1}, "unknown"),
        ({"on": {"kind": "document", "ntp_on": "spans"}}, "on.document.ntp_on"),
        ({"on": {"kind": "spans", "learn_as": "answer"}}, "on.spans.learn_as"),
        ({"on": {"kind": "spans"}, "rollouts": {"tokens": 17}}, "twice rollouts.tokens"),
        ({"rollouts": {"positions": 128, "per_position": 32}}, "at most 512"),
        ({"rollouts": {"positions": 128, "per_position": 4, "demonstration": True}}, "at most 512"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        AdaptConfig.model_validate(change)


def test_a_change_keeps_the_other_fields_of_its_group() -> None:
    config = AdaptConfig(optimizer=OptimizerConfig(steps=3, learning_rate=0.5))
    changed = config.updated(optimizer={"steps": 4}, seed=7)
    assert changed.optimizer == OptimizerConfig(steps=4, learning_rate=0.5)
    assert (changed.seed, config.seed) == (7, 0)
    assert changed.rollouts == config.rollouts
    with pytest.raises(ValueError, match=r"optimizer\.steps"):
        config.updated(optimizer={"steps": 0})


def test_a_change_of_kind_starts_from_the_defaults_of_the_new_kind() -> None:
    spans = AdaptConfig(on=OnSpans(choose="surprise", tokens=16))
    assert spans.updated(on={"tokens": 20}).on == OnSpans(choose="surprise", tokens=20)
    assert spans.updated(on={"kind": "query_spans"}).on == OnQuerySpans()
    assert spans.updated(on=OnDocument()).on == OnDocument()
    assert type(DocumentAdaptConfig().updated(seed=1)) is DocumentAdaptConfig


def test_an_adaptation_without_a_query_has_no_query_spans() -> None:
    with pytest.raises(ValueError, match="query_spans"):
        DocumentAdaptConfig.model_validate({"on": {"kind": "query_spans"}})


def test_nothing_is_held_out_of_evidence() -> None:
    """So that no guard is promised that judges nothing."""
    on = {"kind": "evidence"}
    assert AdaptConfig.model_validate({"on": on}).guard == "answer"
    assert AdaptConfig().updated(on=on).guard == "answer"
    back = AdaptConfig().updated(on=on).updated(on={"kind": "document"})
    assert back.guard == "held_out"
    with pytest.raises(ValidationError, match="guard must be answer or none where"):
        AdaptConfig.model_validate({"on": on, "guard": "held_out"})
