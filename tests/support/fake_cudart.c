/* The calls of the CUDA runtime that examples/gpu_weights.py makes, for machines without a GPU. The memory of the "GPU"
 * is that of malloc(3), and a stream has made its copies when they are queued. Memory that is registered is locked. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void *registered;
static size_t registered_length;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return device != 0; }
int cudaGetLastError(void) { return 0; }
const char *cudaGetErrorString(int code) { return code == 713 ? "part of the memory is not registered" : "failed"; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaStreamCreate(void **stream) { *stream = NULL; return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return 0; }
int cudaMalloc(void **memory, size_t size) { return (*memory = malloc(size)) ? 0 : 2; }
int cudaFree(void *memory) { free(memory); return 0; }

int cudaHostRegister(void *memory, size_t length, unsigned flags)
{
	(void)flags;
	if (registered)
		return 712;
	if (mlock(memory, length))
		return 304;
	registered = memory;
	registered_length = length;
	return 0;
}

int cudaHostUnregister(void *memory)
{
	if (!registered || memory != registered)
		return 713;
	registered = NULL;
	return munlock(memory, registered_length) ? 304 : 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream)
{
	(void)stream;
	if (kind == 1 && ((const char *)from < (char *)registered || (const char *)from + size > (char *)registered + registered_length))
		return 713;
	memcpy(to, from, size);
	return 0;
}
