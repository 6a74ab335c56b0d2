// The extension module: a table of contents. Python's side is python/fusedstep, with _native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/device_array.hpp"
#include "bind/gil_release.hpp"
#include "bind/items.hpp"
#include "bind/norm.hpp"
#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "bind/simulate.hpp"
#include "core/dtypes.hpp"
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

// A number that is off as None.
template <auto on, auto value>
std::optional<double> get_optional(const Options& options) {
  return options.*on ? std::optional(options.*value) : std::nullopt;
}
template <auto on, auto value>
void set_optional(Options& options, std::optional<double> number) {
  options.*on = number.has_value();
  options.*value = number.value_or(0);
}

template <auto count>
auto get_count(Plan& plan) {
  return plan.counts().*count;
}
template <auto count>
void set_count(Plan& plan, std::remove_reference_t<decltype(Counts().*count)> value) {
  Counts counts = plan.counts();
  if (counts.*count == value) return;  // to write it to a GPU waits
  counts.*count = value;
  plan.set_counts(counts);
}

// Whether the constructor of an object of a class of this module has returned.
bool is_made(PyObject* object) {
  return reinterpret_cast<py::detail::instance*>(object)->get_value_and_holder().holder_constructed();
}

template <Clip clip>
std::optional<double> get_clip(const Options& options) {
  return options.clip == clip ? std::optional(options.largest_norm) : std::nullopt;
}
template <Clip clip>
void set_clip(Options& options, std::optional<double> largest_norm) {
  if (largest_norm) {
    options.clip = clip;
    options.largest_norm = *largest_norm;
  } else if (options.clip == clip) {
    options.clip = Clip::none;
  }
}

