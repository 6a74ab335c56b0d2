// What lives as long as one call of a plan's step.
#pragma once

#include <list>
#include <vector>

#include "bind/items.hpp"
#include "core/step.hpp"

namespace fusedstep {

// A sparse gradient: rows in order, without duplicates.
struct GivenRows {
  Rows rows;
  std::vector<std::int64_t> indices;
  std::vector<std::byte> values;
};

struct Call {
  // No variables are named where those that were built are meant.
  Call(const py::object& grads, const py::object& variables, std::size_t replicas)
      : grads(grads),
        variables(variables.is_none() ? py::tuple() : variables),
        all_built(variables.is_none()),
        replicas(replicas) {}

  Items grads;
  Items variables;
  bool all_built;
  std::size_t replicas;  // lists of gradients

  std::vector<py::object> copies;              // of gradients that cannot be read as they are
  std::vector<py::object> copied;              // these gradients, where they are to be cleared
  std::vector<bool> seen;                      // which variables came; filled where the order is not that of build
  std::vector<std::size_t> index_of_position;  // of the variables that came
  std::size_t given = 0;                       // gradients that are not None
  std::vector<Gradient> gradients;             // of all replicas, where there are more than one
  std::list<GivenRows> rows;                   // which stay where they are

  // Where only the rows that are touched are updated: those of each array, and the costs of that.
  std::vector<const Rows*> touched;
  std::vector<std::uint64_t> cost_before;

  // Keeps the gradients alive, whatever happens to their list. False, with a Python error set, where there is no
  // memory for it.
  bool hold() { return grads.hold() && variables.hold(); }
  void hold_or_raise() {
    if (!hold()) throw py::error_already_set();
  }

  // What keeps all that gradients are read from alive, where there are no replicas.
  py::list held() const {
    py::list all;
    all.append(grads.sequence());
    for (const py::object& copy : copies) all.append(copy);
    return all;
  }
};

}  // namespace fusedstep
