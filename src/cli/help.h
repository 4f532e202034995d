// Help texts: sections of docs/cli.md, so that page and program cannot disagree.
#pragma once

#include <string>

namespace moe::cli {

/// The section headed "## `command`" as plain text; for "moe" the page up to the first one, too.
[[nodiscard]] std::string help_text(const std::string& command);

}  // namespace moe::cli
