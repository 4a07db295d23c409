"""Which site of a pair is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.importance.structure import samples, traces


def not_finite(model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> str | None:
    """Name the first site whose draw or log-density is not finite, the guide's before the model's.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.

    Returns:
        A few words, None where all is finite.
    """
    model_trace, guide_trace = traces(model, guide, x, c)
    for side, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in samples(trace).items():
            log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            for what, value in ((f"log p of the {side}", log_p), ("the value", site["value"])):
                if told := _bad(value):
                    return f"first at site {name!r}, where {what} is {told}"
    return None


def _bad(value: Any) -> str | None:
    """Say how many rows are not finite, and which is the first."""
    rows = torch.as_tensor(value)
    bad = ~rows.isfinite()
    if not bool(bad.any()):
        return None
    kind = rows[bad].flatten()[0].item()
    if rows.dim() == 0:
        return str(kind)
    of_rows = bad.reshape(len(bad), -1).any(1)
    first = int(of_rows.nonzero()[0])
    return f"{kind} in {int(of_rows.sum())} of the batch's {len(bad)} rows, the first row {first}"
