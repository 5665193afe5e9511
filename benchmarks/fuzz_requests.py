"""What ``fuzz_http.py`` sends: routes, bodies, media types, keys and queries, drawn by Hypothesis.

JSON of any form, settings with right and wrong values, bytes, large and deep bodies; and moments of any form
that the live page could be asked for.
"""

from __future__ import annotations

import json
from typing import NamedTuple
from urllib.parse import quote

from hypothesis import strategies as st

from sere.integrations.vllm.changes import CHANGEABLE
from sere.integrations.vllm.client.body import MOST_BYTES
from sere.integrations.vllm.live.page import LIVE, PATH


class Route(NamedTuple):
    """What is fuzzed.

    Attributes:
        method: Of its requests.
        path: Without a query.
        on_port: Whether it is on ``metrics_port``, not on the server's own port.
    """

    method: str
    path: str
    on_port: bool = False

    @property
    def name(self) -> str:
        """What records call it."""
        return f"{'metrics_port' if self.on_port else 'server'} {self.method} {self.path}"


ROUTES = (
    Route("POST", "/v1/sere/settings"),
    Route("POST", "/v1/sere/reset"),
    Route("GET", "/v1/sere/stats"),
    Route("GET", "/v1/sere/experts"),
    Route("GET", "/v1/sere/metrics"),
    Route("GET", LIVE),
    Route("GET", PATH),
    Route("GET", "/metrics", on_port=True),
    Route("GET", LIVE, on_port=True),
    Route("GET", PATH, on_port=True),
)

LAYERS, EXPERTS = 6, 96
"""Of the bundled model."""

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-2, 130) | st.floats() | st.text(max_size=20)
    | st.sampled_from(["auto", "off", "safe", "", "\ud800", 2**31, 2**63, 2**64, -1, 10**300, 1e308])
)  # fmt: skip
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)
_INDEX = st.integers(-1, LAYERS).map(str) | st.sampled_from(["0", "x", "", "01", "1e3", "9" * 50])
_POINTS = st.lists(st.tuples(st.integers(0, 300), st.integers(-1, EXPERTS + 3)).map(list), max_size=300)
_M = st.integers(0, EXPERTS) | st.floats(0, 1) | st.just("auto") | _POINTS | _JSON
_OF_A_LAYER = st.dictionaries(
    st.sampled_from(["active_experts", "select_top_k", "threshold", "cap"]),
    _M | st.integers(1, 9),
    max_size=4,
)
_IDS = st.lists(st.integers(0, EXPERTS), max_size=EXPERTS + 5) | _JSON
_VALUES = {
    "select_top_k": st.integers(0, 9) | _JSON,
    "threshold": st.floats(0, 2) | st.integers(0, 3) | _JSON,
    "active_experts": _M | st.dictionaries(_INDEX, _M, max_size=8),
    "layers": st.dictionaries(_INDEX, _OF_A_LAYER | _JSON, max_size=8) | _JSON,
    "tier": st.sampled_from(["safe", "balanced", "fast", None]) | _JSON,
    "keep": st.dictionaries(_INDEX, _IDS, max_size=8) | _JSON,
    "min_gain": st.floats(0, 1) | _JSON,
    "enabled": st.booleans() | _JSON,
    "count_only": st.booleans() | _JSON,
}
_CHANGES = st.fixed_dictionaries({}, optional=_VALUES)
_LARGE = st.sampled_from(
    [
        b" " * (MOST_BYTES + 1),
        b'{"keep": {"0": [' + b"9," * 80_000 + b"9]}}",
        b'{"keep": {"0": [' + b"[" * 900 + b"]" * 900 + b"]}}",
        b'{"active_experts": [' + b"[1,1]," * 40_000 + b"[1,1]]}",
        b'{"layers": {' + b",".join(b'"%d":{}' % layer for layer in range(20_000)) + b"}}",
        b"[" * 200_000,
        b'{"threshold": ' + b"9" * 5000 + b"}",
        b'{"threshold": ' + b"9" * 300 + b"}",
    ]
)
BODIES = (
    _CHANGES.map(lambda value: json.dumps(value).encode())
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(CHANGEABLE), _JSON, max_size=4).map(
        lambda value: json.dumps(value).encode()
    )
    | st.binary(max_size=200)
    | _LARGE
)
KINDS = st.sampled_from(["application/json"] * 8 + ["application/json; charset=x", "text/plain", "", None])
KEYS = st.sampled_from(["right"] * 12 + ["wrong", None])
_SINCE = st.text(max_size=30) | st.floats().map(str) | st.integers().map(str) | st.just("9" * 5000)
QUERIES = (
    st.sampled_from([""] * 6 + ["?", "?a=1", "?%ff=%00", "?" + "a" * 3000])
    | _SINCE.map(lambda text: "?since=" + quote(text, errors="replace"))
    | st.binary(max_size=20).map(lambda raw: "?since=" + quote(raw))
)
