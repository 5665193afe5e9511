"""Whether a call of a module is under way: read from the interpreter, as Ctrl-C skips hooks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import nn


def is_running(modules: Sequence[nn.Module], thread: int) -> bool:
    """Whether a thread is inside a call of one of the modules.

    PyTorch runs the hooks that end a call after an ``Exception``, but not after ``KeyboardInterrupt`` and
    its like, so that a call may have begun and never end.

    Args:
        modules: The modules.
        thread: As ``threading.get_ident`` returns it. It may have ended.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None:
        name = frame.f_code.co_name
        if name.startswith("torch_dynamo_resume"):
            # The rest of a function that a compiler split: not known whose.
            return True
        if name == "_wrapped_call_impl" and any(frame.f_locals.get("self") is one for one in modules):
            return True
        frame = frame.f_back
    return False