// What a function of Python returns whose arithmetic is NumPy's, in the mode that kernels run in.
py::object in_default_mode(const py::function& function, const py::args& args) {
  const DefaultFloatEnvironment environment;
  return function(*args);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Plans and kernels. The public interface is the package fusedstep.";
  import_numpy();
  set_wait([](Devices& of, int device) {
    GilRelease released;  // what the device has to do may wait for another thread of Python
    if (PyGILState_Check()) released.begin();
    of.wait(device);
  });
  module.attr("version") = FUSEDSTEP_VERSION;
  module.attr("compiler") = __VERSION__;
  module.attr("openmp") = has_openmp();
  module.attr("cuda_version") = cuda_version();

  module.def("rules", &describe_rules);
  module.def("targets", &describe_targets);
  module.def("current_target", [] { return current_target().name; });
  module.def("select_target", &select_target_by_name, py::arg("name"));
  module.def("thread_count", &thread_count);
  module.def("set_thread_count", &set_thread_count, py::arg("count"));
  module.def("round_to_float32", &round_to_float32, py::arg("x"));
  module.def("in_default_mode", &in_default_mode, py::arg("function"));
  module.def("is_array", [](py::handle object) { return is_array(object.ptr()); }, py::arg("object"));
  module.def("is_on_device", [](py::handle object) { return is_on_device(object.ptr()); }, py::arg("object"));
  module.def("attributes_of", &attributes_of, py::arg("arrays"), py::arg("name"));
  module.def("items_of", &items_of, py::arg("iterable"), py::arg("what"));
  module.def("pair_up", &pair_up, py::arg("tree"), py::arg("other"));
  module.def("norm_of", &norm_of, py::arg("gradients"), py::arg("who"));
  module.def("unzip", &unzip, py::arg("pairs"), py::arg("who"));

  py::class_<Options>(module, "Options")
      .def(py::init())
      .def_readwrite("l2", &Options::l2)
      .def_readwrite("maximize", &Options::maximize)
      .def_property("clipnorm", &get_clip<Clip::each>, &set_clip<Clip::each>)
      .def_property("global_clipnorm", &get_clip<Clip::all>, &set_clip<Clip::all>)
      .def_property("clipvalue", &get_optional<&Options::clips_values, &Options::largest_value>,
                    &set_optional<&Options::clips_values, &Options::largest_value>)
      .def_readwrite("gradient_accumulation_steps", &Options::accumulation_steps)
      .def_property("loss_scale_factor", &get_optional<&Options::has_loss_scale, &Options::loss_scale>,
                    &set_optional<&Options::has_loss_scale, &Options::loss_scale>)
      .def_readwrite("loss_scale_growth_steps", &Options::loss_scale_growth_steps)
      .def_readwrite("skip_nonfinite", &Options::skips_not_finite)
      .def_property("ema_momentum", &get_optional<&Options::averages, &Options::average_momentum>,
                    &set_optional<&Options::averages, &Options::average_momentum>)
      .def_readwrite("ema_warms_up", &Options::averages_warm_up)
      .def_readwrite("ema_overwrite_frequency", &Options::overwrite_frequency)
      .def_readwrite("lazy", &Options::lazy)
      .def_readwrite("clears_gradients", &Options::clears_gradients);

  py::class_<VariableSettings>(module, "VariableSettings")
      .def(py::init([](double multiplier, double weight_decay, bool frozen) {
             VariableSettings settings;
             settings.multiplier = multiplier;
             settings.weight_decay = weight_decay;
             settings.frozen = frozen;
             return settings;
           }),
           py::arg("multiplier"), py::arg("weight_decay"), py::arg("frozen"));

  bind_device_array(module);
  bind_simulation(module);
  module.attr("most_rates") = most_rates;
  module.attr("smallest_loss_scale") = smallest_loss_scale;
  module.attr("largest_loss_scale") = largest_loss_scale;

  py::class_<Group>(module, "Group")
      .def(py::init([](double learning_rate, double weight_decay, double l2, const std::vector<double>& hyperparameters,
                       std::int64_t behind, double carried) {
             Group group = {learning_rate, weight_decay, true, l2, {}, behind, carried};
             for (std::size_t k = 0; k < hyperparameters.size(); ++k) {
               group.hyperparameters[k] = hyperparameters[k];
             }
             return group;
           }),
           py::arg("learning_rate"), py::arg("weight_decay"), py::arg("l2"), py::arg("hyperparameters"),
           py::arg("behind"), py::arg("carried"));

  py::class_<Pace, std::shared_ptr<Pace>>(module, "Pace")  // its methods are here for its tests
      .def(py::init())
      .def("is_long", &Pace::is_long, py::arg("cost"))
      .def("choose", &Pace::choose, py::arg("cost"), py::arg("threads"), py::arg("now"))
      .def("measured", &Pace::measured, py::arg("cost"), py::arg("begin"), py::arg("end"), py::arg("undisturbed"));

  py::class_<CustomRule, std::shared_ptr<CustomRule>>(module, "CustomRule")
      .def(py::init<std::vector<std::string>, py::object, bool>(), py::arg("slots"), py::arg("optimizer"),
           py::arg("has_rows"));

  // An object that knows its optimizer, as a parameter with a hook does, is in a circle with the plan that keeps it.
  const py::custom_type_setup collectable([](PyHeapTypeObject* heap_type) {
    PyTypeObject* const type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      if (!is_made(self)) return 0;
      return py::cast<const Plan&>(py::handle(self)).visit_kept(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
      if (is_made(self)) py::cast<Plan&>(py::handle(self)).forget_kept();
      return 0;
    };
  });
  py::class_<Plan, std::shared_ptr<Plan>>(module, "Plan", collectable)
      .def(py::init<std::string, const std::string&, bool, bool, const py::list&, std::vector<std::string>,
                    const std::unordered_map<std::string, double>&, const std::vector<std::shared_ptr<Plan>>&,
                    std::shared_ptr<CustomRule>, std::shared_ptr<Pace>>(),
           py::arg("optimizer"), py::arg("rule"), py::arg("accumulates"), py::arg("averages"), py::arg("variables"),
           py::arg("names"), py::arg("initial"), py::arg("others"), py::arg("custom") = py::none(),
           py::arg("pace") = py::none())
      .def("configure", &Plan::configure, py::arg("rule"), py::arg("hyperparameters"), py::arg("options"),
           py::arg("settings"), py::arg("own"))
      .def("set_groups", &Plan::set_groups, py::arg("groups"), py::arg("of"))
      .def("carried_of", &Plan::carried_of, py::arg("group"))
      .def("step", &Plan::step, py::arg("grads"), py::arg("variables"), py::arg("learning_rate"),
           py::arg("replicas") = py::none(), py::arg("mean") = false)
      .def("check_unchanged", &Plan::check_unchanged, py::arg("who"))
      .def("finish_averages", &Plan::finish_averages)
      .def("owns", &Plan::owns, py::arg("variable"))
      .def("index_of", &Plan::index_of, py::arg("variable"))
      .def("__len__", &Plan::count)
      .def(
          "variable", [](const Plan& plan, std::size_t index) { return plan.variables().at(index).object; },
          py::arg("index"))
      .def(
          "shape",
          [](const Plan& plan, std::size_t index) { return py::tuple(py::cast(plan.variables().shape(index))); },
          py::arg("index"))
      .def(
          "dtype",
          [](const Plan& plan, std::size_t index) { return name_of(plan.variables().arrays().at(index).dtype); },
          py::arg("index"))
      .def("slot", &Plan::slot, py::arg("index"), py::arg("name"))
      .def("is_capturing", &Plan::is_capturing)
      .def_property_readonly("is_captured", &Plan::is_captured)
      .def("set_learning_rate", &Plan::set_learning_rate, py::arg("rate"))
      .def_property_readonly("device_counts", &Plan::device_counts)
      .def("check_learning_rate", &Plan::check_learning_rate, py::arg("learning_rate"))
      .def("look_ahead", &Plan::look_ahead, py::arg("rates"))
      .def("forget_rates", &Plan::forget_rates)
      .def_property_readonly("rates_left", &Plan::rates_left)
      .def_property_readonly("pace", &Plan::pace)
      .def_property_readonly("names", [](const Plan& plan) { return plan.variables().names(); })
      .def_property_readonly("slot_names", &Plan::slot_names)
      .def_property("calls", &get_count<&Counts::calls>, &set_count<&Counts::calls>)
      .def_property("updates", &get_count<&Counts::updates>, &set_count<&Counts::updates>)
      .def_property("skips", &get_count<&Counts::skips>, &set_count<&Counts::skips>)
      .def_property_readonly("skipped", &Plan::skipped)
      .def_property_readonly("norm", &Plan::norm)
      .def_property("loss_scale", &get_count<&Counts::loss_scale>, &set_count<&Counts::loss_scale>)
      .def_property("finite_calls", &get_count<&Counts::finite_calls>, &set_count<&Counts::finite_calls>)
      .def_property_readonly("loss_scale_on_device", &Plan::loss_scale_on_device)
      .def_property("carried", &get_count<&Counts::carried>, &set_count<&Counts::carried>);

  // Calls a function while no step of these plans is made, nor anything changed that steps compute.
  module.def(
      "at_rest",
      [](const std::vector<std::shared_ptr<Plan>>& plans, const py::function& function) {
        std::vector<std::unique_ptr<Plan::Exclusive>> held;
        for (const auto& plan : plans) held.push_back(std::make_unique<Plan::Exclusive>(*plan));
        return function();
      },
      py::arg("plans"), py::arg("function"));
}

}  // namespace fusedstep
