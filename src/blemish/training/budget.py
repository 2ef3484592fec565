"""What a training may take: minutes of a machine, or arithmetic, the same on every machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blemish.errors import ConfigError

TERA = 1e12


@dataclass(frozen=True, kw_only=True)
class Budget:
    """At most one of both; with neither, a training is as long as its config has it.

    Attributes:
        minutes: of this machine's clock.
        teraflops: 10^12 floating-point operations; a multiply-add counts 2. Matrix products,
            convolutions and attention, forwards and backwards, those of the frozen encoder too,
            but not what works element by element.
    Raises: ConfigError for both, or a number that is not positive.
    """

    minutes: float | None = None
    teraflops: float | None = None

    def __post_init__(self) -> None:
        given = (
            ("time_budget", "minutes", self.minutes),
            ("compute_budget", "TFLOP", self.teraflops),
        )
        for name, unit, value in given:
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}: a positive number of {unit} is needed, got {value}")
        if self.minutes is not None and self.teraflops is not None:
            raise ConfigError("time_budget and compute_budget: give one of them")

    def half(self) -> Budget:
        """For one of two trainings."""
        minutes, teraflops = (
            None if value is None else value / 2 for value in (self.minutes, self.teraflops)
        )
        return Budget(minutes=minutes, teraflops=teraflops)

    def to_identity(self) -> dict[str, float | None]:
        """What of it a training goes on with only if it is the same; JSON-ready."""
        said: dict[str, float | None] = {"time budget": self.minutes}
        return said if self.teraflops is None else {**said, "compute budget": self.teraflops}


NO_BUDGET = Budget()
