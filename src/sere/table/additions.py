"""What a table holds besides its similarities: whether it belongs to them, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sere.errors import TableError, name_some
from sere.similarity import LayerSimilarity
from sere.table.routing_sample import RoutingSample
from sere.table.tiers import Tier


def check_additions(
    layers: Mapping[int, LayerSimilarity], tiers: Mapping[str, Tier], routing: RoutingSample | None
) -> None:
    """Refuse tiers and a routing sample that do not belong to these layers.

    Args:
        layers: Similarities by decoder-layer index.
        tiers: The tiers by name.
        routing: The sample, or None.

    Raises:
        TableError: A tier has another name than its key, tiers or sample name layers that are not there, or
            the sample is of another number of experts.
    """
    for name, tier in tiers.items():
        if tier.name != name:
            raise TableError(f"tier {name!r}: expected the tier of this name, got {tier.name!r}")
        _check_indices(f"tier {name!r}", tier.layers, layers, "tune again (sere tune)")
    if routing is None:
        return
    _check_indices("routing sample", routing.ids, layers, "calibrate again")
    for index, energy in routing.energy.items():
        if len(energy) != layers[index].num_experts:
            raise TableError(
                f"routing sample: layer {index}: expected E = {layers[index].num_experts} experts, "
                f"got {len(energy)}; calibrate again"
            )


def digest_of(tiers: Mapping[str, Any], sample: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, as hex, of what the fingerprint leaves out.

    Args:
        tiers: JSON-ready, by name.
        sample: The tensors of the routing sample by name.
    """
    digest = hashlib.sha256(json.dumps(tiers, sort_keys=True).encode())
    for name, tensor in sorted(sample.items()):
        values = tensor.numpy()
        digest.update(name.encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _check_indices(
    what: str, named: Mapping[int, Any], layers: Mapping[int, LayerSimilarity], hint: str
) -> None:
    if missing := sorted(set(named) - set(layers)):
        raise TableError(
            f"{what}: names layers [{name_some(missing)}], but the table has [{name_some(sorted(layers))}]; "
            f"{hint}"
        )
