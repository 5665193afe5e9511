"""What vLLM calls when it loads its plug-ins, in every one of its processes."""

from __future__ import annotations

import functools
import logging
import os
from importlib import import_module
from typing import Any

from sere.integrations.vllm.calibration.request import calibrates
from sere.integrations.vllm.import_hook import after_import
from sere.integrations.vllm.plugin_config import misplaced, section
from sere.integrations.vllm.prefix_cache import watch_engine_core

DISABLE = "SERE_DISABLE"
_ARGUMENTS = "vllm.engine.arg_utils"
_CORE = "vllm.v1.engine.core"
_WORKERS = "vllm.v1.worker.worker_base"
_MARK = "sere"
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

logger = logging.getLogger("vllm.sere")


def register() -> None:
    """Make the engines of this process look for ``additional_config["sere"]``; others stay as they are.

    Cheap and safe to call again. Three methods are wrapped: the one that makes an engine's configuration,
    where what is wrong is refused early; the constructor of workers, where an engine that asked for it is
    equipped; and the one that takes in requests, for `prefix_cache`. With ``SERE_DISABLE=1`` (or true, yes,
    on) in the environment nothing is done.
    """
    if is_disabled():
        logger.info("sere: switched off by %s", DISABLE)
        return
    after_import(_ARGUMENTS, _wrap_configuration)
    after_import(_WORKERS, _wrap_workers)
    after_import(_CORE, watch_engine_core)


def is_disabled() -> bool:
    """Whether the environment switches the plug-in off; what is neither yes nor no counts as yes."""
    value = os.environ.get(DISABLE, "").strip().lower()
    if value not in (*_YES, *_NO):
        logger.warning("sere: %s: expected 1 or 0, got %r; treating it as 1", DISABLE, value)
    return value not in _NO


def _wrap_workers(module: Any) -> None:
    """Equip the workers that this process makes from now on, if their engine asks for it."""
    worker_class = module.WorkerBase
    construct = worker_class.__init__
    if hasattr(construct, _MARK):
        return

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        values = section(self.vllm_config)
        if values is not None:
            from sere.integrations.vllm.worker.equip import equip

            equip(self, values)
        elif calibrates(self.vllm_config):
            from sere.integrations.vllm.calibration.equip import equip_for_calibration

            equip_for_calibration(self)

    setattr(__init__, _MARK, True)
    worker_class.__init__ = __init__


def _wrap_configuration(module: Any) -> None:
    """Check the settings of the engines that this process configures from now on, if they ask for it."""
    engine_args = module.EngineArgs
    create = engine_args.create_engine_config
    if hasattr(create, _MARK):
        return

    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        if (warning := misplaced(config)) is not None:
            logger.warning("sere: %s", warning)
        if section(config) is not None:
            from sere.integrations.vllm.start.checks import check_requests, check_start

            check_start(config)
            check_requests(import_module("vllm.v1.engine.input_processor").InputProcessor)
        elif calibrates(config):
            from sere.integrations.vllm.calibration.checks import check_calibration

            check_calibration(config)
        return config

    setattr(create_engine_config, _MARK, True)
    engine_args.create_engine_config = create_engine_config
