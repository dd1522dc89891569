// The program switchyard-expert-worker: config, worker, signals, drain.
#pragma once

namespace switchyard::worker {

// Returns the exit status of the process.
int Run(int argc, char** argv);

}  // namespace switchyard::worker
