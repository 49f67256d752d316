// Runs one matmul of one kernel on 4 rows, so that its instructions can be counted.
//
//     count_instructions kernel format vectors bytes          counts them itself, one ptrace step each; prints the
//     number count_instructions kernel format vectors bytes --run    only runs it, for an emulator that counts
//
// What a call costs besides its steps cancels out between two sizes (count_instructions.py).
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../bitcore/csrc/cpu/dispatch.h"

namespace cpu = bitlab::cpu;

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const cpu::Kernel* kernel = nullptr;
  for (int i = 0; i < cpu::kernel_count(); ++i) {
    if (cpu::kernel_at(i).name == std::string(argv[1])) kernel = &cpu::kernel_at(i);
  }
  if (kernel == nullptr || cpu::missing_features(*kernel) != 0) return 3;  // cannot run here
  const auto format = static_cast<cpu::Format>(std::atoi(argv[2]));
  const int64_t vectors = std::atoll(argv[3]), bytes = std::atoll(argv[4]), rows = 4;
  const int64_t vector_stride = cpu::weights_per_byte(format) * bytes;
  std::vector<int8_t> x_q(static_cast<size_t>(vectors * vector_stride + cpu::kReadAhead), 1);
  std::vector<uint8_t> w(static_cast<size_t>(rows * bytes), 0);
  std::vector<int32_t> acc(static_cast<size_t>(rows * vectors));
  const cpu::Product product{.x_q = x_q.data(),
                             .m = vectors,
                             .vector_stride = vector_stride,
                             .plane = bytes,
                             .w = w.data(),
                             .n = rows,
                             .row_stride = bytes,
                             .bytes = bytes,
                             .acc = acc.data(),
                             .acc_stride = rows};
  if (argc > 5) {
    kernel->matmul(format, product);
    return 0;
  }
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    kernel->matmul(format, product);
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  int64_t steps = 0;
  do {
    ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr);
    waitpid(child, &status, 0);
    ++steps;
  } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
  kill(child, SIGKILL);
  std::printf("%lld\n", static_cast<long long>(steps));
  return 0;
}
