"""Which arrays a step takes on a GPU, in which lists, and which it refuses with nothing changed."""

import gc
import re
from typing import Any

import numpy as np
import pytest

import fusedstep
from conftest import DTYPES, Array, random_array
from fusedstep import SGD, Adam, Lamb, Optimizer
from gpu.libraries import GPU, assert_same, fresh, host, loaded, on_gpu
from reference import Reference, same_bits

pytestmark = GPU


def take_steps(library: Any, optimizer: Optimizer, start: list[Array], steps: int = 3) -> list[Any]:
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for seed in range(steps):
        rng = np.random.default_rng(seed)
        grads = [random_array(rng, one.shape, one.dtype) for one in start]
        assert optimizer.apply(on_gpu(library, grads), variables) == seed + 1
        reference.apply(grads)
    assert_same(optimizer, variables, reference)
    return variables


OPTIMIZERS = [SGD(0.1), Adam(0.01, global_clipnorm=1.0), Lamb(0.01), Adam(0.01, use_ema=True, l2=0.1)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize(
    "shapes",
    [
        [(0,)],
        [(0,), (0, 3), (7, 0)],
        [(0,), (5,), (4097,)],
        [(5,), (0,), (4097,)],
        [(5,), (4097,), (0,)],
        [(), (1,), (1, 1)],
    ],
    ids=str,
)
def test_empty_arrays_anywhere_and_arrays_without_dimensions(
    shapes: list[tuple[int, ...]], optimizer: Optimizer, library: Any
) -> None:
    rng = np.random.default_rng(1)
    optimizer = fresh(optimizer)
    take_steps(library, optimizer, [random_array(rng, shape, np.float32) for shape in shapes])


def test_empty_lists(library: Any) -> None:
    assert SGD().apply([], []) == 0
    w = library.array(np.ones(3))
    optimizer = SGD(0.5)
    optimizer.build([w])
    with pytest.raises(ValueError, match=re.escape("grads has length 0")):
        optimizer.apply([])
    assert (host(w) == 1).all()


@pytest.mark.parametrize(
    "optimizer", [Adam(0.01), Adam(0.01, global_clipnorm=1.0), Lamb(0.01, skip_nonfinite=True)], ids=repr
)
def test_ten_thousand_arrays(optimizer: Optimizer, cupy: Any) -> None:
    """More than one launch has parameters for; parts of one buffer, empty ones among them."""
    library, rng = loaded("cupy"), np.random.default_rng(1)
    ends = np.cumsum(rng.integers(0, 130, 10_000)).tolist()
    whole = random_array(rng, ends[-1], np.float32)

    def parts(buffer: Any) -> list[Any]:
        return [buffer[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    variables, reference = library.array(whole), Reference(optimizer, parts(whole))
    optimizer = fresh(optimizer)
    optimizer.build(parts(variables))
    for _ in range(2):
        gradient = random_array(rng, whole.size, np.float32)
        optimizer.apply(parts(library.array(gradient)))
        reference.apply(parts(gradient))
    assert same_bits(host(variables), np.concatenate(reference.variables))
    assert optimizer.iterations == 2


@pytest.mark.parametrize("optimizer", [Adam(0.01, weight_decay=0.1), Lamb(0.01, weight_decay=0.1)], ids=repr)
def test_settings_and_dtypes_that_change_from_array_to_array(optimizer: Optimizer, cupy: Any) -> None:
    """Many more arrays than a GPU has blocks, or warps: each takes several, whose coefficients differ."""
    library, rng, size = loaded("cupy"), np.random.default_rng(3), 3
    wholes = [random_array(rng, 3000 * size, dtype) for dtype in (np.float32, np.float64)]
    there, here = fresh(optimizer), fresh(optimizer)

    def alternating(buffers: list[Any]) -> list[Any]:
        return [buffer[i : i + size] for i in range(0, 3000 * size, size) for buffer in buffers]

    buffers = on_gpu(library, wholes)
    on_device, on_cpu = alternating(buffers), alternating(wholes)
    for twin, arrays in ((there, on_device), (here, on_cpu)):
        twin.build(arrays)
        twin.adjust(arrays[::3], weight_decay=0.5)
    for _ in range(2):
        grads = [random_array(rng, one.size, one.dtype) for one in wholes]
        there.apply(alternating(on_gpu(library, grads)), on_device)
        here.apply(alternating(grads), on_cpu)
    assert all(same_bits(host(a), b) for a, b in zip(buffers, wholes, strict=True))


def test_one_dtype_after_another(library: Any) -> None:
    """A gradient's dtype may change between steps, and some of them be None."""
    rng = np.random.default_rng(1)
    optimizer, start = Adam(0.01), [random_array(rng, 5000, dtype) for dtype in DTYPES]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for step in range(6):
        grads: list[Any] = [random_array(rng, 5000, DTYPES[(k + step) % 4]) for k in range(4)]
        grads[step % 4] = None
        optimizer.apply(on_gpu(library, grads), variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_former_gradients_come_again(library: Any) -> None:
    """The very arrays of an earlier step, after steps that had others, None or strided ones."""
    start = [np.zeros(500, np.float32) for _ in range(3)]
    variables, reference, optimizer = on_gpu(library, start), Reference(SGD(1.0), start), SGD(1.0)
    values = [[np.full(500, 10.0**k + i, np.float32) for i in range(3)] for k in range(3)]
    first, second, third = (on_gpu(library, one) for one in values)
    turned = library.array(np.full((500, 2), 7.0, np.float32))[:, 0]
    sevens = np.full(500, 7.0, np.float32)
    steps: list[tuple[list[Any], list[Any]]] = [
        (first, values[0]),
        (first, values[0]),
        ([turned, *second[1:]], [sevens, *values[1][1:]]),
        (first, values[0]),
        ([third[0], None, third[2]], [values[2][0], None, values[2][2]]),
        (second, values[1]),
        ([first[0], second[1], turned], [values[0][0], values[1][1], sevens]),
        (first, values[0]),
    ]
    for given, expected in steps:
        optimizer.apply(given, variables)
        reference.apply(expected)
        assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("cls", [Adam, Lamb])
def test_variables_on_the_cpu_and_a_gpu(cls: type[Optimizer], options: dict[str, Any], library: Any) -> None:
    rng = np.random.default_rng(1)
    optimizer = cls(0.01, use_ema=True, **options)
    start = [random_array(rng, size, np.float32) for size in (5000, 70_000, 3, 4097)]
    reference, variables = Reference(optimizer, start), [one.copy() for one in start]
    variables[1::2] = on_gpu(library, start[1::2])
    for step in range(4):
        grads = [random_array(rng, one.size, np.float32, special=step == 2) for one in start]
        given = list(grads)
        given[1::2] = on_gpu(library, grads[1::2])
        optimizer.apply(given, variables)
        reference.apply(grads)
        assert optimizer.skipped_calls == reference.skips
        if reference.norm is not None:
            np.testing.assert_equal(float(host(optimizer.gradient_norm)), reference.norm)
    assert_same(optimizer, variables, reference)


def test_averages_into_the_variables(library: Any) -> None:
    optimizer, start = SGD(1.0, use_ema=True, ema_momentum=0.5), [np.zeros(5000), np.zeros(3, np.float16)]
    variables = on_gpu(library, start)
    for _ in range(3):
        optimizer.apply(on_gpu(library, [np.ones_like(one) for one in start]), variables)
    assert [host(w)[0] for w in variables] == [-3, -3]
    optimizer.finalize_variable_values()
    assert [host(w)[0] for w in variables] == [-2.25, -2.25]


def test_slots_and_norms_are_arrays_of_the_library(library: Any) -> None:
    w, g = library.array(np.zeros(4, np.float32)), library.array(np.full(4, 2.0, np.float32))
    optimizer = Adam(0.01, global_clipnorm=1.0)
    optimizer.apply([g], [w])
    assert all(type(slot) is type(w) for slot in optimizer.slots(w).values())
    assert all(tuple(slot.shape) == (4,) for slot in optimizer.variables)
    assert type(optimizer.gradient_norm) is type(w)
    assert float(optimizer.gradient_norm) == 4.0
    optimizer.slots(w)["momentum"][...] = 0  # live, not a copy
    momentum = optimizer.slots(w)["momentum"]
    del optimizer, w
    gc.collect()
    assert (host(momentum) == 0).all()  # it keeps its memory


@pytest.mark.parametrize("optimizer", [Adam(0.01), Lamb(0.01), SGD(0.1, momentum=0.9)], ids=repr)
def test_state_from_a_gpu_to_the_cpu_and_back(optimizer: Optimizer, library: Any) -> None:
    """A run goes on to the same bits wherever it is."""
    rng = np.random.default_rng(1)
    config, start = optimizer.get_config(), [random_array(rng, 5000, dtype) for dtype in DTYPES]
    reference = Reference(optimizer, start)
    values, state = start, None
    for place in (library, None, library):
        variables = [one.copy() for one in values] if place is None else on_gpu(place, values)
        optimizer = type(optimizer).from_config(config)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(2):
            grads = [random_array(rng, 5000, dtype) for dtype in DTYPES]
            optimizer.apply(grads if place is None else on_gpu(place, grads), variables)
            reference.apply(grads)
        assert_same(optimizer, variables, reference)
        values, state = [host(one) for one in variables], optimizer.state_dict()
    assert optimizer.iterations == 6


def test_files_of_a_state_on_a_gpu(library: Any, tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    optimizer, w = Adam(0.01), library.array(np.ones(3, np.float32))
    optimizer.apply([library.array(np.ones(3, np.float32))], [w])
    optimizer.save(tmp_path / "state.safetensors")
    twin, v = Adam(0.01), library.array(host(w))
    twin.load(tmp_path / "state.safetensors")
    twin.build([v])
    for each, variable in ((optimizer, w), (twin, v)):
        each.apply([library.array(np.full(3, 0.5, np.float32))], [variable])
    assert same_bits(host(w), host(v))


def test_parameters_of_pytorch(torch: Any) -> None:
    """A module's own parameters and gradients: autograd's leaves are updated in place."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1)).cuda()
    parameters = list(model.parameters())
    optimizer = Adam(0.01)
    reference = Reference(optimizer, [host(one) for one in parameters])
    x = torch.randn(64, 30, device="cuda")
    losses = []
    for _ in range(20):
        loss = (model(x) - x[:, :1]).square().mean()
        losses.append(float(loss))
        for one in parameters:
            one.grad = None
        loss.backward()
        reference.apply([host(one.grad) for one in parameters])
        optimizer.apply([one.grad for one in parameters], parameters)
    assert_same(optimizer, parameters, reference)
    assert losses[-1] < losses[0]


def refused(library: Any) -> list[tuple[str, list[Any], list[Any], type[Exception], str]]:
    """What a step refuses: who, gradients, variables, error and words of the sentence."""
    w = library.array(np.ones((4, 6), np.float32))
    g = library.array(np.ones((4, 6), np.float32))
    short = library.array(np.ones((4, 5), np.float32))
    on_cpu = np.ones((4, 6), np.float32)
    turned = library.array(np.ones((6, 4), np.float32)).T
    return [
        ("a gradient on the CPU", [on_cpu], [w], ValueError, "is on cuda:0 but its gradient on the CPU"),
        ("a variable on the CPU", [g], [on_cpu], ValueError, "is on the CPU but its gradient on cuda:0"),
        ("a strided variable", [g], [turned], ValueError, "is not contiguous"),
        ("another shape", [short], [w], ValueError, "has shape (4, 5), its variable has (4, 6)"),
        ("integers", [library.array(np.ones((4, 6), np.int32))], [w], TypeError, "int32"),
        ("the same twice", [g, g], [w, w], ValueError, "share memory"),
        ("a gradient that is a variable", [w[2:], g[:2]], [w[:2], w[2:]], ValueError, "shares memory"),
        ("indices on the CPU", [([0], g[:1])], [w], ValueError, "has indices on the CPU (list), but its"),
        ("floats for indices", [(g[0, :1], g[:1])], [w], TypeError, "has indices of dtype"),
        ("nothing", [None], [w], ValueError, "all 1 gradients are None"),
    ]


def test_refusals_change_nothing(library: Any) -> None:
    for what, grads, variables, error, words in refused(library):
        before = [host(one).tobytes() for one in variables]
        optimizer = Adam(0.01)
        with pytest.raises(error, match=re.escape(words)):
            optimizer.apply(grads, variables)
        assert [host(one).tobytes() for one in variables] == before, what
        assert optimizer.variables == [], what
        assert optimizer.iterations == 0, what


def test_a_refused_step_of_a_build_changes_nothing(library: Any) -> None:
    start = [np.ones(4097, np.float32), np.full(3, 2.0, np.float32)]
    optimizer, variables = Adam(0.01), on_gpu(library, start)
    reference = Reference(optimizer, start)
    grads = [np.full_like(one, 0.5) for one in start]
    for bad in (None, start[1], np.ones(4, np.float32)):
        good = on_gpu(library, grads)
        if bad is not None:
            with pytest.raises(ValueError, match=r"grads|variables"):
                optimizer.apply([good[0], bad], variables)
        optimizer.apply(good, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_a_learning_rate_elsewhere_is_refused(library: Any) -> None:
    optimizer, w = Adam(library.array(np.ones(1))), library.array(np.ones(3))
    with pytest.raises(ValueError, match="must have no dimensions"):
        optimizer.apply([library.array(np.ones(3))], [w])
    assert (host(w) == 1).all()


def test_the_build_tells_that_it_has_cuda() -> None:
    loaded("cupy")
    assert fusedstep.build_info()["cuda"]
