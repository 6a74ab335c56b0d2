#include "bind/variables.hpp"

#include <utility>

#include "bind/interchange.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "cuda/devices.hpp"

namespace fusedstep {
namespace {

constexpr std::size_t cache_line = 64, page = 4096;

}  // namespace

Variables::Variables(std::string optimizer, const py::list& variables, std::vector<std::string> names)
    : optimizer_(std::move(optimizer)), names_(std::move(names)) {
  const std::size_t count = variables.size();
  bool any_on_device = false;
  for (std::size_t i = 0; i < count; ++i) {
    const py::object object = variables[i];
    const std::string what = optimizer_ + ".build: " + label("variables", i, i);
    HeldView view;
    if (!read_array(object.ptr(), view)) refuse_array(object, what, "variable");
    if (view.device != on_cpu && devices() == nullptr) refuse_device(object, what);
    check_updatable(object, view, what);
    ArrayView plain;
    are_plain_numpy_ &= read_plain_array(object.ptr(), plain);
    any_on_device |= view.device != on_cpu;
    built_.push_back({object, view.ndim, shapes_.size(), view.device, is_immutable_view(object.ptr()), false});
    shapes_.insert(shapes_.end(), view.shape, view.shape + view.ndim);
    arrays_.push_back(
        {view.data, view.size(), 0, view.dtype, compute_type_of(view.dtype), 0, static_cast<std::uint32_t>(i)});
    index_by_object_.emplace(object.ptr(), i);
    if (view.size() > 0) index_by_memory_.emplace(view.data, i);
  }
  if (!any_on_device) return;
  arrays_on_cpu_ = arrays_;
  for (Array& array : arrays_on_cpu_) {
    if (built_[array.number].device != on_cpu) array.size = 0;
  }
}

// Every kind of slot has the same layout, so one offset serves all. A slot starts where its variable does in a vector
// of the compute type: both reach aligned vectors together. Before the first one there is a gap, without which the
// kinds of a variable whose size is a power of two would agree in the low bits of their addresses: processors take a
// load for one of what was just stored where the last 12 bits do, and memory answers slower where the next ones do.
std::size_t Variables::lay_out_slots(Device device) {
  std::size_t end = page + 17 * cache_line;
  for (std::size_t i = 0; i < count(); ++i) {
    Array& array = arrays_[i];
    if (built_[i].device != device) continue;
    const auto bytes = static_cast<std::size_t>(bytes_of(array.compute));
    const std::size_t element = address(array.variable) / static_cast<std::size_t>(bytes_of(array.dtype));
    const std::size_t phase = element * bytes % cache_line;
    end += (phase - end) % cache_line;
    array.slot_offset = end;
    if (has_devices()) arrays_on_cpu_[i].slot_offset = end;
    end += static_cast<std::size_t>(array.size) * bytes;
  }
  return (end + cache_line - 1) / cache_line * cache_line;
}

void Variables::set_settings(const std::vector<std::uint16_t>& of) {
  for (Array& array : arrays_) array.settings = of[array.number];
  for (Array& array : arrays_on_cpu_) array.settings = of[array.number];
}

std::string Variables::label(const char* list, std::size_t position, std::size_t index) const {
  return std::string(list) + "[" + (names_.empty() ? std::to_string(position) : "'" + names_[index] + "'") + "]";
}

std::size_t Variables::find(PyObject* variable) const {
  const auto by_object = index_by_object_.find(variable);
  if (by_object != index_by_object_.end()) return by_object->second;
  HeldView view;
  if (!read_array(variable, view)) return count();
  const auto by_memory = index_by_memory_.find(view.data);
  if (by_memory == index_by_memory_.end()) return count();
  const Array& array = arrays_[by_memory->second];
  return array.dtype == view.dtype && array.size == view.size() ? by_memory->second : count();
}

void Variables::refuse_unknown(py::handle variable, std::size_t position) const {
  const std::string what = optimizer_ + ".apply: variables[" + std::to_string(position) + "]";
  HeldView view;
  if (!read_array(variable.ptr(), view)) refuse_array(variable, what, "variable");
  if (view.device != on_cpu && devices() == nullptr) refuse_device(variable, what);
  refuse_value(what + " (shape " + text_of(view.ndim, view.shape) + ", dtype " + name_of(view.dtype) +
               ") was never built; `w = w - x` makes a new array, `w -= x` and `w[...] = x` keep the old one; " +
               "build(variables) adds new ones");
}

void Variables::check_updatable(py::handle object, const ArrayView& view, const std::string& what) {
  if (!view.contiguous()) {
    refuse_value(what + " is not contiguous (shape " + text_of(view.ndim, view.shape) + ", strides " +
                 text_of_strides(view) + "); it is updated in place, so pass " + call_for_copy(object) +
                 " once, before training");
  }
  if (!view.aligned()) {
    refuse_value(what + " is not aligned to its dtype (address " + std::to_string(address(view.data)) +
                 "); it is updated in place, so pass numpy.array(w) once, before training");
  }
  if (!view.writeable()) {
    if (is_of_jax(object)) {
      refuse_value(what +
                   " is a jax.Array, and those are immutable, but a variable is updated in place; keep it as a NumPy "
                   "array, w = numpy.array(x), and pass jax.numpy.asarray(w) to the model");
    }
    refuse_value(what + " is read-only, but it is updated in place; pass numpy.array(w) once, before training");
  }
}

void Variables::check_unchanged(std::size_t index, std::size_t position, const std::string& who) const {
  const Built& built = built_[index];
  HeldView view;
  const bool is_array = read_array(built.object.ptr(), view);
  if (is_array && is_unchanged(index, view)) return;
  const std::string what = who + label("variables", position, index);
  if (is_array && !has_shape(index, view)) {
    refuse_value(what + " has shape " + text_of(view.ndim, view.shape) + ", but had " + text_of_shape(index) +
                 " when it was built; forget(variables) and build again");
  }
  if (is_array && view.data == arrays_[index].variable && !view.writeable()) {
    refuse_value(what + " is read-only now, but it is updated in place; w.flags.writeable = True allows that");
  }
  refuse_value(what + " has other memory, dtype or layout than when it was built; forget(variables) and build again");
}

void Variables::check_unchanged(const std::string& who) const {
  for (std::size_t index = 0; index < count(); ++index) check_unchanged(index, index, who);
}

int Variables::visit_kept(visitproc visit, void* arg) const {  // as the macro wants it named
  for (const Built& built : built_) Py_VISIT(built.object.ptr());
  return 0;
}

void Variables::forget_kept() {
  for (Built& built : built_) built.object = py::none();
}

}  // namespace fusedstep
