"""What all tests of GPUs share: the libraries, and a look at the GPU after each test."""

from collections.abc import Iterator
from typing import Any

import pytest

from gpu.libraries import CuPy, loaded, try_to_load


@pytest.fixture(params=["cupy", "torch"])
def library(request: pytest.FixtureRequest) -> Any:
    """Each library of arrays on GPUs, in turn."""
    return loaded(request.param)


@pytest.fixture
def cupy() -> Any:
    return loaded("cupy").cupy


@pytest.fixture
def torch() -> Any:
    return loaded("torch").torch


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an access to wrong memory CUDA answers nothing more: the tests end at the one that did it."""
    yield
    library = try_to_load("cupy")
    if not isinstance(library, CuPy):
        return
    runtime = library.cupy.cuda.runtime
    try:
        runtime.deviceSynchronize()
    except runtime.CUDARuntimeError as error:
        pytest.exit(f"{request.node.nodeid} has left the GPU broken: {error}", returncode=3)
