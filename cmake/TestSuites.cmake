# moe_discover_suites(<target> <property> <value>...): a ctest test per test suite of a GoogleTest executable,
# found out when ctest starts. Not one per case, as gtest_discover_tests does: of two thousand processes most
# would live for a tenth of a second to make the same tables, load the same libraries or find no GPU, minutes
# in all. A single case: the executable with --gtest_filter.
function(moe_discover_suites target)
  set(script "${CMAKE_CURRENT_BINARY_DIR}/${target}_suites.cmake")
  file(GENERATE OUTPUT "${script}" CONTENT "set(executable [==[$<TARGET_FILE:${target}>]==])
set(properties [==[${ARGN}]==])
include([==[${PROJECT_SOURCE_DIR}/cmake/TestSuitesAtTestTime.cmake]==])
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${script}")
endfunction()
