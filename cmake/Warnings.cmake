# Warnings for our own targets; third-party headers are included as SYSTEM.
function(moe_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion;-Wno-sign-conversion;-Wpedantic>
    $<$<AND:$<BOOL:${MOE_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
endfunction()
