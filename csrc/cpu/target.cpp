// One target: every rule, compiled for one instruction set. The build compiles this file once per
// target, with its flags and its name in FUSEDSTEP_TARGET.
#include "core/primitives.hpp"
#include "cpu/norm.hpp"
#include "cpu/sweep.hpp"
#include "rules/all.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {
namespace {

template <class Rule>
typename Rule::Hyperparameters hyperparameters(const double* values) {
  using Hyperparameters = typename Rule::Hyperparameters;
  constexpr int count = Hyperparameters::names.count;
  static_assert(count == 0 || sizeof(Hyperparameters) == count * sizeof(double), "doubles, each with its name");
  Hyperparameters h;
  __builtin_memcpy(static_cast<void*>(&h), values, count * sizeof(double));
  return h;
}

template <class Rule>
constexpr bool carries = requires { &Rule::carry; };

template <class Rule>
Rule make(const double* values, double learning_rate, std::uint64_t t, [[maybe_unused]] double carried) {
  if constexpr (carries<Rule>) {
    return Rule(hyperparameters<Rule>(values), learning_rate, t, carried);
  } else {
    return Rule(hyperparameters<Rule>(values), learning_rate, t);
  }
}

template <class Rule>
void coefficients(const double* values, double learning_rate, std::uint64_t t, double carried, void* rule) {
  static_assert(__is_trivially_copyable(Rule) && sizeof(Rule) <= max_rule_size);
  const Rule made = make<Rule>(values, learning_rate, t, carried);
  __builtin_memcpy(rule, &made, sizeof(made));
}

using Carry = decltype(fusedstep::Rule::carry);

template <class Rule>
constexpr Carry carry_of() {
  if constexpr (carries<Rule>) {
    return [](const double* values, std::uint64_t t, double carried) {
      return Rule::carry(hyperparameters<Rule>(values), t, carried);
    };
  } else {
    return nullptr;
  }
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
                                               carry_of<R<double>>(),
                                               {compiled_rule<R<float>, float>(coefficients<R<float>>),
                                                compiled_rule<R<double>, double>(coefficients<R<double>>)}}...};

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
