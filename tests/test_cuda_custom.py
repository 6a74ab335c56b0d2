"""Rules in Python on simulated GPUs, where NumPy's arrays over their memory are in the place of CuPy's."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, OPTIONS, STAGES, VARIANTS, Array, random_array, with_arguments
from fusedstep import SGD, Adam, CustomOptimizer, ExponentialDecay, LossScaleOptimizer, Optimizer
from fusedstep._native import DeviceArray, simulation
from reference import same_bits
from simulated import OnStream, capture, kernels, put, put_any, put_on
from spelled import some_gradients, spelled_out

SHAPES: list[tuple[int, ...]] = [(), (30, 7), (5, 0), (0,), (1,), (17,), (513,), (4097,), (9000,)]
CASES = list(itertools.product(SHAPES, DTYPES))


def over(memory: DeviceArray) -> Array:
    """An array of NumPy's over memory of a simulated GPU, which is memory of the host."""
    described = memory.__cuda_array_interface__
    array: Array = np.asarray(SimpleNamespace(__array_interface__=described, memory=memory))
    return array


class CuPy(ModuleType):
    """As much of CuPy as a step asks for."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.device, self.stream = 0, 0  # the current ones
        self.stack: list[int] = []
        self.cuda = SimpleNamespace(
            Device=self.on_device,
            get_current_stream=lambda: Stream(self, self.stream),
            Stream=SimpleNamespace(from_external=lambda of: Stream(self, of.__cuda_stream__()[1])),
        )
        self.from_dlpack = over

    @contextlib.contextmanager
    def on_device(self, device: int) -> Iterator[None]:
        before, self.device = self.device, device
        yield
        self.device = before


class Stream:
    """After a with statement the one around is current, as in CuPy, even where use() had changed that."""

    def __init__(self, cupy: CuPy, ptr: int) -> None:
        self.cupy, self.ptr = cupy, ptr

    def use(self) -> None:
        self.cupy.stream = self.ptr

    def __enter__(self) -> None:
        self.cupy.stack.append(self.ptr)
        self.use()

    def __exit__(self, *_: object) -> None:
        self.cupy.stack.pop()
        self.cupy.stream = self.cupy.stack[-1] if self.cupy.stack else 0


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> CuPy:
    module = CuPy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def assert_equal(custom: Optimizer, ours: list[Any], builtin: Optimizer, theirs: list[Array]) -> None:
    assert (custom.iterations, custom._calls()) == (builtin.iterations, builtin._calls())
    assert custom.skipped_calls == builtin.skipped_calls
    for mine, its in zip(ours, theirs, strict=True):
        assert same_bits(mine.copy(), its)
        assert custom.slots(mine).keys() == builtin.slots(its).keys()
        for name, slot in builtin.slots(its).items():
            assert same_bits(custom.slots(mine)[name].copy(), slot), name


@pytest.mark.parametrize("options", [*STAGES, *OPTIONS], ids=str)
@pytest.mark.parametrize("builtin", [SGD(0.01), SGD(0.01, momentum=0.9), Adam(0.01)], ids=repr)
def test_the_bits_are_those_of_the_rule_in_every_option(
    builtin: Optimizer, options: dict[str, Any], blocks: int, cupy: CuPy
) -> None:
    """All sizes and dtypes; gradients of any, of rows, and none. Only a decision to skip is waited for."""
    rng = np.random.default_rng(1)
    builtin = with_arguments(builtin, **options)
    custom = spelled_out(builtin)
    here = [random_array(rng, shape, dtype) for shape, dtype in CASES]
    there = put(here)
    waits = {"read"} if "skip_nonfinite" in options else set()
    for step in range(7):
        grads = some_gradients(rng, [shape for shape, _ in CASES], step)
        given = put_any(grads)
        simulation.take_events()
        assert custom.apply(given, there) == builtin.apply(grads, here)
        known = {"norms", "norms of any", "order", "hand over", "take back", "bare", "staged"}
        assert step == 0 or set(kernels()) - {"allocate", "free"} <= known | waits
    assert_equal(custom, there, builtin, here)
    custom.finalize_variable_values()
    builtin.finalize_variable_values()
    assert_equal(custom, there, builtin, here)


@pytest.mark.parametrize("builtin", VARIANTS, ids=repr)
def test_the_bits_are_those_of_every_rule(builtin: Optimizer, gpus: None, cupy: CuPy) -> None:
    rng = np.random.default_rng(2)
    custom, builtin = spelled_out(builtin), builtin.clone()
    here = [random_array(rng, (30, 7), dtype) for dtype in DTYPES]
    there = put(here)
    for _ in range(4):
        grads = [random_array(rng, (30, 7), dtype, special=True) for dtype in DTYPES]
        custom.apply(put(grads), there)
        builtin.apply(grads, here)
    assert_equal(custom, there, builtin, here)


def test_what_is_launched(gpus: None, cupy: CuPy) -> None:
    """Two kernels around each call of the method, and one more for what is not the rule's."""
    optimizer = spelled_out(SGD(0.5, gradient_accumulation_steps=2, global_clipnorm=1.0))
    w, g = put([np.ones(5)] * 3), put([np.ones(5)] * 3)
    optimizer.build(w)
    simulation.take_events()
    optimizer.apply([g[0], None, g[2]], w)
    assert kernels() == ["staged"]
    optimizer.apply([g[0], None, g[2]], w)
    assert kernels() == ["norms", *["hand over", "take back"] * 2, "staged"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_replicas(options: dict[str, Any], gpus: None, cupy: CuPy) -> None:
    rng = np.random.default_rng(3)
    builtin = SGD(0.1, momentum=0.9, **options)
    custom = spelled_out(builtin)
    here = [random_array(rng, (40, 30), dtype) for dtype in DTYPES]
    there = put(here)
    for step in range(1, 5):
        replicas = [some_gradients(rng, [w.shape for w in here], step + k) for k in range(3)]
        given = [put_any(grads) for grads in replicas]
        custom.apply(variables=there, replicas=given, mean=step % 2 == 0)
        builtin.apply(variables=here, replicas=replicas, mean=step % 2 == 0)
    assert_equal(custom, there, builtin, here)


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_arrays_here_and_on_several_devices(options: dict[str, Any], gpus: None, cupy: CuPy) -> None:
    rng = np.random.default_rng(4)
    builtin = Adam(0.1, **options)
    custom = spelled_out(builtin)
    places: list[int | None] = [None, 0, 1, None, 1, 0]
    here = [random_array(rng, (9, 3), DTYPES[k % 4]) for k in range(len(places))]
    here.append(random_array(rng, 200_000, np.float32))  # as much as several threads would take
    places.append(None)
    there = put_on(here, places)
    for step in range(1, 5):
        grads = some_gradients(rng, [w.shape for w in here], step)
        assert custom.apply(put_on(grads, places), there) == builtin.apply(grads, here)
    assert_equal(custom, there, builtin, here)


def test_settings_of_single_variables_and_schedules(gpus: None, cupy: CuPy) -> None:
    builtin = SGD(ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5), momentum=0.9, skip_nonfinite=True)
    custom = spelled_out(SGD(momentum=0.9, skip_nonfinite=True))
    custom.learning_rate = ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    here: dict[str, Array] = {"a": np.ones(3, np.float32), "b": np.ones(3), "c": np.ones(2)}
    there = dict(zip(here, put(list(here.values())), strict=True))
    for optimizer, model in ((custom, there), (builtin, here)):
        optimizer.build(model)
        optimizer.weight_decay = 0.1
        optimizer.adjust("a", learning_rate_multiplier=0.5)
        optimizer.adjust("b", frozen=True)
        optimizer.adjust("c", weight_decay=0.0)
    for value in (1.0, np.inf, 2.0, 3.0):
        grads = {name: np.full_like(w, value) for name, w in here.items()}
        builtin.apply(grads)
        custom.apply(dict(zip(grads, put(list(grads.values())), strict=True)))
    assert custom.skipped_calls == 1
    assert_equal(custom, list(there.values()), builtin, list(here.values()))


