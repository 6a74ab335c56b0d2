"""Threads and processes: OpenMP's number of threads, several Python threads, the GIL, and fork.

What could hang runs in a process of its own, with a time limit.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from fusedstep import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

Array = npt.NDArray[Any]

LARGE = 4_000_000  # elements: some milliseconds, far above the limit from which steps release the GIL

MAKERS: list[Callable[[], Optimizer]] = [
    lambda: SGD(0.01, momentum=0.9),
    lambda: Adam(0.01),
    lambda: AdamW(0.01, amsgrad=True),
    lambda: RMSprop(0.01, centered=True, momentum=0.9),
    lambda: Adagrad(0.01),
]

needs_openmp = pytest.mark.skipif(not fusedstep.build_info()["openmp"], reason="built without OpenMP")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    yield
    fusedstep.set_num_threads(None)


def normal(shape: Any, seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def state(optimizer: Optimizer, *variables: Array) -> list[bytes]:
    return [array.tobytes() for array in (*variables, *optimizer.variables)]


def python(script: str, timeout: float = 60, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def in_threads(functions: list[Callable[[], None]]) -> None:
    """Run all at once, and raise what any of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def switching_only_where_the_gil_is_released() -> Iterator[None]:
    """No Python thread is interrupted by another: each runs until it waits or releases the GIL by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


# The number of threads.


@pytest.mark.parametrize("make", MAKERS)
def test_bits_do_not_depend_on_the_number_of_threads(make: Callable[[], Optimizer]) -> None:
    shapes: list[Any] = [(300_000,), (3, 5), (), (70_001,), (0,), (129, 1025)]
    results = []
    for count in (1, 2, 7, 64):
        fusedstep.set_num_threads(count)
        opt, variables = make(), [normal(shape) for shape in shapes]
        for step in range(3):
            grads: list[Any] = [normal(shape, seed=step + 1) for shape in shapes]
            if step == 1:
                grads[0] = None
            opt.apply(grads, variables)
        results.append(state(opt, *variables))
    assert results[1:] == results[:1] * 3


@needs_openmp
def test_set_and_get() -> None:
    for count in (1, 2, 7, np.int64(3), 32768):
        fusedstep.set_num_threads(count)
        assert fusedstep.get_num_threads() == fusedstep.build_info()["num_threads"] == count
    fusedstep.set_num_threads(None)
    assert 1 <= fusedstep.get_num_threads() < 32768


@needs_openmp
@pytest.mark.parametrize("count", [1, 3, 11])
def test_omp_num_threads(count: int) -> None:
    """The environment's number holds, what is set goes before it, and None returns to it."""
    script = """
import fusedstep
counts = [fusedstep.get_num_threads()]
for number in (5, None):
    fusedstep.set_num_threads(number)
    counts.append(fusedstep.get_num_threads())
print(*counts)
"""
    assert python(script, OMP_NUM_THREADS=str(count)) == f"{count} 5 {count}"


