"""Contestants in a process of their own: Keras has one backend in a process, chosen before its import.

The parent says when; the worker warms up and reads the clock itself, so what passes between them is not in
the times.
"""

import atexit
import contextlib
import gc
import os
import signal
import weakref
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from bench.contestants.contestant import Arrays, Contestant, Timed, UnavailableError, first_line
from bench.workloads import Workload

Environment = tuple[tuple[str, str], ...]
PATIENCE = 5.0  # seconds


def stop_workers() -> None:
    """End all workers."""
    while _workers:
        _workers.popitem()[1].stop()


class Worker:
    """A process with an environment of its own."""

    def __init__(self, environment: Environment) -> None:
        """Start it."""
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    @classmethod
    def of(cls, environment: Environment) -> "Worker":
        """The worker with this environment: one for all workloads, since imports take seconds."""
        if environment not in _workers:
            _workers[environment] = cls(environment)
        return _workers[environment]

    def make(
        self, name: str, workload: Workload, threads: int, device: str, learning_rate: float
    ) -> Contestant:
        """Make a contestant there."""
        number, form, renews = self.ask("make", name, workload, threads, device, learning_rate)
        made = Contestant(
            lambda: self.ask("time", number, 1),
            lambda: self._variables(number),
            lambda factor: self.ask("scale", number, factor),
            form,
            lambda _, steps, before: self._time(number, steps, before),
            (lambda: self.ask("renew", number)) if renews else None,
        )
        weakref.finalize(made, self.ask, "drop", number)  # its arrays go with it
        return made

    def _variables(self, number: int) -> Arrays:
        variables: Arrays = self.ask("variables", number)
        return variables

    def _time(self, number: int, steps: int, before: Callable[[], object]) -> Timed:
        before()
        timed: Timed = self.ask("time", number, steps)
        return timed

    def ask(self, what: str, *arguments: Any) -> Any:
        """Send a question and wait for the answer."""
        try:
            self._connection.send((what, arguments))
            answer = self._connection.recv()
        except (OSError, EOFError) as error:
            if what == "drop":
                return None
            raise UnavailableError("its process has ended") from error
        if isinstance(answer, UnavailableError):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, which may be in the midst of something."""
        self._connection.close()
        self._process.join(PATIENCE)
        self._process.terminate()
        self._process.join()


_workers: dict[Environment, Worker] = {}
atexit.register(stop_workers)


def serve(connection: Connection) -> None:
    """Answer questions until the parent has gone. Garbage is collected when a contestant comes or goes."""
    gc.disable()
    with contextlib.suppress(ValueError):  # not in the main thread
        # A terminal sends it to all; the parent says what is to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from bench.contestants import make

    made: dict[int, Contestant] = {}

    def answer(what: str, arguments: tuple[Any, ...]) -> Any:
        if what == "make":
            name, workload, threads, device, learning_rate = arguments
            contestant = make(name, workload, threads=threads, device=device, learning_rate=learning_rate)
            gc.collect()
            number = max(made, default=0) + 1
            made[number] = contestant
            return number, contestant.form, contestant.renew is not None
        if what == "time":
            return made[arguments[0]].time(arguments[1])
        if what == "scale":
            return made[arguments[0]].scale(arguments[1]) and None
        if what == "renew":
            renew = made[arguments[0]].renew
            assert renew is not None
            return renew() and None
        if what == "variables":
            arrays: Arrays = made[arguments[0]].variables()
            return arrays
        made.pop(arguments[0], None)
        gc.collect()
        return None

    while True:
        try:
            what, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = answer(what, arguments)
        except Exception as error:
            result = error if isinstance(error, UnavailableError) else UnavailableError(first_line(error))
        with contextlib.suppress(BrokenPipeError):  # the parent has gone; the next question says so
            connection.send(result)
