// Hopper's asynchronous instructions (sm_90a): products of warpgroups, clusters.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "bulk_copy.cuh"
#include "tensor_core.cuh"

namespace bitlab::cuda {

// Orders this warpgroup's register writes before the products that follow.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Has the compiler compute these registers before the products begin; else it waits for each product before the next.
__device__ __forceinline__ void settle(uint32_t (&registers)[4]) {
  asm volatile("" : "+r"(registers[0]), "+r"(registers[1]), "+r"(registers[2]), "+r"(registers[3])::"memory");
}

// Waits until at most `kGroups` groups of products are under way.
template <int kGroups>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Columns in shared memory, swizzled (place_of in quantized.h): rows of 16 << kSwizzle bytes of K, eight of them
// together. The start of a matrix, 32 bytes of K wide, may lie inside of the rows. What says where they are is 1 more
// for each 16 bytes.
__device__ __forceinline__ uint32_t columns_at(uint32_t address) { return address >> 4 | 1 << 16; }
template <int kSwizzle>
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t columns) {
  const uint64_t mode = 4 - kSwizzle, eight_rows = 128 << kSwizzle;
  return columns | eight_rows >> 4 << 32 | mode << 62;
}

// sums [64 rows, kColumns] += codes u8 [64, 32] * activations s8 [32, kColumns] modulo 2**32, by a warpgroup. `codes`
// are registers of this lane as of m16n8k32 (fragments.cuh), warp w of the group holds rows 16w to 16w + 15; `sums` are
// tiles of 8 columns as there. Both belong to the product until it has been waited for. Of bfloat16 or float16 instead,
// sums [64 rows, kColumns] += weights [64, 16] * activations [16, kColumns] in float32: a register holds two neighbours
// of K.
#define BITLAB_SUMS_OF(type, i)                                                                                 \
  type(sums[i]), type(sums[i + 1]), type(sums[i + 2]), type(sums[i + 3]), type(sums[i + 4]), type(sums[i + 5]), \
      type(sums[i + 6]), type(sums[i + 7])
#define BITLAB_SUMS_8(type) BITLAB_SUMS_OF(type, 0)
#define BITLAB_SUMS_16(type) BITLAB_SUMS_8(type), BITLAB_SUMS_OF(type, 8)
#define BITLAB_SUMS_24(type) BITLAB_SUMS_16(type), BITLAB_SUMS_OF(type, 16)
#define BITLAB_SUMS_32(type) BITLAB_SUMS_24(type), BITLAB_SUMS_OF(type, 24)
#define BITLAB_SUMS_40(type) BITLAB_SUMS_32(type), BITLAB_SUMS_OF(type, 32)
#define BITLAB_SUMS_48(type) BITLAB_SUMS_40(type), BITLAB_SUMS_OF(type, 40)
#define BITLAB_SUMS_64(type) BITLAB_SUMS_48(type), BITLAB_SUMS_OF(type, 48), BITLAB_SUMS_OF(type, 56)
#define BITLAB_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BITLAB_NAMES_16 BITLAB_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BITLAB_NAMES_24 BITLAB_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define BITLAB_NAMES_32 BITLAB_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define BITLAB_NAMES_40 BITLAB_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define BITLAB_NAMES_48 BITLAB_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define BITLAB_NAMES_64 \
  BITLAB_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BITLAB_PRODUCT(shape, modes, type, count, c0, c1, c2, c3, matrix)                                            \
  asm volatile(                                                                                                      \
      "{\n.reg .pred accumulate;\nsetp.eq.u32 accumulate, 0, 0;\n"                                                   \
      "wgmma.mma_async.sync.aligned." shape " {" BITLAB_NAMES_##count "}, {" c0 ", " c1 ", " c2 ", " c3 "}, " matrix \
                                                                      ", accumulate" modes ";\n}"                    \
      : BITLAB_SUMS_##count(type)                                                                                    \
      : "r"(codes[0]), "r"(codes[1]), "r"(codes[2]), "r"(codes[3]), "l"(columns))
