#include "sdp4bit.h"

const char *sdp4bit_device(void) { return "cpu"; }
