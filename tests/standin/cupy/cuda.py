"""Devices, streams, graphs, events and memory, over CUDA's runtime on the host."""

import importlib.machinery
import importlib.util
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fusedstep import _native


def _load() -> Any:
    """The stand-in for CUDA's runtime, which is in the file of the module that has the kernels."""
    assert _native.__file__ is not None
    loader = importlib.machinery.ExtensionFileLoader("cuda_on_the_host", _native.__file__)
    spec = importlib.util.spec_from_loader("cuda_on_the_host", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


runtime: Any = _load()


class Device:
    """A GPU; the current one without a number."""

    def __init__(self, device: int | None = None) -> None:
        self.id: int = runtime.getDevice() if device is None else device
        self._before: list[int] = []

    def __enter__(self) -> "Device":
        self._before.append(runtime.getDevice())
        runtime.setDevice(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        runtime.setDevice(self._before.pop())

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Stream:
    """A queue of work. As in CuPy, who makes one the current one has to keep it."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.device_id: int = -1 if null else runtime.getDevice()  # of the null stream: each
        self.ptr: int = 0 if null else runtime.streamCreateWithFlags(int(non_blocking))
        self._destroy = None if null else weakref.finalize(self, runtime.streamDestroy, self.ptr)
        self._other: Any = None

    @classmethod
    def from_external(cls, other: Any) -> "Stream":
        """One of another library, which is kept."""
        version, pointer = other.__cuda_stream__()
        assert version == 0
        stream = cls(null=True)
        stream.ptr, stream._other = pointer, other
        stream.device_id = runtime.getDevice() if pointer else -1
        return stream

    def use(self) -> "Stream":
        """Make it the current one, until the end of a ``with`` of another one: that forgets it."""
        _make_current(self)
        return self

    def __enter__(self) -> "Stream":
        _make_current(self)
        _entered[runtime.getDevice()].append(weakref.ref(self))
        return self

    def __exit__(self, *_: object) -> None:
        outer = _entered[runtime.getDevice()]
        outer.pop()
        _make_current((outer[-1]() if outer else None) or Stream.null)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        done: bool = runtime.streamQuery(self.ptr)
        return done

    def synchronize(self) -> None:
        """Wait for all that was put on it."""
        runtime.streamSynchronize(self.ptr)

    def begin_capture(self) -> None:
        """Have what is put on it go into a graph."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        runtime.streamBeginCapture(self.ptr, runtime.streamCaptureModeRelaxed)

    def end_capture(self) -> "Graph":
        """The graph."""
        return Graph(runtime.streamEndCapture(self.ptr))


Stream.null = Stream(null=True)
_current: dict[int, Callable[[], Stream | None]] = {}  # by device
_entered: dict[int, list[Callable[[], Stream | None]]] = defaultdict(list)


def _make_current(stream: Stream) -> None:
    device = runtime.getDevice()
    if stream.device_id not in (-1, device):
        raise RuntimeError(f"a stream of device {stream.device_id} cannot be used on device {device}")
    _current[device] = weakref.ref(stream)


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream that work goes onto."""
    reference = _current.get(runtime.getDevice() if device_id < 0 else device_id)
    return (reference() if reference is not None else None) or Stream.null


class Graph:
    """What was captured."""

    def __init__(self, graph: int) -> None:
        self.graph = graph
        weakref.finalize(self, runtime.graphDestroy, graph)

    def launch(self, stream: Stream | None = None) -> None:
        """Do it all again."""
        runtime.graphLaunch(self.graph, (stream or get_current_stream()).ptr)


class Event:
    """A place in a stream."""

    def __init__(self, disable_timing: bool = False) -> None:
        if not disable_timing:
            raise NotImplementedError("there is no time on a GPU that is none")
        self.ptr: int = runtime.eventCreate()
        weakref.finalize(self, runtime.eventDestroy, self.ptr)

    def record(self, stream: Stream | None = None) -> None:
        """It comes behind what is on the stream now."""
        runtime.eventRecord(self.ptr, (stream or get_current_stream()).ptr)

    @property
    def done(self) -> bool:
        """Whether the stream is past it."""
        done: bool = runtime.eventQuery(self.ptr)
        return done


class RawKernel:
    """A kernel in CUDA C++: only one that takes time and does nothing. All work is late here, anyhow."""

    def __init__(self, code: str, name: str) -> None:
        if name != "spin":
            raise NotImplementedError(f"{name}: nothing here compiles CUDA C++")

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        """Put it on the current stream."""
        runtime.launch(get_current_stream().ptr, lambda: None)


class NotCompiled:
    """Kernels in CUDA C++ of kinds that nothing here compiles: thinc has some, and makes them at import."""

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Refuse."""
        raise NotImplementedError("nothing here compiles CUDA C++")

    get_function = __call__


ElementwiseKernel = RawModule = ReductionKernel = NotCompiled


class Memory:
    """Memory of the current device, until it is dropped; where there is none, what somebody else owns."""

    def __init__(self, pointer: int, device: int, give_back: Callable[..., None], *arguments: Any) -> None:
        self.ptr, self.device_id = pointer, device
        weakref.finalize(self, give_back, *arguments).atexit = False


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.device_id = mem, mem.device_id
        self.ptr = mem.ptr + offset
        self._offset = offset

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self._offset + offset)


def _allocate(size: int) -> Memory:
    pointer = runtime.malloc(size)
    return Memory(pointer, runtime.getDevice(), runtime.free, pointer)


class MemoryPool:
    """What is dropped is given again, to who asks on the same stream: that comes to it after its last use."""

    unit = 512

    def __init__(self) -> None:
        self._free: dict[tuple[int, int, int], list[int]] = defaultdict(list)

    def malloc(self, size: int) -> Memory:
        """So many bytes, or some more."""
        size = -(-size // self.unit) * self.unit
        pieces = self._free[runtime.getDevice(), get_current_stream().ptr, size]
        pointer = pieces.pop() if pieces else runtime.malloc(size)
        return Memory(pointer, runtime.getDevice(), pieces.append, pointer)

    def free_all_blocks(self) -> None:
        """Give back to CUDA what nobody has."""
        for pieces in self._free.values():
            while pieces:
                runtime.free(pieces.pop())


_pool = MemoryPool()
_allocator: Callable[[int], Memory] = _pool.malloc


def get_default_memory_pool() -> MemoryPool:
    """The one that arrays are from."""
    return _pool


def set_allocator(allocator: None) -> None:
    """From now on, each array has an allocation of its own."""
    global _allocator
    if allocator is not None:
        raise NotImplementedError("there are but the default pool and none")
    _allocator = _allocate


def alloc(size: int) -> MemoryPointer:
    """Memory for an array; of one without elements there is none, as in CuPy."""
    memory = _allocator(size) if size else Memory(0, runtime.getDevice(), lambda: None)
    return MemoryPointer(memory, 0)
