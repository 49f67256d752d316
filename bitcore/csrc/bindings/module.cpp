// What is not a tensor operation: the facts of this CPU and of this build, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cpu/cpu_features.h"
#include "../cpu/dispatch.h"

namespace {

namespace cpu = bitlab::cpu;

std::vector<std::string> names_of(uint64_t features) {
  std::vector<std::string> names;
  for (const cpu::CpuFeature& feature : cpu::kCpuFeatures)
    if (features & feature.bit) names.emplace_back(feature.name);
  return names;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::kernel_count(); ++i) names.emplace_back(cpu::kernel_at(i).name);
  return names;
}

std::vector<std::string> missing_features(int kernel) {
  if (kernel < 0 || kernel >= cpu::kernel_count()) throw pybind11::index_error("no kernel has this index");
  return names_of(cpu::missing_features(cpu::kernel_at(kernel)));
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Facts of this CPU and of the compiled CPU kernels.";
  m.def("cpu_features", [] { return names_of(cpu::cpu_features()); }, "Features of this CPU that kernels ask for.");
  m.def("kernel_names", &kernel_names, "Kernels of this build, best first; the index goes into the operators' `mode`.");
  m.def("missing_features", &missing_features, pybind11::arg("kernel"),
        "Features that a kernel needs and this CPU lacks.");
}
