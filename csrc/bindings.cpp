// The Python face of sdp4bit.h, compiled once into _cpu and once into _cuda.
#include <pybind11/pybind11.h>

#include "sdp4bit.h"

PYBIND11_MODULE(SDP4BIT_MODULE, module) { module.def("device", &sdp4bit_device); }
