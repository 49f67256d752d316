// Copies of whole pieces of memory to and from shared memory, and the barriers that count what has come (sm_90).
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace bitlab::cuda {

// Barriers in shared memory: a phase ends when `arrivals` threads have arrived and all bytes announced have come.
__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Makes this thread's stores to shared memory known to the copies below.
__device__ __forceinline__ void publish_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same of barriers that it has initialized.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  publish_to_copies();
}

// Copies `bytes` (a multiple of 16, from 16-byte aligned memory) and counts them at `barrier`. One thread.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Copies the box of a matrix whose first element is in `row` and `column`, and counts it at `barrier`; what lies
// outside of the matrix is 0. One thread.
__device__ __forceinline__ void copy_box(uint32_t to, const void* tensor_map, int row, int column, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(tensor_map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The other way; of shared memory that publish_to_copies() was called behind. What lies outside of the matrix stays.
__device__ __forceinline__ void write_box(const void* tensor_map, int row, int column, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(tensor_map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}

// Waits until what this thread's write_box() calls read may be overwritten.
__device__ __forceinline__ void wait_for_box_reads() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace bitlab::cuda
