"""A checkpoint, from the name that a user gives, to a model with its tokenizer; the same for all commands.

Find the folder, read its config, choose the class, check and load the weights, load the tokenizer.
"""

from sere.checkpoints.completeness import say_unused
from sere.checkpoints.config import load_config
from sere.checkpoints.folder import find_checkpoint
from sere.checkpoints.implementation import choose_experts_implementation
from sere.checkpoints.model import check_weights, empty_model, load_model
from sere.checkpoints.tokenizer import load_tokenizer
from sere.checkpoints.weight_files import WeightFiles, find_weights, model_files
from sere.defaults import hub_name

__all__ = [
    "WeightFiles",
    "check_weights",
    "choose_experts_implementation",
    "empty_model",
    "find_checkpoint",
    "find_weights",
    "hub_name",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_files",
    "say_unused",
]
