// Gradients that are more than one array: of replicas, and of some rows.
#include <algorithm>
#include <limits>
#include <numeric>

#include "bind/gradients.hpp"
#include "bind/interchange.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/gather.hpp"
#include "core/slices.hpp"
#include "cpu/float_environment.hpp"

namespace fusedstep {
namespace {

// The rows of equal indices are summed in the order in which they were given, in the compute type.
template <class C>
void sum_rows(const char* values, DType dtype, std::int64_t size, const std::vector<std::int64_t>& indices,
              const std::vector<std::size_t>& order, GivenRows& given) {
  const auto row = static_cast<std::size_t>(size);
  std::vector<C> added(row);
  given.values.resize(order.size() * row * sizeof(C));
  C* const sums = reinterpret_cast<C*>(given.values.data());
  for (const std::size_t from : order) {
    baseline::load(values, dtype, static_cast<std::int64_t>(from) * size, added.data(), size);
    if (given.indices.empty() || given.indices.back() != indices[from]) {
      std::ranges::copy(added, sums + given.indices.size() * row);
      given.indices.push_back(indices[from]);
    } else {
      C* const sum = sums + (given.indices.size() - 1) * row;
      for (std::size_t i = 0; i < row; ++i) sum[i] = sum[i] + added[i];
    }
  }
}

// An array without memory is on the GPU where one looks for it.
void check_device(const ArrayView& view, Device of_variable, const std::string& what_has) {
  const Device device = view.device;
  if (device == of_variable || (view.data == nullptr && device != on_cpu && of_variable != on_cpu)) return;
  const char* const advice =
      of_variable == on_cpu ? "as NumPy arrays, for example cupy.asnumpy(x)" : "there, for example cupy.asarray(x)";
  refuse_value(what_has + " on " + name_of(device) + ", but its variable is on " + name_of(of_variable) +
               "; pass them " + advice);
}

}  // namespace

// Reads and checks the values of a gradient's rows; returns how many elements each has.
std::int64_t Gradients::read_rows(PyObject* values, std::int64_t count, std::size_t index, const std::string& what,
                                  HeldView& view) const {
  const Variables::Built& built = variables_[index];
  if (!read_array(values, view)) refuse_array(values, what + " values", "gradient");
  check_device(view, built.device, what + " has values");
  if (!view.contiguous() || !view.aligned()) read_contiguous_copy(values, view, what);
  std::vector<py::ssize_t> shape = variables_.shape(index);
  shape[0] = count;
  if (!view.has_shape(built.ndim, shape.data())) {
    refuse_value(what + " has values of shape " + text_of(view.ndim, view.shape) + ", but with " +
                 std::to_string(count) + (count == 1 ? " index" : " indices") + " they must have " +
                 text_of(built.ndim, shape.data()));
  }
  return std::accumulate(shape.begin() + 1, shape.end(), std::int64_t{1}, std::multiplies<>());
}

// A gradient given as (indices, values).
Gradient Gradients::take_rows(PyObject* gradient, std::size_t index, std::size_t position, const char* list,
                              Call& call) {
  const std::string what = who_ + variables_.label(list, position, index);
  const Variables::Built& built = variables_[index];
  const std::size_t items = static_cast<std::size_t>(PyTuple_GET_SIZE(gradient));
  if (items != 2) {
    refuse_type(what + " is a tuple of " + std::to_string(items) +
                ", but must be an array, or (indices, values) for some rows");
  }
  if (options_.clears_gradients) refuse_type(what + " has rows, but this step sets gradients to zero; pass an array");
  if (built.ndim == 0) refuse_value(what + " has rows, but its variable has shape (); pass an array");
  PyObject* const values = PyTuple_GET_ITEM(gradient, 1);
  if (built.device != on_cpu) return take_rows_on_device(PyTuple_GET_ITEM(gradient, 0), values, index, what, call);
  const py::module_ numpy = py::module_::import("numpy");
  py::object given_indices = numpy.attr("asarray")(py::handle(PyTuple_GET_ITEM(gradient, 0)));
  const auto kind = given_indices.attr("dtype").attr("kind").cast<std::string>();
  if (given_indices.attr("ndim").cast<int>() != 1 ||
      (kind != "i" && kind != "u" && given_indices.attr("size").cast<std::int64_t>() > 0)) {
    refuse_type(what + " has indices of dtype " + std::string(py::str(given_indices.attr("dtype"))) + " and shape " +
                std::string(py::str(given_indices.attr("shape"))) +
                ", but they must be integers in one dimension; (gradient, variable) pairs are for apply_gradients");
  }
  HeldView view;
  const auto count = given_indices.attr("size").cast<std::int64_t>();
  const std::int64_t size = read_rows(values, count, index, what, view);
  const std::int64_t rows_of_variable = variables_.shape_of(index)[0];
  const py::array in_int64 = numpy.attr("ascontiguousarray")(given_indices, "int64");
  const auto* const first_index = static_cast<const std::int64_t*>(in_int64.data());
  std::vector<std::int64_t> indices(first_index, first_index + count);
  const auto bad = std::ranges::find_if(indices, [&](std::int64_t i) { return i < 0 || i >= rows_of_variable; });
  if (bad != indices.end()) {
    const auto number = static_cast<py::ssize_t>(bad - indices.begin());
    refuse_value(what + " has the index " + std::string(py::str(given_indices[py::int_(number)])) +
                 ", its variable has shape " + variables_.text_of_shape(index) + ": indices must lie in [0, " +
                 std::to_string(rows_of_variable) + ")");
  }
  if (!may_read(view.data, view.size() * bytes_of(view.dtype), index, true)) refuse_overlap(index, what, true);

  GivenRows& given = call.rows.emplace_back();
  const ComputeType compute = variables_.array(index).compute;
  Gradient taken = {view.data, &given.rows, view.dtype};
  if (std::ranges::adjacent_find(indices, std::greater_equal<>()) == indices.end()) {
    given.indices = std::move(indices);
    call.copies.push_back(view.owner ? view.owner : py::reinterpret_borrow<py::object>(values));
  } else {
    const DefaultFloatEnvironment environment;
    std::vector<std::size_t> order(indices.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return indices[i]; });
    if (compute == compute_float64) {
      sum_rows<double>(view.data, view.dtype, size, indices, order, given);
    } else {
      sum_rows<float>(view.data, view.dtype, size, indices, order, given);
    }
    taken.data = given.values.data();
    taken.dtype = dtype_of(compute);
  }
  given.rows = {given.indices.data(), static_cast<std::int64_t>(given.indices.size()), size};
  if (taken.data == nullptr) taken.data = &nothing;  // no rows are not no gradient
  return taken;
}

