// One target: every rule, compiled for one instruction set. The build compiles this file once per
// target, with its flags and its name in FUSEDSTEP_TARGET.
#include "core/primitives.hpp"
#include "cpu/norm.hpp"
#include "cpu/sweep.hpp"
#include "rules/all.hpp"
#include "rules/coefficients.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {
namespace {

using Carry = decltype(fusedstep::Rule::carry);

template <class Rule>
constexpr Carry carry_of() {
  if constexpr (carries<Rule>) {
    return carry<Rule>;
  } else {
    return nullptr;
  }
}

template <class Rule>
constexpr bool divides_by_learning_rate() {
  return requires { requires Rule::divides_by_learning_rate; };
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
                                                compiled_rule<R<double>, double>(coefficients<R<double>>)},
                                               divides_by_learning_rate<R<double>>()}...};

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
