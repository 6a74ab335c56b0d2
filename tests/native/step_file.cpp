// Runs the steps that a file describes, on a target, without Python: for other compilers, and instruction sets that
// only an emulator has here. tests/test_other_compilers.py writes the file and knows its format.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "core/dtypes.hpp"
#include "core/slices.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"

namespace {

template <class T>
T read(std::istream& file) {
  T value;
  file.read(reinterpret_cast<char*>(&value), sizeof(value));
  return value;
}

std::vector<char> read_bytes(std::istream& file, std::int64_t count) {
  std::vector<char> bytes(static_cast<std::size_t>(count));
  file.read(bytes.data(), count);
  return bytes;
}

fusedstep::Stage read_stage(std::istream& file) {
  const bool on = read<std::int32_t>(file) != 0;
  return {on, read<double>(file)};
}

struct Tensor {
  std::vector<char> variable, gradient;
};

}  // namespace

int main(int argc, char** argv) {
  using namespace fusedstep;
  if (argc != 4) return EXIT_FAILURE;
  for (const Target& target : targets()) {
    if (target.name == std::string(argv[3])) select_target(target);
  }
  if (current_target().name != std::string(argv[3])) return EXIT_FAILURE;
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  Step step = {};
  const auto rule_name_size = read<std::int32_t>(in);
  const std::vector<char> rule_name = read_bytes(in, rule_name_size);
  const Target& target = current_target();
  while (std::string(rule_name.begin(), rule_name.end()) != target.rules[step.rule].name) ++step.rule;
  const Rule& rule = target.rules[step.rule];

  std::vector<double> hyperparameters(max_hyperparameters);
  for (int k = 0; k < rule.hyperparameter_count; ++k) hyperparameters[static_cast<std::size_t>(k)] = read<double>(in);
  Settings settings = {};
  settings.hyperparameters = hyperparameters.data();
  settings.learning_rate = read<double>(in);
  settings.stages.factor = read_stage(in);
  settings.stages.l2 = read_stage(in);
  settings.stages.decay = read_stage(in);
  step.settings = &settings;
  step.settings_count = 1;
  step.replicas = 1;
  const auto updates = read<std::int32_t>(in);
  const auto count = read<std::int32_t>(in);

  std::vector<Tensor> tensors(static_cast<std::size_t>(count));
  std::vector<Array> arrays;
  std::vector<Gradient> gradients;
  std::vector<std::uint64_t> cost_before = {0};
  for (Tensor& tensor : tensors) {
    const auto dtype = static_cast<DType>(read<std::int32_t>(in));
    const auto gradient_dtype = static_cast<DType>(read<std::int32_t>(in));
    const auto size = read<std::int64_t>(in);
    tensor.variable = read_bytes(in, size * bytes_of(dtype));
    tensor.gradient = read_bytes(in, size * bytes_of(gradient_dtype));
    const auto number = static_cast<std::uint32_t>(arrays.size());
    arrays.push_back({tensor.variable.data(), size, 0, dtype, compute_type_of(dtype), 0, number});
    gradients.push_back({tensor.gradient.data(), nullptr, gradient_dtype});
    cost_before.push_back(cost_before.back() + cost_of(arrays.back()));
  }
  // One piece of memory for all slots, every kind with the same layout.
  std::uint64_t stride = 0;
  for (Array& array : arrays) {
    array.slot_offset = stride;
    stride += (static_cast<std::uint64_t>(array.size * bytes_of(array.compute)) + 63) / 64 * 64;
  }
  std::vector<double> slots(stride / sizeof(double) * static_cast<std::uint64_t>(rule.slot_count));
  for (int k = 0; k < rule.slot_count; ++k) {
    step.slots[k] = reinterpret_cast<std::byte*>(slots.data()) + stride * static_cast<std::uint64_t>(k);
  }
  step.arrays = arrays.data();
  step.gradients = gradients.data();
  step.cost_before = cost_before.data();
  step.count = arrays.size();
  settings.carried = 1;
  Norms norms = {};
  for (settings.t = 1; settings.t <= static_cast<std::uint64_t>(updates); ++settings.t) {
    run(step, target, {}, norms, 1);
    if (rule.carry != nullptr) {
      settings.carried = rule.carry(settings.hyperparameters, settings.t, settings.carried);
    }
  }

  for (std::size_t i = 0; i < tensors.size(); ++i) {
    out.write(tensors[i].variable.data(), static_cast<std::streamsize>(tensors[i].variable.size()));
    for (int k = 0; k < rule.slot_count; ++k) {
      out.write(reinterpret_cast<const char*>(step.slots[k] + arrays[i].slot_offset),
                arrays[i].size * bytes_of(arrays[i].compute));
    }
  }
  return out && in ? EXIT_SUCCESS : EXIT_FAILURE;
}