// The same of a variable on a GPU. The host does not look at indices: it would have to wait.
Gradient Gradients::take_rows_on_device(PyObject* given_indices, PyObject* values, std::size_t index,
                                        const std::string& what, Call& call) {
  const Variables::Built& built = variables_[index];
  IndexView indices;
  if (!read_indices(given_indices, indices)) refuse_indices(given_indices, what, built.device);
  check_device(indices, built.device, what + " has indices");
  if (indices.ndim != 1) {
    refuse_type(what + " has indices of shape " + text_of(indices.ndim, indices.shape) +
                ", but they must be integers in one dimension");
  }
  if (!indices.contiguous() || !indices.aligned()) {
    const py::object copy = contiguous_copy(given_indices, indices, what + " indices");
    call.copies.push_back(copy);
    if (!read_indices(copy.ptr(), indices)) refuse_indices(copy, what, built.device);
  }
  const std::int64_t count = indices.shape[0];
  HeldView view;
  const std::int64_t size = read_rows(values, count, index, what, view);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const std::int64_t rows_of_variable = variables_.shape_of(index)[0];
  if (count > 0 && rows_of_variable >= most / count) {
    refuse_value(what + " has " + std::to_string(count) + " rows and its variable " + std::to_string(rows_of_variable) +
                 ", but on a GPU their product must be less than 2^63; pass a dense gradient");
  }
  if (!may_read(view.data, view.size() * bytes_of(view.dtype), index, false)) refuse_overlap(index, what, false);
  for (const py::object& owner : {indices.owner, view.owner}) {
    if (owner) call.copies.push_back(owner);
  }
  GivenRows& given = call.rows.emplace_back();
  given.rows = {nullptr, count, size};
  if (indices.narrow) {
    given.rows.narrow_indices = reinterpret_cast<const std::int32_t*>(indices.data);
  } else {
    given.rows.indices = reinterpret_cast<const std::int64_t*>(indices.data);
  }
  Gradient taken = {view.data, &given.rows, view.dtype};
  if (taken.data == nullptr) taken.data = &nothing;
  return taken;
}

