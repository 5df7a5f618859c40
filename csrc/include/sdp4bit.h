/* The codec's interface. C99; cpu/ and cuda/ each define every function. */
#ifndef SDP4BIT_H
#define SDP4BIT_H

#ifdef __cplusplus
extern "C" {
#endif

/* "cpu" or "cuda": which of the two this library is. */
const char *sdp4bit_device(void);

#ifdef __cplusplus
}
#endif
#endif
