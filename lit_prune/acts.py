"""Acts: what a schedule has done to a training, each at its time."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

from lit_prune.timing import Time

__all__ = [
    "Act",
    "Due",
    "Grow",
    "HoldRate",
    "Pick",
    "Prune",
    "PrunePicked",
    "Push",
    "Remember",
    "RewindRates",
    "RewindWeights",
    "Rewire",
    "Training",
]

Grow = Literal["random", "gradient"]


class Training(Protocol):
    """What can be done to a training under way; the mask manager does it."""

    def prune(self, keep: int) -> None:
        """Prune down to ``keep`` connections, counted as the target counts them."""

    def remember(self, weights: bool) -> None:
        """Take a snapshot of the learning-rate schedule, and with ``weights`` of all else too."""

    def rewind_weights(self) -> None:
        """Put back weights, buffers, optimizer states and schedule as they were remembered."""

    def rewind_rates(self) -> None:
        """Put back the learning-rate schedule alone."""

    def hold_rate(self, rate: float | None) -> None:
        """From now on train with this rate; None is the last that was trained with."""

    def rewire(self, share: float, by: Grow) -> None:
        """Replace that share of every layer's connections by as many others."""

    def pick(self, keep: int) -> None:
        """Choose what a prune down to ``keep`` would remove, and remove nothing yet."""

    def push(self, strength: float, everywhere: bool) -> None:
        """From now on pull what is picked, or every connection, to zero by this L2 penalty."""

    def prune_picked(self) -> None:
        """Remove what was picked."""


class Act(ABC):
    """Something done to a training at a moment of it.

    Attributes:
        opens_level: whether a new level of sparsity begins with it.
        takes_gradients: whether it happens inside the next optimizer step, where gradients are.
        prunes: whether it asks the target for masks.
    """

    opens_level: ClassVar[bool] = False
    takes_gradients: ClassVar[bool] = False
    prunes: ClassVar[bool] = False

    @abstractmethod
    def do(self, training: Training) -> None:
        """Do it."""


class Due(NamedTuple):
    """An act and its time."""

    time: Time
    act: Act


@dataclass(frozen=True)
class Prune(Act):
    """Prunes down to ``keep`` connections."""

    keep: int
    opens_level = True
    prunes = True

    def do(self, training: Training) -> None:
        """Prune."""
        training.prune(self.keep)


@dataclass(frozen=True)
class Remember(Act):
    """Takes the snapshot that a later rewind puts back."""

    weights: bool = True

    def do(self, training: Training) -> None:
        """Take it."""
        training.remember(self.weights)


@dataclass(frozen=True)
class RewindWeights(Act):
    """Puts back weights, buffers, optimizer states and learning-rate schedule."""

    def do(self, training: Training) -> None:
        """Rewind."""
        training.rewind_weights()


@dataclass(frozen=True)
class RewindRates(Act):
    """Puts back the learning-rate schedule alone."""

    def do(self, training: Training) -> None:
        """Rewind."""
        training.rewind_rates()


@dataclass(frozen=True)
class HoldRate(Act):
    """Trains on with one learning rate: the given one, or the last."""

    rate: float | None = None

    def do(self, training: Training) -> None:
        """Hold it."""
        training.hold_rate(self.rate)


@dataclass(frozen=True)
class Rewire(Act):
    """Replaces a share of every layer's connections by as many others."""

    share: float
    by: Grow
    takes_gradients = True

    def do(self, training: Training) -> None:
        """Drop and grow."""
        training.rewire(self.share, self.by)


@dataclass(frozen=True)
class Pick(Act):
    """Chooses what to remove later."""

    keep: int
    prunes = True

    def do(self, training: Training) -> None:
        """Choose."""
        training.pick(self.keep)


@dataclass(frozen=True)
class Push(Act):
    """Sets the L2 penalty on what is picked, or on every connection."""

    strength: float
    everywhere: bool = False

    def do(self, training: Training) -> None:
        """Set it."""
        training.push(self.strength, self.everywhere)


@dataclass(frozen=True)
class PrunePicked(Act):
    """Removes what was picked."""

    opens_level = True

    def do(self, training: Training) -> None:
        """Remove it."""
        training.prune_picked()
