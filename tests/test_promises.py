"""What users of Keras expect of an optimizer, one test each; training goes on where it says so."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from fusedstep import SGD, Adagrad, Adam, Optimizer, RMSprop
from fusedstep.optimizers import ALL

Array = npt.NDArray[Any]


class Line:
    """Least squares: y = x*w + b, with its gradients."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((64, 3)).astype(np.float32)
        self.y = self.x @ np.array([1, -2, 0.5], np.float32) + np.float32(0.25)
        self.w, self.b = np.zeros(3, np.float32), np.zeros((), np.float32)

    def residual(self) -> Array:
        return np.asarray(self.x @ self.w + self.b - self.y)

    def loss(self) -> float:
        return float(np.mean(self.residual() ** 2))

    def pairs(self) -> Iterator[tuple[Any, Array]]:
        r = self.residual()
        return zip([2 * (r @ self.x) / len(r), 2 * r.mean()], [self.w, self.b], strict=True)

    def train(self, optimizer: Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            losses.append(self.loss())
            optimizer.apply_gradients(self.pairs())
        return losses


def test_optimizer_made_before_the_variables_exist() -> None:
    opt = Adam(learning_rate=0.1)
    assert (opt.iterations, opt.variables) == (0, [])
    model = Line()
    losses = model.train(opt, 100)
    assert losses[-1] < 0.01 * losses[0]
    assert opt.iterations == 100


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_one_instance_reused_with_two_models(cls: type[Optimizer]) -> None:
    """Each model has slots and counts of its own: it trains as with an optimizer of its own."""
    shared, one, other = cls(0.1), Line(1), Line(2)
    shared.build([one.w, one.b])
    shared.build([other.w, other.b])
    for _ in range(5):
        one.train(shared, 1)
        other.train(shared, 2)
    for model, seed, steps in ((one, 1, 5), (other, 2, 10)):
        alone = Line(seed)
        alone.train(cls(0.1), steps)
        assert (alone.w.tobytes(), alone.b.tobytes()) == (model.w.tobytes(), model.b.tobytes())


def test_one_instance_reused_with_a_second_model_after_the_first() -> None:
    opt, first, second, alone = Adam(0.1), Line(1), Line(2), Line(2)
    first.train(opt, 20)
    opt.build([second.w, second.b])
    assert opt.iterations == 0
    second.train(opt, 20)
    alone.train(Adam(0.1), 20)
    assert second.w.tobytes() == alone.w.tobytes()


def test_two_optimizers_one_after_another_on_one_model() -> None:
    """SGD, then Adam; training goes on from where it was."""
    model = Line()
    first = model.train(SGD(learning_rate=0.05), 20)
    second = model.train(Adam(learning_rate=0.05), 200)
    assert second[0] < first[-1] < first[0]
    assert second[-1] < 0.1 * second[0]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_strings_in_any_case(cls: type[Optimizer]) -> None:
    name = cls.__name__
    for text in (name, name.lower(), name.upper(), name.swapcase()):
        opt = fusedstep.get(text)
        assert type(opt) is cls
        assert opt.get_config() == cls().get_config()
    model = Line()
    losses = model.train(fusedstep.get(name.lower()), 20)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("opt", "arguments"),
    [
        (SGD(), {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False}),
        (SGD(learning_rate=0.01, momentum=0.9), {"learning_rate": 0.01, "momentum": 0.9}),
        (Adam(), {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}),
        (Adam(learning_rate=0.0001), {"learning_rate": 0.0001, "beta_1": 0.9}),
        (
            RMSprop(learning_rate=0.0001, rho=0.9, epsilon=1e-07),
            {"learning_rate": 0.0001, "rho": 0.9, "epsilon": 1e-07, "momentum": 0.0, "centered": False},
        ),
    ],
    ids=repr,
)
def test_constructors_as_users_write_them(opt: Optimizer, arguments: dict[str, Any]) -> None:
    config = opt.get_config()
    assert {name: config[name] for name in arguments} == arguments
    model = Line()
    losses = model.train(opt, 20)
    assert losses[-1] < losses[0]


def test_hyperparameters_settable_between_steps() -> None:
    """Momentum and rates of a running optimizer take effect at the next step."""
    w, opt = np.zeros(1), SGD(learning_rate=1.0, momentum=0.5)
    opt.apply_gradients([(np.ones(1), w)])
    opt.momentum = 0.25
    opt.learning_rate = 0.5
    opt.apply_gradients([(np.ones(1), w)])
    assert w[0] == -1 + (0.25 * -1 - 0.5)
    model, falling = Line(), RMSprop(learning_rate=0.05)
    for _ in range(50):
        model.train(falling, 1)
        falling.learning_rate *= 0.97
    assert falling.learning_rate == pytest.approx(0.05 * 0.97**50)
    assert model.loss() < 1


class Once:
    """An iterable that can be read once only."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs, self.reads = pairs, 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self.reads += 1
        return iter(self.pairs)


def test_apply_gradients_takes_any_iterable_of_pairs_once() -> None:
    g, w = np.ones(2), np.zeros(2)
    opt, once = SGD(1.0), Once([(g, w)])
    iterables: list[Any] = [
        [(g, w)],
        ((g, w),),
        zip([g], [w], strict=True),
        iter([(g, w)]),
        ([g, w] for _ in range(1)),
        {"w": (g, w)}.values(),
        map(tuple, [[g, w]]),
        once,
    ]
    for steps, pairs in enumerate(iterables, 1):
        assert opt.apply_gradients(pairs) == steps
        assert w.tolist() == [-steps, -steps]
    assert once.reads == 1


def test_the_base_class_itself_refuses_to_step() -> None:
    w = np.ones(2)
    calls: list[Callable[[Optimizer], Any]] = [
        lambda opt: opt.apply_gradients([(w, w)]),
        lambda opt: opt.apply([w], [w]),
        lambda opt: opt.build([w]),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match=r"the base class does not step; use fusedstep\.Adam"):
            call(Optimizer(0.1))
    assert w.tolist() == [1, 1]


def test_a_saved_run_resumes(tmp_path: Any) -> None:
    """In a new program: a new optimizer, the variables as they were saved."""
    model, opt = Line(), Adagrad(learning_rate=0.5)
    model.train(opt, 10)
    opt.save(tmp_path / "optimizer.safetensors")
    again = Line()
    again.w[...], again.b[...] = model.w, model.b
    resumed = Adagrad(learning_rate=0.5)
    resumed.load(tmp_path / "optimizer.safetensors")
    assert again.train(resumed, 10) == model.train(opt, 10)
    assert again.w.tobytes() == model.w.tobytes()


def test_gradients_processed_before_the_step() -> None:
    """Clip, then apply_gradients: what scripts of old do by hand, to the bits of ``clipnorm=1.0``."""
    by_hand, inside = Line(), Line()
    opt, twin = Adam(0.1), Adam(0.1, clipnorm=1.0)
    for _ in range(30):
        grads, variables = zip(*by_hand.pairs(), strict=True)
        opt.apply_gradients(zip([fusedstep.clip_by_norm(g, 1.0) for g in grads], variables, strict=True))
        twin.apply_gradients(inside.pairs())
    assert (by_hand.w.tobytes(), by_hand.b.tobytes()) == (inside.w.tobytes(), inside.b.tobytes())
    assert by_hand.loss() < 0.1 * Line().loss()
