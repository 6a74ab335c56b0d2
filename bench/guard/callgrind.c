// What a program tells callgrind, which runs it.
#include <valgrind/callgrind.h>

void begin(void) {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

// What comes between two of these is not counted.
void pause_or_go_on(void) {
  CALLGRIND_TOGGLE_COLLECT;
}

void end(void) {
  CALLGRIND_DUMP_STATS;
  CALLGRIND_STOP_INSTRUMENTATION;
}
