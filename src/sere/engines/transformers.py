"""Put one setting on a model: the one place where a setting becomes a policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sere.errors import ConfigError
from sere.integrations.transformers.inputs import has_full_attention_cache
from sere.policies.sere import Sere
from sere.policies.spec import Setting

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle
    from sere.policies.base import Policy
    from sere.policies.rows import Rival
    from sere.table import SimilarityTable


def apply_setting(
    model: Any,
    setting: Setting,
    table: SimilarityTable | None,
    *,
    seed: int = 0,
    rival: Policy | None = None,
    pad_token_id: int | None = None,
) -> Handle:
    """Apply a setting to a model and return the handle, which counts and which removes it.

    ``off`` is applied too, as a policy that changes nothing and counts; to leave a model wholly
    untouched, do not call this.

    Args:
        model: A model of Transformers.
        setting: What to apply.
        table: Similarities; needed by ``sere`` settings only.
        seed: Of ``random``, unless the setting has its own.
        rival: What ``make_rival`` returned for the setting, if it was applied before and is to go on: the
            draws of ``random`` begin anew with each policy.
        pad_token_id: What ``generate`` feeds to rows that have ended; None for decode steps of our own.

    Raises:
        ConfigError: The setting needs a table and there is none.
    """
    from sere.integrations.transformers import apply

    # Every row of our decode steps is real, even one that is fed the pad token as a word of its text.
    if pad_token_id is None and has_full_attention_cache(model):
        pad_token_id = -1
    if not setting.needs_table:
        return apply(model, policy=rival or make_rival(setting, seed=seed), pad_token_id=pad_token_id)
    table = _needed(table, setting)
    return apply(model, table, config=setting.config(), pad_token_id=pad_token_id)


def check_settings(settings: Iterable[Setting], table: SimilarityTable | None) -> None:
    """Refuse, before long work, a setting that could not be applied.

    Raises:
        ConfigError: A value is out of range, or what the setting needs of a table is not there.
    """
    for setting in settings:
        if not setting.needs_table:
            make_rival(setting)
        else:
            Sere(_needed(table, setting).layers, setting.config())


def make_rival(setting: Setting, *, seed: int = 0) -> Rival:
    """Return the policy of a setting that needs no table.

    Args:
        setting: Any but a ``sere`` setting.
        seed: Of ``random``, unless the setting has its own.
    """
    from sere.policies.lynx import Lynx
    from sere.policies.oea import Oea
    from sere.policies.off import Off
    from sere.policies.random import RandomReroute
    from sere.policies.topk import TopK
    from sere.policies.xshare import XShare

    kinds = (Off, RandomReroute, TopK, Oea, XShare, Lynx)
    classes: dict[str, type[Any]] = {kind.name: kind for kind in kinds}
    options = dict(setting.options)
    if setting.kind == "random":
        options.setdefault("seed", seed)
    policy: Rival = classes[setting.kind](**options)
    return policy


def _needed(table: SimilarityTable | None, setting: Setting) -> SimilarityTable:
    if table is None:
        raise ConfigError(f"setting {setting.label}: needs a similarity table; give one with --table")
    return table
