// A library that may be missing: opened at run time, so that its absence is a sentence for the user
// and not a program that does not start.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace moe::cuda {

/// An open shared library; closed with the object.
class DynamicLibrary {
 public:
  /// The first of `candidates` (names for the dynamic linker, or paths) that opens; nullptr when
  /// none does, and `reason` then says what the linker said of the first.
  [[nodiscard]] static std::unique_ptr<DynamicLibrary> open(
      const std::vector<std::string>& candidates, std::string& reason);
  DynamicLibrary(const DynamicLibrary&) = delete;
  DynamicLibrary& operator=(const DynamicLibrary&) = delete;
  ~DynamicLibrary();

  /// Sets `function` to the function called `name`; to nullptr, returning false, when there is none.
  template <class Function>
  bool find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(symbol(name));
    return function != nullptr;
  }
  /// As it was given to open().
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  DynamicLibrary(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  [[nodiscard]] void* symbol(const char* name) const;

  void* handle_;
  std::string path_;
};

}  // namespace moe::cuda