@needs_openmp
def test_threadpoolctl() -> None:
    """Limits that threadpoolctl sets hold, in the thread that sets them."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = fusedstep.get_num_threads()
    for limit in (1, 3):
        with threadpoolctl.threadpool_limits(limits=limit, user_api="openmp"):
            assert fusedstep.get_num_threads() == limit
    assert fusedstep.get_num_threads() == before


# Several Python threads.


@pytest.mark.parametrize("openmp_threads", [1, 2])
def test_optimizers_in_threads_give_the_bits_of_serial_ones(openmp_threads: int) -> None:
    fusedstep.set_num_threads(openmp_threads)
    sizes = [500_000, 30, 4096, 100_000]

    def train(number: int, make: Callable[[], Optimizer], results: dict[int, list[bytes]]) -> None:
        opt, variables = make(), [normal(size, seed=number) for size in sizes]
        for step in range(5):
            opt.apply([normal(size, seed=10 * number + step) for size in sizes], variables)
        results[number] = state(opt, *variables)

    serial: dict[int, list[bytes]] = {}
    parallel: dict[int, list[bytes]] = {}
    for number, make in enumerate(MAKERS):
        train(number, make, serial)
    in_threads([lambda n=n, m=m: train(n, m, parallel) for n, m in enumerate(MAKERS)])  # type: ignore[misc]
    assert parallel == serial


def test_one_optimizer_serves_models_of_several_threads() -> None:
    """Builds of one optimizer are independent: each thread names the variables of its own model."""
    opt, twin = Adam(0.01), Adam(0.01)
    models = [normal(600_000, seed=number) for number in range(3)]
    expected = [model.copy() for model in models]
    for model, copy in zip(models, expected, strict=True):
        opt.build([model])
        twin.build([copy])

    def train(number: int) -> None:
        for step in range(10):
            assert opt.apply([normal(600_000, seed=step)], [models[number]]) == step + 1

    in_threads([lambda n=n: train(n) for n in range(3)])  # type: ignore[misc]
    for copy in expected:
        for step in range(10):
            twin.apply([normal(600_000, seed=step)], [copy])
    assert state(opt, *models) == state(twin, *expected)


def test_the_same_variables_from_two_threads_at_once() -> None:
    """One of two steps at the same time is refused, and the bits are those of the others, one by one."""
    fusedstep.set_num_threads(1)
    opt, w, gradient = Adam(0.01), normal(LARGE), normal(LARGE, seed=1)
    opt.apply([gradient], [w])
    done, refused = [1], []

    def train() -> None:
        for _ in range(20):
            try:
                opt.apply([gradient], [w])
                done.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    in_threads([train, train])
    assert set(refused) == {
        "Adam: these variables are in the middle of another step, or their state is being copied;"
        " use a lock between threads, or an optimizer for each (and what a step calls cannot step)"
    }
    assert opt.iterations == len(done) < 41
    twin, expected = Adam(0.01), normal(LARGE)
    for _ in done:
        twin.apply([gradient], [expected])
    assert state(opt, w) == state(twin, expected)


def test_no_state_is_copied_or_loaded_in_the_middle_of_a_step() -> None:
    opt, w, gradient = Adam(0.01), np.zeros(LARGE, np.float32), np.ones(LARGE, np.float32)
    opt.apply([gradient], [w])
    done = threading.Event()
    copies: list[dict[str, Any]] = []
    refused: list[str] = []

    def train() -> None:
        for _ in range(30):
            opt.apply([gradient], [w])
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    while not done.is_set():
        try:
            copies.append(opt.state_dict())
        except RuntimeError as error:
            refused.append(str(error))
    thread.join()
    assert refused, "no state was asked for in the middle of a step"
    assert all("in the middle of another step" in text for text in refused)
    for copied in copies:
        momentum = copied["builds"][0]["slots"]["0/momentum"]
        assert momentum.min() == momentum.max(), "a state of two steps"


def test_hyperparameters_do_not_change_in_the_middle_of_a_step() -> None:
    """They are set before or after it; the learning rate, which the step has read, at any time."""
    fusedstep.set_num_threads(1)
    opt, w, gradient = Adam(0.01), normal(LARGE), normal(LARGE, seed=1)
    opt.apply([gradient], [w])
    refused = []
    with switching_only_where_the_gil_is_released():
        for _ in range(10):
            begun = threading.Event()
            thread = threading.Thread(target=lambda e=begun: e.set() or opt.apply([gradient], [w]))
            thread.start()
            begun.wait()  # the other thread goes on until its step releases the GIL
            opt.learning_rate = 0.01
            try:
                opt.beta_1 = 0.5
            except RuntimeError as error:
                refused.append(str(error))
            else:
                opt.beta_1 = 0.9
            thread.join()
    assert refused, "nothing was ever set in the middle of a step"
    assert all("these variables are in the middle of another step" in text for text in refused)
    assert opt.beta_1 == 0.9
    twin, expected = Adam(0.01), normal(LARGE)
    for _ in range(opt.iterations):
        twin.apply([gradient], [expected])
    assert opt.iterations == 11
    assert state(opt, w) == state(twin, expected)


# The GIL.


def progress_of_another_thread(opt: Optimizer, gradient: Array, w: Array, steps: int) -> int:
    """How often another Python thread runs while this one takes steps."""
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)  # gives the GIL back at once

    thread = threading.Thread(target=count)
    thread.start()
    try:
        while counted[0] == 0:
            time.sleep(0.001)
        with switching_only_where_the_gil_is_released():
            before = counted[0]
            while counted[0] == before:  # until it waits for the GIL as it shall now, not for 5 ms at most
                time.sleep(0.001)
            before = counted[0]
            for _ in range(steps):
                opt.apply([gradient], [w])
            return counted[0] - before
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("threads", [1, 2])
def test_long_steps_release_the_gil(threads: int) -> None:
    fusedstep.set_num_threads(threads)
    opt, w, gradient = Adam(0.01), normal(LARGE), normal(LARGE, seed=1)
    opt.apply([gradient], [w])
    assert progress_of_another_thread(opt, gradient, w, steps=5) >= 5


@pytest.mark.parametrize("stride", [1, 2])
def test_short_steps_keep_the_gil(stride: int) -> None:
    """Taking it back from a busy thread would cost more than the step."""
    size = 300  # NumPy, too, keeps the GIL while it copies this few
    opt, w, gradient = Adam(0.01), normal(size), normal(size * stride, seed=1)[::stride]
    opt.apply([gradient], [w])
    assert progress_of_another_thread(opt, gradient, w, steps=100) == 0


def test_lists_may_change_during_a_long_step() -> None:
    """A step holds the arrays that it was given, whatever another thread does to the lists meanwhile."""
    fusedstep.set_num_threads(1)
    opt, w = Adam(0.01), normal(LARGE)
    opt.build([w])
    grads: list[Array] = []
    variables: list[Array] = []
    lengths: list[int] = []
    ready, stop = threading.Event(), threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            if ready.is_set():
                grads.clear()
                variables.clear()
                ready.clear()
            time.sleep(0)

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        with switching_only_where_the_gil_is_released():
            for step in range(8):
                grads[:], variables[:] = [normal(LARGE, seed=step)], [w]
                ready.set()
                opt.apply(grads, variables)
                lengths.append(len(grads))
    finally:
        stop.set()
        thread.join()
    assert 0 in lengths, "the lists never changed in the middle of a step"
    twin, expected = Adam(0.01), normal(LARGE)
    for step in range(8):
        twin.apply([normal(LARGE, seed=step)], [expected])
    assert state(opt, w) == state(twin, expected)


# Fork.

FORK = """
import os, sys, warnings
import numpy as np, fusedstep
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of threads, which OpenMP's are
rng = np.random.default_rng(0)
sizes = [400_000, 17, 100_000]
variables = [rng.standard_normal(n).astype(np.float32) for n in sizes]
steps = [[rng.standard_normal(n).astype(np.float32) for n in sizes] for _ in range(4)]
fusedstep.set_num_threads(4)
opt = fusedstep.Adam(0.01)

