// The program switchyard-router: config, router, signals, drain.
#pragma once

namespace switchyard::router {

// Returns the exit status of the process.
int Run(int argc, char** argv);

}  // namespace switchyard::router
