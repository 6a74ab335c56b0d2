"""Dynamic loss scaling: the scale's course, and that all else is the inner optimizer's."""

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from conftest import random_array
from fusedstep import SGD, Adam, AdamW, LossScaleOptimizer, Optimizer
from fusedstep.schedules import CosineDecay

Array = npt.NDArray[Any]


def scales(opt: LossScaleOptimizer, w: Array, finite: str) -> list[float]:
    """The scale after each call, of which those marked "-" have an infinite gradient."""
    found = []
    for mark in finite:
        gradient = np.ones_like(w)
        gradient[-1] = np.inf if mark == "-" else 1
        opt.apply([gradient], [w])
        found.append(opt.dynamic_scale)
    return found


def test_it_is_an_optimizer_with_keras_names_and_defaults() -> None:
    opt = LossScaleOptimizer(SGD())
    assert isinstance(opt, Optimizer)
    assert list(inspect.signature(LossScaleOptimizer).parameters) == [
        "inner_optimizer",
        "initial_scale",
        "dynamic_growth_steps",
    ]
    assert (opt.initial_scale, opt.dynamic_scale, opt.dynamic_growth_steps) == (2.0**15, 2.0**15, 2000)
    assert opt.scale_loss(np.float32(0.5)) == 2**14
    assert isinstance(opt.inner_optimizer, SGD)
    assert "SGD(learning_rate=0.01" in repr(opt)


def test_repr_shows_what_is_not_default() -> None:
    for arguments, shown in (
        ({}, ""),
        ({"initial_scale": 8.0}, ", initial_scale=8.0"),
        ({"dynamic_growth_steps": 3}, ", dynamic_growth_steps=3"),
        ({"initial_scale": 8.0, "dynamic_growth_steps": 3}, ", initial_scale=8.0, dynamic_growth_steps=3"),
    ):
        opt = LossScaleOptimizer(SGD(), **arguments)
        assert repr(opt) == f"LossScaleOptimizer({opt.inner_optimizer!r}{shown})"


def test_the_course_of_the_scale() -> None:
    opt, w = LossScaleOptimizer(SGD(), 8.0, 3), np.zeros(5000, np.float32)
    assert scales(opt, w, "+++") == [8, 8, 16]
    assert scales(opt, w, "++-++") == [16, 16, 8, 8, 8], "the count begins anew"
    assert scales(opt, w, "+--") == [16, 8, 4]
    assert (opt.iterations, opt.skipped_calls) == (8, 3)
    opt.apply([], [])
    opt.apply_gradients([])
    assert scales(opt, w, "++") == [4, 4], "an empty list is no call"
    assert scales(opt, w, "+") == [8]


def test_the_scale_stays_in_the_range_of_float32() -> None:
    opt, w = LossScaleOptimizer(SGD(), 2.0**125, 1), np.zeros(3, np.float32)
    assert scales(opt, w, "++++") == [2.0**126] * 4
    opt.dynamic_scale = 2.0**-125
    assert scales(opt, w, "---") == [2.0**-126] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
    "inner", [SGD(0.1, momentum=0.9), AdamW(0.1, global_clipnorm=0.5, use_ema=True)], ids=repr
)
def test_bits_are_those_of_the_inner_optimizer_without_the_scale(inner: Optimizer, dtype: Any) -> None:
    """A power of 2 divides exactly; a call that is left out changes nothing."""
    opt, plain = LossScaleOptimizer(inner.clone(), 256.0, 2), inner.clone()
    rng = np.random.default_rng(0)
    w = random_array(rng, 9000, dtype)
    v = w.copy()
    for step in range(6):
        gradient = random_array(rng, 9000, np.float32)
        scaled = gradient * np.float32(opt.dynamic_scale)
        if step % 4 == 2:
            bad = scaled.copy()
            bad[8999] = np.nan
            opt.apply([bad], [w])
            assert opt.skipped
            scaled = gradient * np.float32(opt.dynamic_scale)
        opt.apply_gradients([(scaled, w)])
        plain.apply([gradient], [v])
        assert w.tobytes() == v.tobytes()
        assert opt.gradient_norm == pytest.approx(np.linalg.norm(gradient.astype(float)))
    assert [a.tobytes() for a in opt.variables] == [a.tobytes() for a in plain.variables]
    assert opt.iterations == plain.iterations == 6


