# moe_embed_files(<out.cpp> <header> <namespace> <file>...): a source file with the text of each file as
# a raw string, for <namespace>::embedded_file("docs/cli.md"), which <header> declares. Touching a file
# configures again.
function(moe_embed_files output header namespace)
  set(entries "")
  foreach(path IN LISTS ARGN)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${path}")
    file(READ "${PROJECT_SOURCE_DIR}/${path}" text)
    string(APPEND entries "    {\"${path}\", R\"MOE_EMBED(${text})MOE_EMBED\"},\n")
  endforeach()
  set(content "// Made by cmake/EmbedFiles.cmake.
#include \"${header}\"

#include <utility>

namespace ${namespace} {

std::string_view embedded_file(std::string_view path) {
  static constexpr std::pair<std::string_view, std::string_view> kFiles[] = {
${entries}    {\"\", \"\"},
  };
  for (const auto& [name, text] : kFiles) {
    if (name == path) return text;
  }
  return {};
}

}  // namespace ${namespace}
")
  set(old "")
  if(EXISTS "${output}")
    file(READ "${output}" old)
  endif()
  if(NOT old STREQUAL content)
    file(WRITE "${output}" "${content}")
  endif()
endfunction()
