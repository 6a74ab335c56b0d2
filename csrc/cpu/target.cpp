// One target: every rule, compiled for one instruction set. The build compiles this file once per
// target, with its flags and its name in FUSEDSTEP_TARGET.
#include "core/primitives.hpp"
#include "cpu/norm.hpp"
#include "cpu/sweep.hpp"
#include "rules/all.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {
namespace {

template <class Rule>
void coefficients(const double* values, double learning_rate, std::uint64_t t, void* rule) {
  using Hyperparameters = typename Rule::Hyperparameters;
  constexpr int count = Hyperparameters::names.count;
  static_assert(count == 0 || sizeof(Hyperparameters) == count * sizeof(double), "doubles, each with its name");
  static_assert(__is_trivially_copyable(Rule) && sizeof(Rule) <= max_rule_size);
  Hyperparameters h;
  __builtin_memcpy(static_cast<void*>(&h), values, count * sizeof(double));
  const Rule made(h, learning_rate, t);
  __builtin_memcpy(rule, &made, sizeof(made));
}

template <template <class> class... R>
struct Table {
  static const fusedstep::Rule rules[];
  static constexpr int count = sizeof...(R);
};

template <template <class> class... R>
const fusedstep::Rule Table<R...>::rules[] = {{R<float>::name,
                                               R<float>::slots.list,
                                               R<float>::slots.count,
                                               R<float>::Hyperparameters::names.list,
                                               R<float>::Hyperparameters::names.count,
                                               {{coefficients<R<float>>, sweep_run<R<float>, float>},
                                                {coefficients<R<double>>, sweep_run<R<double>, double>}}}...};

template <template <class> class... R>
constexpr Table<R...> table_of(List<R...>) {
  return {};
}

using All = decltype(table_of(AllRules()));

}  // namespace

extern const fusedstep::Rule* const rules = All::rules;
extern const int rule_count = All::count;
extern const CompiledNorm norms[] = {{norm_leaf<float>}, {norm_leaf<double>}};

}  // namespace fusedstep::FUSEDSTEP_TARGET
