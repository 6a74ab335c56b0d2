// The extension module: a table of contents. Python's side is python/fusedstep, with _native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/items.hpp"
#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/pace.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

std::vector<std::string> list_of(const char* const* names, int count) {
  return {names, names + count};
}

py::dict describe_rules() {
  py::dict rules;
  const Target& target = current_target();
  for (int i = 0; i < target.rule_count; ++i) {
    const Rule& rule = target.rules[i];
    rules[rule.name] =
        py::make_tuple(list_of(rule.slots, rule.slot_count), list_of(rule.hyperparameters, rule.hyperparameter_count));
  }
  return rules;
}

// The targets of this build, best first, and whether this CPU runs them.
py::dict describe_targets() {
  py::dict described;
  for (const Target& target : targets()) described[target.name] = target.supported;
  return described;
}

void select_target_by_name(const std::string& name) {
  std::string known;
  for (const Target& target : targets()) {
    if (target.name == name) {
      if (!target.supported) refuse_now("FUSEDSTEP_TARGET: this CPU cannot run the target '" + name + "'");
      return select_target(target);
    }
    known += (known.empty() ? "'" : ", '") + std::string(target.name) + "'";
  }
  refuse_value("FUSEDSTEP_TARGET: no target is named '" + name + "'; this build has " + known);
}

// A double rounded to float32, in the mode that kernels run in.
double round_to_float32(double x) {
  const DefaultFloatEnvironment environment;
  const float rounded = pinned(static_cast<float>(pinned(x)));
  return pinned(static_cast<double>(rounded));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Plans and kernels. The public interface is the package fusedstep.";
  import_numpy();
  module.attr("version") = FUSEDSTEP_VERSION;
  module.attr("compiler") = __VERSION__;
  module.attr("openmp") = has_openmp();

  module.def("rules", &describe_rules);
  module.def("targets", &describe_targets);
  module.def("current_target", [] { return current_target().name; });
  module.def("select_target", &select_target_by_name, py::arg("name"));
  module.def("thread_count", &thread_count);
  module.def("set_thread_count", &set_thread_count, py::arg("count"));
  module.def("round_to_float32", &round_to_float32, py::arg("x"));
  module.def("items_of", &items_of, py::arg("iterable"), py::arg("what"));
  module.def("unzip", &unzip, py::arg("pairs"), py::arg("who"));

  py::class_<Pace>(module, "Pace")  // plans have one of their own; here for its tests
      .def(py::init())
      .def("is_long", &Pace::is_long, py::arg("cost"))
      .def("choose", &Pace::choose, py::arg("cost"), py::arg("threads"), py::arg("now"))
      .def("measured", &Pace::measured, py::arg("cost"), py::arg("begin"), py::arg("end"), py::arg("undisturbed"));

  py::class_<Plan, std::shared_ptr<Plan>>(module, "Plan")
      .def(py::init<std::string, const std::string&, const py::list&, std::vector<std::string>,
                    const std::unordered_map<std::string, double>&, const std::vector<std::shared_ptr<Plan>>&>(),
           py::arg("optimizer"), py::arg("rule"), py::arg("variables"), py::arg("names"), py::arg("initial"),
           py::arg("others"))
      .def("configure", &Plan::configure, py::arg("rule"), py::arg("hyperparameters"), py::arg("weight_decay"),
           py::arg("l2"), py::arg("maximize"))
      .def("step", &Plan::step, py::arg("grads"), py::arg("variables"), py::arg("learning_rate"))
      .def("owns", &Plan::owns, py::arg("variable"))
      .def("index_of", &Plan::index_of, py::arg("variable"))
      .def("__len__", &Plan::count)
      .def("variable", &Plan::variable, py::arg("index"))
      .def("slot", &Plan::slot, py::arg("index"), py::arg("name"))
      .def_property_readonly("names", &Plan::names)
      .def_property_readonly("slot_names", &Plan::slot_names)
      .def_readwrite("calls", &Plan::calls)
      .def_readwrite("updates", &Plan::updates)
      .def_readwrite("carried", &Plan::carried);
}

}  // namespace fusedstep
