"""What every optimizer computes: the plain definition in NumPy, in the kernels' order of operations.

Kernels must give these bits. A reference function gets the variable and the gradient of one array in the
compute type, its slots (which it replaces), the configuration, the learning rate and the update's number t,
and returns the new variable. Coefficients are Python floats, rounded once to the compute type C.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import fusedstep
from fusedstep import Optimizer
from fusedstep.optimizers.nadam import decay_of_one_update

Array = Any  # of the compute type, which NumPy's annotations cannot follow
Slots = dict[str, Array]
Config = dict[str, Any]


def power(base: float, exponent: int) -> float:
    """base**exponent by binary exponentiation, least significant bit first."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def maximum(a: Array, b: Any) -> Array:
    """The larger one; NaN where a is."""
    return np.where((a > b) | (a != a), a, b)


def sign(x: Array) -> Array:
    """1 or -1; +0 for zeros, NaN for NaN."""
    C = x.dtype.type
    return np.where(x > 0, C(1), np.where(x < 0, C(-1), np.where(x == 0, C(0), x)))


def clip(x: Array, low: Any, high: Any) -> Array:
    """What of [low, high] is nearest; NaN where x is."""
    return np.where(x < low, low, np.where(x > high, high, x))


def sgd(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    if h["momentum"] == 0:
        return p - C(lr) * g
    torch = h["form"] == "torch"
    a = C(h["momentum"])
    b = C((1 if t == 1 else 1 - h["dampening"]) if torch else -lr)
    s["momentum"] = (a * s["momentum"]) + (b * g)
    if h["nesterov"]:
        c = C(-lr * h["momentum"] if torch else h["momentum"])
        return p + ((c * s["momentum"]) + (C(-lr) * g))
    return p + C(-lr if torch else 1) * s["momentum"]


def adam(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    correction_1 = 1 - power(h["beta_1"], t)
    correction_2 = math.sqrt(1 - power(h["beta_2"], t))
    a = C(lr * correction_2 / correction_1 if h["epsilon_hat"] else lr / correction_1)
    r = C(1 if h["epsilon_hat"] else 1 / correction_2)
    s["momentum"] = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["velocity"] = (C(h["beta_2"]) * s["velocity"]) + (C(1 - h["beta_2"]) * (g * g))
    v = s["velocity"]
    if h["amsgrad"]:
        v = s["velocity_hat"] = maximum(s["velocity_hat"], v)
    return p - (a * s["momentum"]) / ((np.sqrt(v) * r) + C(h["epsilon"]))


def rmsprop(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    torch = h["form"] == "torch"
    inside, outside = (C(0), C(h["epsilon"])) if torch else (C(h["epsilon"]), C(0))
    k = C(1 if torch and h["momentum"] != 0 else lr)
    s["velocity"] = (C(h["rho"]) * s["velocity"]) + (C(1 - h["rho"]) * (g * g))
    d = s["velocity"]
    if h["centered"]:
        q = s["average_gradient"] = (C(h["rho"]) * s["average_gradient"]) + (C(1 - h["rho"]) * g)
        d = maximum(d - q * q, C(0))
    u = (k * g) / (np.sqrt(d + inside) + outside)
    if h["momentum"] == 0:
        return p - u
    s["momentum"] = (C(h["momentum"]) * s["momentum"]) + u
    return p - C(lr if torch else 1) * s["momentum"]


def adagrad(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    torch = h["form"] == "torch"
    inside, outside = (C(0), C(h["epsilon"])) if torch else (C(h["epsilon"]), C(0))
    k = C(lr / (1 + (t - 1) * h["learning_rate_decay"]) if torch else lr)
    s["accumulator"] = s["accumulator"] + g * g
    return p - (k * g) / (np.sqrt(s["accumulator"] + inside) + outside)


def adadelta(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    rho, q, e = C(h["rho"]), C(1 - h["rho"]), C(h["epsilon"])
    s["accumulated_grad"] = (rho * s["accumulated_grad"]) + (q * (g * g))
    d = (np.sqrt(s["accumulated_delta_var"] + e) * g) / np.sqrt(s["accumulated_grad"] + e)
    s["accumulated_delta_var"] = (rho * s["accumulated_delta_var"]) + (q * (d * d))
    return p - C(lr) * d


def adamax(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    torch = h["form"] == "torch"
    inside, outside = (C(h["epsilon"]), C(0)) if torch else (C(0), C(h["epsilon"]))
    s["momentum"] = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["norm"] = maximum(C(h["beta_2"]) * s["norm"], np.abs(g) + inside)
    return p - (C(lr / (1 - power(h["beta_1"], t))) * s["momentum"]) / (s["norm"] + outside)


def nadam(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    decay = decay_of_one_update(h["momentum_decay"])
    mu = [h["beta_1"] * (1 - 0.5 * power(decay, i)) for i in range(t + 2)]
    product = 1.0
    for i in range(1, t + 1):
        product *= mu[i]
    a = C(lr * mu[t + 1] / (1 - product * mu[t + 1]))
    b = C(lr * (1 - mu[t]) / (1 - product))
    r = C(1 / math.sqrt(1 - power(h["beta_2"], t)))
    s["momentum"] = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["velocity"] = (C(h["beta_2"]) * s["velocity"]) + (C(1 - h["beta_2"]) * (g * g))
    return p - ((a * s["momentum"]) + (b * g)) / ((np.sqrt(s["velocity"]) * r) + C(h["epsilon"]))


def radam(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    correction_1, left = 1 - power(h["beta_1"], t), power(h["beta_2"], t)
    most = 2 / (1 - h["beta_2"]) - 1
    length = most - 2 * t * left / (1 - left)
    s["momentum"] = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["velocity"] = (C(h["beta_2"]) * s["velocity"]) + (C(1 - h["beta_2"]) * (g * g))
    if length <= 5:
        return p - C(lr / correction_1) * s["momentum"]
    variance = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    a = C(lr * math.sqrt(variance) * math.sqrt(1 - left) / correction_1)
    return p - (a * s["momentum"]) / (np.sqrt(s["velocity"]) + C(h["epsilon"]))


def ftrl(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type

    def root(n: Array) -> Array:
        if h["learning_rate_power"] == -0.5:
            return np.sqrt(n)
        return np.power(n.astype(np.float64), -h["learning_rate_power"]).astype(C)

    i = C(1 / lr)
    j = C(2 * (h["l2_regularization_strength"] + h["beta"] / (2 * lr)))
    k = C(2 * h["l2_shrinkage_regularization_strength"])
    l1 = C(h["l1_regularization_strength"])
    n = s["accumulator"]
    next_n = s["accumulator"] = n + g * g
    shrunk = g + k * p if h["l2_shrinkage_regularization_strength"] else g
    z = s["linear"] = s["linear"] + (shrunk - (((root(next_n) - root(n)) * i) * p))
    above = clip(z, -l1, l1) - z
    return np.where(above == 0, above, above / ((root(next_n) * i) + j))


def lamb(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    k = C(1 / (1 - power(h["beta_1"], t)))
    r = C(1 / math.sqrt(1 - power(h["beta_2"], t)))
    s["momentum"] = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["velocity"] = (C(h["beta_2"]) * s["velocity"]) + (C(1 - h["beta_2"]) * (g * g))
    u = (s["momentum"] * k) / ((np.sqrt(s["velocity"]) * r) + C(h["epsilon"]))
    of_p, of_u = math.sqrt(sum_of_squares(p)), math.sqrt(sum_of_squares(u))
    with np.errstate(all="ignore"):
        ratio = float(np.float64(of_p) / of_u) if of_p > 0 and of_u > 0 else 1.0
    return p - C(lr * ratio) * u


def lion(p: Array, g: Array, s: Slots, h: Config, lr: float, t: int) -> Array:
    C = p.dtype.type
    direction = (C(h["beta_1"]) * s["momentum"]) + (C(1 - h["beta_1"]) * g)
    s["momentum"] = (C(h["beta_2"]) * s["momentum"]) + (C(1 - h["beta_2"]) * g)
    return p - C(lr) * sign(direction)


REFERENCES: dict[type[Optimizer], Callable[[Array, Array, Slots, Config, float, int], Array]] = {
    fusedstep.SGD: sgd,
    fusedstep.Adam: adam,
    fusedstep.AdamW: adam,
    fusedstep.RMSprop: rmsprop,
    fusedstep.Adagrad: adagrad,
    fusedstep.Adadelta: adadelta,
    fusedstep.Adamax: adamax,
    fusedstep.Nadam: nadam,
    fusedstep.RAdam: radam,
    fusedstep.Ftrl: ftrl,
    fusedstep.Lion: lion,
    fusedstep.Lamb: lamb,
}


def compute_type(dtype: Any) -> Any:
    """What a variable of this dtype is computed in."""
    return np.float64 if dtype == np.float64 else np.float32


LEAF, LANES = 4096, 128


def leaf_sums(values: Array) -> Array:
    """The sum of each 4096 values: lanes of 128 from the first row to the last, then halves onto halves."""
    padded = np.zeros(-(-values.size // LEAF) * LEAF)
    padded[: values.size] = values
    rows = padded.reshape(-1, LEAF // LANES, LANES)
    lanes = np.zeros((len(rows), LANES))
    for row in range(rows.shape[1]):
        lanes = lanes + rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def tree(sums: Array) -> float:
    """The sum of some sums."""
    while sums.size > 1:
        sums = leaf_sums(sums)
    return float(sums[0]) if sums.size else 0.0


def sum_of_squares(x: Array) -> float:
    values = x.astype(np.float64).ravel()
    return tree(leaf_sums(values * values))


def clip_factor(norm: float, largest: float) -> float:
    return 1.0 if norm <= largest else largest / norm if norm == norm else norm


def densified(gradient: Any, variable: Array) -> Array:
    """A gradient in the compute type; rows of equal indices are summed in their order, others are 0."""
    compute = compute_type(variable.dtype)
    if not isinstance(gradient, tuple):
        return np.asarray(gradient).astype(compute)
    dense, seen = np.zeros(variable.shape, compute), set()
    for index, row in zip(*gradient, strict=True):
        row = np.asarray(row).astype(compute)
        dense[index] = dense[index] + row if index in seen else row
        seen.add(index)
    return dense


def rows_not_touched(given: Sequence[Any], variable: Array) -> Any:
    """A mask of the rows that none of these gradients has, where all of them have rows; else of none."""
    gradients = [gradient for gradient in given if gradient is not None]
    if not gradients or not all(isinstance(gradient, tuple) for gradient in gradients):
        return np.zeros(variable.shape[:1], bool)
    touched = np.concatenate([np.asarray(indices, np.int64) for indices, _ in gradients])
    return ~np.isin(np.arange(len(variable)), touched)


class Reference:
    """The steps of an optimizer on its own copies of the variables.

    ``settings`` may have others than the optimizer's: learning_rate_multiplier, weight_decay, frozen.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        variables: Sequence[Array],
        settings: dict[int, dict[str, Any]] | None = None,
    ) -> None:
        self.rule = REFERENCES[type(optimizer)]
        self.config = optimizer.get_config()
        if isinstance(self.config["learning_rate"], dict):
            self.config["learning_rate"] = fusedstep.deserialize(self.config["learning_rate"])
        self.settings = settings or {}
        self.variables = [variable.copy() for variable in variables]
        self.slots: list[Slots] = [{} for _ in variables]
        for slots, variable in zip(self.slots, variables, strict=True):
            compute = compute_type(variable.dtype)
            for name in slot_names(optimizer):
                slots[name] = np.full(variable.shape, optimizer._initial().get(name, 0), compute)
            if "average" in slots:
                slots["average"] = variable.astype(compute)
        self.calls = self.updates = self.skips = 0
        self.norm: float | None = None

    def apply(
        self, grads: Sequence[Any] = (), replicas: Sequence[Sequence[Any]] = (), mean: bool = False
    ) -> None:
        """Take one step: the stages before the rule, the rule, and the average."""
        with np.errstate(all="ignore"):
            self._apply(replicas or [grads], mean)

    def _apply(self, replicas: Sequence[Sequence[Any]], mean: bool) -> None:
        h, K = self.config, self.config["gradient_accumulation_steps"] or 1
        updating = (self.calls + 1) % K == 0
        unscale = 1 / (h["loss_scale_factor"] or 1) / (len(replicas) if mean else 1)
        scale = 1 / K if K > 1 else unscale
        unscales = h["loss_scale_factor"] is not None or mean

        gradients: list[Any] = []
        for index, variable in enumerate(self.variables):
            gradient = None
            for given in replicas:
                if given[index] is None or self.settings.get(index, {}).get("frozen"):
                    continue
                one = densified(given[index], variable)
                gradient = one if gradient is None else gradient + one
            if gradient is not None and K > 1:
                if unscales:
                    gradient = gradient * gradient.dtype.type(unscale)
                gradient = self.slots[index]["gradient_accumulator"] + gradient
            gradients.append(gradient)

        sums = np.array([0.0 if g is None else sum_of_squares(g) for g in gradients])
        total = math.sqrt(tree(sums)) * scale if sums.size else 0.0
        clips = updating and (h["clipnorm"] or h["global_clipnorm"])
        self.norm = total if clips or h["skip_nonfinite"] else None
        if h["skip_nonfinite"] and not all(np.isfinite(g).all() for g in gradients if g is not None):
            self.skips += 1
            return

        for index, gradient in enumerate(gradients):
            variable, slots = self.variables[index], self.slots[index]
            compute = compute_type(variable.dtype)
            if K > 1 and not updating and gradient is not None:
                slots["gradient_accumulator"] = gradient
            elif K > 1 and updating:
                slots["gradient_accumulator"] = np.zeros(variable.shape, compute)
            if updating and gradient is not None:
                factor = scale
                if h["clipnorm"]:
                    factor = clip_factor(math.sqrt(sums[index]) * scale, h["clipnorm"]) * scale
                elif h["global_clipnorm"]:
                    factor = clip_factor(total, h["global_clipnorm"]) * scale
                if h["maximize"]:
                    factor = -factor
                on = bool(K > 1 or unscales or clips or h["maximize"])
                gradient = gradient * compute(factor) if on else gradient
            with self._left_as_they_are(index, replicas) if h["lazy"] else contextlib.nullcontext():
                if updating and gradient is not None:
                    self._update(index, gradient)
                if "average" in slots:
                    self._average(variable, slots, compute)
        self.calls += 1
        self.updates += updating

    @contextlib.contextmanager
    def _left_as_they_are(self, index: int, replicas: Sequence[Sequence[Any]]) -> Iterator[None]:
        """Keep the rows that are not touched; meanwhile they are 0, and so for norms not there."""
        variable, frozen = self.variables[index], self.settings.get(index, {}).get("frozen")
        others = rows_not_touched([None if frozen else given[index] for given in replicas], variable)
        kept = [(array, array[others]) for array in (variable, *self.slots[index].values())]
        for array, _ in kept:
            array[others] = 0
        yield
        for (_, rows), array in zip(kept, (variable, *self.slots[index].values()), strict=True):
            array[others] = rows

    def _update(self, index: int, g: Array) -> None:
        variable, h = self.variables[index], self.config
        C, own = compute_type(variable.dtype), self.settings.get(index, {})
        rate = h["learning_rate"]
        lr = (rate(self.calls) if callable(rate) else rate) * own.get("learning_rate_multiplier", 1.0)
        decay = own.get("weight_decay", h["weight_decay"])
        p = variable.astype(C)
        if h["clipvalue"]:
            g = clip(g, -C(h["clipvalue"]), C(h["clipvalue"]))
        if h["l2"]:
            g = g + C(h["l2"]) * p
        if decay:
            p = p - p * C(decay * lr)
        variable[...] = self.rule(p, g, self.slots[index], h, lr, self.updates + 1).astype(variable.dtype)

    def _average(self, variable: Array, slots: Slots, C: Any) -> None:
        h = self.config
        p = variable.astype(C)
        m = h["ema_momentum"]
        slots["average"] = p if self.updates == 0 else (C(m) * slots["average"]) + (C(1 - m) * p)
        every = h["ema_overwrite_frequency"]
        if every and (self.updates + 1) % every == 0:
            variable[...] = slots["average"].astype(variable.dtype)


def slot_names(optimizer: Optimizer) -> list[str]:
    """The names of the slots that these hyperparameters ask for."""
    probe = np.zeros(1)
    clone = type(optimizer).from_config(optimizer.get_config())
    clone.build([probe])
    return list(clone.slots(probe))


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays have the same bits, taking any NaN for any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize]
    equal = np.ascontiguousarray(a).view(unsigned) == np.ascontiguousarray(b).view(unsigned)
    return bool(np.all(equal | (np.isnan(a) & np.isnan(b))))


def assert_same(optimizer: Optimizer, variables: Sequence[Array], reference: Reference) -> None:
    """Every variable and slot has the reference's bits."""
    for index, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        what = f"variable {index} of {variable.dtype}, {variable.shape}"
        assert same_bits(variable, expected), f"{optimizer}: {what}: {first_difference(variable, expected)}"
        for name, slot in optimizer.slots(variable).items():
            theirs = reference.slots[index][name]
            assert same_bits(slot, theirs), f"{optimizer}: {name} of {what}: {first_difference(slot, theirs)}"


def first_difference(ours: Array, theirs: Array) -> str:
    """Say which element is the first that differs, and how many do."""
    places = [
        k
        for k, pair in enumerate(zip(ours.flat, theirs.flat, strict=True))
        if not same_bits(*map(np.asarray, pair))
    ]
    if not places:
        return f"{ours.dtype} {ours.shape} in the place of {theirs.dtype} {theirs.shape}"
    first = places[0]
    values = f"{ours.flat[first]!r}, in the reference {theirs.flat[first]!r}"
    return f"element {first} is {values}; {len(places)} differ"
