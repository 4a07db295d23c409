"""Factors that change as training goes on."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor in [0, 1] as a function of time: epochs in `fit`, steps in Pyro's SVI alone."""

    @abstractmethod
    def __call__(self, t: float) -> float:
        """Return the factor at time t >= 0; at infinity, the end of every schedule, 1."""


@dataclass(frozen=True)
class Constant(Schedule):
    """1, always."""

    def __call__(self, t: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """min(1, t / length): a warm-up (Sonderby et al. 2016).

    Attributes:
        length: until it is 1, > 0.

    Example:
        >>> Linear(10.0)(2.5)
        0.25
    """

    length: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a length that is not positive."""
        _check_positive(length=self.length)

    def __call__(self, t: float) -> float:
        """Return min(1, t / length)."""
        return min(1.0, t / self.length)


@dataclass(frozen=True)
class Cyclic(Schedule):
    """min(1, (t mod length) / (rise length)): warm-ups one after another (Fu et al. 2019).

    Attributes:
        length: of one cycle, > 0.
        rise: share of a cycle that rises, in (0, 1].
    """

    length: float = 10.0
    rise: float = 0.5

    def __post_init__(self) -> None:
        """Refuse numbers out of their range."""
        _check_positive(length=self.length, rise=self.rise)
        if self.rise > 1:
            raise ValueError(f"expected rise in (0, 1]; got {self.rise!r}")

    def __call__(self, t: float) -> float:
        """Return the factor within the cycle; at infinity, that at its end."""
        if math.isinf(t):
            return 1.0
        return min(1.0, (t % self.length) / (self.rise * self.length))


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """1 / (1 + exp(-steepness (t / length - 1/2))): a logistic warm-up (Bowman et al. 2016).

    It nears 1 and is never there.

    Attributes:
        length: twice the time at which it is 1/2, > 0.
        steepness: > 0; by default it is 0.007 at 0 and 0.993 at length.
    """

    length: float = 10.0
    steepness: float = 10.0

    def __post_init__(self) -> None:
        """Refuse numbers that are not positive."""
        _check_positive(length=self.length, steepness=self.steepness)

    def __call__(self, t: float) -> float:
        """Return the logistic function."""
        return 0.5 * (1 + math.tanh(0.5 * self.steepness * (t / self.length - 0.5)))


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} to be positive and finite; got {value!r}")
