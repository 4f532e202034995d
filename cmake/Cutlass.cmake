# CUTLASS's headers, for the one source that includes them (level 7). They come from, in this order,
# CUTLASS_DIR (a checkout), what an earlier configure left in the build folder, or the pinned wheel from PyPI,
# checked against its hash. Without Python, pip or network everything else is built, and level 7 says why it
# is not there.
set(CUTLASS_DIR "" CACHE PATH "A CUTLASS source folder; empty = the pinned wheel, fetched into the build folder")
set(MOE_CUTLASS_WHEEL_VERSION 4.2.0.0)
set(MOE_CUTLASS_WHEEL_SHA256 f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6)

# Compiles `source` with the headers, as system headers, or with MOE_CUTLASS_MISSING="the reason".
function(moe_cutlass_options source)
  moe_find_cutlass()
  if(MOE_CUTLASS_INCLUDE)
    set_source_files_properties("${source}" PROPERTIES
      COMPILE_OPTIONS "-isystem=${MOE_CUTLASS_INCLUDE}")
  else()
    set_source_files_properties("${source}" PROPERTIES COMPILE_DEFINITIONS "MOE_CUTLASS_MISSING=\"${MOE_CUTLASS_MISSING}\"")
  endif()
endfunction()

# Sets in the caller MOE_CUTLASS_INCLUDE, the folder to include from, or MOE_CUTLASS_MISSING, why there is none.
function(moe_find_cutlass)
  set(MOE_CUTLASS_INCLUDE "" PARENT_SCOPE)
  set(MOE_CUTLASS_MISSING "" PARENT_SCOPE)
  if(CUTLASS_DIR)
    if(NOT EXISTS "${CUTLASS_DIR}/include/cutlass/version.h")
      message(FATAL_ERROR "CUTLASS_DIR=${CUTLASS_DIR} has no include/cutlass/version.h")
    endif()
    set(MOE_CUTLASS_INCLUDE "${CUTLASS_DIR}/include" PARENT_SCOPE)
    return()
  endif()

  set(folder "${PROJECT_BINARY_DIR}/_deps/cutlass-${MOE_CUTLASS_WHEEL_VERSION}")
  set(include "${folder}/cutlass_library/source/include")
  if(NOT EXISTS "${folder}/.complete") # written last, so a configure that was cut off starts again
    set(reason "")
    moe_fetch_cutlass_wheel("${folder}" wheel reason)
    if(reason)
      message(STATUS "CUTLASS: ${reason}. Level 7 (grouped_gemm) will say so and be skipped")
      set(MOE_CUTLASS_MISSING "this build has no CUTLASS: ${reason}" PARENT_SCOPE)
      return()
    endif()
    file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}"
      PATTERNS "cutlass_library/source/include/*" "nvidia_cutlass-*.dist-info/licenses/*")
    file(REMOVE "${wheel}")
    if(NOT EXISTS "${include}/cutlass/version.h")
      message(FATAL_ERROR "the CUTLASS wheel has no cutlass_library/source/include/cutlass/version.h")
    endif()
    file(TOUCH "${folder}/.complete")
    message(STATUS "CUTLASS ${MOE_CUTLASS_WHEEL_VERSION} fetched into ${folder}")
  endif()
  set(MOE_CUTLASS_INCLUDE "${include}" PARENT_SCOPE)
endfunction()

# Downloads the wheel into `folder`. Without Python, pip or network: `out_reason` says which. A wheel with
# another hash is an error, not a reason: somebody should look at it.
function(moe_fetch_cutlass_wheel folder out_wheel out_reason)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(NOT Python3_Interpreter_FOUND)
    set(${out_reason} "no python3 to fetch it with (CUTLASS_DIR can name a checkout)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${Python3_EXECUTABLE}" -m pip --version OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    set(${out_reason} "no pip to fetch it with (install python3-pip, or let CUTLASS_DIR name a checkout)" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -m pip --disable-pip-version-check download --quiet --no-deps
            --only-binary=:all: --retries 1 --timeout 20 --dest "${folder}"
            nvidia-cutlass==${MOE_CUTLASS_WHEEL_VERSION}
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  set(wheel "${folder}/nvidia_cutlass-${MOE_CUTLASS_WHEEL_VERSION}-py3-none-any.whl")
  if(NOT status EQUAL 0 OR NOT EXISTS "${wheel}")
    message(STATUS "${output}")
    set(${out_reason} "pip could not download nvidia-cutlass ${MOE_CUTLASS_WHEEL_VERSION} (CUTLASS_DIR can name a checkout)"
        PARENT_SCOPE)
    return()
  endif()
  file(SHA256 "${wheel}" hash)
  if(NOT hash STREQUAL MOE_CUTLASS_WHEEL_SHA256)
    file(REMOVE "${wheel}")
    message(FATAL_ERROR "nvidia-cutlass ${MOE_CUTLASS_WHEEL_VERSION} from PyPI has sha256 ${hash}, not "
                        "${MOE_CUTLASS_WHEEL_SHA256}")
  endif()
  set(${out_wheel} "${wheel}" PARENT_SCOPE)
endfunction()
