#include "router/run.h"

int main(int argc, char** argv) { return switchyard::router::Run(argc, argv); }
