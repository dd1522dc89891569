# Build options and flags that hold for every target.
option(SWITCHYARD_TESTS "Build the tests" ON)
option(SWITCHYARD_FUZZERS "Build the libFuzzer targets (needs clang)" OFF)
set(SWITCHYARD_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize= takes them")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
add_compile_options(-fPIC -pthread)  # of everything, as precompiled headers are shared
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")

find_program(CCACHE ccache)
if(CCACHE)
  # Hits across checkouts: hash paths relative to the tree, not to where it lies.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
                                  CCACHE_NOHASHDIR=1 ${CCACHE})
endif()

# -ffp-contract=off: the reduction order is ours to choose, a fused multiply-add is written out.
add_compile_options(-Wall -Wextra -Werror -Wno-missing-field-initializers -ffp-contract=off
                    -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  add_compile_options(-Wthread-safety -Wno-unused-command-line-argument)
endif()
if(SWITCHYARD_SANITIZE)
  add_compile_options(-fsanitize=${SWITCHYARD_SANITIZE})
  add_link_options(-fsanitize=${SWITCHYARD_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-maybe-uninitialized)  # GCC loses track in instrumented code; other builds warn
  endif()
  if(SWITCHYARD_SANITIZE MATCHES "thread")
    include_directories(BEFORE ${CMAKE_SOURCE_DIR}/tests/support/tsan)
  endif()
  if(SWITCHYARD_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Wno-subobject-linkage)  # an included .cc is taken for a header
endif()
if(SWITCHYARD_FUZZERS)
  add_compile_options(-fsanitize=fuzzer-no-link)  # coverage feedback; the fuzz targets add the driver
endif()

find_program(MOLD mold)
if(MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CMAKE_CROSSCOMPILING)  # whose gcc does not find it
  add_link_options(-fuse-ld=mold)
endif()
