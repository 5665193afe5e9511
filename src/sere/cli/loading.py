"""Load the model that a command names, ready to decode."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.errors import ConfigError, InputError

if TYPE_CHECKING:
    from sere.identity import ModelIdentity

BUNDLED = "bundled"

DTYPES = ("auto", "bfloat16", "float16", "float32")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--dtype`` and ``--experts-implementation``."""
    group = parser.add_argument_group("loading the model")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as stored)")
    group.add_argument(
        "--experts-implementation",
        metavar="NAME",
        help="how Transformers computes the experts: eager, batched_mm, grouped_mm "
        "(default: eager on a CPU, its own choice elsewhere)",
    )


def checkpoint_path(name: str) -> Path:
    """Return the folder of a checkpoint: the bundled model's, a path, or a hub name's in the cache.

    Raises:
        InputError: There is no such checkpoint.
    """
    if name == BUNDLED:
        from sere.bundled import model_path

        return model_path()
    from sere.calibrate.loading import local_checkpoint

    return local_checkpoint(name)


def identity_from_config(name: str) -> ModelIdentity:
    """Return a model's identity from its config alone: no weights are read.

    Args:
        name: A checkpoint folder, a hub name, or ``bundled``.

    Raises:
        InputError: There is no such checkpoint, or Transformers cannot read its config.
        UnsupportedModel: It has no experts modules.
    """
    import torch
    from transformers import AutoConfig

    from sere.calibrate.skeleton import model_class
    from sere.structure import identify

    path = checkpoint_path(name)
    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} has no config that can be read: {error}") from error
    with torch.device("meta"):
        model = model_class(config)(config)
    config._name_or_path = str(path)
    return identify(model)


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model that ``args.model`` names, in evaluation mode on its device, and its tokenizer.

    Raises:
        InputError: The checkpoint is missing or cannot be loaded.
    """
    from sere.calibrate.loading import load_tokenizer

    path = checkpoint_path(args.model)
    return load_model(path, args), load_tokenizer(path)


def load_model(path: Path, args: argparse.Namespace) -> Any:
    """Load a checkpoint's weights as the arguments of ``add_model_arguments`` say.

    Raises:
        InputError: Transformers cannot load it, or the device is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from sere.bench.subject import implementation

    device = pick_device(args.device)
    quiet_transformers()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
            experts_implementation=implementation(args.experts_implementation, device),
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model: {path} cannot be loaded: {error}") from error
    return model.to(device).eval()


def dtype_name(path: Path, wanted: str) -> str:
    """Return the dtype that was wanted, for ``auto`` the one that the checkpoint is stored in.

    Raises:
        ConfigError: The checkpoint's config does not say.
    """
    from transformers import AutoConfig

    if wanted != "auto":
        return wanted
    stored = AutoConfig.from_pretrained(path).get_text_config().dtype
    if stored is None:
        raise ConfigError(f"--dtype: the config of {path} names none; choose one of {', '.join(DTYPES[1:])}")
    return str(stored).removeprefix("torch.")


def pick_device(wanted: str | None) -> str:
    """Return the device that was wanted, else a GPU if there is one.

    Raises:
        ConfigError: The device is not there.
    """
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {wanted}: not usable here ({str(error).splitlines()[0]})") from error
    return wanted


def quiet_transformers() -> None:
    """Keep Transformers' own bars and advice off the terminal: our progress and errors stand there."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
