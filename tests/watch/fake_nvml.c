/* A stand-in for libnvidia-ml.so.1 with the calls node.watch makes, in NVML's own C interface.
 *
 * Every answer comes from the text file named in $FAKE_NVML, read anew on each call, one "key value" per line:
 *
 *   gpus 2                        how many there are (default 1)
 *   driver 580.95.05
 *   generation 1                  a handle made under another generation is of a GPU that is lost
 *   0.memory 85899345920 1073741824 84825604096      total, used, free of GPU 0
 *   0.compute 4711:1073741824 4712:-                 pid:bytes, "-" where NVML has no figure
 *   0.graphics, 0.utilisation, 0.temperature, 0.power, 0.mig, 0.name, 0.uuid
 *   fail.nvmlInitWithFlags 9      the call answers with this NVML error code
 *   0.fail.nvmlDeviceGetName 3    the same, for one GPU; 0.fail 15 for every call on it
 *   hang 1                        every call blocks until the line is gone
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { VERSION_MISMATCH = 25 };
enum { MAX_GPUS = 16, TEXT = 512 };

typedef struct { unsigned index, generation; } gpu;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned version; unsigned sensor; int temperature; } temperature_v1;
typedef struct { unsigned gpu, memory; } utilisation;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process;

static int sessions;

static int look_up(const char *key, char *value) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[TEXT], name[TEXT];
    int found = 0, length;
    while (file && !found && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%511s %n", name, &length) == 1 && strcmp(name, key) == 0) {
            strcpy(value, line + length);
            value[strcspn(value, "\n")] = 0;
            found = 1;
        }
    }
    if (file) fclose(file);
    return found;
}

static long long number(const char *key, long long otherwise) {
    char value[TEXT];
    return look_up(key, value) ? atoll(value) : otherwise;
}

static int gpu_key(const gpu *device, const char *what, char *value) {
    char key[TEXT];
    snprintf(key, sizeof key, "%u.%s", device->index, what);
    return look_up(key, value);
}

/* What every call asks first: does it hang, is it to fail, is NVML initialised? */
static int enter(const char *function) {
    char key[TEXT];
    while (number("hang", 0)) usleep(2000);
    snprintf(key, sizeof key, "fail.%s", function);
    int code = (int)number(key, SUCCESS);
    if (code) return code;
    return sessions || !strncmp(function, "nvmlInit", 8) ? SUCCESS : UNINITIALIZED;
}

static int enter_gpu(const char *function, const gpu *device) {
    char what[TEXT], value[TEXT];
    int code = enter(function);
    if (code) return code;
    if (device->generation != (unsigned)number("generation", 0)) return GPU_IS_LOST;
    if (gpu_key(device, "fail", value)) return atoi(value);
    snprintf(what, sizeof what, "fail.%s", function);
    return gpu_key(device, what, value) ? atoi(value) : SUCCESS;
}

#define ENTER() do { int code_ = enter(__func__); if (code_) return code_; } while (0)
#define ENTER_GPU(device) do { int code_ = enter_gpu(__func__, device); if (code_) return code_; } while (0)

int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(); sessions++; return SUCCESS; }
int nvmlInit_v2(void) { ENTER(); sessions++; return SUCCESS; }
int nvmlShutdown(void) { ENTER(); sessions--; return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error only the fake knows"; }

static int text(char *out, unsigned size, const char *value) {
    if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    char value[TEXT];
    ENTER();
    return look_up("driver", value) ? text(out, size, value) : NOT_SUPPORTED;
}

int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(); *count = (unsigned)number("gpus", 1); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **device) {
    static gpu handles[1024];
    static unsigned used;
    ENTER();
    if (index >= number("gpus", 1) || index >= MAX_GPUS || used >= 1024) return INVALID_ARGUMENT;
    gpu *made = &handles[used++];
    made->index = index;
    made->generation = (unsigned)number("generation", 0);
    *device = made;
    char value[TEXT];
    return gpu_key(made, "fail", value) ? atoi(value) : SUCCESS;
}

int nvmlDeviceGetName(gpu *device, char *out, unsigned size) {
    char value[TEXT];
    ENTER_GPU(device);
    return gpu_key(device, "name", value) ? text(out, size, value) : NOT_SUPPORTED;
}

int nvmlDeviceGetUUID(gpu *device, char *out, unsigned size) {
    char value[TEXT];
    ENTER_GPU(device);
    return gpu_key(device, "uuid", value) ? text(out, size, value) : NOT_SUPPORTED;
}

static int memory(gpu *device, unsigned long long *total, unsigned long long *used, unsigned long long *free_) {
    char value[TEXT];
    if (!gpu_key(device, "memory", value)) return NOT_SUPPORTED;
    return sscanf(value, "%llu %llu %llu", total, used, free_) == 3 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryInfo(gpu *device, memory_v1 *out) {
    ENTER_GPU(device);
    return memory(device, &out->total, &out->used, &out->free);
}

int nvmlDeviceGetMemoryInfo_v2(gpu *device, memory_v2 *out) {
    ENTER_GPU(device);
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    int code = memory(device, &out->total, &out->used, &out->free);
    out->reserved = out->total - out->used - out->free;
    return code;
}

static int one_number(gpu *device, const char *what, unsigned *out) {
    char value[TEXT];
    if (!gpu_key(device, what, value)) return NOT_SUPPORTED;
    *out = (unsigned)strtoul(value, NULL, 10);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(gpu *device, utilisation *out) {
    ENTER_GPU(device);
    out->memory = 0;
    return one_number(device, "utilisation", &out->gpu);
}

int nvmlDeviceGetTemperature(gpu *device, unsigned sensor, unsigned *out) {
    ENTER_GPU(device);
    return sensor ? INVALID_ARGUMENT : one_number(device, "temperature", out);
}

int nvmlDeviceGetTemperatureV(gpu *device, temperature_v1 *out) {
    ENTER_GPU(device);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    return out->sensor ? INVALID_ARGUMENT : one_number(device, "temperature", (unsigned *)&out->temperature);
}

int nvmlDeviceGetPowerUsage(gpu *device, unsigned *milliwatts) {
    ENTER_GPU(device);
    return one_number(device, "power", milliwatts);
}

int nvmlDeviceGetMigMode(gpu *device, unsigned *current, unsigned *pending) {
    ENTER_GPU(device);
    *pending = 0;
    return one_number(device, "mig", current);
}

static int processes(gpu *device, const char *what, unsigned *count, process *out) {
    char value[TEXT], *rest = value;
    unsigned room = *count;
    if (!gpu_key(device, what, value)) return NOT_SUPPORTED;
    *count = 0;
    for (char *word; (word = strtok_r(rest, " ", &rest)); ++*count) {
        if (*count >= room || !out) continue;
        char *bytes = strchr(word, ':') + 1;
        out[*count].pid = (unsigned)strtoul(word, NULL, 10);
        out[*count].bytes = *bytes == '-' ? UINT64_MAX : strtoull(bytes, NULL, 10);
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(gpu *device, unsigned *count, process *out) {
    ENTER_GPU(device);
    return processes(device, "compute", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(gpu *device, unsigned *count, process *out) {
    ENTER_GPU(device);
    return processes(device, "graphics", count, out);
}
