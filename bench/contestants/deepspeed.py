"""DeepSpeed's CPUAdam, which compiles itself at its first use."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from bench.contestants.contestant import Contestant, Given, UnavailableError, first_line, import_peer
from bench.contestants.pytorch import arrays_of, parameters, renewing_of, scaling_of

BUILD_SECONDS = 240


@contextlib.contextmanager
def time_limit(seconds: float, why: str) -> Iterator[None]:
    """Raise UnavailableError in the main thread once that much time has passed."""

    def give_up(_: int, __: FrameType | None) -> None:
        raise UnavailableError(why)

    former = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def make(given: Given) -> Contestant:
    """Step on PyTorch's tensors."""
    given.refuse(optimizers=("adam", "adamw"), steps=("plain",), dtypes=("float32", "bfloat16", "float16"))
    import_peer("torch").set_num_threads(given.threads)
    adam = import_peer("deepspeed.ops.adam").DeepSpeedCPUAdam
    params, h = parameters(given), given.definition.arguments
    # It waits for ever for the lock of a build that was killed.
    patience = time_limit(
        BUILD_SECONDS,
        f"no build in {BUILD_SECONDS} s; a killed one leaves a file named lock in torch_extensions",
    )
    try:
        with patience, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            opt = adam(
                params,
                lr=given.learning_rate,
                betas=(h["beta_1"], h["beta_2"]),
                eps=h["epsilon"],
                weight_decay=h.get("weight_decay", 0),
                adamw_mode=given.workload.optimizer == "adamw",
            )
    except Exception as error:  # whatever goes wrong in its build
        raise UnavailableError(first_line(error)) from error
    scale, renew = scaling_of(given, params), renewing_of(params)
    return Contestant(opt.step, lambda: arrays_of(params), scale, renew=renew)
