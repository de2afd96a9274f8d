"""A family made by CONTRIBUTING's recipe: a token mixer that is an exponential moving average."""

from support.toy_family.model import MovingAverage
from support.toy_family.state import AverageState

__all__ = ["AverageState", "MovingAverage"]
