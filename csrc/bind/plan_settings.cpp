// What a plan's steps compute: rule, hyperparameters, options, and the groups of variables that share settings.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string_view>

#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

constexpr std::size_t most_groups = std::numeric_limits<std::uint16_t>::max();

}  // namespace

int Plan::rule_number(std::string_view name) {
  const Target& target = current_target();
  for (int i = 0; i < target.rule_count; ++i) {
    if (target.rules[i].name == name) return i;
  }
  refuse_value("there is no rule named '" + std::string(name) + "'");
}

void Plan::configure(const std::string& rule, const std::unordered_map<std::string, double>& hyperparameters,
                     const Options& options, const VariableSettings& settings,
                     const std::map<std::size_t, VariableSettings>& own) {
  const Exclusive exclusive(*this);
  const int number = rule_number(rule);
  const Rule& next = custom_ ? custom_->rule() : current_target().rules[number];
  const auto has_slots_for = [&](bool wanted, bool there, const char* slot) {
    if (!wanted || there) return;
    refuse_value(optimizer_ + ": the change needs the slot '" + slot +
                 "', which was not built; give the argument to the constructor");
  };
  has_slots_for(options.accumulation_steps > 1, kinds_.accumulator().has_value(), "gradient_accumulator");
  has_slots_for(options.averages, kinds_.average().has_value(), "average");
  if (slot_names() != SlotKinds(next, kinds_.accumulator().has_value(), kinds_.average().has_value()).names()) {
    refuse_value(optimizer_ + ": the change needs other slots than were built (rule '" + rule + "' instead of '" +
                 this->rule().name + "'); make a new optimizer");
  }
  double values[max_hyperparameters] = {};
  for (int k = 0; k < next.hyperparameter_count; ++k) values[k] = hyperparameters.at(next.hyperparameters[k]);
  if (!own.empty() && own.rbegin()->first >= count()) throw py::index_error(optimizer_ + ": there is no such variable");
  std::vector<Group> groups;
  std::vector<std::uint16_t> of(count());
  std::map<std::pair<double, double>, std::size_t> numbers;
  auto next_own = own.begin();
  for (std::size_t i = 0; i < count(); ++i) {
    const VariableSettings& its = next_own != own.end() && next_own->first == i ? (next_own++)->second : settings;
    const auto [place, is_new] = numbers.try_emplace({its.multiplier, its.weight_decay}, groups.size());
    if (is_new) groups.push_back(its);
    if (groups.size() > most_groups) {
      refuse_value(optimizer_ + ": more than 65535 different settings of single variables; share some");
    }
    of[i] = static_cast<std::uint16_t>(place->second);
  }
  refuse_moves_while_capturing(of);
  for (const auto& part : parts_) devices()->load(part->device(), number);
  // Nothing can be refused from here on.
  for (std::size_t i = 0; i < count(); ++i) variables_.freeze(i, settings.frozen);
  for (const auto& [index, its] : own) variables_.freeze(index, its.frozen);
  rule_ = number;
  std::ranges::copy(values, hyperparameters_);
  options_ = options;
  gradients_.forget_costs();
  take_groups(std::move(groups), of);
}

void Plan::set_groups(std::vector<Group> groups, const std::optional<std::vector<std::size_t>>& of) {
  const Exclusive exclusive(*this);
  const bool fits = of ? of->size() == count() && std::ranges::all_of(*of, [&](auto k) { return k < groups.size(); })
                       : groups.size() == groups_.size();
  if (!fits || groups.size() > std::min(count(), most_groups)) {
    refuse_value(optimizer_ + ": " + std::to_string(groups.size()) + " groups do not fit to " +
                 std::to_string(count()) + " variables; each must be of one, and there can be 65535");
  }
  std::vector<std::uint16_t> numbers(count());
  for (std::size_t i = 0; i < count(); ++i) {
    numbers[i] = of ? static_cast<std::uint16_t>((*of)[i]) : variables_.array(i).settings;
  }
  refuse_moves_while_capturing(numbers);
  take_groups(std::move(groups), numbers);
}

// `of`: the group of each variable.
void Plan::refuse_moves_while_capturing(const std::vector<std::uint16_t>& of) const {
  const auto moves = [&](const Array& array) { return array.settings != of[array.number]; };
  if (captured_ || std::ranges::any_of(variables_.arrays(), moves)) refuse_while_capturing("a change of settings");
}

void Plan::take_groups(std::vector<Group> groups, const std::vector<std::uint16_t>& of) {
  variables_.set_settings(of);
  groups_ = std::move(groups);
  look_at_groups();
  rates_left_ = 0;  // they were checked with the former
  tell_parts();
}

void Plan::look_at_groups() {
  divides_by_learning_rate_ = rule().divides_by_learning_rate;
  largest_of_groups_.assign(groups_.size(), std::numeric_limits<double>::infinity());
  for (const Array& array : variables_.arrays()) {
    if (variables_[array.number].frozen) continue;
    const bool in_float32 = array.compute == compute_float32;
    const double largest = in_float32 ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
    largest_of_groups_[array.settings] = std::min(largest_of_groups_[array.settings], largest);
  }
}

void Plan::check_learning_rate(double learning_rate) const {
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    const Group& group = groups_[k];
    const double rate = learning_rate * group.multiplier, largest = largest_of_groups_[k];
    const bool is_finite = std::abs(rate) <= largest, decay_is_finite = std::abs(rate * group.weight_decay) <= largest;
    if (is_finite && decay_is_finite && (!divides_by_learning_rate_ || std::abs(1 / rate) <= largest)) continue;
    const auto text = [](double number) { return std::string(py::str(py::float_(number))); };
    std::string factors = "learning_rate", values = text(learning_rate);
    if (std::abs(learning_rate) <= largest && group.multiplier != 1) {
      factors += " times a variable's multiplier";
      values += " * " + text(group.multiplier);
    }
    if (is_finite && !decay_is_finite) {
      factors += " times weight_decay";
      values += " * " + text(group.weight_decay);
    }
    constexpr double largest_float = std::numeric_limits<float>::max();
    const std::string compute = name_of(largest == largest_float ? compute_float32 : compute_float64);
    if (!is_finite || !decay_is_finite) {
      refuse_value(optimizer_ + ": " + factors + " must be finite in " + compute + ", got " + values);
    }
    refuse_value(optimizer_ + ": " + factors + " must not be so near to 0 that 1 over it is infinite in " + compute +
                 ", got " + values + "; the rule divides by it (frozen=True leaves a variable alone)");
  }
}

}  // namespace fusedstep
