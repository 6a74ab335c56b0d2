"""The options that all optimizers take, apart from what is the rule's."""

from math import log2

from fusedstep import _native
from fusedstep.optimizers.declared import Declared
from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.learning_rate import LearningRate

COUNTS = "[1, 2^63)"  # what C++ has integers for
SCALES = "[2^{:.0f}, 2^{:.0f}]".format(*map(log2, (_native.smallest_loss_scale, _native.largest_loss_scale)))


class WithOptions(Declared):
    """Declares the options; :class:`Optimizer` tells what they do."""

    learning_rate: LearningRate = LearningRate(default=0.001, kw_only=False)
    weight_decay: float | None = hyperparameter(
        default=None,
        interval="[0, inf)",
        optional=True,
        meaning="decoupled weight decay, times the learning rate",
    )
    l2: float | None = hyperparameter(
        default=None, interval="[0, inf)", optional=True, meaning="weight of an L2 penalty"
    )
    maximize: bool = hyperparameter(default=False, meaning="ascend instead of descend")
    clipnorm: float | None = hyperparameter(
        default=None, interval="(0, inf)", optional=True, meaning="largest norm of a gradient"
    )
    global_clipnorm: float | None = hyperparameter(
        default=None, interval="(0, inf)", optional=True, meaning="largest norm of all gradients together"
    )
    clipvalue: float | None = hyperparameter(
        default=None, interval="(0, inf)", optional=True, meaning="largest magnitude of an element"
    )
    use_ema: bool = hyperparameter(default=False, meaning="keep an average of every variable")
    ema_momentum: float = hyperparameter(
        default=0.99, interval="[0, 1]", meaning="weight of the former average"
    )
    ema_overwrite_frequency: int | None = hyperparameter(
        default=None,
        interval=COUNTS,
        optional=True,
        integer=True,
        meaning="updates until the averages go into the variables",
    )
    loss_scale_factor: float | None = hyperparameter(
        default=None, interval=SCALES, optional=True, meaning="what the loss was multiplied by"
    )
    gradient_accumulation_steps: int | None = hyperparameter(
        default=None, interval=COUNTS, optional=True, integer=True, meaning="calls that make one update"
    )
    skip_nonfinite: bool = hyperparameter(
        default=False, meaning="leave out calls with gradients that are not finite"
    )
    lazy: bool = hyperparameter(default=False, meaning="update only the rows of sparse gradients")

    def _check_together(self) -> None:
        who, ways = type(self).__name__, ("clipnorm", "global_clipnorm", "clipvalue")
        clips = [f"{name}={self._values[name]}" for name in ways if self._values[name] is not None]
        if len(clips) > 1:
            raise ValueError(f"{who}: {' and '.join(clips)} are given; choose one way to clip")
        if self._values["ema_overwrite_frequency"] is not None and not self._values["use_ema"]:
            raise ValueError(
                f"{who}: ema_overwrite_frequency is {self.ema_overwrite_frequency}, but there is no average;"
                " pass use_ema=True"
            )
        if self._values["lazy"] and self._accumulates():
            raise ValueError(
                f"{who}: lazy and gradient_accumulation_steps={self.gradient_accumulation_steps} cannot both"
                " be; the sums over calls have other rows than a call"
            )

    def _accumulates(self) -> bool:
        return (self._values["gradient_accumulation_steps"] or 1) > 1

    def _options(self) -> _native.Options:
        values, options = self._values, _native.Options()
        options.l2 = values["l2"] or 0.0
        options.maximize = values["maximize"]
        options.clipnorm = values["clipnorm"]
        options.global_clipnorm = values["global_clipnorm"]
        options.clipvalue = values["clipvalue"]
        options.gradient_accumulation_steps = values["gradient_accumulation_steps"] or 1
        options.loss_scale_factor = values["loss_scale_factor"]
        options.skip_nonfinite = values["skip_nonfinite"]
        options.ema_momentum = values["ema_momentum"] if values["use_ema"] else None
        options.ema_overwrite_frequency = values["ema_overwrite_frequency"] or 0
        options.lazy = values["lazy"]
        return options
