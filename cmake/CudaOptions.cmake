# How our CUDA sources are compiled. Include after enable_language(CUDA).
#   *.cu        any device that the kernels of the file suit: MOE_CUDA_ARCHITECTURES
#   *_sm90.cu   Hopper only (wgmma, TMA): always sm_90a
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # CMake 3.25 does not know that nvcc 12 and later have C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(MOE_CUDA_ARCHITECTURES 90a CACHE STRING "Architectures of the CUDA sources that are not *_sm90.cu")

function(moe_cuda_options target)
  set(launcher "${PROJECT_SOURCE_DIR}/tools/nvcc_guard.sh" ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${MOE_CUDA_ARCHITECTURES}" CUDA_STANDARD 20
    # Fails where ptxas serialises wgmma, which it calls information.
    CUDA_COMPILER_LAUNCHER "${launcher}")
  # {fmt} 9 takes nvcc for a compiler without constexpr, but not for one without consteval.
  target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>) # of headers that the host shares
endfunction()

# Adds sources to a target, the CUDA ones compiled for the architectures that their names say;
# and <target>_other_archs, which only compiles the generic ones for the architectures around Hopper.
function(moe_cuda_sources target)
  set(generic ${ARGN})
  list(FILTER generic EXCLUDE REGEX "_sm90\\.cu$")
  list(FILTER generic INCLUDE REGEX "\\.cu$")
  set(hopper ${ARGN})
  list(FILTER hopper INCLUDE REGEX "_sm90\\.cu$")
  set(host ${ARGN})
  list(FILTER host EXCLUDE REGEX "\\.cu$")
  target_sources(${target} PRIVATE ${generic} ${host})
  moe_cuda_options(${target})
  if(hopper)
    add_library(${target}_sm90 OBJECT ${hopper})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_sm90>)
    get_target_property(libraries ${target} LINK_LIBRARIES)
    moe_cuda_options(${target}_sm90)
    target_include_directories(${target}_sm90 PRIVATE $<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>)
    target_link_libraries(${target}_sm90 PRIVATE ${libraries})
    target_compile_definitions(${target}_sm90 PRIVATE $<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>)
    set_target_properties(${target}_sm90 PROPERTIES CUDA_ARCHITECTURES 90a)
  endif()

  # Device code only: the host's half is the same for every architecture, and takes as long. Translated once,
  # for sm_80, and assembled for both: what our text says depends on the architecture in the listed files
  # alone, and the sources listed with them are translated for sm_100a, too. Not optimised: nothing runs it.
  set(dependent src/cuda/device/overlap.cuh src/cuda/device/mbarrier.cuh)
  set(translated_for_both src/cuda/ops/swiglu.cu src/cuda/ops/stream_token_block.cu)
  file(GLOB_RECURSE texts RELATIVE "${PROJECT_SOURCE_DIR}" src/cuda/*.cu src/cuda/*.cuh src/cuda/*.h)
  foreach(text IN LISTS texts)
    file(STRINGS "${PROJECT_SOURCE_DIR}/${text}" lines REGEX "__CUDA_ARCH" LIMIT_COUNT 1)
    if(lines AND NOT text IN_LIST dependent)
      message(FATAL_ERROR "${text} asks for __CUDA_ARCH__: list it in cmake/CudaOptions.cmake, and a source that uses it")
    endif()
  endforeach()
  set(includes "$<FILTER:$<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>,EXCLUDE,^(/usr/include)?$>")
  set(definitions "$<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>")
  set(binaries "")
  foreach(source IN LISTS generic)
    string(REPLACE "/" "." name "${source}")
    set(binary "${PROJECT_BINARY_DIR}/other_archs/${name}.fatbin")
    set(architectures -gencode=arch=compute_80,code=[sm_80,sm_100a])
    if(source IN_LIST translated_for_both)
      set(architectures -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_100a,code=sm_100a)
    endif()
    add_custom_command(OUTPUT "${binary}"
      COMMAND ${CMAKE_CUDA_COMPILER} -fatbin -std=c++20 -Xcicc -O0 -Xptxas -O0 -DNDEBUG --expt-relaxed-constexpr
        -DFMT_USE_CONSTEXPR=1
        "$<$<BOOL:${definitions}>:-D$<JOIN:${definitions},;-D>>" "-I$<JOIN:${includes},;-I>" ${architectures}
        -MD -MF "${binary}.d" "${PROJECT_SOURCE_DIR}/${source}" -o "${binary}"
      DEPENDS "${PROJECT_SOURCE_DIR}/${source}" DEPFILE "${binary}.d" COMMAND_EXPAND_LISTS VERBATIM
      COMMENT "sm_80 and sm_100a of ${source}")
    list(APPEND binaries "${binary}")
  endforeach()
  file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/other_archs")
  add_custom_target(${target}_other_archs DEPENDS ${binaries})
endfunction()
