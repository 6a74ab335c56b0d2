#include "cpu/pace.hpp"

#include <algorithm>

namespace fusedstep {

int Pace::choose(std::uint64_t cost, int threads, double now) {
  // Waking threads is little beside the time of a step this large.
  constexpr std::uint64_t large = 16'000'000;
  now_ = nullptr;
  after_pause_ = now - last_end_ >= pause;
  if (threads == 1 || cost > large) return threads;
  Ways& ways = ways_[after_pause_];
  Estimate &current = ways.estimates[ways.one], &other = ways.estimates[!ways.one];
  const auto begin_trial = [&] {
    // What it was like when other programs were busy is no reason to lose one trial after the other.
    other.seconds = std::min(other.seconds, 2 * current.seconds);
    ways.one = !ways.one;
    ways.trying = true;
    ways.left = steps_of_a_trial;
    ways.lost = 0;
  };
  if (ways.trying) {
    const double long_as_expected = steps_of_a_trial * seconds_otherwise(ways) * static_cast<double>(cost);
    const bool too_long = ways.lost > most_lost + long_as_expected;
    if ((ways.left == 0 || too_long) && other.samples == 0) {
      begin_trial();
    } else if (ways.left == 0 || too_long) {
      const bool trial_won = !too_long && current.seconds < other.seconds;
      ways.between = trial_won ? shortest_between : std::min(2 * ways.between, longest_between);
      if (!trial_won) ways.one = !ways.one;
      ways.trying = false;
      ways.left = ways.between;
    }
  } else {
    const bool other_was_better = 1.5 * other.seconds < current.seconds;
    if ((ways.left <= 0 && now >= ways.not_before) || other_was_better) begin_trial();
  }
  --ways.left;
  now_ = &ways;
  return ways.one ? 1 : threads;
}

void Pace::measured(std::uint64_t cost, double begin, double end, bool undisturbed) {
  const double seconds = (end - begin) / static_cast<double>(cost);
  last_end_ = end;
  // Of plans that share this, small ones have a say that is as small. (One plan's steps all cost the same.)
  mean_cost_ += (static_cast<double>(cost) - mean_cost_) / (mean_cost_ > 0 ? 64 : 1);
  const double weight = std::min(static_cast<double>(cost) / mean_cost_, 1.0);
  // A step may be held up for many times as long as it takes: the estimate grows little by little.
  const bool may_grow = undisturbed && !after_pause_ && weight > 0.5 && (now_ == nullptr || !now_->trying);
  seconds_per_cost_ = std::min(seconds, may_grow ? 1.1 * seconds_per_cost_ : seconds_per_cost_);
  if (now_ == nullptr) return;
  if (now_->trying) {
    const double lost = std::max(seconds - seconds_otherwise(*now_), 0.0) * static_cast<double>(cost);
    now_->lost += lost;
    // The first steps also make threads and fetch memory. That says nothing of the next trial.
    const bool is_first = now_->estimates[!now_->one].samples == 0;
    if (!is_first) now_->not_before = std::max(now_->not_before, end) + lost / share_of_trials;
  }
  now_->estimates[now_->one].take(seconds, weight);
}

// A mean that one bad sample among many moves little, and that is not deaf to every third being bad. It begins
// with the median of some.
void Pace::Estimate::take(double sample, double weight) {
  if (samples < steps_of_a_trial) {
    first[samples++] = sample;
    std::sort(first, first + samples);
    seconds = first[samples / 2];
    return;
  }
  seconds += weight * (sample < seconds ? (sample - seconds) / 8 : (std::min(sample, 16 * seconds) - seconds) / 32);
}

}  // namespace fusedstep
