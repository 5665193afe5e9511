"""Find the table that an engine is to use, and check that it is the model's."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.defaults import TABLE, default_table, table_here
from sere.errors import ConfigError, TableError, TableMismatch, name_some
from sere.identity import architecture_of, summary
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start.model_config import experts_by_layer, reads_mistral_format
from sere.integrations.vllm.tiers import OFF, PROTECTED, Allowed
from sere.table import SimilarityTable, locate_table

logger = logging.getLogger("vllm.sere")

_MISTRAL = (
    ". vLLM reads params.json of this folder, which names things differently; if it has a config.json, too, "
    "start with --config-format hf --load-format hf --tokenizer-mode hf"
)


def find_table(given: str | None, model_config: Any) -> Path:
    """Return the path of the table: the one given, else the model's own, else the one in the current folder.

    In the front end, a table that is named as on the hub is downloaded; workers get its path.

    Args:
        given: The setting ``table``.
        model_config: vLLM's ``ModelConfig``.

    Raises:
        TableError: None was given, and neither the model's folder nor the current one has one.
        HubError: The one given is on the hub, and cannot be downloaded.
    """
    if given is not None:
        return locate_table(given).absolute()
    model = str(model_config.model)
    found = default_table(model, getattr(model_config, "revision", None))
    if found is None:
        raise TableError(
            f"table: none was given and the folder of {model!r} has no {TABLE}, nor the current folder "
            f"({Path.cwd()}) a {table_here(model)}; make one with sere calibrate {model}, or give one with "
            '"table": "PATH" or "table": "owner/name" among the settings of sere'
        )
    logger.info("sere: using the table %s", found)
    return found


def load_table(path: Path, model_config: Any) -> SimilarityTable:
    """Load a table and check that its model has the architecture of this one.

    Args:
        path: The file.
        model_config: vLLM's ``ModelConfig``.

    Raises:
        TableError: The file is missing, damaged or no table.
        TableMismatch: It belongs to another model; the text names both.
    """
    table = SimilarityTable.load(path)
    mine, text_config = table.identity, model_config.hf_text_config
    differences = mine.architecture_differences(architecture_of(text_config))
    hint = ""
    if mistral := reads_mistral_format(model_config):
        # Transformers calls the same model otherwise.
        differences = [text for text in differences if not text.startswith("model_type:")]
        hint = _MISTRAL
    if differences:
        raise TableMismatch(
            f"{path}: the table was calibrated on {summary(mine)}, but the model is another: "
            f"{name_some(differences, separator='; ')}; calibrate this model (sere calibrate) or "
            f"give its own table{hint}"
        )
    check_experts(path, table, experts_by_layer(text_config, mistral=mistral))
    return table


def digest(table: SimilarityTable) -> str:
    """Return what all ranks of an engine must agree on: similarities and tiers, as a hex digest."""
    tiers = {name: tier.to_mapping() for name, tier in table.tiers.items()}
    return hashlib.sha256(json.dumps([table.fingerprint, tiers], sort_keys=True).encode()).hexdigest()


def check_same(path: Path, table: SimilarityTable, expected: str | None) -> None:
    """Refuse a table that is not the one that the engine was started with.

    Args:
        path: The file.
        table: Its content.
        expected: The setting ``table_digest``; None where nothing is expected.

    Raises:
        TableMismatch: It is another table.
    """
    if expected is not None and (found := digest(table)) != expected:
        raise TableMismatch(
            f"{path} on {socket.gethostname()}: expected the table that the engine was started with "
            f"(table_digest {expected[:12]}), got another one ({found[:12]}, fingerprint "
            f"{table.fingerprint[:12]}): ranks with different tables would compute parts of different "
            "experts; copy the same file to every machine, or leave table_digest out to take this one"
        )


def allowed_of_requests(table: SimilarityTable, config: PluginConfig) -> Allowed:
    """Return what requests may ask for.

    Args:
        table: The table, whose tiers they are.
        config: The plug-in's settings.

    Raises:
        ConfigError: The settings name a tier that the table does not have.
    """
    for name in config.request_tiers or ():
        if name != OFF and name not in table.tiers:
            raise ConfigError(
                f"request_tiers: the table has no tier {name!r}, it has {name_some(table.tiers) or 'none'}; "
                "leave it out, or give a table that has it"
            )
    slots = config.request_select_top_k
    if not config.allow_request_tiers:
        return Allowed.of((), ())
    if config.request_tiers is None:
        return Allowed.of((*table.tiers, OFF), (1, PROTECTED) if slots is None else slots)
    # A large S is as good as "off", so naming tiers allows no S that is not named, too.
    return Allowed.of(config.request_tiers, slots or ())


def check_experts(path: Path, table: SimilarityTable, experts: Mapping[int, int]) -> None:
    """Refuse a table whose layers have other numbers of experts than the model's config says.

    Args:
        path: The file.
        table: Its content.
        experts: E by layer, as far as the config says it.

    Raises:
        TableMismatch: They differ; the text names each layer.
    """
    if len(set(experts.values())) == 1 and set(experts.values()) <= set(table.identity.experts.values()):
        # One number for all layers may be that of some: each layer is checked when it is built.
        return
    if different := [
        f"experts of layer {index}: the table has {layer.num_experts}, the model {experts[index]}"
        for index, layer in table.layers.items()
        if experts.get(index, layer.num_experts) != layer.num_experts
    ]:
        raise TableMismatch(
            f"{path}: the table was calibrated on {summary(table.identity)}, but the model is another: "
            f"{name_some(different, separator='; ')}; calibrate this model (sere calibrate) or give its own "
            "table"
        )


def check_layer(table: SimilarityTable, index: int, name: str, *, E: int) -> None:
    """Refuse a layer that the table does not know or that has another number of experts.

    Raises:
        TableError: The table has no similarities for this layer.
        TableMismatch: E differs.
    """
    if index not in table.layers:
        raise TableError(
            f"{name}: the table has no similarities for layer {index}, only for layers "
            f"{name_some(table.layers)}; calibrate this model (sere calibrate) or give its own table"
        )
    if (expected := table.layers[index].num_experts) != E:
        raise TableMismatch(
            f"{name}: the table was calibrated on {summary(table.identity)}, with {expected} experts in "
            f"layer {index}, but this layer has {E}; calibrate this model (sere calibrate) or give its own "
            "table"
        )


def check_coverage(table: SimilarityTable, found: set[int], *, stage: range | None) -> None:
    """Refuse a table with layers that the model does not have, or a model without MoE layers.

    Args:
        table: The table.
        found: Indices of the MoE layers in this process.
        stage: The decoder layers that this process holds, where others hold the rest (pipeline parallelism):
            there may be no MoE layer among them. None where this process holds all.

    Raises:
        TableMismatch: The layers differ.
    """
    expected = {index for index in table.layers if stage is None or index in stage}
    if expected - found or (stage is None and not found):
        raise TableMismatch(
            f"the table was calibrated on {summary(table.identity)}, but the engine built MoE layers "
            f"[{name_some(sorted(found)) or 'none'}]; calibrate this model (sere calibrate) or give its "
            "own table"
        )
