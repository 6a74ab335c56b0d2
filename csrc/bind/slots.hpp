// The kinds of slots that a build has, in their order in memory, and what they hold at first: the same on the CPU and
// on a GPU.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/step.hpp"

namespace fusedstep {

// By the slot's name.
using InitialValues = std::unordered_map<std::string, double>;

class SlotKinds {
 public:
  // The rule's, then the sum of gradients over calls, then the average, where there are such.
  SlotKinds(const Rule& rule, bool accumulates, bool averages);

  const std::vector<std::string>& names() const { return names_; }
  std::size_t count() const { return names_.size(); }
  std::size_t of_rule() const { return of_rule_; }
  const std::optional<std::size_t>& accumulator() const { return accumulator_; }
  const std::optional<std::size_t>& average() const { return average_; }

  // Raises where a value is of no slot of the rule. Without one a slot is zeros.
  void set_initial(const InitialValues& initial, const Rule& rule, const std::string& optimizer);

  // Writes what the slot of this kind of an array holds at first. False where that is zeros (+0), which are not
  // written. `variable` is the array's memory as the host reads it: averages begin as the variable.
  bool write_initial(std::size_t kind, const Array& array, const void* variable, void* slot) const;

 private:
  std::vector<std::string> names_;
  std::size_t of_rule_;
  std::optional<std::size_t> accumulator_, average_;
  std::vector<double> initial_;  // of the rule's
};

}  // namespace fusedstep
