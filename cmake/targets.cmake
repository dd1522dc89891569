# sy_library(NAME SRCS ... DEPS ...)    one library a folder; sources are listed, never globbed
# sy_binary(NAME SRCS ... DEPS ...)
# sy_test(NAME [ONE_THREAD|NUMBERS] SRCS ... DEPS ... [LABELS unit|cluster] [TIMEOUT seconds])
#   What ThreadSanitizer's build leaves out. ONE_THREAD: neither the test nor what it tests starts a thread. NUMBERS: numbers are
#   held against numbers, many times as slow there; the only threads are the pool's, which thread_pool_test and the engine's tests drive.
# sy_fuzzer(NAME SRCS ... DEPS ... CORPUS dir)
# sy_protos(NAME SRCS ... [MESSAGES_ONLY])   C++ and, but with MESSAGES_ONLY, gRPC code of .proto files

add_custom_target(unit_tests)
add_custom_target(cluster_tests)
add_custom_target(fuzzers)
file(WRITE ${CMAKE_BINARY_DIR}/fuzzers.txt "")  # name and corpus of each, for scripts/test

function(sy_library NAME)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_library(${NAME} STATIC ${A_SRCS})
  target_include_directories(${NAME} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${NAME} PUBLIC ${A_DEPS})
  sy_precompiled(${NAME} libraries)
endfunction()

function(sy_binary NAME)
  cmake_parse_arguments(A "" "PRECOMPILED" "SRCS;DEPS" ${ARGN})
  add_executable(${NAME} ${A_SRCS})
  target_include_directories(${NAME} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${NAME} PRIVATE ${A_DEPS})
  if(NOT A_PRECOMPILED)
    set(A_PRECOMPILED libraries)
  endif()
  sy_precompiled(${NAME} ${A_PRECOMPILED})
  if(SWITCHYARD_SANITIZE MATCHES "thread")
    target_sources(${NAME} PRIVATE $<TARGET_OBJECTS:test_tsan>)
    target_link_libraries(${NAME} PRIVATE absl::synchronization)
  endif()
endfunction()

function(sy_test NAME)
  cmake_parse_arguments(A "ONE_THREAD;NUMBERS" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if((A_ONE_THREAD OR A_NUMBERS) AND SWITCHYARD_SANITIZE MATCHES "thread")
    return()
  endif()
  sy_binary(${NAME} SRCS ${A_SRCS} DEPS ${A_DEPS} GTest::gmock GTest::gtest_main PRECOMPILED tests)
  set_target_properties(${NAME} PROPERTIES UNITY_BUILD OFF)  # tests repeat the names of helpers
  target_compile_options(${NAME} PRIVATE -O1)  # a quarter less to compile; what is tested keeps its -O2
  if(SWITCHYARD_SANITIZE MATCHES "undefined")
    target_compile_options(${NAME} PRIVATE -fno-sanitize=undefined)  # half of the time, and not what is tested
  endif()
  add_test(NAME ${NAME} COMMAND ${NAME})
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  add_dependencies(${A_LABELS}_tests ${NAME})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  if(SWITCHYARD_SANITIZE OR CMAKE_CROSSCOMPILING)
    math(EXPR A_TIMEOUT "4 * ${A_TIMEOUT}")
  endif()
  # The cost: what may run long begins first.
  set_tests_properties(${NAME} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT} COST ${A_TIMEOUT}
    ENVIRONMENT "SWITCHYARD_SOURCE_DIR=${CMAKE_SOURCE_DIR};SWITCHYARD_BIN_DIR=${CMAKE_BINARY_DIR}/bin")
endfunction()

function(sy_fuzzer NAME)
  cmake_parse_arguments(A "" "CORPUS" "SRCS;DEPS" ${ARGN})
  if(NOT SWITCHYARD_FUZZERS)
    return()
  endif()
  sy_binary(${NAME} SRCS ${A_SRCS} DEPS ${A_DEPS})
  target_link_options(${NAME} PRIVATE -fsanitize=fuzzer)
  add_dependencies(fuzzers ${NAME})
  file(APPEND ${CMAKE_BINARY_DIR}/fuzzers.txt "${NAME} ${CMAKE_CURRENT_SOURCE_DIR}/${A_CORPUS}\n")
endfunction()

function(sy_protos NAME)
  cmake_parse_arguments(A "MESSAGES_ONLY" "" "SRCS" ${ARGN})
  set(KINDS pb)
  set(GRPC)
  if(NOT A_MESSAGES_ONLY)
    set(KINDS pb grpc.pb)
    set(GRPC --grpc_out=${CMAKE_BINARY_DIR}/protos --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>)
  endif()
  set(ALL)
  foreach(PROTO ${A_SRCS})
    string(REGEX REPLACE "\\.proto$" "" STEM ${PROTO})
    set(OUT)
    foreach(KIND ${KINDS})
      list(APPEND OUT ${CMAKE_BINARY_DIR}/protos/${STEM}.${KIND}.cc ${CMAKE_BINARY_DIR}/protos/${STEM}.${KIND}.h)
    endforeach()
    add_custom_command(
      OUTPUT ${OUT}
      COMMAND protobuf::protoc -I ${CMAKE_CURRENT_SOURCE_DIR} --cpp_out=${CMAKE_BINARY_DIR}/protos ${GRPC}
              ${CMAKE_CURRENT_SOURCE_DIR}/${PROTO}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${PROTO} VERBATIM)
    list(APPEND ALL ${OUT})
  endforeach()
  add_library(${NAME} STATIC ${ALL})
  set_target_properties(${NAME} PROPERTIES UNITY_BUILD OFF)  # protoc repeats names in each file
  target_include_directories(${NAME} SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/protos)
  target_compile_options(${NAME} PRIVATE -w -O1)  # much code, little of it on the way of a token
  if(SWITCHYARD_SANITIZE MATCHES "undefined")
    target_compile_options(${NAME} PRIVATE -fno-sanitize=undefined)  # protoc's code, not ours
  endif()
  target_link_libraries(${NAME} PUBLIC protobuf::libprotobuf)
  if(NOT A_MESSAGES_ONLY)
    target_link_libraries(${NAME} PUBLIC gRPC::grpc++)
  endif()
endfunction()
