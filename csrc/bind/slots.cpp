#include "bind/slots.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/gather.hpp"
#include "cpu/float_environment.hpp"

namespace fusedstep {
namespace {

template <class C>
void widen(const Array& array, const void* variable, void* slot) {
  baseline::load(variable, array.dtype, 0, static_cast<C*>(slot), array.size);
}

}  // namespace

SlotKinds::SlotKinds(const Rule& rule, bool accumulates, bool averages)
    : names_(rule.slots, rule.slots + rule.slot_count), of_rule_(names_.size()), initial_(of_rule_) {
  const auto add = [&](const char* name) {
    names_.push_back(name);
    return names_.size() - 1;
  };
  if (accumulates) accumulator_ = add("gradient_accumulator");
  if (averages) average_ = add("average");
}

void SlotKinds::set_initial(const InitialValues& initial, const Rule& rule, const std::string& optimizer) {
  for (const auto& [name, value] : initial) {
    const auto kind = static_cast<std::size_t>(std::ranges::find(names_, name) - names_.begin());
    if (kind >= of_rule_) {
      refuse_value(optimizer + ": there is an initial value of '" + name + "', which is no slot of the rule '" +
                   rule.name + "'");
    }
    initial_[kind] = value;
  }
}

bool SlotKinds::write_initial(std::size_t kind, const Array& array, const void* variable, void* slot) const {
  const bool in_double = array.compute == compute_float64;
  if (kind == average_) {
    (in_double ? widen<double> : widen<float>)(array, variable, slot);
    return true;
  }
  if (kind >= of_rule_ || std::bit_cast<std::uint64_t>(initial_[kind]) == 0) return false;
  const DefaultFloatEnvironment environment;  // rounded as kernels would
  const double value = initial_[kind];
  if (in_double) {
    std::fill_n(static_cast<double*>(slot), array.size, value);
  } else {
    std::fill_n(static_cast<float*>(slot), array.size, pinned(static_cast<float>(pinned(value))));
  }
  return true;
}

}  // namespace fusedstep
