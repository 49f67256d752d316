// The PTX instructions of the kernels, named by their text; `asm` statements become calls of these (translate.py).
#pragma once

#include <bit>

#include "machine.h"
#include "tensor_core.h"
#include "tensor_map.h"

namespace emulator {

template <size_t kSize>
struct Text {
  char characters[kSize];
  constexpr Text(const char (&text)[kSize]) { std::copy_n(text, kSize, characters); }
};

template <Text kText>
struct Ptx;

#define PTX(text, parameters)   \
  template <>                   \
  struct Ptx<text> {            \
    static void run parameters; \
  };                            \
  inline void Ptx<text>::run parameters

// Only the compiler reads these.
template <>
struct Ptx<""> {
  static void run(auto&&...) {}
};
PTX("griddepcontrol.wait;", ()) {}
PTX("griddepcontrol.launch_dependents;", ()) {}
PTX("prefetch.global.L2 [%0];", (const void*)) {}
PTX("setmaxnreg.inc.sync.aligned.u32 %0;", (int)) {}
PTX("setmaxnreg.dec.sync.aligned.u32 %0;", (int)) {}
PTX("fence.proxy.async.shared::cta;", ()) {}
PTX("fence.mbarrier_init.release.cluster;", ()) {}
PTX("wgmma.fence.sync.aligned;", ()) {}

PTX("cp.async.bulk.prefetch.L2.global [%0], %1;", (uintptr_t address, uint32_t bytes)) {
  if (address % 16 != 0 || bytes % 16 != 0) fail("a misaligned prefetch");
}

PTX("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];",
    (uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, const void* from)) {
  const uint4 v = *static_cast<const uint4*>(from);
  a = v.x, b = v.y, c = v.z, d = v.w;
}

PTX("ld.shared.u32 %0, [%1];", (uint32_t& to, uint32_t from)) { to = at_shared<uint32_t>(from); }
PTX("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];", (uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t from)) {
  const uint4 v = at_shared<uint4>(from);
  a = v.x, b = v.y, c = v.z, d = v.w;
}
PTX("st.shared.u8 [%0], %1;", (uint32_t to, uint32_t byte)) { at_shared<uint8_t>(to) = static_cast<uint8_t>(byte); }
PTX("st.shared.v4.u32 [%0], {%1, %2, %3, %4};", (uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)) {
  at_shared<uint4>(to) = {a, b, c, d};
}

// Copies that the thread waits for.
PTX("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;", (uint32_t to, const void* from)) {
  copy_later([to = &at_shared<uint4>(to), from] { *to = *static_cast<const uint4*>(from); });
}
PTX("cp.async.ca.shared.global [%0], [%1], 4;", (uint32_t to, const void* from)) {
  copy_later([to = &at_shared<uint32_t>(to), from] { *to = *static_cast<const uint32_t*>(from); });
}
PTX("cp.async.commit_group;", ()) { end_copies(); }
PTX("cp.async.wait_group %0;", (int groups)) { wait_for_copies(groups); }

// Named barriers.
PTX("bar.sync %0, %1;", (int barrier, int threads)) { synchronize_at(barrier, threads); }
PTX("bar.sync %0, 128;", (int barrier)) { synchronize_at(barrier, 128); }
PTX("barrier.cta.sync %0, %1;", (int barrier, int threads)) { synchronize_at(barrier, threads); }
PTX("barrier.cta.arrive %0, %1;", (int barrier, int threads)) { arrive_at(barrier, threads); }

// Barriers in shared memory, and the copies that they count.
PTX("mbarrier.init.shared::cta.b64 [%0], %1;", (uint32_t barrier, int arrivals)) { init_barrier(barrier, arrivals); }
PTX("mbarrier.arrive.shared::cta.b64 _, [%0];", (uint32_t barrier)) { arrive(barrier, 0); }
PTX("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;", (uint32_t barrier, uint32_t bytes)) {
  arrive(barrier, bytes);
}
PTX("{\n.reg .pred done;\n"
    "again_%=:\n"
    "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
    "@!done bra again_%=;\n}",
    (uint32_t barrier, uint32_t parity)) {
  wait(barrier, parity);
}
PTX("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];",
    (uint32_t to, const void* from, uint32_t bytes, uint32_t barrier)) {
  if (to % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a misaligned copy");
  copy_and_count(barrier, bytes, [to = shared_bytes(to), from, bytes] { std::memcpy(to, from, bytes); });
}
PTX("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];",
    (uint32_t to, const void* map, int column, int row, uint32_t barrier)) {
  const auto& of = *static_cast<const TensorMap*>(map);
  copy_and_count(barrier, static_cast<uint32_t>(of.box_rows * of.box_columns * of.element_bytes),
                 [=] { of.read(row, column, to); });
}
PTX("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];",
    (const void* map, int column, int row, uint32_t from)) {
  copy_later([=] { static_cast<const TensorMap*>(map)->write(row, column, from); });
}
PTX("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;", ()) {
  end_copies();
  wait_for_copies(0);
}

// Clusters.
PTX("barrier.cluster.arrive.relaxed.aligned;", ()) { arrive_at_cluster(); }
PTX("barrier.cluster.wait.acquire.aligned;", ()) { wait_for_cluster(); }
PTX("mov.u32 %0, %%cluster_ctarank;", (int& rank)) { rank = rank_in_cluster(); }
PTX("mov.u32 %0, %%clusterid.z;", (int& cluster)) { cluster = cluster_along_z(); }
PTX("mapa.shared::cluster.u32 %0, %1, %2;", (uint32_t& there, uint32_t address, int rank)) {
  there = address | static_cast<uint32_t>(rank + 1) << kBlockShift;
}
PTX("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];",
    (uint32_t to, int a, int b, int c, int d, uint32_t barrier)) {
  copy_and_count(barrier, 16, [to = &at_shared<int4>(to), a, b, c, d] { *to = {a, b, c, d}; });
}

// Tensor cores.
PTX("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};",
    (int& s0, int& s1, int& s2, int& s3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
     uint32_t b1)) {
  const auto left = exchange(std::array{a0, a1, a2, a3});
  const auto right = exchange(std::array{b0, b1});
  const auto column = [&](uint32_t n, uint32_t k) {
    return static_cast<int8_t>(right[4 * n + k % 16 / 4][k / 16] >> k % 4 * 8);
  };
  int* const sums[] = {&s0, &s1, &s2, &s3};
  add_product<32>(left, column, 0, [&](int i) -> int& { return *sums[i]; });
}
PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];",
    (uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address)) {
  const auto rows = exchange(address);
  const uint32_t lane = threadIdx.x % kLanes;
  uint32_t* const words[] = {&a, &b, &c, &d};
  for (uint32_t i = 0; i < 4; ++i) *words[i] = at_shared<Registers>(rows[8 * i + lane / 4])[lane % 4];
}
PTX("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};", (uint32_t address, uint32_t a, uint32_t b)) {
  store_transposed(address, std::array{a, b});
}
PTX("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};",
    (uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d)) {
  store_transposed(address, std::array{a, b, c, d});
}
PTX("wgmma.commit_group.sync.aligned;", ()) { end_products(); }
PTX("wgmma.wait_group.sync.aligned %0;", (int groups)) { wait_for_products(groups); }

#undef PTX

}  // namespace emulator
