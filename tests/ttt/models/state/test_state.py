"""Operations of a state: repeat, stack, split and truncate."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.ttt.models import CausalLM, State
from refine_server.ttt.models.state import STORABLE

Tokens = Callable[..., Tensor]


def tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over all tensors of a state, layer by layer, field by field."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def assert_equal(one: State, other: State) -> None:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


def states(model: CausalLM, tokens: Tokens) -> list[State]:
    """Make states after 40, 7 and 40 tokens."""
    return [model(tokens(1, length, seed=s)).state for s, length in enumerate((40, 7, 40))]


def test_stacked_states_are_split_unchanged(model: CausalLM, tokens: Tokens) -> None:
    alone = states(model, tokens)
    if not model.stacks_states:
        with pytest.raises(TypeError, match="cannot be stacked|cannot be split"):
            State.stack(alone).split()
        return
    together = State.stack(alone)
    assert together.position.tolist() == [40, 7, 40]
    assert together.nbytes == sum(state.nbytes for state in alone)
    for state, again in zip(alone, together.split(), strict=True):
        assert_equal(state, again)


def test_a_batch_is_split_by_rows_after_reading(model: CausalLM, tokens: Tokens) -> None:
    ids, after = tokens(3, 40), tokens(3, 5, seed=2)
    together = model(ids).state
    if not model.stacks_states:
        with pytest.raises(TypeError, match="cannot be split"):
            together.split()
        return
    hidden = model(after, together).hidden
    for row, state in enumerate(together.split()):
        alone = model(after[row : row + 1], state).hidden
        torch.testing.assert_close(alone[0], hidden[row])


def test_a_repeated_state_goes_on_in_every_row(model: CausalLM, tokens: Tokens) -> None:
    after = tokens(3, 5, seed=2)
    state = model(tokens(1, 40)).state
    hidden = model(after, state.repeat(3)).hidden
    for row in range(3):
        alone = model(after[row : row + 1], state).hidden
        torch.testing.assert_close(hidden[row], alone[0])


def test_states_with_separate_tokens_can_be_truncated(model: CausalLM, tokens: Tokens) -> None:
    before = model(tokens(1, 20)).state
    state = model(tokens(1, 6, seed=2), before).state
    if not model.truncates_states:
        with pytest.raises(TypeError, match="cannot be truncated"):
            state.truncate(2)
        return
    expected = model(tokens(1, 6, seed=2)[:, :4], before).state
    shorter = state.truncate(2)
    assert shorter.position.tolist() == [24]
    after = tokens(1, 3, seed=3)
    torch.testing.assert_close(model(after, shorter).hidden, model(after, expected).hidden)
    with pytest.raises(ValueError, match="fewer than 7"):
        state.truncate(7)


def test_states_of_prefixes_are_views_where_the_state_holds_all_tokens(
    model: CausalLM, tokens: Tokens
) -> None:
    ids, lengths = tokens(1, 26), torch.tensor([26, 1, 20, 23])
    whole = model(ids).state
    if not model.views_prefixes:
        other = next(layer for layer in whole.layers if not layer.views_prefixes)
        with pytest.raises(TypeError, match="prefixes"):
            other.prefixes(lengths)
        return
    prefixes = [layer.prefixes(lengths) for layer in whole.layers]
    for layer, prefix in zip(whole.layers, prefixes, strict=True):
        assert prefix.prefix_k.data_ptr() == layer.prefix_k.data_ptr()
    in_pieces = model(ids[:, 20:], model(ids[:, :20]).state).state  # the state has a tail
    joined = [layer.prefixes(lengths) for layer in in_pieces.layers]
    after = tokens(4, 5, seed=2)
    for layers in (prefixes, joined):
        hidden = model(after, State(tuple(layers), lengths)).hidden
        for row, length in enumerate(lengths.tolist()):
            alone = model(after[row : row + 1], model(ids[:, :length]).state).hidden
            torch.testing.assert_close(hidden[row], alone[0])


def test_a_model_names_the_classes_of_its_states(model: CausalLM, tokens: Tokens) -> None:
    """Capabilities and storage are those of the classes, so none may be missing."""
    layers = model(tokens(1, 8)).state.layers
    assert {type(layer) for layer in layers} == model.state_classes
    assert all(STORABLE[kind.__name__] is kind for kind in model.state_classes)