#define BITLAB_INT8(columns, count, ...) BITLAB_PRODUCT("m64n" columns "k32.s32.u8.s8", "", "+r", count, __VA_ARGS__)
#define BITLAB_FLOAT(columns, type, count, ...) \
  BITLAB_PRODUCT("m64n" columns "k16.f32." type "." type, ", 1, 1, 0", "+f", count, __VA_ARGS__)

template <typename Value, int kColumns, typename Sum>
__device__ __forceinline__ void multiply_async(Sum (&sums)[kColumns / 2], const uint32_t (&codes)[4],
                                               uint64_t columns) {
  if constexpr (std::is_same_v<Value, int8_t>) {
    if constexpr (kColumns == 16) {
      BITLAB_INT8("16", 8, "%8", "%9", "%10", "%11", "%12");
    } else if constexpr (kColumns == 32) {
      BITLAB_INT8("32", 16, "%16", "%17", "%18", "%19", "%20");
    } else if constexpr (kColumns == 48) {
      BITLAB_INT8("48", 24, "%24", "%25", "%26", "%27", "%28");
    } else if constexpr (kColumns == 64) {
      BITLAB_INT8("64", 32, "%32", "%33", "%34", "%35", "%36");
    } else if constexpr (kColumns == 80) {
      BITLAB_INT8("80", 40, "%40", "%41", "%42", "%43", "%44");
    } else if constexpr (kColumns == 96) {
      BITLAB_INT8("96", 48, "%48", "%49", "%50", "%51", "%52");
    } else {
      static_assert(kColumns == 128, "no product of so many columns");
      BITLAB_INT8("128", 64, "%64", "%65", "%66", "%67", "%68");
    }
  } else if constexpr (std::is_same_v<Value, __nv_bfloat16>) {
    if constexpr (kColumns == 80) {
      BITLAB_FLOAT("80", "bf16", 40, "%40", "%41", "%42", "%43", "%44");
    } else {
      static_assert(kColumns == 128, "no product of so many columns");
      BITLAB_FLOAT("128", "bf16", 64, "%64", "%65", "%66", "%67", "%68");
    }
  } else {
    if constexpr (kColumns == 80) {
      BITLAB_FLOAT("80", "f16", 40, "%40", "%41", "%42", "%43", "%44");
    } else {
      static_assert(kColumns == 128, "no product of so many columns");
      BITLAB_FLOAT("128", "f16", 64, "%64", "%65", "%66", "%67", "%68");
    }
  }
}

#undef BITLAB_SUMS_OF
#undef BITLAB_SUMS_8
#undef BITLAB_SUMS_16
#undef BITLAB_SUMS_24
#undef BITLAB_SUMS_32
#undef BITLAB_SUMS_40
#undef BITLAB_SUMS_48
#undef BITLAB_SUMS_64
#undef BITLAB_NAMES_8
#undef BITLAB_NAMES_16
#undef BITLAB_NAMES_24
#undef BITLAB_NAMES_32
#undef BITLAB_NAMES_40
#undef BITLAB_NAMES_48
#undef BITLAB_NAMES_64
#undef BITLAB_PRODUCT
#undef BITLAB_INT8
#undef BITLAB_FLOAT

// A warpgroup's registers for each thread from here on; more of them when other warpgroups have given up theirs.
template <int kCount>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Says that this block has started and initialized its barriers; waits for all of the cluster to have said so.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ int rank_in_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Of all clusters of the grid along z; without clusters, blockIdx.z.
__device__ __forceinline__ int cluster_along_z() {
  int cluster;
  asm("mov.u32 %0, %%clusterid.z;" : "=r"(cluster));
  return cluster;
}

// Where `address` of this block's shared memory is in that of block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Stores 16 bytes in another block of the cluster, and counts them at its `barrier`.
__device__ __forceinline__ void send(uint32_t to, int4 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
               : "memory");
}

// Two or four 8x8 matrices of two bytes, each stored with rows and columns exchanged; lane L names row L % 8 of matrix
// L / 8.
__device__ __forceinline__ void store_transposed(uint32_t address, const uint32_t (&pairs)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(pairs[0]),
               "r"(pairs[1])
               : "memory");
}

__device__ __forceinline__ void store_transposed(uint32_t address, const uint32_t (&pairs)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(pairs[0]),
               "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
               : "memory");
}

}  // namespace bitlab::cuda
