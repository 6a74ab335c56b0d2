"""Rules in Python on a GPU, where CuPy computes: to the bits of the built-in ones that they spell out."""

from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, OPTIONS, STAGES, random_array, with_arguments
from fusedstep import SGD, Adam, CustomOptimizer, Optimizer
from gpu.libraries import GPU, assert_same, host, id_of, loaded, on_gpu
from reference import Reference, same_bits
from spelled import spelled_out

pytestmark = GPU

SIZES = [0, 1, 17, 513, 4097, 40_000]


@pytest.mark.parametrize("options", [*STAGES, *OPTIONS], ids=id_of)
@pytest.mark.parametrize("builtin", [SGD(0.01, momentum=0.9), Adam(0.01)], ids=repr)
def test_every_option(builtin: Optimizer, options: dict[str, Any], library: Any, cupy: Any) -> None:
    rng = np.random.default_rng(8)
    builtin = with_arguments(builtin, **options)
    custom = spelled_out(builtin)
    cases = [(size, dtype) for size in SIZES for dtype in DTYPES]
    start = [random_array(rng, size, dtype) for size, dtype in cases]
    variables, reference = on_gpu(library, start), Reference(builtin, start)
    for step in range(5):
        grads: list[Any] = [
            random_array(rng, size, dtype if step % 2 else np.float32) for size, dtype in cases
        ]
        grads[step] = None
        custom.apply(on_gpu(library, grads), variables)
        reference.apply(grads)
    assert custom.iterations == reference.updates
    assert_same(custom, variables, reference)


class Rotating(CustomOptimizer):
    """Three slots, each of which takes the next one's place."""

    slot_names = ("a", "b", "c")

    def update(self, variable: Any, gradient: Any, slots: Any, learning_rate: float, t: int) -> None:
        slots["a"], slots["b"], slots["c"] = slots["b"] + gradient, slots["c"][:], slots["a"]
        variable -= slots["a"]


def test_slots_that_are_assigned_to_one_another(library: Any) -> None:
    """Each gets what the other had before."""
    here, there = (Rotating(1.0) for _ in range(2))
    variables, grads = [np.zeros(5000, np.float32)], [np.arange(5000, dtype=np.float32)]
    on_device = on_gpu(library, variables)
    for _ in range(5):
        here.apply(grads, variables)
        there.apply(on_gpu(library, grads), on_device)
    assert same_bits(host(on_device[0]), variables[0])
    for name, slot in here.slots(variables[0]).items():
        assert same_bits(host(there.slots(on_device[0])[name]), slot), name


class WithStream:
    """CuPy's array as one of a library that has another current stream, by the interface that Numba uses."""

    def __init__(self, array: Any, stream: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"stream": stream.ptr}


@pytest.mark.parametrize("device", [0, 1])
def test_on_another_librarys_device_and_stream(device: int, cupy: Any) -> None:
    """Both become CuPy's while the method runs, and no longer."""
    library = loaded("cupy")
    if library.devices <= device:
        pytest.skip("needs two GPUs")
    rng = np.random.default_rng(10)
    start, grads = ([random_array(rng, 100_000, np.float32) for _ in range(2)] for _ in range(2))
    builtin = Adam(0.01)
    custom, reference = spelled_out(builtin), Reference(builtin, start)
    with cupy.cuda.Device(device):
        arrays, stream = on_gpu(library, start), cupy.cuda.Stream(non_blocking=True)
        variables = [WithStream(one, stream) for one in arrays]
        given = [WithStream(one, stream) for one in on_gpu(library, grads)]
        cupy.cuda.runtime.deviceSynchronize()
    own = cupy.cuda.Stream(non_blocking=True).use()
    for _ in range(3):
        custom.apply(given, variables)
        assert cupy.cuda.runtime.getDevice() == 0
        assert cupy.cuda.get_current_stream() == own
        reference.apply(grads)
    cupy.cuda.Stream.null.use()
    stream.synchronize()
    assert all(same_bits(host(a), b) for a, b in zip(arrays, reference.variables, strict=True))


def test_on_a_side_stream(library: Any, cupy: Any) -> None:
    """The method's kernels are on the stream of the variables' library, whatever CuPy's is."""
    rng = np.random.default_rng(9)
    start = [random_array(rng, 1_000_000, np.float32) for _ in range(4)]
    builtin = Adam(0.01)
    custom, reference = spelled_out(builtin), Reference(builtin, start)
    variables = on_gpu(library, start)
    stream = cupy.cuda.Stream(non_blocking=True) if library.name == "cupy" else library.torch.cuda.Stream()
    custom.build(variables)
    for _ in range(3):
        grads = [random_array(rng, 1_000_000, np.float32) for _ in start]
        given = on_gpu(library, grads)
        cupy.cuda.runtime.deviceSynchronize()
        with stream if library.name == "cupy" else library.torch.cuda.stream(stream):
            custom.apply(given, variables)
        cupy.cuda.runtime.deviceSynchronize()
        reference.apply(grads)
    assert_same(custom, variables, reference)
