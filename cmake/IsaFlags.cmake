# Files named *_avx2.cpp, *_avx512f.cpp, *_avx512bf16.cpp and *_amx.cpp get that tier's flags and
# nothing else does: the rest of the library runs on any x86-64, and core/isa.h chooses at run time.
# -ffp-contract=fast is GCC's default and stays: FMA is wanted in kernels.
set(MOE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(MOE_ISA_FLAGS_avx512f ${MOE_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
    -mprefer-vector-width=512)
set(MOE_ISA_FLAGS_avx512bf16 ${MOE_ISA_FLAGS_avx512f} -mavx512bf16)
set(MOE_ISA_FLAGS_amx ${MOE_ISA_FLAGS_avx512bf16} -mamx-tile -mamx-bf16)
# With sanitizers these files are compiled at -O1: their unrolled tiles take over three minutes each
# at -O2 (g++ 12), eight seconds at -O1, and the checks are the same.
function(moe_isa_flags)
  foreach(source IN LISTS ARGN)
    set(flags "")
    if(source MATCHES "_(avx2|avx512f|avx512bf16|amx)\\.cpp$")
      set(flags "${MOE_ISA_FLAGS_${CMAKE_MATCH_1}}")
    endif()
    if(MOE_SANITIZE AND source MATCHES "^src/cpu/isa/")
      list(APPEND flags -O1)
    endif()
    if(flags)
      set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${flags}")
    endif()
  endforeach()
endfunction()
