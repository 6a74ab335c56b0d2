"""Steps in CUDA graphs: captured once, replayed, and t, the learning rate and the counts go on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import Array, random_array
from fusedstep import SGD, Adagrad, Adam, Adamax, AdamW, Lamb, Lion, Nadam, Optimizer
from gpu.libraries import GPU, assert_same, fresh, host, loaded, on_gpu
from reference import Reference

pytestmark = GPU

CASES: list[tuple[int, Any]] = [(5, np.float32), (4097, np.float32), (300, np.float64), (70_000, np.float16)]
OPTIMIZERS: list[Optimizer] = [
    SGD(0.1, momentum=0.9),
    Adam(0.01),
    Nadam(0.01),
    Adagrad(0.01, form="torch", learning_rate_decay=0.1),
    Lamb(0.01, weight_decay=0.1),
    Lion(0.01, global_clipnorm=1.0),
    AdamW(0.01, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=3),
    Adam(0.01, gradient_accumulation_steps=3, clipnorm=0.5, loss_scale_factor=4.0),
    Adam(0.01, skip_nonfinite=True),
    Nadam(0.01, skip_nonfinite=True, gradient_accumulation_steps=2, global_clipnorm=1.0),
]


def arrays(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [random_array(rng, size, dtype) for size, dtype in CASES]


def captured_by_cupy(work: Callable[[], object]) -> Callable[[], None]:
    """What plays the work that was captured, on the stream that captured it."""
    cupy = loaded("cupy").cupy
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.runtime.deviceSynchronize()
    with stream:
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()

    def play() -> None:
        cupy.cuda.runtime.deviceSynchronize()  # the arrays were written on other streams
        graph.launch(stream)
        stream.synchronize()

    return play


def captured_by_torch(work: Callable[[], object]) -> Callable[[], None]:
    torch = loaded("torch").torch
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()

    def play() -> None:
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()

    return play


CAPTURES = {"cupy": captured_by_cupy, "torch": captured_by_torch}


class Training:
    """An optimizer that has taken one step, arrays for its gradients, and the reference beside it."""

    def __init__(self, library: Any, optimizer: Optimizer) -> None:
        self.library, self.optimizer, start = library, optimizer, arrays(0)
        self.variables, self.reference = on_gpu(library, start), Reference(optimizer, start)
        self.grads = on_gpu(library, start)  # which the graph reads
        self.seed = 0
        self.take(lambda: optimizer.apply(self.grads, self.variables))

    def capture(self, work: Callable[[], object] | None = None) -> Callable[[], None]:
        return CAPTURES[self.library.name](work or (lambda: self.optimizer.apply(self.grads)))

    def take(self, step: Callable[[], object], worst: float = 0.0) -> None:
        """One step with gradients that are new, in the arrays of the old ones."""
        self.seed += 1
        grads = arrays(self.seed)
        grads[1][17] += worst
        for place, gradient in zip(self.grads, self.library_arrays(grads), strict=True):
            place[...] = gradient
        step()
        self.reference.apply(grads)

    def library_arrays(self, values: list[Array]) -> list[Any]:
        return on_gpu(self.library, values)

    def check(self) -> None:
        assert_same(self.optimizer, self.variables, self.reference)
        assert self.optimizer.iterations == self.reference.updates
        assert self.optimizer.skipped_calls == self.reference.skips


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_replays_are_steps(optimizer: Optimizer, library: Any) -> None:
    training = Training(library, fresh(optimizer))
    play = training.capture()
    training.check()  # a capture runs nothing, and counts nothing
    for number in range(7):
        skips = number in (2, 3) and optimizer.skip_nonfinite
        training.take(play, worst=np.inf if skips else 0.0)
        norm = training.reference.norm
        if norm is not None and np.isfinite(norm):
            assert float(host(training.optimizer.gradient_norm)) == norm
    training.check()


def test_the_learning_rate_can_be_set_between_replays(library: Any) -> None:
    training = Training(library, Adam(0.01))
    play = training.capture()
    for number in range(4):
        training.optimizer.learning_rate = training.reference.config["learning_rate"] = 0.5**number
        training.take(play)
    training.check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def test_a_learning_rate_on_the_gpu(dtype: Any, library: Any) -> None:
    """An array without dimensions, read by each step: before the capture, in replays, and after."""
    rate = library.array(np.array(0.01, dtype))
    training = Training(library, Adam(rate))
    assert training.reference.config["learning_rate"] == float(np.array(0.01, dtype))
    play = training.capture()
    for number in range(5):
        rate[...] = 0.5**number
        training.reference.config["learning_rate"] = 0.5**number
        training.take(play if number < 3 else lambda: training.optimizer.apply(training.grads))
    training.check()


def test_a_learning_rate_of_another_kind_between_replays(library: Any) -> None:
    """A graph reads what was set last: a number, or an array, which stays as long as it is read."""
    training = Training(library, Adam(library.array(np.array(0.01, np.float32))))
    play = training.capture()
    for rate in (0.5, np.array(0.25), 0.125, np.array(0.0625, np.float32)):
        training.optimizer.learning_rate = rate if isinstance(rate, float) else library.array(rate)
        training.reference.config["learning_rate"] = float(rate)
        training.take(play)
    training.optimizer.learning_rate = lambda: 0.5  # which a graph cannot ask
    others = [library.array(np.full_like(rate, 7)) for _ in range(3)]  # in what was given back
    training.take(play)
    del others
    training.check()


def test_replays_among_steps(library: Any) -> None:
    """Whoever steps goes on from what the last one left."""
    training = Training(library, Nadam(0.01, gradient_accumulation_steps=2, global_clipnorm=1.0))
    play = training.capture()
    for number in range(9):
        training.take(play if number % 3 else lambda: training.optimizer.apply(training.grads))
    training.check()


def test_two_steps_in_one_graph(library: Any) -> None:
    training = Training(library, Adam(0.01, skip_nonfinite=True))

    def twice() -> None:
        training.optimizer.apply(training.grads)
        training.optimizer.apply(training.grads)

    play = training.capture(twice)
    for _ in range(3):
        training.take(play)
        training.reference.apply([host(gradient) for gradient in training.grads])
    training.check()


def test_a_second_graph_takes_the_place_of_the_first(library: Any) -> None:
    training = Training(library, Adam(0.01))
    play = training.capture()
    training.take(play)
    training.optimizer.weight_decay = training.reference.config["weight_decay"] = 0.1
    play = training.capture()
    training.take(play)
    training.check()


def test_state_of_a_run_in_graphs(library: Any) -> None:
    """It has the counts of the device, and brings them to one."""
    training = Training(library, Nadam(0.01))
    play = training.capture()
    for _ in range(3):
        training.take(play)
    state = training.optimizer.state_dict()
    assert (state["builds"][0]["calls"], state["builds"][0]["updates"]) == (4, 4)
    former = [host(variable) for variable in training.variables]
    for _ in range(2):
        training.take(play)
    training.check()
    training.optimizer.load_state_dict(state)
    for variable, values in zip(training.variables, former, strict=True):
        variable[...] = library.array(values)
    training.seed -= 2
    again = Reference(training.optimizer, former)
    again.calls = again.updates = 4
    again.slots = [{k: host(v) for k, v in training.optimizer.slots(w).items()} for w in training.variables]
    training.reference = again
    for _ in range(2):
        training.take(play)
    training.check()


def test_settings_of_a_capture_are_not_those_of_steps_before(cupy: Any) -> None:
    """Steps that are queued have theirs, though a capture has others written beside the stream's order."""
    library, stream = loaded("cupy"), cupy.cuda.Stream(non_blocking=True)
    w, g = library.array(np.full(3, 8.0, np.float32)), library.array(np.zeros(3, np.float32))
    optimizer = SGD(1.0, weight_decay=0.5)
    optimizer.build([w])
    cupy.cuda.runtime.deviceSynchronize()
    with stream:
        optimizer.apply([g])
        optimizer.weight_decay = 0.25
        stream.begin_capture()
        optimizer.apply([g])
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    assert (host(w) == 8 * 0.5 * 0.75).all()


