// A libcudart that keeps a log of its calls, fails when it is told to, and has "device" memory on the host.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char calls[1 << 16];
static size_t length;
static int current_device, failing_code, successes_left;
static char failing_name[64];

static int answer(const char *name, const void *pointer, size_t size, unsigned number) {
  length += snprintf(calls + length, sizeof calls - length, "%s %zu %zu %u\n", name, (size_t)pointer, size, number);
  if (strcmp(name, failing_name) != 0) return 0;
  return successes_left-- > 0 ? 0 : failing_code;
}

const char *fake_calls(void) { return calls; }

void fake_reset(void) {
  length = current_device = failing_code = successes_left = 0;
  calls[0] = failing_name[0] = 0;
}

void fake_fail(const char *name, int code, int after) {
  snprintf(failing_name, sizeof failing_name, "%s", name);
  failing_code = code;
  successes_left = after;
}

int cudaGetDevice(int *device) {
  *device = current_device;
  return answer("cudaGetDevice", 0, 0, 0);
}

int cudaSetDevice(int device) {
  current_device = device;
  return answer("cudaSetDevice", 0, 0, device);
}

int cudaHostRegister(void *pointer, size_t size, unsigned flags) {
  return answer("cudaHostRegister", pointer, size, flags);
}

int cudaHostUnregister(void *pointer) { return answer("cudaHostUnregister", pointer, 0, 0); }

int cudaGetLastError(void) { return answer("cudaGetLastError", 0, 0, 0); }

int cudaMalloc(void **pointer, size_t size) {
  *pointer = malloc(size);
  return answer("cudaMalloc", *pointer, size, 0);
}

int cudaFree(void *pointer) {
  free(pointer);
  return answer("cudaFree", pointer, 0, 0);
}

int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
  memcpy(target, source, size);
  return answer("cudaMemcpy", source, size, kind);
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  *free_bytes = (size_t)5 << 32;
  *total_bytes = (size_t)9 << 32;
  return answer("cudaMemGetInfo", 0, 0, 0);
}

const char *cudaGetErrorName(int code) { return code == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorOther"; }

const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "something else"; }
