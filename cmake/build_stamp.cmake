# A script of the build: writes OUT from the template IN with VERSION, COMPILER and the commit of the
# checkout at SOURCE, which may be no checkout at all.
set(COMMIT "")
if(EXISTS ${SOURCE}/.git)
  execute_process(COMMAND git rev-parse --short=12 HEAD WORKING_DIRECTORY ${SOURCE}
                  OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT COMMIT)
  set(COMMIT unknown)
endif()
configure_file(${IN} ${OUT} @ONLY)
