// `switchyard serve`: gateway, router and expert workers in one process.
#pragma once

namespace switchyard::cli {

// argv[0] is "serve". Returns the exit status.
int RunServe(int argc, char** argv);

}  // namespace switchyard::cli