def bits():
    return [a.tobytes() for a in (*variables, *opt.variables)]

def in_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except Exception as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        sys.exit(0)  # with all that runs at exit
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@needs_fork
@pytest.mark.parametrize("generations", [1, 2])
@needs_openmp
def test_fork_after_steps_with_threads(generations: int) -> None:
    """A child steps, to the same bits, on its one thread: libgomp's threads do not exist in it."""
    script = f"""{FORK}
import copy
for grads in steps[:2]:
    opt.apply(grads, variables)
twin, twins = copy.deepcopy(opt), [v.copy() for v in variables]
twin.apply(steps[2], twins)
twin.apply(steps[3], twins)
expected = [a.tobytes() for a in (*twins, *twin.variables)]

def child(left):
    def run():
        assert fusedstep.get_num_threads() == 1, fusedstep.get_num_threads()
        assert opt.iterations == 2
        if left > 1:
            in_child(child(left - 1))
        opt.apply(steps[2], variables)
        fusedstep.set_num_threads(3)
        opt.apply(steps[3], variables)
        assert bits() == expected
        fresh = fusedstep.AdamW()
        assert fresh.apply(steps[0], variables) == 1
    return run

for _ in range(2):
    in_child(child({generations}))
assert opt.iterations == 2, "the child has memory of its own"
for grads in steps[2:]:
    opt.apply(grads, variables)
assert bits() == expected
assert fusedstep.get_num_threads() == 4
print("done")
"""
    assert python(script) == "done"


