// SPDX-License-Identifier: Apache-2.0
// OpenMP's parallel regions on plain threads, for ThreadSanitizer.
//
// ThreadSanitizer does not know how libgomp, which is compiled without it, starts and joins its
// threads, and would report a race for every result. Loaded before libgomp, these functions take
// its place in the parallel regions of torch and of the kernels, which use nothing else of OpenMP.
#include <thread>
#include <vector>

namespace {
thread_local int number = 0, team = 1, most = 4;
}  // namespace

extern "C" {

void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned) {
  const int count = threads != 0 ? static_cast<int>(threads) : most;
  const int own_number = number, own_team = team;
  const auto member = [&](int i) {
    number = i;
    team = count;
    run(data);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < count; ++i) others.emplace_back(member, i);
  member(0);
  for (auto& thread : others) thread.join();
  number = own_number;
  team = own_team;
}

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team; }
int omp_get_max_threads() { return most; }
int omp_get_num_procs() { return 4; }
int omp_in_parallel() { return team > 1; }
void omp_set_num_threads(int threads) { most = threads; }
}
