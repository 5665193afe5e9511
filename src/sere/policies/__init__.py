"""Routing rules as peers: SERE, its baselines, and none; one file each. ``POLICIES`` names them all."""

from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.policies.lynx import Lynx
from sere.policies.oea import Oea
from sere.policies.off import Off
from sere.policies.random import RandomReroute
from sere.policies.sere import Sere
from sere.policies.spec import POLICIES
from sere.policies.topk import TopK
from sere.policies.xshare import XShare

__all__ = [
    "POLICIES",
    "LayerRouter",
    "LayerShape",
    "Lynx",
    "Oea",
    "Off",
    "Policy",
    "RandomReroute",
    "Sere",
    "TopK",
    "XShare",
]
