#include "expert-worker/run.h"

int main(int argc, char** argv) { return switchyard::worker::Run(argc, argv); }
