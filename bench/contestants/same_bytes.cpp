// The yardstick: a step without its arithmetic. It reads gradients, variables and slots, writes variables and
// slots, and leaves nothing that a compiler could drop. As for a norm it may read all gradients once more before.
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

constexpr int most_slots = 4;

struct At {
  char* p;
  const char* g;
  char* slots[most_slots];
};

// Bytes of an element: `size` of a variable or gradient, ratio * size of a slot. Elements [begin, end).
// The variable takes in the gradient's bits, two slots change places, others take in the variable's.
template <std::size_t size, std::size_t ratio, int slots>
void by_byte(const At& at, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin * size; i < end * size; ++i) at.p[i] ^= at.g[i];
  for (std::size_t i = begin * size * ratio; i < end * size * ratio; ++i) {
    if constexpr (slots >= 2) std::swap(at.slots[0][i], at.slots[1][i]);
    for (int k = slots >= 2 ? 2 : 0; k < slots; ++k) at.slots[k][i] ^= at.p[i / ratio];
  }
}

template <std::size_t size, std::size_t ratio, int slots>
void by_line(const At& at, std::size_t begin, std::size_t end) {
  // Aligned variables bring slots and gradient along: large NumPy arrays begin alike. Short ones are not
  // worth it.
  constexpr std::size_t elements = sizeof(Line) / size;
  const std::size_t to_alignment = (0 - reinterpret_cast<std::uintptr_t>(at.p + begin * size)) % sizeof(Line);
  std::size_t i = begin;
  if ((end - begin) * size >= 8192) i += to_alignment / size;
  by_byte<size, ratio, slots>(at, begin, i);
  for (; i + elements <= end; i += elements) {
    const std::size_t b = i * size;
    line(at.p + b) ^= line(at.g + b);
    for (std::size_t j = ratio * b; j < ratio * (b + sizeof(Line)); j += sizeof(Line)) {
      if constexpr (slots >= 2) {
        const Line former = line(at.slots[0] + j);
        line(at.slots[0] + j) = line(at.slots[1] + j);
        line(at.slots[1] + j) = former;
      }
      for (int k = slots >= 2 ? 2 : 0; k < slots; ++k) line(at.slots[k] + j) ^= line(at.p + b);
    }
  }
  by_byte<size, ratio, slots>(at, i, end);
}

using Move = void (*)(const At&, std::size_t, std::size_t);

template <std::size_t size, std::size_t ratio>
Move with_slots(int slots) {
  constexpr Move moves[] = {by_line<size, ratio, 0>, by_line<size, ratio, 1>, by_line<size, ratio, 2>,
                            by_line<size, ratio, 3>, by_line<size, ratio, 4>};
  return moves[slots];
}

Move move_of(int size, int slots) {
  return size == 2 ? with_slots<2, 2>(slots) : size == 4 ? with_slots<4, 1>(slots) : with_slots<8, 1>(slots);
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

// Arrays of variables p, gradients g and slots, `size` bytes an element of a variable, at least 4 of a slot.
// `before` has count + 1 running sums of the variables' elements. Each thread takes one range of them. What is
// returned means nothing.
extern "C" int same_bytes(std::int64_t count, char* const* p, const char* const* g, char* const* const* slots_of,
                          int slots, const std::int64_t* before, int size, int reads_twice, int threads) {
  constexpr std::int64_t unit = 1024, bytes_worth_a_thread = 32768;
  const Move move = move_of(size, slots);
  const std::int64_t total = before[count];
  const int parts = static_cast<int>(std::clamp<std::int64_t>(total * size / bytes_worth_a_thread, 1, threads));
  int sum = 0;
#pragma omp parallel num_threads(parts) reduction(^ : sum) if (parts > 1)
  for (const bool reading : {true, false}) {
    if (reading && !reads_twice) continue;
#pragma omp for schedule(static, 1)
    for (int part = 0; part < parts; ++part) {
      const std::int64_t begin = total / unit * part / parts * unit;
      const std::int64_t end = part + 1 == parts ? total : total / unit * (part + 1) / parts * unit;
      for (std::int64_t i = std::upper_bound(before, before + count, begin) - before - 1; before[i] < end; ++i) {
        const auto first = static_cast<std::size_t>(std::max<std::int64_t>(begin - before[i], 0));
        const auto last = static_cast<std::size_t>(std::min(end, before[i + 1]) - before[i]);
        if (reading) {
          sum ^= read(g[i] + first * static_cast<std::size_t>(size), (last - first) * static_cast<std::size_t>(size));
        } else {
          At at = {p[i], g[i], {}};
          for (int k = 0; k < slots; ++k) at.slots[k] = slots_of[k][i];
          move(at, first, last);
        }
      }
    }
  }
  return sum;
}