def test_replicas_dicts_and_settings_pass_through() -> None:
    opt, plain = LossScaleOptimizer(AdamW(0.1), 4.0), AdamW(0.1)
    models = [{"dense": {"kernel": np.ones(3), "bias": np.ones(2)}} for _ in range(2)]
    for one, model in zip((opt, plain), models, strict=True):
        scale = 4.0 if one is opt else 1.0
        one.build(model)
        one.adjust("dense/kernel", learning_rate_multiplier=0.5)
        one.exclude_from_weight_decay(var_names=["bias"])
        grads = {"dense": {"kernel": np.full(3, scale), "bias": np.full(2, scale)}}
        one.apply(grads)
        one.learning_rate = 0.2
        one.l2 = 0.5
        one.apply(replicas=[grads, grads], mean=True)
        assert (one.iterations, one.learning_rate, one.l2) == (2, 0.2, 0.5)
        one.finalize_variable_values()
    assert (models[0]["dense"]["kernel"] == models[1]["dense"]["kernel"]).all()
    assert (models[0]["dense"]["bias"] == models[1]["dense"]["bias"]).all()
    assert opt.slots(models[0]["dense"]["bias"]).keys() == {"momentum", "velocity"}
    assert opt.beta_1 == 0.9
    opt.forget(models[0])
    assert opt.variables == []


def test_settings_of_single_variables_pass_through() -> None:
    opt, ws = LossScaleOptimizer(SGD(0.5, weight_decay=0.5), 4.0), [np.ones(1) for _ in range(4)]
    opt.build(ws)
    opt.adjust(ws[0], learning_rate_multiplier=0.5)
    opt.adjust(ws[1], weight_decay=0.0)
    opt.adjust(ws[2], frozen=True)
    opt.apply([np.full(1, 4.0) for _ in ws])
    assert [float(w[0]) for w in ws] == [1 - 0.125 - 0.25, 0.5, 1.0, 1 - 0.25 - 0.5]


def test_an_inner_optimizer_that_has_built_already_takes_the_scale() -> None:
    inner, w = SGD(0.5), np.ones(1)
    inner.build([w])
    opt = LossScaleOptimizer(inner, 4.0)
    assert opt.skip_nonfinite is True
    assert opt.dynamic_scale == 4
    opt.apply([np.full(1, 4.0)])
    assert w[0] == 0.5
    opt.apply([np.full(1, np.inf)])
    assert (w[0], opt.skipped, opt.dynamic_scale) == (0.5, True, 2)


def test_the_scale_outlives_the_variables_that_changed_it() -> None:
    opt, w = LossScaleOptimizer(SGD(), 8.0, 3), np.zeros(2)
    for value in (np.inf, 1.0, 1.0):
        opt.apply([np.full(2, value)], [w])  # and nobody asks for the scale
    opt.forget([w])
    assert opt.dynamic_scale == 4
    opt.apply([np.ones(2)], [w])
    assert opt.dynamic_scale == 8


def test_replicas_of_one_of_several_models() -> None:
    """What is told of the last call is of the model that was stepped, also after a step over replicas."""
    opt, first, second = LossScaleOptimizer(SGD(1.0), 2.0), np.zeros(2), np.zeros(3)
    opt.build([first])
    opt.build([second])
    opt.apply(variables=[first], replicas=[[np.ones(2)], [np.full(2, np.inf)]])
    assert opt.skipped
    assert opt.dynamic_scale == 1
    opt.apply(variables=[second], replicas=[[np.ones(3)], [np.ones(3)]])
    assert not opt.skipped
    assert (second == -2).all()


