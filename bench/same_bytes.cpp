// The yardstick: a step without its arithmetic. It reads gradient, variable and two slots, writes
// variable and slots, and leaves nothing that a compiler could drop.
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
template <std::size_t ratio>
void by_byte(char* p, const char* g, char* m, char* v, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) p[i] ^= g[i];
  std::swap_ranges(m, m + ratio * bytes, v);
}

template <std::size_t ratio>
void by_line(char* p, const char* g, char* m, char* v, std::size_t bytes) {
  // Aligned variables bring slots and gradient along: large NumPy arrays begin alike. Short ones are not
  // worth it.
  const std::size_t to_alignment = (0 - reinterpret_cast<std::uintptr_t>(p)) % sizeof(Line);
  const std::size_t head = bytes < 8192 ? 0 : to_alignment;
  by_byte<ratio>(p, g, m, v, head);
  std::size_t i = head;
  for (; i + sizeof(Line) <= bytes; i += sizeof(Line)) {
    line(p + i) ^= line(g + i);
    for (std::size_t j = ratio * i; j < ratio * (i + sizeof(Line)); j += sizeof(Line)) {
      const Line former = line(m + j);
      line(m + j) = line(v + j);
      line(v + j) = former;
    }
  }
  by_byte<ratio>(p + i, g + i, m + ratio * i, v + ratio * i, bytes - i);
}

}  // namespace

// `before` has count + 1 running sums of the variables' bytes. Each thread takes one range of them.
extern "C" void same_bytes(std::int64_t count, char* const* p, const char* const* g, char* const* m, char* const* v,
                           const std::int64_t* before, int ratio, int threads) {
  constexpr std::int64_t unit = 4096, worth_a_thread = 32768;
  const auto by_lines = ratio == 1 ? by_line<1> : by_line<2>;
  const std::int64_t total = before[count];
  const int parts = static_cast<int>(std::clamp<std::int64_t>(total / worth_a_thread, 1, threads));
#pragma omp parallel for num_threads(parts) schedule(static, 1) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    const std::int64_t begin = total / unit * part / parts * unit;
    const std::int64_t end = part + 1 == parts ? total : total / unit * (part + 1) / parts * unit;
    for (std::int64_t i = std::upper_bound(before, before + count, begin) - before - 1; before[i] < end; ++i) {
      const std::int64_t first = std::max<std::int64_t>(begin - before[i], 0);
      const std::int64_t last = std::min(end, before[i + 1]) - before[i];
      by_lines(p[i] + first, g[i] + first, m[i] + ratio * first, v[i] + ratio * first,
               static_cast<std::size_t>(last - first));
    }
  }
}
