// CUDA's runtime on the host (cuda/cuda_runtime.h) for Python: what tests/standin/cupy is made of. It is linked into
// the module that has the kernels, and knows the same devices.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/dlpack.hpp"
#include "bind/simulate.hpp"

namespace fusedstep {

// Tests that need the package's own simulation are none of the rehearsal's.
void bind_simulation(pybind11::module_& module) {
  module.def_submodule("simulation");
}

}  // namespace fusedstep

namespace {

namespace py = pybind11;
using Number = std::uintptr_t;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw Error(std::string("cudaError ") + std::to_string(code) + ": " + cudaGetErrorString(code));
}

// Whether it is done; anything but that, and that it is not, is an error.
bool is_done(cudaError_t code) {
  if (code == cudaErrorNotReady) return false;
  check(code);
  return true;
}

template <class Handle>
Handle as(Number number) {
  return reinterpret_cast<Handle>(number);
}

template <class Handle, class... Arguments>
Number made_by(cudaError_t (*function)(Handle*, Arguments...), Arguments... arguments) {
  Handle handle = {};
  check(function(&handle, arguments...));
  return reinterpret_cast<Number>(handle);
}

int number_from(cudaError_t (*function)(int*)) {
  int number = 0;
  check(function(&number));
  return number;
}

// A function of Python, as the kernel of a library: it must be a simple one, which no stream is waited for in.
void launch(Number stream, const py::function& work) {
  // Whoever drops it, has the GIL then.
  const std::shared_ptr<py::function> kept(new py::function(work), [](const py::function* of) {
    const py::gil_scoped_acquire gil;
    delete of;
  });
  check(on_the_host::enqueue(as<cudaStream_t>(stream), on_the_host::Kind::kernel, [kept] {
    const py::gil_scoped_acquire gil;
    (*kept)();
  }));
}

void copy(Number to, Number from, std::size_t bytes, bool to_device, Number stream) {
  const cudaMemcpyKind kind = to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  check(cudaMemcpyAsync(as<void*>(to), as<const void*>(from), bytes, kind, as<cudaStream_t>(stream)));
}

// What a DLPack capsule tells: address, shape, name of the dtype, device. The owner keeps the capsule.
py::tuple take_over(const py::capsule& capsule) {
  namespace dlpack = fusedstep::dlpack;
  const auto& tensor = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
  const bool known = tensor.device.type == dlpack::cuda && tensor.strides == nullptr && tensor.dtype.lanes == 1;
  if (!known) throw py::buffer_error("only contiguous arrays on a GPU can be taken over");
  const bool is_bfloat = tensor.dtype.code == dlpack::bfloat_code;
  if (!is_bfloat && tensor.dtype.code != dlpack::float_code) throw py::buffer_error("only floats can be taken over");
  return py::make_tuple(reinterpret_cast<Number>(tensor.data) + tensor.byte_offset,
                        py::tuple(py::cast(std::vector<std::int64_t>(tensor.shape, tensor.shape + tensor.ndim))),
                        (is_bfloat ? "bfloat" : "float") + std::to_string(tensor.dtype.bits), tensor.device.id);
}

}  // namespace

PYBIND11_MODULE(cuda_on_the_host, module) {
  py::register_exception<Error>(module, "CUDARuntimeError", PyExc_RuntimeError);
  module.def("getDeviceCount", [] { return number_from(cudaGetDeviceCount); });
  module.def("getDevice", [] { return number_from(cudaGetDevice); });
  module.def("setDevice", [](int device) { check(cudaSetDevice(device)); });
  module.def("deviceSynchronize", [] { check(cudaDeviceSynchronize()); });
  module.def("memGetInfo", [] {
    std::size_t left = 0, total = 0;
    check(cudaMemGetInfo(&left, &total));
    return py::make_tuple(left, total);
  });
  module.def("malloc", [](std::size_t bytes) { return made_by(cudaMalloc, bytes); });
  module.def("free", [](Number memory) { check(cudaFree(as<void*>(memory))); });
  module.def("copy", &copy);
  module.def("launch", &launch);
  module.def("take_over", &take_over);
  module.def("streamCreateWithFlags", [](unsigned flags) { return made_by(cudaStreamCreateWithFlags, flags); });
  module.def("streamDestroy", [](Number stream) { check(cudaStreamDestroy(as<cudaStream_t>(stream))); });
  module.def("streamSynchronize", [](Number stream) { check(cudaStreamSynchronize(as<cudaStream_t>(stream))); });
  module.def("streamQuery", [](Number stream) { return is_done(cudaStreamQuery(as<cudaStream_t>(stream))); });
  module.def("streamIsCapturing", [](Number stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(as<cudaStream_t>(stream), &status));
    return status != cudaStreamCaptureStatusNone;
  });
  module.def("streamBeginCapture", [](Number stream, int mode) {
    check(cudaStreamBeginCapture(as<cudaStream_t>(stream), static_cast<cudaStreamCaptureMode>(mode)));
  });
  module.attr("streamCaptureModeRelaxed") = static_cast<int>(cudaStreamCaptureModeRelaxed);
  module.def("streamEndCapture", [](Number stream) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(as<cudaStream_t>(stream), &graph));
    return reinterpret_cast<Number>(graph);
  });
  module.def("graphLaunch", [](Number graph, Number stream) {
    check(cudaGraphLaunch(as<cudaGraph_t>(graph), as<cudaStream_t>(stream)));
  });
  module.def("graphDestroy", [](Number graph) { check(cudaGraphDestroy(as<cudaGraph_t>(graph))); });
  module.def("eventCreate", [] { return made_by(cudaEventCreate); });
  module.def("eventDestroy", [](Number event) { check(cudaEventDestroy(as<cudaEvent_t>(event))); });
  module.def("eventRecord", [](Number event, Number stream) {
    check(cudaEventRecord(as<cudaEvent_t>(event), as<cudaStream_t>(stream)));
  });
  module.def("eventQuery", [](Number event) { return is_done(cudaEventQuery(as<cudaEvent_t>(event))); });
}

// Of the driver's library as much as tests ask it for what a graph is made of.

#define OF_THE_DRIVER extern "C" __attribute__((visibility("default")))

OF_THE_DRIVER int cuGraphGetNodes(cudaGraph_t graph, on_the_host::Work** nodes, std::size_t* count) {
  for (std::size_t i = 0; nodes != nullptr && i < *count && i < graph->size(); ++i) nodes[i] = &(*graph)[i];
  if (nodes == nullptr) *count = graph->size();
  return 0;
}
OF_THE_DRIVER int cuGraphNodeGetType(const on_the_host::Work* node, int* kind) {
  *kind = static_cast<int>(node->kind);
  return 0;
}
