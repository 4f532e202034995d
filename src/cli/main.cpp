#include <cstdio>
#include <exception>

#include "cli/app.h"
#include "cli/exit_codes.h"

int main(int argc, char** argv) {
  try {
    return moe::cli::run_app(argc, argv);
  } catch (const moe::Error& error) {
    std::fprintf(stderr, "moe: %s\n", error.what());
    return moe::cli::exit_code_of(error);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "moe: out of memory\n");
    return moe::cli::kOutOfMemory;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moe: %s\n", error.what());
    return moe::cli::kCrashed;
  }
}
