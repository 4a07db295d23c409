"""What training left behind, epoch by epoch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class History:
    """The record of a `fit`, means per datum in nats.

    Attributes:
        epochs: one record an epoch: `epoch` (from 1), `loss` (mean over the training data as it was
            trained, with that epoch's beta), `validation_loss` (the objective at beta = 1),
            `reconstruction` and `kl` (E_q[log p(x|z)] and its KL by one draw a datum, on the
            validation data, or without those on the first 2,000 training rows), `beta`, `lr`,
            `seconds`. What was not measured is None.
        best_epoch: the epoch whose weights the pair has now: with validation the best one at full
            beta, otherwise the last.
    """

    epochs: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int = 0

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, key: str) -> list[float | None]:
        """Return one column, such as history["loss"]."""
        if self.epochs and key not in self.epochs[0]:
            raise KeyError(f"expected one of {', '.join(self.epochs[0])}; got {key!r}")
        return [record[key] for record in self.epochs]

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a pandas table, one row an epoch."""
        import pandas as pd

        return pd.DataFrame(self.epochs)
