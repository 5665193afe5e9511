"""From the host to the layers: one budget per row, on the device, updated in place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sere.integrations.vllm.tiers import PROTECTED
from sere.reroute.constants import PADDING_BUDGET


class RowBudgets:
    """The budgets of the coming step's rows.

    All rows are padding until a step is announced, which leaves every layer's routing alone: profiling,
    graph capture and dummy steps are exact. The tensor is allocated once and only ever written in place, on
    the stream of the forward pass, so that captured graphs and compiled code see each step's values.

    Args:
        rows: Most rows of a step.
        device: Where the layers run.
        counted: Whether `real` is there; None for where a kernel gains by it, which is not on a CPU.

    Attributes:
        tensor: ``[rows]``, int32: S of a request, ``LAYER_BUDGET``, ``PROTECTED`` or ``PADDING_BUDGET``.
        real: ``[1]``, int32: from which row on all are padding; None where nobody asks. Captured code reads
            it, too, so that a captured kernel does not look at the rows of a step that re-routes nothing.
        skip: Whether layers whose Python runs in this step need not look at it: no row can be re-routed.
            False in dummy steps, which may warm up what is captured next.
        skips: ``[1]``, bool, on the host: the same, for compiled code that runs on a CPU.
        largest: The largest budget of the step's rows; ``PROTECTED`` where the step is exact.
    """

    def __init__(self, rows: int, device: torch.device, *, counted: bool | None = None) -> None:
        self.tensor = torch.full((rows,), PADDING_BUDGET, dtype=torch.int32, device=device)
        self.real: Tensor | None = None
        if device.type != "cpu" if counted is None else counted:
            self.real = torch.zeros(1, dtype=torch.int32, device=device)
        self.skip = False
        self.skips = torch.zeros(1, dtype=torch.bool, device="cpu")
        self.largest = PROTECTED
        self._written = np.empty(0, dtype=np.int32)
        self._announced: npt.NDArray[np.int32] | None = None

    def announce(self, budgets: npt.NDArray[np.int32]) -> bool:
        """Write the budgets of the coming step's rows, ``[N]``; the rows after them are padding.

        If no row can be re-routed the step is exact. The array is not changed afterward: the same one again
        costs nothing.

        Returns:
            Whether the step re-routes.
        """
        if budgets is self._announced:
            return True
        if not budgets.size or int(budgets.min()) >= PROTECTED:
            self.exact()
            return False
        self._set_skip(False)
        self._write(budgets)
        self.largest, self._announced = int(budgets.max()), budgets
        return True

    def exact(self, *, dummy: bool = False) -> None:
        """Leave the routing of the coming step alone.

        Args:
            dummy: Whether it is not a step of requests, but may be one before graphs are captured.
        """
        self._set_skip(not dummy)
        if self._announced is None:
            # All rows are padding already.
            return
        self._write(np.empty(0, dtype=np.int32))
        self.largest, self._announced = PROTECTED, None

    def at(self, rows: int, share: int = 0) -> Tensor:
        """Return the budgets of the ``rows`` rows that a layer is given.

        Args:
            rows: How many.
            share: Which share of the step's rows they are, where ranks share them: share 0 is the first
                ``rows`` rows, share 1 the next.
        """
        return self.tensor.narrow(0, share * rows, rows)

    def real_of(self, share: int = 0) -> Tensor | None:
        """Return `real` for the rows of a share, which later shares do not have: theirs begin further on."""
        return self.real if share == 0 else None

    def _set_skip(self, skip: bool) -> None:
        if skip is not self.skip:
            self.skip = skip
            self.skips.fill_(skip)

    def _write(self, budgets: npt.NDArray[np.int32]) -> None:
        """Copy what differs from the last step; a steady batch costs a comparison and no copy."""
        if np.array_equal(budgets, self._written):
            return
        width = max(len(budgets), len(self._written))
        host = torch.full(
            (width,), PADDING_BUDGET, dtype=torch.int32, device="cpu", pin_memory=self.tensor.is_cuda
        )
        host[: len(budgets)] = torch.from_numpy(budgets)
        # A fresh pinned buffer each time: torch does not reuse it before the copy has run, so a step
        # that is scheduled ahead cannot overwrite what the one before has not read yet.
        self.tensor[:width].copy_(host, non_blocking=True)
        if self.real is not None and len(budgets) != len(self._written):
            # The number is part of the launch: nothing is copied from the host.
            self.real.fill_(len(budgets))
        self._written = budgets.copy()
