// The device and stream of a call, and what to do about errors of the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/linear.h"

namespace bitlab {

inline void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  const auto code = static_cast<cudaError_t>(error);
  cudaGetLastError();  // or the next call would report it again
  const char* remedy =
      code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction
          ? "; this build has no kernels for this GPU: run `python build_extensions.py` on this machine"
          : "";
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code) + remedy);
}

// The device of x is the current one as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    moved_ = device != before_;
  }
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool moved_ = false;
};

inline const cuda::Device& device_at(int index) {
  thread_local std::vector<cuda::Device> devices;
  if (devices.size() <= static_cast<size_t>(index)) devices.resize(static_cast<size_t>(index) + 1);
  cuda::Device& device = devices[static_cast<size_t>(index)];
  if (device.compute_capability == 0) {
    int major, minor;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&device.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
          "cudaDeviceGetAttribute");
    device.compute_capability = 10 * major + minor;
  }
  return device;
}

inline bool is_debugging() {
  static const bool wanted = [] {
    const char* value = std::getenv("BITLAB_DEBUG");
    return value != nullptr && std::string(value) == "1";
  }();
  return wanted;
}

inline void* stream_of(int device) {
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// Of kernels just launched on `stream`; when debugging, waits for them unless they are being captured.
inline void check_launch(int error, void* stream) {
  check(error, "launching a kernel");
  if (!is_debugging()) return;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "cudaStreamIsCapturing");
  if (status == cudaStreamCaptureStatusNone)
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "running a kernel");
}

}  // namespace bitlab
