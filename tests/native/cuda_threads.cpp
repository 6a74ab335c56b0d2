// Steps on simulated GPUs, and the same steps by csrc/cuda/kernels.cu with a thread for each of CUDA's
// (cuda/cuda_runtime.h): all that they leave in memory must be the same. ThreadSanitizer looks for accesses that
// nothing orders. tests/test_cuda_threads.py builds it and runs it.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <random>

#include "core/dtypes.hpp"
#include "core/stages.hpp"
#include "core/storage.hpp"
#include "cuda/part.hpp"
#include "cuda/simulation.hpp"
#include "rules/all.hpp"

namespace {

using namespace fusedstep;
using namespace fusedstep::FUSEDSTEP_TARGET;

using Bytes = std::vector<std::byte>;

constexpr int device = 1;  // not the current one

struct RuleOf {
  std::string name;
  int slots;
  bool two_passes;
};

template <template <class> class... R>
std::vector<RuleOf> rules_of(List<R...>) {
  return {{R<float>::name, R<float>::slots.count, takes_two_passes<R<float>>}...};
}

const std::vector<RuleOf> rules = rules_of(AllRules());

// Steps over some arrays. What is not said here is the same in all cases.
struct Case {
  std::string name;
  int rule = 0;
  Options options = {};
  std::vector<std::int64_t> sizes = {5, 0, 4096, 4097, 1, 9000, 513};
  std::vector<DType> dtypes = {DType::float32, DType::bfloat16, DType::float64, DType::float16};
  std::size_t replicas = 1;
  std::int64_t rows_of = 0;    // elements of a row, where the gradients are sparse; of arrays of a multiple of it
  std::int64_t row_count = 0;  // of each gradient
  int steps = 3;
  int step_not_finite = -1;
  bool apart = false;     // the arrays have two kinds of settings
  bool custom = false;    // around a rule in Python, which does nothing here
  bool captured = false;  // the last step is one that goes into a graph, which is run twice
};

DType dtype_of(const Case& the, std::size_t index) {
  return the.dtypes[index % the.dtypes.size()];
}

// Memory on the device with these bytes.
DeviceMemory on_device(const Bytes& bytes) {
  DeviceMemory memory(device, bytes.size() + 1);
  devices()->write(device, memory.as<void>(), bytes.data(), bytes.size());
  return memory;
}

Bytes read(const void* memory, std::size_t bytes) {
  Bytes result(bytes);
  devices()->read(device, result.data(), memory, bytes);
  return result;
}

// Some numbers of a dtype.
Bytes numbers(std::mt19937& random, DType dtype, std::int64_t count, bool finite) {
  Bytes result(static_cast<std::size_t>(count * bytes_of(dtype)));
  for (std::int64_t i = 0; i < count; ++i) {
    const double value = finite || i != count / 2 ? std::ldexp(static_cast<double>(random()), -31) - 1
                                                  : std::numeric_limits<double>::infinity();
    std::byte* const to = result.data() + i * bytes_of(dtype);
    const auto store = [&](auto stored) { std::memcpy(to, &stored, sizeof(stored)); };
    switch (dtype) {
      case DType::float64: store(value); break;
      case DType::float32: store(static_cast<float>(value)); break;
      case DType::float16: {
        Float16 stored;
        narrow(static_cast<float>(value), stored);
        store(stored);
        break;
      }
      case DType::bfloat16: {
        BFloat16 stored;
        narrow(static_cast<float>(value), stored);
        store(stored);
        break;
      }
    }
  }
  return result;
}

// The gradients of one step: the memory that holds them, and as a step has them.
struct Gradients {
  std::vector<DeviceMemory> memory;
  std::vector<Rows> rows;
  std::vector<Gradient> list;
};

Gradients gradients_of(const Case& the, std::mt19937& random, bool finite) {
  Gradients made;
  const std::size_t count = the.sizes.size();
  made.rows.resize(count * the.replicas);
  for (std::size_t k = 0; k < count * the.replicas; ++k) {
    const std::size_t i = k % count;
    const bool sparse = the.rows_of > 0 && the.sizes[i] > 0;
    // Every other one has the dtype of its variable.
    const DType dtype = i % 2 == 0 || the.dtypes.size() == 1 ? dtype_of(the, i) : dtype_of(the, i + 1);
    const std::int64_t size = sparse ? the.row_count * the.rows_of : the.sizes[i];
    if (!sparse && i % 5 == 4 && count > 5) {  // has none
      made.list.push_back({nullptr, nullptr, dtype});
      continue;
    }
    const void* const values = made.memory.emplace_back(on_device(numbers(random, dtype, size, finite))).as<void>();
    made.list.push_back({values, nullptr, dtype});
    if (!sparse) continue;
    std::vector<std::int64_t> indices;
    for (std::int64_t row = 0; row < the.row_count; ++row) {
      indices.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(the.sizes[i] / the.rows_of)));
    }
    const auto* const bytes = reinterpret_cast<const std::byte*>(indices.data());
    DeviceMemory& memory = made.memory.emplace_back(on_device({bytes, bytes + indices.size() * sizeof(indices[0])}));
    made.rows[k] = {memory.as<std::int64_t>(), the.row_count, the.rows_of};
    made.list.back().rows = &made.rows[k];
  }
  return made;
}

