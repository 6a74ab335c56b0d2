"""Sparse gradients on a GPU, to the bits of the reference: rows in any order, put in order there."""

import re
from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, LAZY_OPTIONS, OPTIONS, Array, random_array, with_arguments
from fusedstep import SGD, Adam, Lamb, Optimizer
from gpu.libraries import GPU, assert_same, fresh, host, id_of, loaded, on_gpu, only_cupy
from gpu.test_graphs import CAPTURES
from reference import Reference

pytestmark = GPU

# Rows of one element, of a tile, of parts of one, of several leaves; more than one block of rows.
SHAPES = [(3000,), (30, 1), (30, 3), (500, 4), (30, 3, 7), (2000, 64), (3, 4097), (30, 0), (0, 5)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]


def random_rows(
    rng: Any, shape: Any, count: int, dtype: Any, integers: Any = np.int64
) -> tuple[Array, Array]:
    count = count if shape[0] else 0
    indices = rng.integers(0, max(shape[0], 1), count).astype(integers)
    return indices, random_array(rng, (count, *shape[1:]), dtype)


def put(library: Any, grads: list[Any]) -> list[Any]:
    """Arrays, rows and None, there."""
    return [
        tuple(on_gpu(library, one)) if isinstance(one, tuple) else on_gpu(library, [one])[0] for one in grads
    ]


EVERY_OPTION = [{}, *OPTIONS, *LAZY_OPTIONS]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=id_of)
@pytest.mark.parametrize("cls", [SGD, Adam, Lamb])
def test_every_shape_and_dtype(cls: type[Optimizer], options: dict[str, Any], library: Any) -> None:
    rng = np.random.default_rng(1)
    start = [random_array(rng, shape, dtype) for shape, dtype in CASES]
    optimizer = with_arguments(cls(0.01), **options)
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for count in (300, 0, 7, 40):
        grads: list[Any] = [
            random_rows(rng, shape, count, DTYPES[(k + count) % 4], (np.int32, np.int64)[k % 2])
            for k, (shape, _) in enumerate(CASES)
        ]
        grads[5], grads[14] = None, random_array(rng, start[14].shape, np.float32)
        optimizer.apply(put(library, grads), variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@only_cupy
@pytest.mark.parametrize("different", [1, 300, 200_000])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 513, 5000, 150_000])
@pytest.mark.parametrize("lazy", [False, True])
def test_every_count(count: int, different: int, lazy: bool, library: Any) -> None:
    """So many rows of so many indices: equal ones in one block, across blocks, and hardly any."""
    rng = np.random.default_rng(count)
    start = random_array(rng, (200_000, 3), np.float32)
    optimizer = Adam(0.01, global_clipnorm=1.0, lazy=lazy)
    variable, reference = library.array(start), Reference(optimizer, [start])
    for _ in range(3):
        rows = random_rows(rng, (different, 3), count, np.float32)
        optimizer.apply(put(library, [rows]), [variable])
        reference.apply([rows])
    assert_same(optimizer, [variable], reference)


def test_indices_of_no_row_are_left_out(library: Any) -> None:
    rng = np.random.default_rng(2)
    start = random_array(rng, (50, 6), np.float32)
    for integers in (np.int32, np.int64):
        limits = np.iinfo(integers)
        indices: Any = rng.integers(-20, 70, 2000).astype(integers)
        indices[[3, 1500]] = limits.min, limits.max
        kept, values = (indices >= 0) & (indices < 50), random_array(rng, (2000, 6), np.float32)
        values[~kept] = np.nan
        optimizer = SGD(0.1, skip_nonfinite=True)
        variable, reference = library.array(start), Reference(optimizer, [start])
        optimizer.apply(put(library, [(indices, values)]), [variable])
        reference.apply([(indices[kept], values[kept])])
        assert_same(optimizer, [variable], reference)
        assert not optimizer.skipped


@pytest.mark.parametrize("lazy", [False, True])
def test_replicas(lazy: bool, library: Any) -> None:
    rng = np.random.default_rng(3)
    shapes = [(50, 6), (3000,), (500, 64)]
    start = [random_array(rng, shape, np.float32) for shape in shapes]
    optimizer = Adam(0.01, clipnorm=1.0, lazy=lazy)
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for step in range(3):
        replicas: list[Any] = [
            [
                random_rows(rng, shape, 600, np.float32)
                if (k + replica + step) % 2
                else random_array(rng, shape, np.float32)
                for k, shape in enumerate(shapes)
            ]
            for replica in range(3)
        ]
        optimizer.apply(variables=variables, replicas=[put(library, one) for one in replicas], mean=True)
        reference.apply(replicas=replicas, mean=True)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1), Adam(0.1, global_clipnorm=1.0), Lamb(0.1), Adam(0.1, lazy=True), Lamb(0.1, lazy=True)],
    ids=repr,
)
def test_a_replayed_graph_looks_at_indices_anew(optimizer: Optimizer, library: Any) -> None:
    """Also after a step beside it that had more rows."""
    rng = np.random.default_rng(4)
    shape, optimizer = (500, 6), fresh(optimizer)
    start = random_array(rng, shape, np.float32)
    variable, reference = library.array(start), Reference(optimizer, [start])
    rows = random_rows(rng, shape, 700, np.float32)
    (there,) = put(library, [rows])
    optimizer.apply([there], [variable])
    reference.apply([rows])
    play = CAPTURES[library.name](lambda: optimizer.apply([there]))
    for step in range(6):
        if step == 3:
            larger = random_rows(rng, shape, 30_000, np.float32)
            optimizer.apply(put(library, [larger]))
            reference.apply([larger])
        rows = random_rows(rng, shape, 700, np.float32)
        for place, new in zip(there, on_gpu(library, rows), strict=True):
            place[...] = new
        play()
        reference.apply([rows])
    assert_same(optimizer, [variable], reference)


@only_cupy
def test_a_graph_needs_memory_that_was_there(library: Any) -> None:
    rng = np.random.default_rng(5)
    variable = library.array(np.ones((50, 6), np.float32))
    optimizer = SGD(0.5)
    optimizer.apply(put(library, [random_rows(rng, (50, 6), 10, np.float32)]), [variable])
    kept = host(variable)
    many = put(library, [random_rows(rng, (50, 6), 3000, np.float32)])
    with pytest.raises(
        RuntimeError, match=re.escape("variables[0] has a gradient of more rows than in steps")
    ):
        CAPTURES["cupy"](lambda: optimizer.apply(many))
    assert (host(variable) == kept).all()
    assert optimizer.apply(many) == 2


def test_rows_of_an_embedding_by_pytorch() -> None:
    """A sparse gradient as PyTorch makes it: its indices and values are views, not coalesced."""
    torch = loaded("torch").torch
    embedding = torch.nn.Embedding(1000, 64, sparse=True, device="cuda")
    weight, optimizer = embedding.weight.detach(), Adam(0.01)
    reference = Reference(optimizer, [host(weight)])
    for seed in range(3):
        torch.manual_seed(seed)
        embedding.weight.grad = None
        embedding(torch.randint(0, 1000, (8, 100), device="cuda")).square().sum().backward()
        gradient = embedding.weight.grad
        rows = gradient._indices()[0], gradient._values()
        optimizer.apply([rows], [weight])
        reference.apply([(rows[0].cpu().numpy(), host(rows[1]))])
    assert_same(optimizer, [weight], reference)
