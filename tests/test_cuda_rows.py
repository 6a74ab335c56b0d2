"""Sparse gradients on a simulated GPU: their rows are put in order there, to the bits of the reference."""

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import DTYPES, LAZY_OPTIONS, OPTIONS, random_array, with_arguments
from fusedstep import SGD, Adam, AdamW, Lamb, Optimizer
from fusedstep._native import DeviceArray, simulation
from reference import Reference, same_bits
from simulated import Indices, Plain, assert_same, kernels, put, put_any, random_rows

Array = npt.NDArray[Any]

TILE = 256  # keys that the first pass puts in order
EVERY_OPTION = [{}, *OPTIONS, *LAZY_OPTIONS]


def id_of(options: dict[str, Any]) -> str:
    return "+".join(options) or "bare"


class DLPackIndices:
    """The same by DLPack alone."""

    def __init__(self, indices: Array) -> None:
        self.memory = Indices(indices).memory

    def __dlpack_device__(self) -> Any:
        return self.memory.__dlpack_device__()

    def __dlpack__(self, **arguments: Any) -> Any:
        capsule = self.memory.__dlpack__(**arguments)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        code_of_dtype = 20  # bytes into the tensor
        ctypes.c_uint8.from_address(get(capsule, b"dltensor") + code_of_dtype).value = 0  # integers
        return capsule


def order_passes(count: int) -> int:
    return 1 + max(0, (count - 1) // TILE).bit_length()


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 512, 513, 1000, 5000])
def test_every_count(count: int, blocks: int) -> None:
    """Equal indices in one tile and across many: all of one row, of few, of more rows than there are."""
    rng = np.random.default_rng(count)
    shapes = [(1, 3), (7, 4), (300,), (20_000, 1)]
    start = [random_array(rng, shape, np.float32) for shape in shapes]
    optimizer, variables = SGD(0.1, momentum=0.9), put(start)
    reference = Reference(optimizer, start)
    for integers in (np.int64, np.int32):
        grads = [random_rows(rng, shape, count, integers=integers) for shape in shapes]
        optimizer.apply(put_any(grads), variables)
        reference.apply(grads)
        assert kernels().count("order") == len(shapes) * order_passes(count)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("options", EVERY_OPTION, ids=id_of)
