// A grid on the host: a block is a thread, so what is thread_local is the block's shared memory. Its threads are
// fibers, which take turns in an order that is drawn anew from barrier to barrier; a barrier that not all of them reach
// ends the program. ThreadSanitizer, where it is on, is told what CUDA orders, and nothing else: barriers, and fences
// around atomic operations. So it reports two accesses of a kernel that nothing orders, within a block and between
// blocks.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_acquire(void* of);
void __tsan_release(void* of);
}
#else
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

namespace on_the_host {

// What runs fibers is no part of a kernel: what it does orders nothing.
#define NOT_OF_A_KERNEL __attribute__((no_sanitize("thread"), noinline))

// One of those that take turns in a thread. swapcontext asks the system for the signals each time, which takes longer
// than all else here; ThreadSanitizer knows no other way.
#if defined(__SANITIZE_THREAD__)
struct Context {
  ucontext_t saved;
  void* known_to_sanitizer;
};

inline NOT_OF_A_KERNEL void make_known(Context& context, bool is_fiber) {
  context.known_to_sanitizer = is_fiber ? __tsan_create_fiber(0) : __tsan_get_current_fiber();
}
inline NOT_OF_A_KERNEL void switch_contexts(Context& from, Context& to) {
  __tsan_switch_to_fiber(to.known_to_sanitizer, __tsan_switch_to_fiber_no_sync);
  swapcontext(&from.saved, &to.saved);
}
#else
struct Context {
  ucontext_t saved;  // before it has begun
  jmp_buf left;      // after
  bool begun;
};

inline void make_known(Context& context, bool is_fiber) {
  context.begun = !is_fiber;
}
inline NOT_OF_A_KERNEL void switch_contexts(Context& from, Context& to) {
  if (_setjmp(from.left) != 0) return;
  if (to.begun) _longjmp(to.left, 1);
  to.begun = true;
  setcontext(&to.saved);
}
#endif

constexpr int threads_of_warp = 32, most_threads = 256, most_warps = most_threads / threads_of_warp;
constexpr std::size_t stack_size = 256 << 10;

// Threads that wait for each other. Who leaves a barrier may come to the next one before all have left: two take turns.
struct Barrier {
  int size, arrived;
  unsigned passed;
  char orders[2];
};

struct Fiber {
  Context context;
  Barrier* waits_for;  // or null
  unsigned passed;     // by others, when it began to
  bool fenced;         // since its last barrier or atomic operation
  void* last_atomic;
  bool done;
};

// A block: its fibers, and the one at work.
struct Block {
  Fiber fibers[most_threads];
  Context between_fibers;
  Barrier of_block, of_warp[most_warps];
  double exchanged[most_threads];
  const std::function<void()>* kernel;
  unsigned number, blocks, current;
  char begins, ends;
};

inline thread_local Block* block = nullptr;

inline NOT_OF_A_KERNEL Fiber& current_fiber() {
  return block->fibers[block->current];
}

inline NOT_OF_A_KERNEL void leave_fiber() {
  switch_contexts(current_fiber().context, block->between_fibers);
}

inline NOT_OF_A_KERNEL void wait_for(Barrier& barrier, bool orders) {
  Fiber& self = current_fiber();
  const unsigned passed = barrier.passed;
  if (orders) __tsan_release(&barrier.orders[passed % 2]);
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.passed;
  } else {
    self.waits_for = &barrier;
    self.passed = passed;
    leave_fiber();
    self.waits_for = nullptr;
  }
  if (orders) {
    __tsan_acquire(&barrier.orders[passed % 2]);
    self.fenced = false;
  }
}

inline NOT_OF_A_KERNEL Barrier& warp_of_current() {
  return block->of_warp[block->current / threads_of_warp];
}

// A register of another thread of the warp. Shuffles order no memory.
inline NOT_OF_A_KERNEL double exchange(double value, unsigned from) {
  const unsigned self = block->current, first = self / threads_of_warp * threads_of_warp;
  block->exchanged[self] = value;
  wait_for(warp_of_current(), false);
  const double result = block->exchanged[from < threads_of_warp ? first + from : self];
  wait_for(warp_of_current(), false);
  return result;
}

