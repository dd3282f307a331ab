"""What an examination of a machine finds; `mindformers-glm doctor` prints it."""

from dataclasses import dataclass

STATES = ("ok", "hint", "problem")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: what it belongs to, the same word for what stands together.
        name: what was looked at; unique within its section, and stable.
        found: what there is, in a few words.
        state: "ok"; "hint", something could be better; "problem", a model cannot run.
        advice: what to do, one sentence; empty where there is nothing.
    """

    section: str
    name: str
    found: str
    state: str = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        """Whoever says that something is wrong says what to do."""
        if self.state not in STATES or (self.state != "ok" and not self.advice):
            raise ValueError(f"{self.name}: state {self.state!r} with advice {self.advice!r}")
