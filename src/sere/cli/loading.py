"""Find the model and the table that a command names, and load the model, ready to decode."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.bundled import BUNDLED
from sere.cli.output import say
from sere.defaults import TABLE, hub_name, own_table, table_here
from sere.errors import ConfigError, InputError, UnsupportedModel

if TYPE_CHECKING:
    from sere.identity import ModelIdentity

DTYPES = ("auto", "bfloat16", "float16", "float32")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--dtype``, ``--experts-implementation`` and ``--trust-remote-code``."""
    group = parser.add_argument_group("loading the model")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: as stored)"
    )
    group.add_argument(
        "--experts-implementation",
        metavar="NAME",
        help="how Transformers computes the experts: eager, batched_mm, grouped_mm "
        "(default: eager on a CPU, its own choice elsewhere)",
    )
    add_trust_argument(group)


def add_trust_argument(parser: Any) -> None:
    """Add ``--trust-remote-code``; to a parser or to a group of its arguments."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the checkpoint: its tokenizer's, or its model's where "
        "Transformers has no class of its own (default: refuse)",
    )


def add_table_argument(parser: Any, default: str) -> None:
    """Add ``--table``; to a parser or to a group of its arguments.

    Args:
        parser: The parser or group.
        default: What is taken without it, for the help.
    """
    text = f"similarity table: a file, or owner/name on the hub (default: {default})"
    parser.add_argument("--table", metavar="TABLE", help=text)


def table_path(args: argparse.Namespace) -> Path | None:
    """Return the similarity table that ``--table`` names, else the one that belongs to ``args.model``.

    That one is beside the model's weights, or in the current folder under the model's name: where
    ``sere calibrate`` writes it if no other place is given. A note says which one it is.
    """
    if args.table is not None:
        return table_file(args.table)
    here = table_here(args.model)
    found = None if args.model == BUNDLED else own_table(args.model)
    if found is None and here.is_file():
        found = here
    if found is not None:
        say(f"using the table {found}")
    return found


def needed_table(args: argparse.Namespace) -> Path:
    """Return the same as `table_path`, for commands that cannot run without a table.

    Raises:
        ConfigError: There is none.
    """
    path = table_path(args)
    if path is None:
        raise ConfigError(
            f"--table: none was given, {args.model} has no {TABLE} in its folder, and the current folder has "
            f"no {table_here(args.model)}; make one with: sere calibrate {args.model}"
        )
    return path


def table_of(name: Path) -> Path:
    """Return a table's file by its path, its model (found as in `table_path`) or its name on the hub."""
    if name.is_file():
        return name
    found = table_path(argparse.Namespace(table=None, model=str(name)))
    if found is None and name.is_dir():
        raise ConfigError(
            f"{name}: expected a similarity table or a model's folder that has one, but there is no {TABLE} "
            f"in it; make one with: sere calibrate {name}"
        )
    return found or table_file(name)


def table_file(name: str | Path) -> Path:
    """Return a table's file by its path or, if there is no such path, by its name on the hub.

    Raises:
        HubError: A repository is named, and it or its table is missing or out of reach.
    """
    from sere.table import locate_table

    quiet_hub()
    return locate_table(str(name))


def table_to_write(source: Path | None, model: str) -> Path:
    """Return where a changed table goes by default: where it was read, but never into the hub's cache.

    Args:
        source: The table that was read, if any.
        model: The model, whose name the table has in the current folder.
    """
    own = source is not None and hub_name(source.absolute().parent) is None
    return source if source is not None and own else table_here(model)


def checkpoint_path(args: argparse.Namespace, *, weights: bool = True) -> Path:
    """Return the folder of the checkpoint that ``args.model`` names.

    Args:
        args: Arguments of a command with those of ``add_trust_argument``.
        weights: Whether the weights are needed too.

    Raises:
        InputError: There is no such checkpoint, or it is not one that can be loaded.
    """
    from sere.checkpoints import find_checkpoint

    return find_checkpoint(args.model, weights=weights, trust_remote_code=args.trust_remote_code)


