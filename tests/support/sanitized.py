"""A small set of calls on a device, for compute-sanitizer: ``python -m tests.support.sanitized``."""

from __future__ import annotations

from itertools import product

import torch

from sere.reroute import COUNTERS, reroute
from tests.support.batches import batch, similarity_matrix


def main() -> None:
    """Run every option once, on shapes of one block and of several."""
    for T, K, E in [(5, 4, 24), (64, 8, 128), (300, 10, 512)]:
        ids, weights = (tensor.cuda() for tensor in batch(T, K, E, seed=T))
        # Where the primary set is not filled up the kernel has fewer barriers.
        for merge, most in product(("none", "same", "distinct", "sentinel"), (0, E // 2)):
            reroute(
                ids.long() if merge == "same" else ids,
                weights.bfloat16() if merge == "distinct" else weights,
                similarity_matrix(E, E),
                select_top_k=1,
                threshold=0.7,
                active_experts=most,
                num_tokens=torch.tensor(T - 1, device="cuda"),
                row_budgets=torch.arange(T, device="cuda") % 3,
                targets="active" if merge == "same" else "primary",
                scale=similarity_matrix(E, 1) if merge == "sentinel" else None,
                merge=merge,
                sentinel=-1 if merge == "sentinel" else None,
                counters=torch.zeros(len(COUNTERS), dtype=torch.int64, device="cuda"),
                backend="cuda",
            )
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