def test_a_model_that_is_built_later_goes_on_from_the_scale() -> None:
    opt, first, second = LossScaleOptimizer(SGD(), 8.0, 3), np.zeros(2), np.zeros(3)
    for value in (np.inf, 1.0, 1.0):
        opt.apply([np.full(2, value)], [first])  # and nobody asks for the scale
    opt.build([second])
    assert opt.dynamic_scale == 4
    opt.apply([np.ones(3)], [second])
    assert opt.dynamic_scale == 8


def test_a_refused_call_changes_nothing() -> None:
    opt, w = LossScaleOptimizer(SGD(), 2.0, 1), np.zeros(3)
    opt.build([w])
    with pytest.raises(ValueError, match="has shape"):
        opt.apply([np.ones(2)], [w])
    assert (opt.dynamic_scale, opt.iterations) == (2, 0)


def through_pickle(opt: LossScaleOptimizer) -> LossScaleOptimizer:
    twin: LossScaleOptimizer = pickle.loads(pickle.dumps(opt))
    return twin


def fresh(opt: LossScaleOptimizer) -> LossScaleOptimizer:
    twin = opt.clone()
    twin.load_state_dict(opt.state_dict())
    return twin


@pytest.mark.parametrize("carry", [copy.copy, copy.deepcopy, through_pickle, fresh], ids=lambda f: f.__name__)
def test_copies_carry_the_scale_and_the_count(
    carry: Callable[[LossScaleOptimizer], LossScaleOptimizer],
) -> None:
    opt, w = LossScaleOptimizer(Adam(0.1), 8.0, 3), np.zeros(3)
    scales(opt, w, "-++")
    twin, v = carry(opt), w.copy()
    assert twin.inner_optimizer is not opt.inner_optimizer
    assert scales(twin, v, "+-") == scales(opt, w, "+-") == [8, 4]
    assert v.tobytes() == w.tobytes()
    twin.dynamic_scale = 64.0
    assert opt.dynamic_scale == 4


@pytest.mark.parametrize("carry", [copy.copy, copy.deepcopy, through_pickle, fresh], ids=lambda f: f.__name__)
def test_copies_share_nothing(carry: Callable[[LossScaleOptimizer], LossScaleOptimizer]) -> None:
    opt, w = LossScaleOptimizer(SGD(), 8.0, 3), np.zeros(3)
    twin = carry(opt)
    twin.dynamic_scale = 64.0
    assert opt.dynamic_scale == 8, "before there is a build"
    opt.apply([np.full(3, np.inf)], [w])  # and nobody asks for the scale
    assert carry(opt).dynamic_scale == 4
    assert twin.dynamic_scale == 64


def test_files(tmp_path: Path) -> None:
    opt, w = LossScaleOptimizer(Adam(0.1), 8.0, 3), np.zeros(3)
    scales(opt, w, "-++")
    opt.save(tmp_path / "state")
    for built in (True, False):
        twin, v = opt.clone(), w.copy()
        if built:
            twin.build([v])
        assert twin.dynamic_scale == 8
        twin.load(tmp_path / "state")
        assert (twin.dynamic_scale, twin.iterations) == (4, 2)
        assert scales(twin, v, "+") == [8]
        assert twin.skipped_calls == 1


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    opt, w = LossScaleOptimizer(Adam(0.1), 8.0, 3), np.zeros(3)
    scales(opt, w, "++")
    before = repr(opt.state_dict())
    bad: list[tuple[Any, type[Exception], str]] = [
        (Adam(0.1).state_dict(), ValueError, "the class is Adam in the state, LossScaleOptimizer here"),
        (LossScaleOptimizer(SGD()).state_dict(), ValueError, "the class is SGD in the state, Adam here"),
        (opt.state_dict() | {"dynamic_scale": 0.0}, ValueError, "dynamic_scale must lie in"),
        (
            opt.state_dict() | {"finite_calls": -1},
            ValueError,
            "finite_calls must lie in [0, 2^63), got -1",
        ),
        (opt.state_dict() | {"finite_calls": "1"}, ValueError, "reading it ends with TypeError"),
        (opt.state_dict() | {"config": {}}, ValueError, "reading it ends with KeyError: 'inner_optimizer'"),
        ([], TypeError, "state must be a dict as of state_dict, got a list"),
    ]
    for state, error, sentence in bad:
        with pytest.raises(error, match=r"LossScaleOptimizer\.load_state_dict") as caught:
            opt.load_state_dict(state)
        assert sentence in str(caught.value)
    assert repr(opt.state_dict()) == before


