"""Workers: the same function of many items, by processes of this machine or by Ray tasks of a cluster.

    for item, result in in_processes(work, items, count=4): ...      # in the order in which they are finished

One process, the caller's, hands out items one at a time and takes the results; it is the only one that knows
what is done. An item whose worker was killed is handed to another one, and with it nothing else is lost. An
item that ends `TRIES` workers is an error, since it may be what ends them. An error of the function itself is
raised here, and ends all workers; so does Ctrl-C. Workers whose caller was killed end by themselves.

Processes are spawned, not forked: threads of OpenMP and Numba do not survive a fork. So a script must call
this below `if __name__ == "__main__":`, as always with `multiprocessing`. They share the caller's threads.

Not covered: Ray without a folder that all machines see.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

R = TypeVar("R")
Work = Callable[[str], R]
"""Function of an item; it and its results can be pickled."""
TRIES = 3
"""Number of workers that an item may end."""
CONTEXT = multiprocessing.get_context("spawn")


def in_processes(work: Work[R], items: Sequence[str], count: int) -> Iterator[tuple[str, R]]:
    """Yield (item, result), from processes of this machine.

    Args:
        count: number of processes.

    Raises:
        ChildProcessError: an item has ended too many processes.
        Exception: what `work` raises.
    """
    threads = max(1, torch.get_num_threads() // count)
    left, deaths = deque(items), Counter[str]()
    idle = [_Process(work, threads) for _ in range(min(count, len(left)))]
    busy: dict[Any, tuple[_Process, str]] = {}
    try:
        while left or busy:
            while left and idle:
                process, item = idle.pop(), left.popleft()
                busy[process.connection] = (process, item)
                process.begin(item)
            for connection in wait(list(busy)):
                process, item = busy.pop(connection)
                try:
                    result, error = process.connection.recv()
                except (EOFError, OSError):  # killed, perhaps while it answered
                    deaths[item] += 1
                    _require_hope(item, deaths[item], process.end())
                    left.appendleft(item)
                    idle.append(_Process(work, threads))
                    continue
                idle.append(process)
                if error is not None:
                    raise error
                yield item, result
    finally:
        for process in (*idle, *(process for process, _ in busy.values())):
            process.end()


def _require_hope(item: str, deaths: int, code: int | None) -> None:
    if deaths == TRIES:
        raise ChildProcessError(
            f"{deaths} workers were ended while they made {item}, the last with exit code {code}; if their"
            " memory was too small, use fewer: what is finished is kept"
        )


class _Process:
    """A process that does one item at a time."""

    def __init__(self, work: Work[Any], threads: int) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        self._process.start()
        theirs.close()  # so that the connection ends with the process

    def begin(self, item: str) -> None:
        with suppress(OSError):  # it is dead, which is found where its result is received
            self.connection.send(item)

    def end(self) -> int | None:
        """End the process at once, and return its exit code."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        return self._process.exitcode


def _serve(connection: Connection, work: Work[Any], threads: int) -> None:
    """Answer each item with (result, error), as long as the process lives that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    answer: tuple[Any, Exception | None]
    while True:
        item = connection.recv()
        try:
            answer = work(item), None
        except Exception as error:  # noqa: BLE001 - raised by the process that asks
            answer = None, error
        connection.send(answer)


def _end_with_parent() -> None:
    """Wait until the process that asks is gone, and end this one, whatever it is at."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def on_ray(work: Work[R], items: Sequence[str], gpus: int = 0) -> Iterator[tuple[str, R]]:
    """Yield (item, result), from Ray tasks: on the cluster the caller has joined, or the one that is running.

    Ray hands an item whose worker or machine is lost to another one. Each task has a processor.

    Args:
        gpus: number of GPUs that each task needs.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster is running.
        ChildProcessError: an item has ended too many workers.
        Exception: what `work` raises.
    """
    ray = _ray()
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(_called)
    running = {task.remote(work, item): item for item in items}
    try:
        while running:
            (reference, *_), _ = ray.wait([*running])
            yield running.pop(reference), _result(ray, reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _called(work: Work[R], item: str) -> R:
    return work(item)


def _ray() -> Any:
    """Return the module, connected to a cluster."""
    try:
        import ray
    except ModuleNotFoundError as error:
        message = "workers=ray needs Ray; pip install 'sinq-harness[ray]'"
        raise ModuleNotFoundError(message, name="ray") from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto")
        except ConnectionError as error:
            raise ConnectionError(
                "workers=ray found no Ray cluster; begin one with ray start --head, or give a number of"
                " processes of this machine"
            ) from error
    return ray


def _result(ray: Any, reference: Any) -> Any:
    """Return the result of a task, or raise what it raised, without Ray's traceback around it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"Ray gave up on a file after {TRIES} workers: {str(error).splitlines()[0]}; what is finished is"
            " kept"
        ) from error
