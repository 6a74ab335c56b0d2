// The yardstick: a step without its arithmetic. It reads gradient, variable and two slots, writes
// variable and slots, and leaves nothing that a compiler could drop. With an average it reads and writes that,
// too, and reads all gradients once more before, as for their norm.
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace {

// 64 bytes at any address: one vector of AVX-512, two of AVX2.
typedef std::uint8_t Line __attribute__((vector_size(64), aligned(1), may_alias));

Line& line(char* at) {
  return *reinterpret_cast<Line*>(at);
}
const Line& line(const char* at) {
  return *reinterpret_cast<const Line*>(at);
}

// The variable takes in the gradient's bits, the slots change places. A slot has `ratio` bytes for each
// byte of the variable.
// The average, as long as a slot, takes in the variable's.
template <std::size_t ratio>
void by_byte(char* p, const char* g, char* m, char* v, char* a, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) p[i] ^= g[i];
  std::swap_ranges(m, m + ratio * bytes, v);
  if (a == nullptr) return;
  for (std::size_t i = 0; i < ratio * bytes; ++i) a[i] ^= p[i / ratio];
}

template <std::size_t ratio>
void by_line(char* p, const char* g, char* m, char* v, char* a, std::size_t bytes) {
  // Aligned variables bring slots and gradient along: large NumPy arrays begin alike. Short ones are not
  // worth it.
  const std::size_t to_alignment = (0 - reinterpret_cast<std::uintptr_t>(p)) % sizeof(Line);
  const std::size_t head = bytes < 8192 ? 0 : to_alignment;
  const auto of_average = [a](std::size_t i) { return a == nullptr ? nullptr : a + ratio * i; };
  by_byte<ratio>(p, g, m, v, a, head);
  std::size_t i = head;
  for (; i + sizeof(Line) <= bytes; i += sizeof(Line)) {
    line(p + i) ^= line(g + i);
    for (std::size_t j = ratio * i; j < ratio * (i + sizeof(Line)); j += sizeof(Line)) {
      const Line former = line(m + j);
      line(m + j) = line(v + j);
      line(v + j) = former;
      if (a != nullptr) line(a + j) ^= line(p + i);
    }
  }
  by_byte<ratio>(p + i, g + i, m + ratio * i, v + ratio * i, of_average(i), bytes - i);
}

std::uint8_t read(const char* g, std::size_t bytes) {
  Line all = {};
  std::size_t i = 0;
  for (; i + sizeof(Line) <= bytes; i += sizeof(Line)) all ^= line(g + i);
  std::uint8_t sum = 0;
  for (std::size_t j = 0; j < sizeof(Line); ++j) sum ^= all[j];
  for (; i < bytes; ++i) sum ^= static_cast<std::uint8_t>(g[i]);
  return sum;
}

}  // namespace

// `before` has count + 1 running sums of the variables' bytes. Each thread takes one range of them. `a` is null
// where there is no average. What it returns means nothing.
extern "C" int same_bytes(std::int64_t count, char* const* p, const char* const* g, char* const* m, char* const* v,
                          char* const* a, const std::int64_t* before, int ratio, int threads) {
  constexpr std::int64_t unit = 4096, worth_a_thread = 32768;
  const auto by_lines = ratio == 1 ? by_line<1> : by_line<2>;
  const std::int64_t total = before[count];
  const int parts = static_cast<int>(std::clamp<std::int64_t>(total / worth_a_thread, 1, threads));
  int sum = 0;
#pragma omp parallel num_threads(parts) reduction(^ : sum) if (parts > 1)
  for (const bool reading : {true, false}) {
    if (reading && a == nullptr) continue;
#pragma omp for schedule(static, 1)
    for (int part = 0; part < parts; ++part) {
      const std::int64_t begin = total / unit * part / parts * unit;
      const std::int64_t end = part + 1 == parts ? total : total / unit * (part + 1) / parts * unit;
      for (std::int64_t i = std::upper_bound(before, before + count, begin) - before - 1; before[i] < end; ++i) {
        const std::int64_t first = std::max<std::int64_t>(begin - before[i], 0);
        const std::int64_t last = std::min(end, before[i + 1]) - before[i];
        const auto bytes = static_cast<std::size_t>(last - first);
        if (reading) {
          sum ^= read(g[i] + first, bytes);
        } else {
          by_lines(p[i] + first, g[i] + first, m[i] + ratio * first, v[i] + ratio * first,
                   a == nullptr ? nullptr : a[i] + ratio * first, bytes);
        }
      }
    }
  }
  return sum;
}
