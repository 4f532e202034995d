// What the GPU programs that time models have in common: which of their models, on what device, and how an
// error ends them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iterator>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/check.h"
#include "cuda/backend.h"

namespace moe::cuda {

/// body(model) for the models named in `wanted`, for all of them where it is empty, after a line with the
/// device. Throws Error: kInvalidArgument for a name that no model has, kUnsupported without a device.
template <class Models, class Body>
void for_wanted_models(const Models& models, const std::vector<std::string>& wanted, Body&& body) {
  for (const std::string& name : wanted) {
    const bool known = std::any_of(std::begin(models), std::end(models),
                                   [&](const auto& model) { return name == model.name; });
    MOE_CHECK(known, "no model is called {}", name);
  }
  const CudaDevice device{LayerOptions()};
  if (!device.unavailable().empty()) throw Error(ErrorCode::kUnsupported, device.unavailable());
  fmt::print("{{\"device\":\"{}\",\"multiprocessors\":{}}}\n", device.facts().name,
             device.facts().multiprocessors);
  std::fflush(stdout);
  for (const auto& model : models) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), model.name) != wanted.end()) {
      body(model);
    }
  }
}

/// main(): body(arguments), or 1 with what went wrong.
template <class Body>
int run_program(int argc, char** argv, Body&& body) {
  try {
    body(Arguments(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace moe::cuda
