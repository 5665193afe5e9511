"""What the answers to viewers of a live page cost the server process that gives them.

Under load, the processor time of a server scatters by far more than a few answers a second take. So the route
is timed by itself: a server without requests is asked many times in a row, as viewers ask, and the processor
time of the process that answers is divided by the number of answers. Without requests the engine is not
asked (`sere.integrations.vllm.client.quiet`), so that its part is timed elsewhere: one question a second,
whatever the number of viewers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from time import perf_counter, sleep

from sere.engines.server import Server
from sere.errors import ServerError
from sere.integrations.vllm.live.fetch import live_url
from viewer_process import EVERY_S, Viewer

# Processor times of other processes are known by ticks of 10 ms: some per cent of what so many answers take.
ANSWERS, BATCHES = 2000, 6
# After work, an engine is asked twice more; each of these looks is a second after the one before.
LOOKS = 4


def answers_ms(server: Server, answers: int = ANSWERS, batches: int = BATCHES) -> dict[str, list[float]]:
    """Return the processor time of an answer of the live route, in each of some batches.

    Args:
        server: It must have one server process, the first one, and no requests.
        answers: Of a batch, one after the other over one connection. Each holds at least one point of the
            lines, as a viewer's does.
        batches: How many.

    Returns:
        Names in the record: ``answer_ms``, milliseconds of the server process's processor time per answer;
        ``answer_others_ms``, of the server's other processes, the engine among them, meanwhile; and
        ``answer_wall_ms``, of the clock. Each has a number for each batch.

    Raises:
        ServerError: The server does not answer, or has no points of the lines yet.
    """
    viewer = Viewer(live_url(server.url))
    found: dict[str, list[float]] = {"answer_ms": [], "answer_others_ms": [], "answer_wall_ms": []}
    try:
        for _ in range(LOOKS):
            viewer.ask(0.0)
            sleep(EVERY_S)
        for _ in range(batches):
            points = viewer.ask(0.0)
            if len(points) < 2:
                raise ServerError(f"viewers: expected at least 2 points of the lines, got {len(points)}")
            spent = _spent(server, partial(_ask, viewer, points[-2]["at"], answers))
            for name, seconds in zip(found, spent, strict=True):
                found[name].append(1000 * seconds / answers)
    except (OSError, HTTPException, ValueError) as error:
        raise ServerError(f"viewers: {type(error).__name__}: {error}") from error
    finally:
        viewer.close()
    return found


def _ask(viewer: Viewer, since: float, answers: int) -> None:
    for _ in range(answers):
        viewer.ask(since)


def _spent(server: Server, work: Callable[[], None]) -> tuple[float, float, float]:
    """Return seconds that work takes: of the first process's processor time, of the others', of the clock."""
    started, own, everything = perf_counter(), first_process_s(server), server.processor_s()
    work()
    ended, own_after = perf_counter(), first_process_s(server)
    own_s, all_s = own_after - own, server.processor_s() - everything
    return own_s, max(0.0, all_s - own_s), ended - started


def first_process_s(server: Server) -> float:
    """Return the processor time so far, in seconds, of the process that answers where there is only one."""
    import psutil

    return float(sum(psutil.Process(server.pid).cpu_times()[:2]))
