#include "bind/norm.hpp"

#include <cmath>
#include <optional>
#include <vector>

#include "bind/arrays.hpp"
#include "core/dtypes.hpp"
#include "core/tree.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

// A step's arrays and gradients, as far as its norms look at them.
struct Given {
  std::vector<Array> arrays;
  std::vector<Gradient> gradients;
  std::vector<py::object> owners;  // of what the gradients' pointers point to
};

void take(const py::list& gradients, std::size_t index, const std::string& who, Given& given) {
  const py::handle gradient = gradients[index];
  const auto what = [&] { return who + "[" + std::to_string(index) + "]"; };
  HeldView view;
  if (!read_array(gradient.ptr(), view) && !read_scalar(gradient.ptr(), view)) {
    refuse_array(gradient, what(), "gradient");
  }
  if (!view.contiguous() || !view.aligned()) read_contiguous_copy(gradient.ptr(), view, what());
  Array array = {};
  array.size = view.size();
  array.dtype = view.dtype;
  array.compute = compute_type_of(view.dtype);
  given.arrays.push_back(array);
  given.gradients.push_back({view.data, nullptr, view.dtype});
  given.owners.push_back(view.owner ? view.owner : py::reinterpret_borrow<py::object>(gradient));
}

// (Not inlined: its arithmetic must stay in the mode that is set.)
[[gnu::noinline]] double norm_of(const Given& given) {
  const Settings without_stages = {};
  Step step = {};
  step.settings = &without_stages;
  step.settings_count = 1;
  step.arrays = given.arrays.data();
  step.gradients = given.gradients.data();
  step.replicas = 1;
  step.count = given.arrays.size();
  const CompiledNorm* const norms = current_target().norms;
  std::vector<double> sums(step.count), leaves;
  for (std::size_t i = 0; i < step.count; ++i) {
    const Array& array = step.arrays[i];
    leaves.clear();
    for (std::int64_t begin = 0; begin < array.size; begin += slice_unit) {
      norms[array.compute].leaf(step, i, begin, &leaves.emplace_back());
    }
    sums[i] = baseline::sum_of_tree(leaves.data(), static_cast<std::int64_t>(leaves.size()));
  }
  return std::sqrt(baseline::sum_of_tree(sums.data(), static_cast<std::int64_t>(sums.size())));
}

}  // namespace

double norm_of(const py::list& gradients, const std::string& who) {
  Given given;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].is_none()) {
      given.arrays.emplace_back();
      given.gradients.push_back({nullptr, nullptr, DType::float32});
    } else {
      take(gradients, i, who, given);
    }
  }
  // Beside a busy thread it takes 5 ms to get the GIL back; so many elements take about 1 ms.
  constexpr std::int64_t worth_a_release = std::int64_t{1} << 22;
  std::int64_t elements = 0;
  for (const Array& array : given.arrays) elements += array.size;
  std::optional<py::gil_scoped_release> released;
  if (elements >= worth_a_release) released.emplace();
  const DefaultFloatEnvironment environment;
  return norm_of(given);
}

}  // namespace fusedstep
