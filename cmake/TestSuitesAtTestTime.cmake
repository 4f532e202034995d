# Included by ctest, see TestSuites.cmake: adds a test per suite that `executable` lists, with `properties`.
if(NOT EXISTS "${executable}")
  add_test("${executable}.not_built" "${executable}")
  return()
endif()
execute_process(COMMAND "${executable}" --gtest_list_tests OUTPUT_VARIABLE moe_listing RESULT_VARIABLE moe_status
  TIMEOUT 30)
if(NOT moe_status EQUAL 0)
  message(FATAL_ERROR "${executable} --gtest_list_tests: ${moe_status}\n${moe_listing}")
endif()
# Suites are the lines that are not indented: "Name." or "Name.  # TypeParam = ...".
string(REGEX MATCHALL "(^|\n)[A-Za-z0-9_/]+\\.(  #[^\n]*)?" moe_suites "${moe_listing}")
foreach(moe_suite IN LISTS moe_suites)
  string(REGEX REPLACE "^\n?([A-Za-z0-9_/]+)\\..*$" "\\1" moe_suite "${moe_suite}")
  add_test("${moe_suite}" "${executable}" "--gtest_filter=${moe_suite}.*")
  # Skipped is what skipped every case and failed none: the summary ends with the list of the skipped.
  set_tests_properties("${moe_suite}" PROPERTIES ${properties} SKIP_REGULAR_EXPRESSION
    "PASSED  \\] 0 tests\\.\n\\[  SKIPPED \\] [0-9]+ tests?, listed below:\n(\\[  SKIPPED \\][^\n]*\n)*\n*$")
endforeach()
