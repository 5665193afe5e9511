"""Every rule says when its settings re-route nothing, in some layers or in all."""

from __future__ import annotations

import pytest

from sere.policies import (
    Budget,
    Drop,
    LayerShape,
    Lynx,
    Oea,
    Policy,
    Pool,
    Prune,
    RandomReroute,
    TopK,
    TopP,
    XShare,
)

LAYERS = [LayerShape(0, 16, 4), LayerShape(1, 12, 2)]
WHOLE = (
    "disables re-routing in layer 1: that is not smaller than the 12 experts per layer. Use a smaller value"
)
KEPT = (
    "select_top_k=2 is not smaller than top_k=2 of layer 1, so nothing will be re-routed there; "
    "use select_top_k=1"
)


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        (TopK(1), []),
        (TopK(2), [KEPT]),
        (Oea(2), [KEPT]),
        (RandomReroute(2, 0), [KEPT]),
        (Drop(2, 0), [KEPT]),
        (
            Drop(1, 12),
            [
                "active_experts=12 disables re-routing in layer 1: with 12 experts per layer every routed "
                "expert is primary. Use a smaller value"
            ],
        ),
        (XShare(11), []),
        (XShare(12), [f"budget=12 {WHOLE}"]),
        (Budget(12), [f"budget=12 {WHOLE}"]),
        (Pool(12), [f"size=12 {WHOLE}"]),
        (
            Prune(16),
            [
                "size=16 disables re-routing: that is not smaller than the 12 to 16 experts per layer. "
                "Use a smaller value"
            ],
        ),
        (
            Lynx(0.07),
            [
                "drop_share=0.07 disables re-routing in layer 1: that is less than one of 12 experts per "
                "layer. Use a larger value"
            ],
        ),
        (TopP(0.999), []),
        (TopP(1.0), ["p=1 keeps every slot, so nothing will be re-routed; use a smaller p"]),
    ],
    ids=lambda value: repr(value) if isinstance(value, Policy) else "",
)
def test_reasons_name_setting_bound_and_remedy(policy: Policy, reasons: list[str]) -> None:
    """The whole text, because people read it; nothing where the settings change something."""
    assert policy.why_idle(LAYERS) == reasons