@pytest.mark.parametrize("cls", [SGD, Adam, Lamb])
def test_every_shape_and_dtype(cls: type[Optimizer], options: dict[str, Any], gpus: None) -> None:
    """With special values, beside dense gradients and none, and nothing but kernels after the first step."""
    rng = np.random.default_rng(1)
    shapes = [(30,), (30, 1), (30, 3), (30, 4), (30, 3, 7), (30, 64), (3, 4097), (30, 0), (0, 5), (0,)]
    cases = [(shape, dtype) for shape in shapes for dtype in DTYPES]
    start = [random_array(rng, shape, dtype) for shape, dtype in cases]
    optimizer, variables = cls(0.01, **options), put(start)
    reference = Reference(optimizer, start)
    for step in range(4):
        grads: list[Any] = [
            random_rows(
                rng,
                shape,
                (40, 0, 7, 33)[step] if shape[0] else 0,
                DTYPES[(k + step) % 4],
                (np.int32, np.int64)[k % 2],
                special=step == 2,
            )
            for k, (shape, _) in enumerate(cases)
        ]
        grads[14] = random_array(rng, start[14].shape, np.float32)
        if step > 0:
            grads[5 + step] = None
        there = put_any(grads)
        simulation.take_events()
        optimizer.apply(there, variables)
        reference.apply(grads)
        if step > 0:
            done = set(kernels())
            assert done >= {"order", "staged"}
            more = done - {"order", "staged"}
            assert more <= {"norms of any", "second"}, "no copy, no waiting, no memory in a step"
    assert optimizer.iterations == reference.updates
    assert optimizer.skipped_calls == reference.skips
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_phase(dtype: Any, lazy: bool, gpus: None) -> None:
    """Tiles of 16 bytes in which rows end anywhere, of variables that begin anywhere."""
    rng = np.random.default_rng(2)
    itemsize = np.dtype(dtype).itemsize
    cases = [((40, size), phase) for size in (1, 2, 3, 5, 7) for phase in range(16 // itemsize)]
    start = [random_array(rng, shape, dtype) for shape, _ in cases]
    optimizer = Adam(0.1, lazy=lazy)
    reference = Reference(optimizer, start)
    variables = [
        simulation.array_on(0, one, phase * itemsize) for one, (_, phase) in zip(start, cases, strict=True)
    ]
    for _ in range(2):
        grads = [random_rows(rng, shape, 25, dtype) for shape, _ in cases]
        optimizer.apply(put_any(grads), variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("row", [4088, 4095, 4096, 8191])
def test_a_lazy_row_where_slices_meet(row: int, gpus: None) -> None:
    """Of a variable that begins anywhere: its tile may be of the slice after its own."""
    rng = np.random.default_rng(3)
    start = [random_array(rng, (8195, 1), np.float16) for _ in range(8)]
    optimizer = Adam(0.1, lazy=True)
    reference = Reference(optimizer, start)
    variables = [simulation.array_on(0, one, 2 * phase) for phase, one in enumerate(start)]
    grads: list[Any] = [(np.array([row]), np.ones((1, 1), np.float16)) for _ in start]
    optimizer.apply(put_any(grads), variables)
    reference.apply(grads)
    assert_same(optimizer, variables, reference)


@given(
    rows=st.integers(1, 400),
    size=st.integers(1, 9),
    count=st.integers(0, 1500),
    different=st.integers(1, 400),
    outside=st.booleans(),
    lazy=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_any_rows(
    rows: int, size: int, count: int, different: int, outside: bool, lazy: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    start = random_array(rng, (rows, size), np.float32)
    indices = rng.integers(-3 * outside, min(rows, different) + 3 * outside, count)
    values = random_array(rng, (count, size), np.float32, special=seed % 3 == 0)
    simulation.start(1, 1 + seed % 5)
    try:
        optimizer = SGD(0.1, momentum=0.5, global_clipnorm=1.0, lazy=lazy)
        variable = simulation.array_on(0, start)
        reference, kept = Reference(optimizer, [start]), (indices >= 0) & (indices < rows)
        optimizer.apply(put_any([(indices, values)]), [variable])
        reference.apply([(indices[kept], values[kept])])
        assert_same(optimizer, [variable], reference)
        assert same_bits(optimizer.gradient_norm.copy(), np.array(reference.norm))
    finally:
        simulation.stop()


@pytest.mark.parametrize("integers", [np.int32, np.int64], ids=["int32", "int64"])
def test_indices_of_no_row_are_left_out(integers: Any, gpus: None) -> None:
    """The host cannot see them without waiting. Their values, inf among them, are not even read."""
    rng = np.random.default_rng(3)
    limits = np.iinfo(integers)
    indices = np.array([4, -1, 2, limits.max, 5, 4, limits.min, 0, 6, -5], integers)
    values = random_array(rng, (10, 3), np.float32)
    values[[1, 3, 4, 6, 8, 9]] = np.inf
    start = random_array(rng, (5, 3), np.float32)
    optimizer, variable = SGD(0.5, skip_nonfinite=True), simulation.array_on(0, start)
    reference = Reference(optimizer, [start])
    optimizer.apply(put_any([(indices, values)]), [variable])
    reference.apply([(indices[[0, 2, 5, 7]], values[[0, 2, 5, 7]])])
    assert not optimizer.skipped
    assert_same(optimizer, [variable], reference)
    values[5] = np.inf
    optimizer.apply(put_any([(indices, values)]), [variable])
    assert optimizer.skipped
    assert_same(optimizer, [variable], reference)


def test_no_rows_are_not_no_gradient(gpus: None) -> None:
    start = [np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)]
    optimizer, variables = AdamW(0.1, weight_decay=0.5), put(start)
    reference = Reference(optimizer, start)
    for _ in range(2):
        none = (np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
        optimizer.apply(put_any([none, None]), variables)
        reference.apply([none, None])
    assert_same(optimizer, variables, reference)
    assert variables[0].copy()[0, 0] < 1


def test_a_sum_begins_with_its_first_row(gpus: None) -> None:
    """Not with 0, which would make 0 of -0."""
    start, values = np.full((2, 3), -0.0), np.array([[-0.0, 0.0, -0.0], [-0.0, -0.0, 0.0]])
    for indices in ([0, 1], [1, 1], [0, 0]):
        optimizer, variable = SGD(0.5), simulation.array_on(0, start)
        reference = Reference(optimizer, [start])
        rows = (np.array(indices), values)
        optimizer.apply(put_any([rows]), [variable])
        reference.apply([rows])
        assert_same(optimizer, [variable], reference)


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("options", EVERY_OPTION, ids=id_of)
def test_replicas(options: dict[str, Any], mean: bool, gpus: None) -> None:
    """Sparse, dense and no gradients, in any mixture."""
    rng = np.random.default_rng(4)
    shapes = [(50, 6), (50, 6), (300,), (50, 6)]
    start = [random_array(rng, shape, np.float32) for shape in shapes]
    optimizer, variables = Adam(0.01, **options), put(start)
    reference = Reference(optimizer, start)
    for step in range(4):
        replicas: list[list[Any]] = [
            [
                random_rows(rng, shape, 30 * (k + 1))
                if (k + replica + step) % 3
                else random_array(rng, shape, np.float32)
                for k, shape in enumerate(shapes)
            ]
            for replica in range(3)
        ]
        replicas[step % 3][0] = replicas[0][1] = None
        optimizer.apply(variables=variables, replicas=[put_any(one) for one in replicas], mean=mean)
        reference.apply(replicas=replicas, mean=mean)
    assert_same(optimizer, variables, reference)


def test_rows_in_the_last_replica_alone(gpus: None) -> None:
    rng = np.random.default_rng(0)
    start = [random_array(rng, (50, 6), np.float32)]
    optimizer, w = SGD(0.1, global_clipnorm=0.5), put(start)
    reference = Reference(optimizer, start)
    replicas: Any = [[random_array(rng, (50, 6), np.float32)], [random_rows(rng, (50, 6), 20)]]
    optimizer.apply(variables=w, replicas=[put_any(one) for one in replicas])
    reference.apply(replicas=replicas)
    assert_same(optimizer, w, reference)


def test_sparse_after_dense_and_dense_after_sparse(gpus: None) -> None:
    """The kernel of the rule alone takes dense gradients only; the same arrays come again."""
    rng = np.random.default_rng(5)
    start = random_array(rng, (50, 6), np.float32)
    optimizer, variable = SGD(0.1), simulation.array_on(0, start)
    reference = Reference(optimizer, [start])
    dense, rows = random_array(rng, (50, 6), np.float32), random_rows(rng, (50, 6), 20)
    (dense_there, rows_there) = put_any([dense, rows])
    optimizer.build([variable])
    for sparse in (False, True, True, False, False, True):
        simulation.take_events()
        optimizer.apply([rows_there if sparse else dense_there], [variable])
        reference.apply([rows if sparse else dense])
        assert kernels()[-2:] == (["order", "staged"] if sparse else ["bare"])
        assert_same(optimizer, [variable], reference)


def test_memory_grows_with_the_number_of_rows(gpus: None) -> None:
    rng = np.random.default_rng(6)
    start = random_array(rng, (50, 6), np.float32)
    optimizer, variable = SGD(0.1), simulation.array_on(0, start)
    reference = Reference(optimizer, [start])
    optimizer.build([variable])
    done = []
    for count in (300, 300, 512, 20, 513, 1024, 300):
        rows = random_rows(rng, (50, 6), count)
        there = put_any([rows])
        simulation.take_events()
        optimizer.apply(there, [variable])
        reference.apply([rows])
        done.append([what for what in kernels() if what not in ("order", "staged")])
    assert done == [["allocate"], [], [], [], ["allocate", "free"], [], []]
    assert_same(optimizer, [variable], reference)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1), Adam(0.1, global_clipnorm=1.0), Lamb(0.1), Adam(0.1, lazy=True), Lamb(0.1, lazy=True)],
    ids=repr,
)
def test_a_replayed_graph_looks_at_indices_anew(optimizer: Optimizer, gpus: None) -> None:
    rng = np.random.default_rng(7)
    start = random_array(rng, (50, 6), np.float32)
    optimizer = with_arguments(optimizer)
    variable, reference = simulation.array_on(0, start), Reference(optimizer, [start])
    rows = random_rows(rng, (50, 6), 700)
    indices, values = Indices(rows[0]), simulation.array_on(0, rows[1])
    optimizer.apply([(indices, values)], [variable])
    reference.apply([rows])
    simulation.begin_capture()
    optimizer.apply([(indices, values)], [variable])
    simulation.end_capture()
    assert_same(optimizer, [variable], reference)
    simulation.take_events()
    for step in range(6):
        if step == 3:  # a step beside the graph, which needs more memory; the graph has the former
            larger = random_rows(rng, (50, 6), 3000)
            larger_there = put_any([larger])
            simulation.take_events()
            optimizer.apply(larger_there, [variable])
            reference.apply([larger])
            assert [what for what in kernels() if what in ("allocate", "free")] == ["allocate"]
        rows = random_rows(rng, (50, 6), 700)
        indices.assign(rows[0])
        values.assign(rows[1])
        simulation.replay()
        reference.apply([rows])
    assert_same(optimizer, [variable], reference)


def test_a_graph_needs_memory_that_was_there(gpus: None) -> None:
    optimizer, variable = SGD(0.5), simulation.array_on(0, np.ones((5, 2), np.float32))
    rng = np.random.default_rng(8)
    few, many = (put_any([random_rows(rng, (5, 2), count)]) for count in (256, 257))
    optimizer.build([variable])
    for before, grads in [(None, few), (few, many)]:
        if before:
            optimizer.apply(before)
        kept, calls = variable.copy(), optimizer.iterations
        simulation.begin_capture()
        with pytest.raises(RuntimeError, match=r"variables\[0\] has a gradient of more rows than in steps b"):
            optimizer.apply(grads)
        simulation.end_capture()
        simulation.take_events()
        simulation.replay()
        assert kernels() == []
        assert same_bits(variable.copy(), kept)
        assert optimizer.iterations == calls
    optimizer.apply(many)
    simulation.begin_capture()
    optimizer.apply(many)
    simulation.end_capture()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_several_devices(options: dict[str, Any], gpus: None) -> None:
    """Two GPUs and the CPU in one optimizer."""
    rng = np.random.default_rng(9)
    places = [0, None, 1, 0, None, 1]
    shapes = [(50, 6), (50, 6), (300, 64), (20,), (7,), (9, 3)]
    start = [random_array(rng, shape, np.float32) for shape in shapes]
    optimizer, reference = AdamW(0.01, **options), Reference(AdamW(0.01, **options), start)

    def spread(arrays: Sequence[Any]) -> list[Any]:
        return [
            one if place is None else put_any([one], place)[0]
            for one, place in zip(arrays, places, strict=True)
        ]

    variables = spread([one.copy() for one in start])
    for step in range(4):
        grads: list[Any] = [random_rows(rng, shape, 40) for shape in shapes]
        grads[step] = random_array(rng, shapes[step], np.float32)
        if step == 2:
            grads[5][1][0] = np.inf
        optimizer.apply(spread(grads), variables)
        reference.apply(grads)
    assert optimizer.iterations == reference.updates
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("integers", [np.int32, np.int64], ids=["int32", "int64"])
def test_indices_by_dlpack(integers: Any, gpus: None) -> None:
    variable = simulation.array_on(0, np.zeros(4))
    values = simulation.array_on(0, np.array([1.0, 2.0, 4.0]))
    SGD(1.0).apply([(DLPackIndices(np.array([3, 0, 3], integers)), values)], [variable])
    assert variable.copy().tolist() == [-2, 0, 0, -5]


def test_no_rows_have_no_memory_and_so_no_device(gpus: None) -> None:
    """Libraries show them with a null pointer, of which CUDA knows no device."""
    variable = simulation.array_on(1, np.ones((4, 2), np.float32))
    indices, values = Indices(np.zeros(0, np.int64), 1), Plain(ones(0, 2, device=1))
    for one, shape in ((indices, (0,)), (values, (0, 2))):
        one.__cuda_array_interface__ |= {"shape": shape, "data": (0, False)}
    optimizer = SGD(1.0, weight_decay=0.5)
    optimizer.apply([(indices, values)], [variable])
    assert optimizer.iterations == 1
    assert (variable.copy() == 0.5).all()


class Strided(Indices):
    """Every second one."""

    def __init__(self, indices: Array) -> None:
        super().__init__(indices)
        self.__cuda_array_interface__ |= {"shape": (indices.size // 2,), "strides": (2 * indices.itemsize,)}


class Large(Indices):
    """As many as nobody has."""

    def __init__(self, count: int) -> None:
        super().__init__(np.zeros(1, np.int64))
        self.__cuda_array_interface__ |= {"shape": (count,)}


def ones(*shape: int, device: int = 0) -> DeviceArray:
    return simulation.array_on(device, np.ones(shape, np.float32))


def one_index(dtype: Any = np.int64, device: int = 0) -> Indices:
    return Indices(np.ones(1, dtype), device)


THERE = "but its variable is on cuda:0; pass them there"
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ([1], ones(1, 2)), ValueError, f"has indices on the CPU (list), {THERE}"),
    (lambda: (np.ones(1, int), ones(1, 2)), ValueError, f"has indices on the CPU (numpy.ndarray), {THERE}"),
    (lambda: (one_index(device=1), ones(1, 2)), ValueError, f"has indices on cuda:1, {THERE}"),
    (lambda: (one_index(), np.ones((1, 2))), ValueError, f"has values on the CPU, {THERE}"),
    (lambda: (one_index(), ones(1, 2, device=1)), ValueError, f"has values on cuda:1, {THERE}"),
    (
        lambda: (one_index(np.int16), ones(1, 2)),
        TypeError,
        "has indices of dtype int16, but on a GPU they must",
    ),
    (lambda: (one_index(np.uint64), ones(1, 2)), TypeError, "has indices of dtype uint64, but on a GPU they"),
    (
        lambda: (ones(1), ones(1, 2)),
        TypeError,
        "has indices of dtype float32, but on a GPU they must be int32",
    ),
    (
        lambda: (Indices(np.ones((1, 1), int)), ones(1, 2)),
        TypeError,
        "has indices of shape (1, 1), but they must be integers in one dimension",
    ),
    (
        lambda: (Strided(np.ones(4, int)), ones(2, 2)),
        ValueError,
        "indices (test_cuda_rows.Strided) is not contiguous (shape (2,), strides (16,)); pass a conti",
    ),
    (
        lambda: (one_index(), ones(2, 2)),
        ValueError,
        "has values of shape (2, 2), but with 1 index they must have (1, 2)",
    ),
    (
        lambda: (one_index(), one_index()),
        TypeError,
        "values is of type simulated.Indices and dtype int64, b",
    ),
    (
        lambda: (one_index(),),
        TypeError,
        "is a tuple of 1, but must be an array, or (indices, values) for some",
    ),
]


@pytest.mark.parametrize(("rows", "error", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_refused_rows(rows: Callable[[], Any], error: type[Exception], sentence: str, gpus: None) -> None:
    optimizer, variables = SGD(1.0), [ones(5, 2), ones(3)]
    with pytest.raises(error) as caught:
        optimizer.apply([rows(), ones(3)], variables)
    assert f"SGD.apply: grads[0] {sentence}" in str(caught.value)
    assert [one.copy().sum() for one in variables] == [10, 3]
    assert optimizer.iterations == 0


def test_refused_variables(gpus: None) -> None:
    """Of no dimensions, written by the step itself, or of too many rows."""
    with pytest.raises(ValueError, match=r"grads\[0\] has rows, but its variable has shape \(\); pass an"):
        SGD(1.0).apply([(one_index(), ones(1))], [simulation.array_on(0, np.array(1.0))])
    variable = ones(5, 2)
    itself = (Indices(np.arange(5)[::-1].copy()), variable)
    with pytest.raises(ValueError, match=r"grads\[0\] shares memory with its own variable, which this step"):
        SGD(1.0).apply([itself], [variable])
    assert (variable.copy() == 1).all()
    many = 2**32
    empty = Large(many)
    empty.__cuda_array_interface__ = ones(0).__cuda_array_interface__ | {"shape": (many, 0)}
    sentence = f"has {many} rows and its variable {many}, but on a GPU their product must be less than 2^63"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SGD(1.0).apply([(Large(many), empty)], [empty])


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}, {"clipnorm": 0.5, "use_ema": True}])
@pytest.mark.parametrize("cls", [Adam, Lamb])
def test_lazy_steps_on_several_devices(cls: type[Optimizer], options: dict[str, Any], gpus: None) -> None:
    """Variables on two GPUs and the CPU, of which one has a dense gradient."""
    rng = np.random.default_rng(9)
    start = [random_array(rng, (50, 6), np.float32) for _ in range(5)]
    optimizer = cls(0.1, lazy=True, **options)
    reference = Reference(optimizer, start)
    put_on: list[Callable[[Any], Any]] = [
        lambda one: put_any([one])[0],
        lambda one: put_any([one], 1)[0],
        lambda one: one,
    ]
    variables = [put_on[k % 3](one) for k, one in enumerate(start)]
    for _ in range(3):
        grads: list[Any] = [random_rows(rng, (50, 6), 20) for _ in start]
        grads[3] = random_array(rng, (50, 6), np.float32)
        optimizer.apply([put_on[k % 3](one) for k, one in enumerate(grads)], variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_values_on_a_gpu_for_a_variable_on_the_cpu(gpus: None) -> None:
    w = np.ones((5, 2), np.float32)
    with pytest.raises(ValueError, match="has values on cuda:0, but its variable is on the CPU; pass them"):
        SGD(1.0).apply([([1], ones(1, 2))], [w])
    assert (w == 1).all()


def test_indices_of_pytorch_on_the_cpu(gpus: None) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for dtype, error, sentence in [
        (torch.int64, ValueError, f"has indices on the CPU, {THERE}"),
        (torch.int32, ValueError, f"has indices on the CPU, {THERE}"),
        (
            torch.int16,
            TypeError,
            "has indices of dtype torch.int16, but on a GPU they must be int32 or int64",
        ),
    ]:
        with pytest.raises(error, match=re.escape(sentence)):
            SGD(1.0).apply([(torch.ones(1, dtype=dtype), ones(1, 2))], [ones(5, 2)])
