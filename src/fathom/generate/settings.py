"""How many tokens are written, how each is chosen, and what ends a text."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Greedy unless something else is asked for.

    Attributes:
        tokens: the most that are written.
        temperature: what scores are divided by before a token is drawn; 0: the most probable token is taken.
        top_k: draw among so many most probable tokens; 0: among all.
        top_p: draw among the fewest tokens whose probabilities sum up to so much.
        beams: unfinished texts that are kept side by side, of which the most probable is taken in the end.
        length_penalty: power of its length that a text's log probability is divided by, where beams are compared.
        stop: texts that end the writing; they are not written themselves.
        seed: of every random choice.
    """

    tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("temperature", 0), ("top_k", 0), ("beams", 1), ("length_penalty", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"'{name}' was given {getattr(self, name)}; expected {least} or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"'top_p' was given {self.top_p}; expected more than 0 and at most 1.")
        if "" in self.stop:
            raise ConfigError("'stop' was given an empty text, which would end every text at once.")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"{self.beams} beams and a temperature of {self.temperature} were asked for: beams take the most "
                "probable tokens, a temperature draws by chance; give one of the two."
            )