// What the graph is captured for, and how; in a simulation there is but one.
struct Capture {
  cudaStream_t stream = nullptr;
  Simulation* simulation = nullptr;
  cudaGraph_t graph = nullptr;

  void begin() {
    if (simulation != nullptr) return simulation->begin_capture();
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) != cudaSuccess) std::abort();
  }
  void end() {
    if (simulation != nullptr) return simulation->end_capture();
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess) throw std::runtime_error("the capture was ended");
  }
  void replay() {
    if (simulation != nullptr) return simulation->replay();
    if (cudaGraphLaunch(graph, stream) != cudaSuccess) throw std::runtime_error("the graph is not launched");
  }
};

// All that the steps leave in memory.
std::vector<Bytes> run(const Case& the, Capture capture) {
  std::mt19937 random(1);
  const RuleOf& rule = rules[static_cast<std::size_t>(the.rule)];
  std::vector<DeviceMemory> variables;
  std::vector<Array> arrays;
  std::uint64_t stride = 0;
  for (std::size_t i = 0; i < the.sizes.size(); ++i) {
    const DType dtype = dtype_of(the, i);
    variables.push_back(on_device(numbers(random, dtype, the.sizes[i], true)));
    const auto settings = static_cast<std::uint16_t>(the.apart ? i % 2 : 0);
    arrays.push_back({variables[i].as<void>(), the.sizes[i], stride, dtype, compute_type_of(dtype), settings,
                      static_cast<std::uint32_t>(i)});
    stride += (static_cast<std::uint64_t>(the.sizes[i] * bytes_of(arrays[i].compute)) + 63) / 64 * 64;
  }
  DevicePart part(device, arrays, 2, stride, the.custom ? 0 : rule.slots, the.options.accumulation_steps > 1,
                  the.options.averages, the.custom);
  std::vector<Group> groups(the.apart ? 2 : 1);
  if (the.apart) {
    groups[1].apart = true;
    groups[1].weight_decay = 0.1;
    std::fill_n(groups[1].hyperparameters, max_hyperparameters, 0.75);
  }
  part.configure(groups, arrays, true);
  Counts counts;
  counts.loss_scale = the.options.loss_scale;
  part.write_counts(counts);

  constexpr std::array<double, max_hyperparameters> hyperparameters = {0.875, 0.75, 0.5, 0.625, 0.25, 0.375, 0.5, 0.5};
  DeviceStep step = {};
  step.rule = the.rule;
  step.two_passes = rule.two_passes;
  std::ranges::copy(hyperparameters, step.hyperparameters);
  step.options = the.options;
  step.rate.number = 0.01;
  step.variables = arrays.size();
  step.replicas = static_cast<std::uint32_t>(the.replicas);
  step.mean = the.replicas > 1;
  step.alone = true;
  const bool norms = the.options.clip != Clip::none || the.options.skips_not_finite;
  std::vector<Gradients> kept;
  std::vector<Bytes> left;
  for (int number = 0; number < the.steps; ++number) {
    const Gradients& gradients = kept.emplace_back(gradients_of(the, random, number != the.step_not_finite));
    step.gradients = gradients.list.data();
    const bool captured = the.captured && number + 1 == the.steps;
    auto freed = std::make_unique<DeviceMemory>(device, 1);
    part.make_room(step);
    if (captured) {
      capture.begin();
      freed.reset();
      part.write_rate_of_graphs({0.5, nullptr, DType::float64}, true);
      step.in_graph = true;
    }
    part.write_groups(captured, capture.stream);
    part.order_rows(step, captured, capture.stream);
    if (norms) part.launch_norms(step, capture.stream);
    if (the.custom) {
      for (std::size_t i = 0; i < arrays.size(); ++i) {
        if (arrays[i].size == 0 || gradients.list[i].data == nullptr) continue;
        part.launch_custom(step, Kernel::hand_over, i, capture.stream);
        left.push_back(read(part.handed(handed_gradient, i), static_cast<std::size_t>(arrays[i].size * 4)));
        part.launch_custom(step, Kernel::take_back, i, capture.stream);
      }
    } else {
      part.launch_update(step, capture.stream);
    }
    if (captured) {
      capture.end();
      capture.replay();
      capture.replay();
    }
  }
  if (the.options.averages && !the.custom) part.launch_averages(step, capture.stream);

  for (std::size_t i = 0; i < variables.size(); ++i) {
    left.push_back(read(variables[i].as<void>(), static_cast<std::size_t>(arrays[i].size * bytes_of(arrays[i].dtype))));
  }
  left.push_back(read(part.slots(), part.slots_size()));
  const DeviceState state = part.read_state();
  for (const double number :
       {static_cast<double>(state.counts.calls), static_cast<double>(state.counts.updates),
        static_cast<double>(state.counts.skips), state.counts.carried, state.counts.loss_scale, state.norm}) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(&number);
    left.emplace_back(bytes, bytes + sizeof(number));
  }
  return left;
}