def test_configurations() -> None:
    opt, w = LossScaleOptimizer(Adam(CosineDecay(0.1, 10), beta_1=0.5), 8.0, 3), np.zeros(3)
    scales(opt, w, "---")
    config = opt.get_config()
    assert config.keys() == {"inner_optimizer", "initial_scale", "dynamic_growth_steps"}
    state = opt.state_dict()
    for twin in (
        LossScaleOptimizer.from_config(config),
        fusedstep.deserialize(json.loads(json.dumps(fusedstep.serialize(opt)))),
        fusedstep.get(fusedstep.serialize(opt)),
        fusedstep.get(state),
        opt.clone(),
    ):
        assert isinstance(twin, LossScaleOptimizer)
        assert twin.get_config() == config
        assert twin.dynamic_scale == 8, "the first scale, not the last"
        assert isinstance(twin.inner_optimizer, Adam)
    assert fusedstep.get(opt) is opt
    assert LossScaleOptimizer.from_config({"inner_optimizer": SGD()}).dynamic_growth_steps == 2000


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (
            lambda: (SGD(loss_scale_factor=2.0),),
            ValueError,
            "inner_optimizer has loss_scale_factor=2.0 of its own",
        ),
        (
            lambda: (LossScaleOptimizer(SGD(), 2.0),),
            ValueError,
            "inner_optimizer has loss_scale_factor=2.0 of its own",
        ),
        (lambda: ("sgd",), TypeError, "inner_optimizer must be an optimizer, got 'sgd'"),
        (lambda: (SGD(), 0.0), ValueError, "initial_scale must lie in ["),
        (lambda: (SGD(), 1e300), ValueError, "initial_scale must lie in ["),
        (lambda: (SGD(), "8"), TypeError, "initial_scale must be a real number, got '8'"),
        (
            lambda: (SGD(), 8.0, 0),
            ValueError,
            "dynamic_growth_steps must lie in [1, 2^63), got 0",
        ),
        (lambda: (SGD(), 8.0, 1.5), TypeError, "dynamic_growth_steps must be an integer, got 1.5"),
        (lambda: (SGD(), 8.0, True), TypeError, "dynamic_growth_steps must be an integer, got True"),
    ],
    ids=range(9),
)
def test_refusals(arguments: Callable[[], tuple[Any, ...]], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        LossScaleOptimizer(*arguments())
    assert f"LossScaleOptimizer: {sentence}" in str(caught.value)


def test_an_inner_optimizer_has_one_scale() -> None:
    inner = SGD()
    outer = LossScaleOptimizer(inner, 8.0)
    for one in (inner, outer):
        with pytest.raises(ValueError, match=r"inner_optimizer has loss_scale_factor=8\.0 of its own"):
            LossScaleOptimizer(one)


def test_one_that_is_not_made_yet_has_no_attributes() -> None:
    """As copy and pickle make it first."""
    assert not hasattr(LossScaleOptimizer.__new__(LossScaleOptimizer), "beta_1")


def test_a_refused_inner_optimizer_is_left_as_it_was() -> None:
    inner = SGD()
    with pytest.raises(ValueError, match="dynamic_growth_steps"):
        LossScaleOptimizer(inner, 8.0, 0)
    assert (inner.loss_scale_factor, inner.skip_nonfinite) == (None, False)


def test_what_follows_the_scale_cannot_be_set() -> None:
    opt = LossScaleOptimizer(SGD(), 8.0)
    for name, value in (("loss_scale_factor", 2.0), ("skip_nonfinite", False)):
        with pytest.raises(ValueError, match=f"LossScaleOptimizer: {name} follows the dynamic scale"):
            setattr(opt, name, value)
    with pytest.raises(ValueError, match="dynamic_scale must lie in"):
        opt.dynamic_scale = float("inf")
    assert opt.dynamic_scale == 8


def test_minimize_scales_the_loss() -> None:
    pytest.importorskip("autograd")
    w = np.array([1.0])
    opt = LossScaleOptimizer(SGD(0.1), initial_scale=1024.0)
    assert opt.minimize(lambda w: (w**2).sum(), [w]) == 1.0
    assert w[0] == 0.8
    with pytest.raises(
        TypeError, match=r"LossScaleOptimizer\.minimize: loss must take the variables, for autograd"
    ):
        opt.minimize(lambda: (1.0, [2 * w]), [w])
    with pytest.raises(TypeError, match=r"loss must take the variables, for autograd, got 3\.0"):
        opt.minimize(3.0, [w])  # type: ignore[arg-type]
    assert w[0] == 0.8


def test_hyperparameters_of_the_inner_optimizer_can_be_set() -> None:
    opt: Any = LossScaleOptimizer(Adam())
    opt.beta_1 = 0.5
    assert opt.inner_optimizer.beta_1 == opt.beta_1 == 0.5
    with pytest.raises(
        AttributeError, match=r"^Adam: there is no argument beta_3; did you mean beta_[12]\?$"
    ):
        opt.beta_3 = 0.5


def test_calls_that_overflow_are_left_out_whatever_the_inner_optimizer_is_told() -> None:
    opt, w = LossScaleOptimizer(SGD(1.0), initial_scale=8.0), np.zeros(1)
    opt.inner_optimizer.skip_nonfinite = False
    opt.apply([np.array([np.inf])], [w])
    assert (w[0], opt.dynamic_scale) == (0, 4.0)


class Named(LossScaleOptimizer):
    """With an argument of its own, in Keras' manner."""

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 4.0,
        dynamic_growth_steps: int = 8,
        label: str = "",
    ) -> None:
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps)
        self._label = label
        self._history: list[float] = []

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"label": self._label}


