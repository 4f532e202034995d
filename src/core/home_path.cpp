#include "core/home_path.h"

#include <cstdlib>

namespace moe {

std::string with_home_as_tilde(const std::string& text) {
  const char* const home = std::getenv("HOME");
  std::string folder = home == nullptr ? "" : home;
  while (!folder.empty() && folder.back() == '/') folder.pop_back();
  if (folder.empty()) return text;
  folder += '/';
  std::string out = text;
  for (std::size_t at = out.find(folder); at != std::string::npos; at = out.find(folder, at + 2)) {
    out.replace(at, folder.size(), "~/");
  }
  return out;
}

}  // namespace moe