Options options_of(void (*set)(Options&)) {
  Options options;
  set(options);
  return options;
}

// Every rule bare and with all stages; then what has parts of its own in a kernel.
std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const Options stages = options_of([](Options& o) {
    o.l2 = 0.01;
    o.clip = Clip::all;
    o.largest_norm = 1;
    o.accumulation_steps = 2;
    o.has_loss_scale = o.averages = o.clears_gradients = o.skips_not_finite = true;
    o.loss_scale = 8;
    o.loss_scale_growth_steps = 2;
    o.average_momentum = 0.75;
    o.overwrite_frequency = 2;
  });
  const Options each = options_of([](Options& o) {
    o.clip = Clip::each;
    o.largest_norm = 1;
  });
  const Options lazy = options_of([](Options& o) { o.lazy = true; });
  int adam = 0, lamb = 0;
  for (int rule = 0; rule < static_cast<int>(rules.size()); ++rule) {
    const std::string& name = rules[static_cast<std::size_t>(rule)].name;
    if (name == "adam") adam = rule;
    if (name == "lamb") lamb = rule;
    cases.push_back({.name = name, .rule = rule, .dtypes = {DType::float32}, .steps = 2});
    cases.push_back({.name = name + " with all stages",
                     .rule = rule,
                     .options = stages,
                     .steps = 4,
                     .step_not_finite = 1,
                     .apart = true});
  }
  for (const int rule : {adam, lamb}) {
    const std::string name = rules[static_cast<std::size_t>(rule)].name;
    cases.push_back({.name = name + ", each clipped", .rule = rule, .options = each});
    cases.push_back({.name = name + " of replicas", .rule = rule, .options = each, .replicas = 3});
    for (const Options& options : {each, lazy}) {
      cases.push_back({.name = name + (options.lazy ? " of rows, lazy" : " of rows"),
                       .rule = rule,
                       .options = options,
                       .sizes = {9000, 0, 300, 30'000},
                       .rows_of = 30,
                       .row_count = 1000});
    }
    cases.push_back({.name = name + " in a graph", .rule = rule, .captured = true});
    cases.push_back({.name = name + " with all stages in a graph", .rule = rule, .options = stages, .captured = true});
    cases.push_back({.name = name + " of rows in a graph",
                     .rule = rule,
                     .sizes = {9000, 300},
                     .rows_of = 30,
                     .row_count = 300,
                     .captured = true});
  }
  cases.push_back({.name = "around a rule in Python", .options = stages, .custom = true});
  // More arrays than a leaf of the tree of norms has, and than a launch has gradients.
  cases.push_back({.name = "many arrays",
                   .options = each,
                   .sizes = std::vector<std::int64_t>(4100, 3),
                   .dtypes = {DType::float32},
                   .steps = 1});
  return cases;
}

// What CUDA's side says, and does, when it cannot.
bool fails_as_it_should() {
  std::size_t& left = on_the_host::devices().of[device].memory.left;
  const std::size_t before = std::exchange(left, 100);
  std::string said;
  try {
    DeviceMemory(device, 1000);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  left = before;
  int& driver = on_the_host::devices().driver;
  const int newest = std::exchange(driver, 11080);
  std::string why_not;
  const bool none = make_cuda_devices(why_not) == nullptr;
  driver = newest;
  return said.starts_with("cuda:1 has no 1000 bytes left") && cudaGetLastError() == cudaSuccess && none &&
         why_not == "the driver here is for CUDA 11.8, but must be for 12.1 or newer";
}

}  // namespace

int main() {
  int wrong = 0;
  cudaSetDevice(device);
  Capture by_threads;
  cudaStreamCreateWithFlags(&by_threads.stream, cudaStreamDefault);
  cudaSetDevice(0);
  const std::size_t& left_now = on_the_host::devices().of[device].memory.left;
  const std::size_t left = left_now;
  for (const Case& the : all_cases()) {
    auto simulation = std::make_unique<Simulation>(2, 3);
    Capture simulated = {nullptr, simulation.get(), {}};
    simulate_devices(std::move(simulation));
    const std::vector<Bytes> expected = run(the, simulated);
    simulate_devices(nullptr);
    const bool same = run(the, by_threads) == expected;
    const on_the_host::Devices& now = on_the_host::devices();
    const bool clean = now.current == 0 && now.mode_of_thread == cudaStreamCaptureModeGlobal && left_now == left;
    std::cout << the.name << (same ? "" : ": other bits") << (clean ? "" : ": not left as found") << std::endl;
    wrong += !same || !clean;
  }
  if (!fails_as_it_should()) ++wrong;
  return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
