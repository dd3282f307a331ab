"""One progress bar for all long work; only a terminal sees it."""

import sys

from tqdm import tqdm

from mindformers_glm.system.log import is_silent


class Progress:
    """A bar on stderr while the `with` block runs, silent when stderr is not a terminal.

    Args:
        label: what is going on, e.g. "Loading weights".
        total: the amount of work, in `unit`; None where nobody knows: then there is no bar, but the
            amount that is done, the time and the speed.
        unit: "B" counts bytes (shown as KB, MB, GB); any other word counts items.
    """

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._bar = tqdm(
            desc=label,
            total=total,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit == "B",
            leave=False,
            file=sys.stderr,
            disable=is_silent() or not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def advance(self, amount: int, label: str | None = None) -> None:
        """Report `amount` more units as done; a new label is shown with them."""
        if label is not None:
            self._bar.set_description_str(label, refresh=False)
        self._bar.update(amount)

    def close(self) -> None:
        """Take the bar off the screen; more than once does no harm."""
        self._bar.close()