@needs_fork
def test_fork_before_any_step() -> None:
    """Parent and child each take their first steps after the fork, to the same bits."""
    script = f"""{FORK}
read, write = os.pipe()

def child():
    for grads in steps:
        opt.apply(grads, variables)
    import hashlib
    os.write(write, hashlib.sha256(b"".join(bits())).hexdigest().encode())

in_child(child)
for grads in steps:
    opt.apply(grads, variables)
import hashlib
assert os.read(read, 64).decode() == hashlib.sha256(b"".join(bits())).hexdigest()
print("done")
"""
    assert python(script) == "done"


@needs_fork
def test_fork_while_another_thread_steps() -> None:
    """A child that is forked in the middle of somebody's step can step with another optimizer."""
    script = f"""{FORK}
import threading
big = np.ones(4_000_000, np.float32)
busy = fusedstep.Adam(0.01)
busy.apply([big.copy()], [big])
stop = threading.Event()

def run():
    gradient = big.copy()
    while not stop.is_set():
        busy.apply([gradient], [big])

def child():
    for grads in steps:
        opt.apply(grads, variables)

thread = threading.Thread(target=run)
thread.start()
try:
    for _ in range(5):
        in_child(child)
finally:
    stop.set()
    thread.join()
print("done")
"""
    assert python(script) == "done"


@needs_fork
def test_multiprocessing_pool_by_fork() -> None:
    """What data loaders do: workers made by fork after training began."""
    script = f"""{FORK}
import multiprocessing
opt.apply(steps[0], variables)

def work(number):
    w = np.full(300_000, number, np.float32)
    fusedstep.SGD(1.0, momentum=0.5).apply([np.ones(300_000, np.float32)], [w])
    return float(w[-1])

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(6)) == [n - 1.0 for n in range(6)]
opt.apply(steps[1], variables)
print("done")
"""
    assert python(script) == "done"


def test_the_process_ends_while_threads_step() -> None:
    """Daemon threads in the middle of long steps do not keep the interpreter from ending cleanly."""
    script = """
import threading, time
import numpy as np, fusedstep

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)  # the interpreter is ending by now, and the step returns to it

def run():
    w, gradient = np.ones(4_000_000, np.float32), np.ones(4_000_000, np.float32)
    opt = fusedstep.Adam(0.01)
    while True:
        opt.apply([gradient], [w])
        started.set()

started, slow = threading.Event(), Slow()
threading.Thread(target=run, daemon=True).start()
started.wait()
print("done")
"""
    assert python(script) == "done"


@pytest.mark.parametrize("milliseconds", range(0, 60, 10))
def test_the_process_ends_while_threads_wait_for_the_gil(milliseconds: int) -> None:
    """They get it no more: Python ends them where they wait, in the middle of a call."""
    script = f"""
import threading, time
import numpy as np, fusedstep

fusedstep.set_num_threads(1)

def run():
    w, gradient = np.ones(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    opt = fusedstep.Adam(0.01)
    while True:
        opt.apply([gradient], [w])
        started.set()

started = threading.Event()
for _ in range(6):
    threading.Thread(target=run, daemon=True).start()
started.wait()
end = time.perf_counter() + {milliseconds} / 1000
while time.perf_counter() < end:
    pass
print("done")
"""
    assert python(script) == "done"


def test_a_last_step_while_the_interpreter_ends() -> None:
    """An object that goes with the interpreter may take a step, a long one, too."""
    script = """
import numpy as np, fusedstep

class Last:
    def __init__(self):
        self.opt, self.w, self.gradient = fusedstep.Adam(), *np.ones((2, 4_000_000), np.float32)
        self.opt.apply([self.gradient], [self.w])

    def __del__(self):
        print(self.opt.apply([self.gradient], [self.w]), flush=True)

last = Last()
"""
    assert python(script, timeout=20) == "2"
