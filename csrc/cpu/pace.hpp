// How long a plan's steps take, as measured, and what follows from it for the next one.
#pragma once

#include <cstdint>

namespace fusedstep {

// Times are in seconds, from any beginning.
class Pace {
 public:
  // Whether the step should let other Python threads run meanwhile. With a busy one beside, taking the GIL back
  // costs the switch interval, 5 ms; a step that keeps it may last a fifth of that. After a pause it lasts longer,
  // and counts as without: that it lost the GIL for 5 ms must not be a reason to release it again.
  bool is_long(std::uint64_t cost) const { return static_cast<double>(cost) * seconds_per_cost_ > 1e-3; }

  // On how many of `threads` the step should run that begins now: all or one.
  int choose(std::uint64_t cost, int threads, double now);

  // Takes in how long a step took. `undisturbed`: no other Python thread could run beside it.
  void measured(std::uint64_t cost, double begin, double end, bool undisturbed);

 private:
  static constexpr int steps_of_a_trial = 8;

  // Seconds per cost, of late.
  struct Estimate {
    double seconds = 0;
    double first[steps_of_a_trial] = {};  // samples, in order of size
    int samples = 0;

    void take(double sample, double weight);
  };

  // How long steps take on one thread and on all. Most go the way that is better; from time to
  // time a few try the other one.
  struct Ways {
    Estimate estimates[2];        // [0] on all threads, [1] on one
    bool one = false;             // the way of now
    bool trying = true;           // the other way than before, or the first one
    int left = steps_of_a_trial;  // steps until that is thought over
    int between = shortest_between;
    double lost = 0;        // seconds, by this trial
    double not_before = 0;  // the time of the next one
  };
  static constexpr int shortest_between = 64, longest_between = 1024;  // trials
  // Where others keep the cores busy, a step on all threads may take a hundred times as long. A trial that has lost
  // this much, or as long as it was to take, ends; and trials after the first may take this share of all time.
  static constexpr double most_lost = 4e-3, share_of_trials = 0.02;

  // A thread of OpenMP that has nothing to do sleeps after some milliseconds. What it costs to wake it depends on
  // where the system then puts it: between 0.1 and 8 ms. So steps after a pause are measured on their own.
  static constexpr double pause = 3e-3;
  Ways ways_[2];

  // What a step of cost 1 would take in the way that is not of now, as far as that is known.
  double seconds_otherwise(const Ways& ways) const {
    const Estimate& other = ways.estimates[!ways.one];
    return other.samples > 0 ? other.seconds : seconds_per_cost_;
  }

  double seconds_per_cost_ = 0.25e-9;  // without pauses, the better way; a first guess, on the low side
  double mean_cost_ = 0;               // of late
  double last_end_ = -pause;
  bool after_pause_ = true;  // of the step now running, as the next
  Ways* now_ = nullptr;      // null where there is no choice
};

}  // namespace fusedstep
