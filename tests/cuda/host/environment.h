// An environment variable for one scope: how the tests switch the stand-in libraries.
#pragma once

#include <cstdlib>

namespace moe::cuda {

class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { unsetenv(name_); }

 private:
  const char* name_;
};

}  // namespace moe::cuda
