"""What an error means to the person who gave the command: one line, and an exit code."""

from __future__ import annotations

from sere.errors import OutputError, SereError, ServerError, how_to_install

DONE, FAILED, WRONG_USE = 0, 1, 2

# The extra that brings each optional package, and what it is for.
EXTRAS = {
    "transformers": ("transformers", "running and calibrating models"),
    "tqdm": ("transformers", "progress with time left"),
    "psutil": ("transformers", "choosing how to calibrate by the available memory"),
    "numba": ("cpu", "the compiled CPU backend"),
    "cuda-core": ("cuda", "the CUDA kernel, on a machine with an NVIDIA GPU"),
    "pyarrow": ("data", "calibration texts from .parquet"),
    "datasets": ("datasets", "calibration texts from Hugging Face data sets"),
    "lm_eval": ("lm-eval", "tasks of lm-eval: sere lm-eval"),
    "plotly": ("report", "pages with plots: sere report, --report"),
    "matplotlib": ("plot", "pictures: sere table plot, sere tune --picture, sere demo"),
}

# The system's words for a wrong path; its other faults, such as a full disk, are not the user's.
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def explain(error: BaseException) -> str | None:
    """Return the line that says what went wrong and what to do, or None for an error that is not expected."""
    if isinstance(error, SereError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package in EXTRAS:
            return f"{package} is not installed; {how_to_install(EXTRAS[package][0])}"
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}" if error.strerror else str(error)
    if _out_of_memory(error):
        return f"not enough memory ({error}); use a smaller batch size, or calibrate with --low-memory"
    return None


def code_of(error: BaseException) -> int:
    """Return the exit code of an error that `explain` has a line for.

    It is 2 where something else has to be given, and 1 where what was asked for was tried and failed.
    """
    if isinstance(error, ServerError) or _out_of_memory(error):
        return FAILED
    system = error.__cause__ if isinstance(error, OutputError) else error
    expected = isinstance(system, (SereError, ImportError, *_WRONG_PATH)) or not isinstance(system, OSError)
    return WRONG_USE if expected else FAILED


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's, of a GPU