def test_a_dynamic_loss_scale(gpus: None, cupy: CuPy) -> None:
    builtin = LossScaleOptimizer(SGD(0.1, momentum=0.9), 8.0, 2)
    custom = LossScaleOptimizer(spelled_out(SGD(0.1, momentum=0.9)), 8.0, 2)
    here = [np.ones(5, np.float16)]
    there = put(here)
    for value in (1.0, np.inf, 1.0, 1.0, 1.0, np.inf):
        grads = [np.full(5, value, np.float16)]
        custom.apply(put(grads), there)
        builtin.apply(grads, here)
        assert custom.dynamic_scale == builtin.dynamic_scale
    assert same_bits(there[0].copy(), here[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_odd_offsets(dtype: Any, gpus: None, cupy: CuPy) -> None:
    rng, itemsize = np.random.default_rng(5), np.dtype(dtype).itemsize
    builtin = Adam(0.01, clipnorm=1.0)
    custom = spelled_out(builtin)
    offsets = [(a * itemsize, b * itemsize) for a in range(32 // itemsize) for b in (0, 1, a)]
    here = [random_array(rng, 519, dtype) for _ in offsets]
    there = [simulation.array_on(0, w, offset) for w, (offset, _) in zip(here, offsets, strict=True)]
    for _ in range(2):
        grads = [random_array(rng, 519, dtype) for _ in offsets]
        given = [simulation.array_on(0, g, offset) for g, (_, offset) in zip(grads, offsets, strict=True)]
        custom.apply(given, there)
        builtin.apply(grads, here)
    assert_equal(custom, there, builtin, here)


def test_many_slots(gpus: None, cupy: CuPy) -> None:
    """More than a rule of the package may have."""

    class Historian(CustomOptimizer):
        @property
        def slot_names(self) -> dict[str, float]:
            return {f"g{k}": float(k) for k in range(9)}

        def update(self, variable: Array, gradient: Array, slots: dict[str, Array], *_: Any) -> None:
            for k in range(8):
                slots[f"g{k}"] = slots[f"g{k + 1}"]
            slots["g8"] = gradient

    optimizer, w = Historian(use_ema=True), put([np.ones(3, np.float16)])
    optimizer.apply(put([np.full(3, 20.0)]), w)
    optimizer.apply(put([np.full(3, 30.0)]), w)
    assert [float(optimizer.slots(w[0])[f"g{k}"].copy()[1]) for k in range(9)] == [
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        20,
        30,
    ]
    assert optimizer.slots(w[0])["average"].copy().tolist() == [1.0] * 3


class Spy(CustomOptimizer):
    """Notes where it is called, and with what; raises when it is told to."""

    slot_names = ("m",)
    _raises = False

    def update(self, variable: Array, gradient: Array, slots: dict[str, Array], rate: float, t: int) -> None:
        cupy: Any = sys.modules["cupy"]
        self._seen = (cupy.device, cupy.stream, variable.dtype.name, gradient.tolist(), rate, t)
        variable -= 1
        if self._raises:
            raise OSError("the disk is full")


def test_what_the_method_gets(gpus: None, cupy: CuPy) -> None:
    """On the variable's device and its library's stream; afterwards they are what they were."""
    optimizer = Spy(0.5, weight_decay=0.5)
    Stream(cupy, 3).use()
    memory, gradient = put([np.ones(2, np.float16)], 1), put([np.array([3.0, 4.0])], 1)
    optimizer.apply(gradient, [OnStream(memory[0], 7)])
    assert optimizer._seen == (1, 7, "float32", [3.0, 4.0], 0.5, 1)
    assert memory[0].copy().tolist() == [-0.25] * 2
    assert (cupy.device, cupy.stream) == (0, 3)


def test_errors_of_the_method_pass_through(gpus: None, cupy: CuPy) -> None:
    """The array in question stays as it was, and the call does not count."""
    optimizer, w, g = Spy(0.5), put([np.ones(2), np.ones(2)], 1), put([np.ones(2), np.ones(2)], 1)
    optimizer.apply(g, w)
    optimizer._raises = True
    with pytest.raises(OSError, match="the disk is full"):
        optimizer.apply(g, w)
    assert (cupy.device, cupy.stream) == (0, 0)
    optimizer._raises = False
    assert (w[0].copy() == 0).all()
    assert optimizer.iterations == 1
    optimizer.apply(g, w)
    assert optimizer._seen[-1] == 2
    assert (w[1].copy() == -1).all()


@pytest.mark.parametrize("places", [(0, 0), (0, 1), (None, 1)], ids=str)
def test_arrays_before_an_error_are_whole(places: Any, gpus: None, cupy: CuPy) -> None:
    """Their sums are cleared and their averages taken, as on the CPU; the devices still count alike."""

    class Fails(CustomOptimizer):
        _calls_left = 4

        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            self._calls_left -= 1
            if self._calls_left == 0:
                raise OSError("the disk is full")
            variable -= gradient

    arguments: dict[str, Any] = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5}
    both: list[list[Any]] = []
    for there in ((None, None), places):
        optimizer, w = Fails(1.0, **arguments), put_on([np.zeros(2), np.zeros(2)], there)
        for _ in range(9):
            grads = put_on([np.ones(2), np.ones(2)], there)
            with contextlib.suppress(OSError):
                optimizer.apply(grads, w)
        assert optimizer.iterations == 4
        arrays = [x for one in w for x in (one, *optimizer.slots(one).values())]
        both.append([x.copy().tolist() for x in arrays])
    assert both[0] == both[1]


@pytest.mark.parametrize("places", [(0, 0, 0), (None, 0, 1)], ids=str)
def test_gradients_stay_while_the_method_runs(places: Any, gpus: None, cupy: CuPy) -> None:
    grads: list[Any] = []

    class Clears(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            variable -= gradient
            grads.clear()
            put([np.full(2, 9.0)] * 9)

    optimizer, w = Clears(), put_on([np.zeros(2)] * 3, places)
    for _ in range(3):
        grads += put_on([np.ones(2)] * 3, places)
        optimizer.apply(grads, w)
    assert [one.copy().tolist() for one in w] == [[-3.0] * 2] * 3


def test_the_norm_and_the_loss_scale_after_a_change(gpus: None, cupy: CuPy) -> None:
    """Calls that were decided by the host are followed by calls that the device knows all about."""
    found = []
    for custom in (False, True):
        inner: Optimizer = SGD(0.1)
        inner = spelled_out(inner) if custom else inner
        optimizer, w = LossScaleOptimizer(inner, 8.0, 2), put([np.ones(3)])
        for value in (1.0, np.inf, 1.0, np.inf):
            optimizer.apply(put([np.full(3, value)]), w)
        inner.skip_nonfinite = False
        optimizer.apply(put([np.ones(3)]), w)
        scale = optimizer.dynamic_scale
        found.append((w[0].copy().tolist(), float(over(scale) if isinstance(scale, DeviceArray) else scale)))
    assert found[0] == found[1]
    plain = spelled_out(SGD(0.1, skip_nonfinite=True))
    plain.apply(put([np.ones(3)]), w := put([np.ones(3)]))
    assert plain.gradient_norm == np.sqrt(3)
    plain.skip_nonfinite = False
    plain.apply(put([np.ones(3)]), w)
    assert plain.gradient_norm is None


def test_what_the_method_got_is_no_array_of_the_next_step(gpus: None, cupy: CuPy) -> None:
    """It is memory that the step writes, as slots are."""
    kept: list[Array] = []

    class Keeps(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            kept.append(gradient)

    optimizer, w = Keeps(), put([np.ones(2)])
    optimizer.apply(put([np.ones(2)]), w)
    address = kept[0].ctypes.data
    described = w[0].__cuda_array_interface__ | {"data": (address, False)}
    with pytest.raises(ValueError, match="shares memory with a slot"):
        optimizer.apply([SimpleNamespace(__cuda_array_interface__=described)], w)


def test_checkpoints(gpus: None, cupy: CuPy) -> None:
    first, second = (spelled_out(SGD(0.5, momentum=0.5)) for _ in range(2))
    w, g = put([np.ones(3, np.float32)]), put([np.ones(3, np.float32)])
    first.apply(g, w)
    twin = put([w[0].copy()])
    second.build(twin)
    second.load_state_dict(first.state_dict())
    first.apply(g, w)
    second.apply(g, twin)
    assert same_bits(w[0].copy(), twin[0].copy())
    assert second.iterations == 2


# What there is not.


def test_a_graph(gpus: None, cupy: CuPy) -> None:
    optimizer, w, g = Spy(0.5), put([np.ones(2)]), put([np.ones(2)])
    optimizer.build(w)
    with pytest.raises(
        RuntimeError, match=r"Spy\.apply: a graph is captured, but a rule in Python gets t and"
    ):
        capture(lambda: optimizer.apply(g, w))
    assert (w[0].copy() == 1).all()


def test_a_learning_rate_on_the_device(gpus: None, cupy: CuPy) -> None:
    optimizer, w = Spy(put([np.array(0.5)])[0]), put([np.ones(2)])
    with pytest.raises(
        ValueError, match=r"Spy: learning_rate is on cuda:0, but a rule in Python gets a number"
    ):
        optimizer.apply(put([np.ones(2)]), w)
    assert (w[0].copy() == 1).all()


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}], ids=str)
def test_rows_alone(options: dict[str, Any], gpus: None, cupy: CuPy) -> None:
    class Rows(Spy):
        def update_rows(self, *_: Any) -> None: ...

    optimizer, w = Rows(0.5, lazy=True, **options), put([np.ones((3, 2))])
    rows = put_any([(np.array([1]), np.ones((1, 2)))])
    expected = (
        r"Rows\.apply: a gradient is sparse and lazy is True, but a rule in Python does not update rows of"
    )
    with pytest.raises(NotImplementedError, match=expected):
        optimizer.apply(rows, w)
    assert (w[0].copy() == 1).all()
    optimizer.apply(put([np.ones((3, 2))]), w)
    assert (w[0].copy() == 0).all()


def test_rows_beside_a_dense_gradient_are_no_rows_alone(gpus: None, cupy: CuPy) -> None:
    dense, rows = np.ones((3, 2)), (np.array([1]), np.ones((1, 2)))
    both: list[list[list[Any]]] = [[[dense], [rows]], [[rows], [dense]]]
    for replicas in both:
        optimizer, w = spelled_out(SGD(1.0, lazy=True)), put([np.zeros((3, 2))])
        optimizer.apply(variables=w, replicas=[put_any(one) for one in replicas])
        assert w[0].copy()[:, 0].tolist() == [-1, -2, -1]
    optimizer, w = spelled_out(SGD(1.0, lazy=True)), put([np.zeros((0, 2)), np.zeros(1)])
    optimizer.apply(put_any([(np.zeros(0, np.int64), np.zeros((0, 2))), np.ones(1)]), w)
    assert w[1].copy().tolist() == [-1]


def test_without_cupy(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    expected = (
        r"Spy\.build: variables\[0\] is a GPU array, which a rule in Python gets as CuPy's, but CuPy cannot"
    )
    with pytest.raises(RuntimeError, match=expected):
        Spy(0.5).build(put([np.ones(2)]))
