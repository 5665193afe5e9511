"""Routing rules as peers: SERE, its baselines, and none; one file each. ``POLICIES`` names them all."""

from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.policies.budget import Budget
from sere.policies.drop import Drop
from sere.policies.lynx import Lynx
from sere.policies.oea import Oea
from sere.policies.off import Off
from sere.policies.pool import Pool
from sere.policies.prune import Prune
from sere.policies.random import RandomReroute
from sere.policies.sere import Sere
from sere.policies.spec import POLICIES
from sere.policies.topk import TopK
from sere.policies.topp import TopP
from sere.policies.xshare import XShare

__all__ = [
    "POLICIES",
    "Budget",
    "Drop",
    "LayerRouter",
    "LayerShape",
    "Lynx",
    "Oea",
    "Off",
    "Policy",
    "Pool",
    "Prune",
    "RandomReroute",
    "Sere",
    "TopK",
    "TopP",
    "XShare",
]