def test_a_subclass_with_an_argument_of_its_own_is_cloned_with_it() -> None:
    optimizer = Named(SGD(lambda calls: 0.5), 2.0, label="mine")
    twin = optimizer.clone()
    assert (type(twin), twin._label, twin.initial_scale) == (Named, "mine", 2.0)
    assert twin.inner_optimizer is not optimizer.inner_optimizer
    assert twin.learning_rate == 0.5


class WithName(LossScaleOptimizer):
    """With an argument that is called as that of Keras' wrapper, which is left out otherwise."""

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 4.0,
        dynamic_growth_steps: int = 8,
        name: str = "",
    ) -> None:
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps)
        self._name = name

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"name": self._name}


def test_a_name_of_a_subclass_is_not_lost() -> None:
    optimizer = WithName(SGD(0.5), name="mine")
    assert optimizer.clone()._name == "mine"
    assert WithName.from_config(optimizer.get_config())._name == "mine"


def test_attributes_of_a_subclass_are_copied_as_deep_as_it_is() -> None:
    optimizer = Named(SGD())
    optimizer._history = [2.0]
    assert copy.copy(optimizer)._history is optimizer._history
    twin = copy.deepcopy(optimizer)
    assert (twin._history, twin._history is optimizer._history) == ([2.0], False)


def test_kerass_own_configuration_is_read() -> None:
    """What keras.optimizers.serialize returns has a name of the wrapper, too."""
    inner = {
        "module": "keras.optimizers",
        "class_name": "SGD",
        "config": {"name": "SGD", "learning_rate": 0.5},
    }
    config = {"name": "loss_scale_optimizer", "inner_optimizer": inner, "initial_scale": 4.0}
    before = copy.deepcopy(config)
    LossScaleOptimizer.from_config(config)
    assert config == before
    made = fusedstep.get({"class_name": "LossScaleOptimizer", "config": config, "registered_name": None})
    assert isinstance(made, LossScaleOptimizer)
    assert (made.initial_scale, made.dynamic_growth_steps, made.learning_rate) == (4.0, 2000, 0.5)
