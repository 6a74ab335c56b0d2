#include "bind/simulate.hpp"

#include "bind/device_array.hpp"
#include "cuda/simulation.hpp"

namespace fusedstep {
namespace {

struct SimulationInPython {};

// The one in use; null where there is none.
Simulation* simulation = nullptr;

void simulate(int count, std::uint32_t blocks) {
  auto made = count > 0 ? std::make_unique<Simulation>(count, blocks) : nullptr;
  simulation = made.get();
  simulate_devices(std::move(made));
}

py::list take_events() {
  py::list events;
  for (const Simulation::Event& event : simulation->events) {
    events.append(py::make_tuple(event.what, event.device, event.stream));
  }
  simulation->events.clear();
  return events;
}

// A copy of an array, so many bytes behind an address that CUDA would give.
DeviceArray array_on(int device, const py::array& values, std::size_t offset) {
  const auto bytes = static_cast<std::size_t>(values.nbytes());
  auto memory = std::make_shared<DeviceMemory>(device, offset + bytes);
  const std::vector<py::ssize_t> shape(values.shape(), values.shape() + values.ndim());
  void* const data = memory->as<std::byte>() + offset;
  HeldView view;
  if (!read_array(values.ptr(), view)) throw py::type_error("simulated arrays have the dtypes of variables");
  DeviceArray array(data, view.dtype, shape, device, std::move(memory));
  if (bytes > 0) simulation->write(device, data, values.data(), bytes);
  return array;
}

}  // namespace

void bind_simulation(py::module_& module) {
  py::class_<SimulationInPython>(module, "simulation")
      .def_static("start", &simulate, py::arg("devices"), py::arg("blocks"))
      .def_static("stop", [] { simulate(0, 0); })
      .def_static("array_on", &array_on, py::arg("device"), py::arg("values"), py::arg("offset") = 0)
      .def_static("take_events", &take_events)
      .def_static(
          "refuse_writes", [](bool refuse) { simulation->refuses_writes = refuse; }, py::arg("refuse"))
      .def_static(
          "make_waits_last", [](double seconds) { simulation->wait_seconds = seconds; }, py::arg("seconds"))
      .def_static("begin_capture", [] { simulation->begin_capture(); })
      .def_static("end_capture", [] { simulation->end_capture(); })
      .def_static("replay", [] { simulation->replay(); });
}

}  // namespace fusedstep
