"""fla's kernels, put together with a cut reverse scan, equal the definition with all gradients.

This holds flash-linear-attention's internals, which its public interface does not promise: another
version of it has to pass here.
"""

import pytest

from support.fla_interpreter import FlaCase, errors

TOLERANCE = 2e-6
"""Relative to the largest value; all sums are of fp32, whose numbers are 1.2e-7 apart."""

CASES = {
    "one token": FlaCase(T=1, before=[[0]]),
    "a few tokens": FlaCase(T=5, before=[[1, 4], [2, 2]], B=2, heads=2),
    "one chunk": FlaCase(T=64, before=[[63, 64]]),
    "behind whole chunks": FlaCase(T=128, before=[[128, 64]], heads=2),
    "one token more": FlaCase(T=65, before=[[64]]),
    "states at odd places": FlaCase(T=200, before=[[70, 5, 199, 71]], K=32),
    "rows that branch elsewhere": FlaCase(T=130, before=[[64, 129], [3, 100]], B=2, V=32),
    "heads that share keys": FlaCase(T=131, before=[[64, 130]], key_heads=2, heads=4, K=32, V=32),
    "nothing decays": FlaCase(T=131, before=[[64, 63, 130]], decays=False),
    "keys shared, nothing decays": FlaCase(T=70, before=[[65]], heads=2, decays=False),
    "from no state": FlaCase(T=66, before=[[64]], has_state=False),
    "more rows than a grid has": FlaCase(
        T=66, before=[[64], [65], [1]], B=3, heads=2, grid_limit=5
    ),
    "computed again for the gradient": FlaCase(T=130, before=[[64, 129]], heads=2, recomputed=True),
    "twice through the graph": FlaCase(T=70, before=[[65]], calls=2),
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    return dict(zip(CASES, errors(list(CASES.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_outputs_states_and_gradients(name: str, found: dict[str, dict[str, float]]) -> None:
    expected = {"o", "before", "final", "gradient of q", "gradient of v", "gradient of k"}
    assert expected <= set(found[name])
    assert all(error <= TOLERANCE for error in found[name].values()), found[name]