// Between a fence, an atomic operation, another thread's on the same address, and a fence of that thread there is
// order.
inline NOT_OF_A_KERNEL void fence() {
  Fiber& self = current_fiber();
  self.fenced = true;
  if (self.last_atomic != nullptr) __tsan_acquire(self.last_atomic);
}
inline NOT_OF_A_KERNEL void before_atomic(void* address) {
  Fiber& self = current_fiber();
  if (self.fenced) __tsan_release(address);
  self.fenced = false;
  self.last_atomic = address;
}

// One kernel after another.
inline NOT_OF_A_KERNEL void run_fiber() {
  for (;;) {
    __tsan_acquire(&block->begins);
    (*block->kernel)();
    __tsan_release(&block->ends);
    current_fiber().done = true;
    leave_fiber();
  }
}

inline NOT_OF_A_KERNEL void start_fiber(Fiber& fiber, char* stack) {
  ucontext_t& begin = fiber.context.saved;
  getcontext(&begin);
  begin.uc_stack.ss_sp = stack;
  begin.uc_stack.ss_size = stack_size;
  makecontext(&begin, run_fiber, 0);
  make_known(fiber.context, true);
}

// The order in which fibers take their turns, from one number to the next.
inline NOT_OF_A_KERNEL std::uint64_t draw(std::uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// A kernel's part of one block.
inline NOT_OF_A_KERNEL void run_block(Block& self, std::uint64_t& seed) {
  __tsan_release(&self.begins);
  unsigned order[most_threads], left = most_threads;
  for (unsigned i = 0; i < most_threads; ++i) {
    order[i] = i;
    self.fibers[i].done = self.fibers[i].fenced = false;
    self.fibers[i].last_atomic = nullptr;
  }
  while (left > 0) {
    bool moved = false;
    for (unsigned i = 0; i < most_threads; ++i) {
      const unsigned other = i + static_cast<unsigned>(draw(seed) % (most_threads - i)), chosen = order[other];
      order[other] = order[i];
      order[i] = chosen;
      Fiber& fiber = self.fibers[chosen];
      if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->passed == fiber.passed)) continue;
      moved = true;
      self.current = chosen;
      switch_contexts(self.between_fibers, fiber.context);
      if (fiber.done) --left;
    }
    if (moved) continue;
    std::fprintf(stderr, "%u threads of block %u wait for others, which never come\n", left, self.number);
    std::_Exit(EXIT_FAILURE);
  }
  __tsan_acquire(&self.ends);
}

// A thread of the host that is one block of each grid, as long as the program runs.
class Multiprocessor {
 public:
  explicit Multiprocessor(unsigned number) : seed_(88172645463325252 + number) {
    std::thread([=, this] { work(number); }).detach();
  }

  void begin(const std::function<void()>& kernel, unsigned blocks) {
    const std::lock_guard lock(mutex_);
    block_.kernel = &kernel;
    block_.blocks = blocks;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return block_.kernel == nullptr; });
  }

 private:
  void work(unsigned number) {
    block = &block_;
    block_.number = number;
    make_known(block_.between_fibers, false);
    block_.of_block.size = most_threads;
    for (Barrier& warp : block_.of_warp) warp.size = threads_of_warp;
    const auto stacks = std::make_unique_for_overwrite<char[]>(most_threads * stack_size);
    for (unsigned i = 0; i < most_threads; ++i) start_fiber(block_.fibers[i], stacks.get() + i * stack_size);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return block_.kernel != nullptr; });
      run_block(block_, seed_);
      block_.kernel = nullptr;
      changed_.notify_all();
    }
  }

  Block block_ = {};
  std::uint64_t seed_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

inline void run_grid(unsigned blocks, const std::function<void()>& kernel) {
  static std::vector<std::unique_ptr<Multiprocessor>>& all = *new std::vector<std::unique_ptr<Multiprocessor>>;
  while (all.size() < blocks) all.push_back(std::make_unique<Multiprocessor>(static_cast<unsigned>(all.size())));
  for (unsigned i = 0; i < blocks; ++i) all[i]->begin(kernel, blocks);
  for (unsigned i = 0; i < blocks; ++i) all[i]->wait();
}

}  // namespace on_the_host