void Gradients::take_replicas(Call& call, std::vector<Items>& others) {
  if (options_.clears_gradients) refuse_value(who_ + "there are replicas, but this step sets gradients to zero");
  call.gradients = gradients_;
  call.gradients.resize(call.replicas * count(), {nullptr, nullptr, DType::float32});
  for (std::size_t replica = 1; replica < call.replicas; ++replica) {
    Items& items = others[replica - 1];
    const std::string list = "replicas[" + std::to_string(replica) + "]";
    if (!items.hold()) throw py::error_already_set();
    if (items.size() != call.grads.size()) {
      refuse_value(who_ + list + " has length " + std::to_string(items.size()) + ", replicas[0] " +
                   std::to_string(call.grads.size()) + "; pass one gradient for each variable in every replica");
    }
    for (std::size_t position = 0; position < items.size(); ++position) {
      const std::size_t index = call.index_of_position[position];
      if (items[position] == Py_None) continue;
      ++call.given;
      const Gradient gradient = take(items[position], index, position, list.c_str(), call);
      if (variables_[index].frozen) continue;
      // The first list has a gradient wherever any of them has one.
      const bool is_first = call.gradients[index].data == nullptr;
      call.gradients[(is_first ? 0 : replica) * count() + index] = gradient;
      if (is_first) set(index, gradient);
    }
  }
}

// The rows that any of the lists has of a variable; null where one of them has all, or none has some.
const Rows* Gradients::rows_of_lists(const Step& step, std::size_t index, Call& call) const {
  const Rows* rows = nullptr;
  std::vector<std::int64_t> indices;
  for (std::size_t k = 0; k < step.replicas; ++k) {
    const Gradient& gradient = step.gradients[k * count() + index];
    if (gradient.data == nullptr) continue;
    if (gradient.rows == nullptr) return nullptr;
    rows = gradient.rows;
    if (step.replicas > 1) indices.insert(indices.end(), rows->indices, rows->indices + rows->count);
  }
  if (rows == nullptr || step.replicas == 1) return rows;
  std::ranges::sort(indices);
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  GivenRows& of_all = call.rows.emplace_back();
  of_all.indices = std::move(indices);
  of_all.rows = {of_all.indices.data(), static_cast<std::int64_t>(of_all.indices.size()), rows->size};
  return &of_all.rows;
}

void Gradients::update_touched_rows(Step& step, Call& call) const {
  call.touched.resize(count());
  call.cost_before = {0};
  for (std::size_t i = 0; i < count(); ++i) {
    const Array& array = step.arrays[i];
    const Rows* const rows = array.size == 0 ? nullptr : rows_of_lists(step, i, call);
    const bool visited = step.gradients[i].data != nullptr || visits_all();
    call.touched[i] = rows;
    const std::int64_t elements = rows == nullptr ? array.size : rows->count * rows->size;
    call.cost_before.push_back(call.cost_before.back() + (visited ? cost_of(array, elements) : 0));
  }
  step.touched = call.touched.data();
  step.cost_before = call.cost_before.data();
}

}  // namespace fusedstep
