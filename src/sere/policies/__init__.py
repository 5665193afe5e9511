"""Routing rules as peers: SERE, its rivals, and none; one file each."""

from sere.policies.base import Policy
from sere.policies.lynx import Lynx
from sere.policies.oea import Oea
from sere.policies.off import Off
from sere.policies.random import RandomReroute
from sere.policies.sere import Sere
from sere.policies.topk import TopK
from sere.policies.xshare import XShare

__all__ = ["Lynx", "Oea", "Off", "Policy", "RandomReroute", "Sere", "TopK", "XShare"]
