// The sentences for objects that are not taken as arrays.
#include <string>

#include "bind/interchange.hpp"
#include "bind/refuse.hpp"
#include "cuda/devices.hpp"

namespace fusedstep {

using py::detail::npy_api;

namespace {

// What else a gradient may be.
std::string or_rows(const std::string& kind) {
  return kind == "gradient" ? ", or pass the tuple (indices, values) where it has some rows alone" : "";
}

// Of an array of another library.
[[noreturn]] void refuse_shown(py::handle object, const std::string& what, const std::string& kind) {
  const std::string of_type = what + " is of type " + name_of_type(object);
  const std::string layout = py::str(py::getattr(object, "layout", py::str("torch.strided")));
  if (layout.starts_with("torch.") && layout != "torch.strided") {
    refuse_type(of_type + " and layout " + layout + ", but a " + kind + " must be dense; pass x.to_dense()" +
                or_rows(kind));
  }
  if (stands_for_negative(object.ptr())) {
    refuse_value(of_type + " and stands for the negative of its memory; pass x.resolve_neg()");
  }
  if (lacks_memory(object.ptr())) {
    refuse_value(of_type + ", which has no memory of its own; pass the tensor that it stands for, for example " +
                 "x.to_local() of a distributed one");
  }
  const std::string raised = raised_by_dlpack(object);
  if (!raised.empty()) {
    refuse_type(of_type + ", whose __dlpack__ raises " + raised + "; pass an array whose memory can be shared");
  }
  const std::string device = py::hasattr(object, "device") ? " on " + std::string(py::str(object.attr("device"))) : "";
  refuse_type(of_type + " and dtype " + std::string(py::str(py::getattr(object, "dtype", py::str("unknown")))) +
              device + ", but a " + kind +
              " must be float32, float64, float16 or bfloat16, in native byte order, on the CPU or a CUDA device");
}

// Of one of NumPy's.
[[noreturn]] void refuse_numpy(py::handle object, const std::string& what, const std::string& kind) {
  if (py::hasattr(object, "mask")) {
    refuse_type(what + " is a masked array (" + name_of_type(object) +
                "), whose mask would be ignored; pass a plain array, for example x.filled(0)");
  }
  const py::object dtype = object.attr("dtype");
  if (!dtype.attr("isnative").cast<bool>() && dtype.attr("kind").cast<std::string>() == "f") {
    refuse_type(what + " has the byte-swapped dtype " + std::string(py::str(dtype.attr("str"))) + ", but a " + kind +
                " must be in native byte order; convert it once with x.astype(x.dtype.newbyteorder('='))");
  }
  refuse_type(what + " has dtype " + std::string(py::str(dtype)) + ", but a " + kind +
              " must be float32, float64, float16 or bfloat16 (of ml_dtypes); convert it with x.astype(numpy.float32)");
}

}  // namespace

void refuse_array(py::handle object, const std::string& what, const char* kind) {
  if (npy_api::get().PyArray_Check_(object.ptr())) refuse_numpy(object, what, kind);
  const bool is_scalar = py::isinstance(object, py::module_::import("numpy").attr("generic"));
  if (shows_memory(object) && !is_scalar) refuse_shown(object, what, kind);
  const bool may_be_rows = PyList_Check(object.ptr()) != 0;
  refuse_type(what + " is of type " + name_of_type(object) + ", but a " + kind +
              " must be a numpy.ndarray; convert it once with numpy.asarray(x)" + (may_be_rows ? or_rows(kind) : ""));
}

void refuse_indices(py::handle object, const std::string& what, Device device) {
  if (npy_api::get().PyArray_Check_(object.ptr()) || !shows_memory(object)) {
    refuse_value(what + " has indices on the CPU (" + name_of_type(object) + "), but its variable is on " +
                 name_of(device) + "; pass them there, for example cupy.asarray(indices)");
  }
  refuse_type(what + " has indices of dtype " + std::string(py::str(py::getattr(object, "dtype", py::str("unknown")))) +
              ", but on a GPU they must be int32 or int64; convert them, for example with indices.astype('int64')");
}

void refuse_device(py::handle object, const std::string& what) {
  refuse_now(what + " is a GPU array (" + name_of_type(object) + "), but " + why_no_devices() +
             "; pass NumPy arrays, for example cupy.asnumpy(x)");
}

}  // namespace fusedstep