def test_the_first_launch_of_a_kernel_may_be_captured(cupy: Any) -> None:
    """It was loaded before: a driver may refuse that while a graph is captured, and it may wait."""
    library = loaded("cupy")
    start, grads = arrays(1), arrays(2)
    optimizer, variables, given = Adamax(0.1), on_gpu(library, start), on_gpu(library, grads)
    reference = Reference(Adamax(0.1, clipvalue=0.5), start)
    optimizer.clipvalue = 0.5
    optimizer.build(variables)
    play = captured_by_cupy(lambda: optimizer.apply(given))
    play()
    reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_a_graph_keeps_its_copy_of_a_strided_gradient(cupy: Any) -> None:
    """Replays write it anew, so its memory is no other array's."""
    library, stream = loaded("cupy"), cupy.cuda.Stream(non_blocking=True)
    w, g = library.array(np.zeros((300, 5), np.float32)), library.array(np.ones((5, 300), np.float32)).T
    optimizer = SGD(1.0)
    optimizer.build([w])
    cupy.cuda.runtime.deviceSynchronize()
    with stream:
        stream.begin_capture()
        optimizer.apply([g])
        graph = stream.end_capture()
        others = [cupy.full((300, 5), 7, np.float32) for _ in range(4)]
        graph.launch(stream)
        stream.synchronize()
    assert (host(w) == -1).all()
    assert all((host(one) == 7).all() for one in others)


def test_a_graph_has_no_schedule(cupy: Any) -> None:
    """It could not ask one when it is replayed."""
    library = loaded("cupy")
    w, g = (library.array(np.ones(3, np.float32)) for _ in range(2))
    optimizer = SGD(lambda step: 0.5**step)
    optimizer.apply([g], [w])
    with pytest.raises(ValueError, match="learning_rate is a schedule or a callable, which a graph cannot"):
        captured_by_cupy(lambda: optimizer.apply([g]))
    assert (host(w) == 0).all()
    assert optimizer.apply([g]) == 2


def test_a_graph_has_variables_of_one_device(cupy: Any) -> None:
    library = loaded("cupy")
    w, v = library.array(np.ones(3, np.float32)), np.ones(3, np.float32)
    g = library.array(np.ones(3, np.float32))
    optimizer = SGD(0.5)
    optimizer.apply([g, np.ones(3, np.float32)], [w, v])
    with pytest.raises(ValueError, match="a step that goes into a graph must have all its variables on one"):
        captured_by_cupy(lambda: optimizer.apply([g, np.ones(3, np.float32)]))
    assert (host(w) == 0.5).all()
    assert (v == 0.5).all()
    assert optimizer.apply([g, np.ones(3, np.float32)]) == 2
    assert (host(w) == 0).all()