def engine_checkpoint(args: argparse.Namespace) -> Path:
    """Return the folder of the checkpoint that ``args.model`` names, for an engine that loads it by itself.

    Raises:
        InputError: There is no such checkpoint, or some of its weights are missing.
    """
    from sere.checkpoints import check_weights

    path = checkpoint_path(args)
    quiet_transformers()
    with suppress(UnsupportedModel):  # the engine may have what Transformers has not
        check_weights(path, trust_remote_code=args.trust_remote_code)
    return path


def identity_from_config(args: argparse.Namespace) -> ModelIdentity:
    """Return the identity of the model that ``args.model`` names from its config alone: no weights are read.

    Raises:
        InputError: There is no such checkpoint, or its config describes no model.
        UnsupportedModel: Transformers does not know it, or it has no experts modules.
    """
    from sere.checkpoints import empty_model
    from sere.structure import identify

    path = checkpoint_path(args, weights=False)
    quiet_transformers()
    return identify(empty_model(path, trust_remote_code=args.trust_remote_code))


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model that ``args.model`` names, in evaluation mode on its device, and its tokenizer.

    Raises:
        InputError: The checkpoint is missing, incomplete or cannot be loaded.
    """
    path = checkpoint_path(args)
    tokenizer = tokenizer_of(path, args)  # first, because it is quick to fail
    return load_on_device(path, args), tokenizer


def tokenizer_of(path: Path, args: argparse.Namespace, *, any_type: bool = False) -> Any:
    """Load a checkpoint's tokenizer; with ``any_type``, also where Transformers does not know the model type.

    Raises:
        InputError: There is none that can be loaded.
    """
    from sere.checkpoints import load_tokenizer

    quiet_transformers()
    return load_tokenizer(path, trust_remote_code=args.trust_remote_code, any_type=any_type)


def load_on_device(path: Path, args: argparse.Namespace) -> Any:
    """Load a checkpoint's weights as the arguments of ``add_model_arguments`` say.

    Raises:
        InputError: The checkpoint is incomplete or cannot be loaded, or does not fit the device.
        ConfigError: The device is not there.
    """
    import torch

    from sere import checkpoints

    device = pick_device(args.device)
    quiet_transformers()
    model = checkpoints.load_model(
        path,
        dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
        experts_implementation=checkpoints.choose_experts_implementation(args.experts_implementation, device),
        trust_remote_code=args.trust_remote_code,
    )
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--device {device}: {path} does not fit into its memory; choose another --device or --dtype"
        ) from error


def dtype_name(path: Path, wanted: str, *, trust_remote_code: bool = False) -> str:
    """Return the dtype that was wanted, for ``auto`` the one that the checkpoint is stored in.

    If Transformers does not know the model type, ``auto`` is left to the engine.

    Raises:
        ConfigError: The checkpoint's config does not say.
    """
    from sere.checkpoints import load_config

    if wanted != "auto":
        return wanted
    try:
        stored = load_config(path, trust_remote_code=trust_remote_code).get_text_config().dtype
    except UnsupportedModel:
        return wanted
    if stored is None:
        raise ConfigError(
            f"--dtype auto: the config of {path} has no dtype; choose one of {', '.join(DTYPES[1:])}"
        )
    return str(stored).removeprefix("torch.")


def pick_device(wanted: str | None) -> str:
    """Return the device that was wanted, else a GPU if there is one.

    Raises:
        ConfigError: The device is not there.
    """
    import torch

    from sere.checkpoints.device import check_device

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(wanted, "--device")
    return wanted


def log_vllm_to_stderr() -> None:
    """Send vLLM's log to stderr, which by default goes to stdout; to be called before vLLM is imported.

    Somebody's own choice of a stream stays.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def quiet_hub() -> None:
    """Keep the hub's own bars off the terminal: a table is small."""
    with suppress(ImportError):
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def quiet_transformers() -> None:
    """Keep Transformers' own bars and advice off the terminal: our progress and errors stand there."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
