# The headers that most files begin with, compiled once for the libraries and once for the tests:
# a third of a clean build. Not where each file is compiled alone (the preset debug), which finds a
# file that leans on a header it does not include.
set(SWITCHYARD_PRECOMPILED OFF)
if(CMAKE_UNITY_BUILD)
  set(SWITCHYARD_PRECOMPILED ON)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 takes what it inlines from a precompiled header for the file's own code, and warns of the library's.
    add_compile_options(-Wno-array-bounds -Wno-stringop-overflow)
  endif()
  # What ccache needs to know a file again whose headers came precompiled.
  if(CCACHE)
    list(INSERT CMAKE_CXX_COMPILER_LAUNCHER 3 CCACHE_SLOPPINESS=pch_defines,time_macros)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      add_compile_options(-fpch-preprocess)
    else()
      add_compile_options("SHELL:-Xclang -fno-pch-timestamp")
    endif()
  endif()
  file(WRITE ${CMAKE_BINARY_DIR}/precompiled.cc "")
  set(COMMON <algorithm> <functional> <map> <memory> <string> <thread> <vector>
    <absl/container/flat_hash_map.h> <absl/status/statusor.h> <absl/synchronization/mutex.h> <absl/time/time.h>
    <fmt/format.h> <grpcpp/grpcpp.h> <nlohmann/json.hpp>)
  foreach(KIND libraries tests)
    add_library(precompiled_${KIND} OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
    target_link_libraries(precompiled_${KIND} PRIVATE absl::statusor absl::flat_hash_map absl::synchronization
      fmt::fmt gRPC::grpc++ nlohmann_json::nlohmann_json)
  endforeach()
  target_precompile_headers(precompiled_libraries PRIVATE ${COMMON})
  if(SWITCHYARD_TESTS)
    target_link_libraries(precompiled_tests PRIVATE GTest::gmock GTest::gtest)
    target_compile_options(precompiled_tests PRIVATE -O1)
    target_precompile_headers(precompiled_tests PRIVATE <gmock/gmock.h> <gtest/gtest.h> ${COMMON})
  endif()
endif()

# sy_precompiled(TARGET libraries|tests)
function(sy_precompiled TARGET KIND)
  if(SWITCHYARD_PRECOMPILED)
    target_link_libraries(${TARGET} PRIVATE fmt::fmt)  # its definitions were there when they were compiled
    target_precompile_headers(${TARGET} REUSE_FROM precompiled_${KIND})
  endif()
endfunction()
