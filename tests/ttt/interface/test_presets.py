"""Presets: the values of the paper's setting, and the fields that override a preset."""

import pytest

from refine_server.ttt.interface.config import (
    AdaptConfig,
    DocumentAdaptConfig,
    FastWeightConfig,
    LossConfig,
    OnDocument,
    OnPrompt,
    OptimizerConfig,
    RolloutConfig,
)
from refine_server.ttt.interface.presets import PRESETS, parse_adapt


def test_the_papers_setting() -> None:
    assert AdaptConfig(preset="paper") == AdaptConfig(
        objective="refine",
        on=OnPrompt(),
        rollouts=RolloutConfig(
            positions=8,
            per_position=1,
            tokens=5,
            temperature=1.0,
            select="entropy",
            reward="exact",
            demonstration=False,
        ),
        loss=LossConfig(ntp=1.0, grpo=0.4, kl=0.0, attention=0.0),
        optimizer=OptimizerConfig(
            steps=1, learning_rate=1e-6, weight_decay=0.01, max_grad_norm=1.0
        ),
        fast_weights=FastWeightConfig(targets="all"),
        guard="none",
    )


@pytest.mark.parametrize(("preset", "steps"), [("fast", 2), ("balanced", 8)])
def test_fast_and_balanced_adapt_queries_on_the_evidence(preset: str, steps: int) -> None:
    config = AdaptConfig.model_validate({"preset": preset})
    assert (config.on.kind, config.fast_weights.targets) == ("evidence", "queries")
    assert (config.optimizer.steps, config.optimizer.learning_rate) == (steps, 3e-4)


def test_thorough_makes_twice_the_steps_and_rollouts_of_the_default() -> None:
    config, default = AdaptConfig.model_validate({"preset": "thorough"}), AdaptConfig()
    assert config == default.updated(
        optimizer={"steps": 2 * default.optimizer.steps},
        rollouts={"per_position": 2 * default.rollouts.per_position},
    )


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("fast", {"preset": "fast"}),
        ('{"preset": "paper", "seed": 3}', {"preset": "paper", "seed": 3}),
    ],
)
def test_an_option_is_a_preset_or_json(text: str, fields: dict[str, object]) -> None:
    assert parse_adapt(text) == fields


@pytest.mark.parametrize("text", ["quick", "[]", '"fast"', "{", ""])
def test_an_option_that_is_neither_is_refused_with_the_presets(text: str) -> None:
    with pytest.raises(ValueError, match=r"a preset \(fast, balanced, thorough, paper\)"):
        parse_adapt(text)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_that_result_do_not_name_the_preset(preset: str) -> None:
    config = AdaptConfig.model_validate({"preset": preset})
    assert config.preset is None
    assert AdaptConfig.model_validate(config.model_dump()) == config
    assert AdaptConfig.model_validate_json(config.model_dump_json()) == config


def test_a_field_overrides_the_presets_and_keeps_the_rest_of_its_group() -> None:
    paper = AdaptConfig(preset="paper")
    body = {"preset": "paper", "optimizer": {"steps": 3}, "on": {"kind": "document"}, "seed": 5}
    config = AdaptConfig.model_validate(body)
    assert config == paper.updated(optimizer={"steps": 3}, on=OnDocument(), seed=5)
    assert config.optimizer.learning_rate == 1e-6
    assert AdaptConfig(preset="paper", optimizer=OptimizerConfig(steps=3)).optimizer == (
        config.optimizer
    )


def test_evidence_overrides_the_weights_that_a_preset_adapts() -> None:
    config = AdaptConfig.model_validate({"preset": "paper", "on": {"kind": "evidence"}})
    assert config.fast_weights.targets == "queries"
    assert config.optimizer.weight_decay == 0.01


@pytest.mark.parametrize("preset", ["thesis", 1, ["paper"]])
def test_an_unknown_preset_is_refused_by_name(preset: object) -> None:
    with pytest.raises(ValueError, match="preset"):
        AdaptConfig.model_validate({"preset": preset})
    assert AdaptConfig.model_validate({"preset": None}) == AdaptConfig()


def test_a_field_beside_a_preset_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.steps"):
        AdaptConfig.model_validate({"preset": "paper", "optimizer": {"steps": 0}})


def test_without_a_query_the_papers_setting_needs_another_text_to_adapt_on() -> None:
    with pytest.raises(ValueError, match="'prompt'"):
        DocumentAdaptConfig.model_validate({"preset": "paper"})
    body = {"preset": "paper", "on": {"kind": "document"}}
    assert DocumentAdaptConfig.model_validate(body).fast_weights.targets == "all"
