"""What is folded into the pass, to the bits of the reference: clipping, averages, accumulation, scales."""

import copy
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from conftest import DTYPES, LAZY_OPTIONS, OPTIONS, VARIANTS, random_array, with_arguments
from fusedstep import SGD, Adam, AdamW, Lamb, Optimizer
from reference import Reference, assert_same, compute_type, same_bits, sum_of_squares

Array = npt.NDArray[Any]

SIZES = [0, 1, 17, 513, 4095, 4096, 4097, 9000]
ALL_CASES = list(itertools.product(SIZES, DTYPES))
# For products of many: every dtype beyond a tile, beyond a leaf of the norms' tree, and a tail.
FEW_CASES: list[tuple[int, Any]] = [(17, DTYPES[0]), (4097, DTYPES[0]), (513, DTYPES[1]), (4097, DTYPES[1])]
FEW_CASES += [(600, DTYPES[2]), (600, DTYPES[3])]
STEPS = 7  # more than any period above, twice


def id_of(options: dict[str, Any]) -> str:
    return "+".join(f"{name}={value}" for name, value in options.items())


def arrays(
    seed: int, cases: list[tuple[int, Any]] = ALL_CASES, special: bool = False
) -> tuple[list[Array], list[list[Any]]]:
    """Variables of all dtypes and sizes, and gradients for some steps, None here and there."""
    rng = np.random.default_rng(seed)
    variables = [random_array(rng, size, dtype) for size, dtype in cases]
    steps: list[list[Any]] = []
    for step in range(STEPS):
        grads: list[Any] = []
        for number, (size, dtype) in enumerate(cases):
            of = dtype if number % 3 else np.float32
            grads.append(random_array(rng, size, of, special=special and step % 2 == 1))
        for number in rng.choice(len(grads), len(grads) // 4, replace=False):
            grads[number] = None
        steps.append(grads)
    return variables, steps


def assert_same_steps(optimizer: Optimizer, variables: list[Array], steps: list[list[Any]]) -> Reference:
    reference = Reference(optimizer, variables)
    for grads in steps:
        reference.apply(grads)
        assert optimizer.apply(grads, variables) == reference.calls
        assert optimizer.iterations == reference.updates
        assert optimizer.skipped_calls == reference.skips
        norm = optimizer.gradient_norm
        assert norm == reference.norm or (norm is not None and math.isnan(norm))
    assert_same(optimizer, variables, reference)
    return reference


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=id_of)
def test_a_gradient_may_be_its_variable(options: dict[str, Any]) -> None:
    """It is the variable as it was before the step, whose decay comes first."""
    for bare in (SGD(0.1, momentum=0.5), Lamb(0.1, l2=0.5)):
        optimizer = with_arguments(bare, **({"weight_decay": 0.25} | options))
        variables, _ = arrays(3)
        reference = Reference(optimizer, variables)
        for _ in range(STEPS):
            optimizer.apply(variables, variables)
            reference.apply([one.copy() for one in reference.variables])
        assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_every_option_with_every_rule(variant: Optimizer, options: dict[str, Any]) -> None:
    variables, steps = arrays(1, FEW_CASES)
    assert_same_steps(with_arguments(variant, **options), variables, steps)


@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
def test_every_option_on_every_target(options: dict[str, Any], target: str, threads: int) -> None:
    variables, steps = arrays(2)
    rng = np.random.default_rng(3)
    variables += [random_array(rng, size, np.float32) for size in (200_000, 100_003)]
    for grads in steps:
        grads += [random_array(rng, size, np.float32) for size in (200_000, 100_003)]
    assert_same_steps(Adam(0.01, **options), variables, steps)


@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
def test_special_values(options: dict[str, Any], target: str) -> None:
    """Infinities and NaNs propagate as the formulas say, or skip the call."""
    variables, steps = arrays(4, special=True)
    reference = assert_same_steps(AdamW(0.01, **options), variables, steps)
    assert (reference.skips > 0) == ("skip_nonfinite" in options)


def test_a_norm_beyond_the_root_of_the_largest_float() -> None:
    """Squares of float32 numbers above 1.8e19 are too large for float32; the norm is not computed there."""
    w, gradient = np.zeros(2, np.float32), np.array([3e30, 4e30], np.float32)
    for options in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        opt, w = SGD(1.0, **options), np.zeros(2, np.float32)  # type: ignore[arg-type]
        opt.apply([gradient], [w])
        assert np.allclose(w, [-0.6, -0.8], rtol=1e-6)
        assert opt.gradient_norm == pytest.approx(5e30)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_ascent_along_clipped_gradients(clip: str) -> None:
    w = np.zeros(2)
    options: dict[str, Any] = {clip: 1.0}
    SGD(1.0, maximize=True, **options).apply([np.array([3.0, 4.0])], [w])
    assert w.tolist() == [3.0 * (1 / 5), 4.0 * (1 / 5)]


def test_a_gradient_just_at_the_norm_is_left_alone() -> None:
    gradient = np.random.default_rng(5).standard_normal(10_000)
    norm = math.sqrt(sum_of_squares(gradient))
    for largest, changed in ((norm, False), (np.nextafter(norm, 0), True)):
        w = np.zeros(10_000)
        SGD(1.0, clipnorm=largest).apply([gradient], [w])
        assert bool((w != -gradient).any()) == changed


@pytest.mark.parametrize("size", [5000, 200_000])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("cls", [Adam, Lamb])
def test_a_skipped_call_changes_no_byte(cls: type[Adam | Lamb], steps: int, size: int, threads: int) -> None:
    """Slots, averages and sums stay, and it counts as no call; whichever thread finds it."""
    opt = cls(0.1, skip_nonfinite=True, use_ema=True, gradient_accumulation_steps=steps)
    variables: list[Array] = [np.ones(size, np.float32), np.ones(3)]
    opt.apply([np.ones(size, np.float32), np.ones(3)], variables)
    before = [a.tobytes() for a in (*variables, *opt.variables)]
    for bad in (np.inf, -np.inf, np.nan):
        for place in (0, size - 1):
            gradient = np.zeros(size, np.float32)
            gradient[place] = bad
            assert opt.apply([gradient, np.ones(3)], variables) == 1
            assert opt.skipped
    assert opt.skipped_calls == 6
    assert [a.tobytes() for a in (*variables, *opt.variables)] == before
    assert opt.apply([np.zeros(size, np.float32), np.ones(3)], variables) == 2
    assert not opt.skipped


def test_sums_of_finite_float64_gradients_that_overflow_are_not_skipped() -> None:
    opt, w = SGD(1.0, skip_nonfinite=True), np.zeros(2)
    opt.apply([np.array([1e200, 1.0])], [w])
    assert not opt.skipped
    assert opt.gradient_norm == math.inf


def test_gradients_that_are_missing_in_some_calls_of_an_update() -> None:
    """They count as zeros, but the last one, without which there is no update; averages go on."""
    for given, expected in (([None, 2.0], -1.0), ([2.0, None], 0.0), ([2.0, 0.0], -1.0)):
        opt, v, w = SGD(1.0, gradient_accumulation_steps=2, use_ema=True), np.zeros(1), np.zeros(1)
        opt.build([v, w])
        for gradient in given:
            opt.apply([np.ones(1), None if gradient is None else np.array([gradient])])
        assert (v[0], w[0], opt.slots(w)["gradient_accumulator"][0]) == (-1, expected, 0)
        assert opt.slots(w)["average"][0] == expected


def test_averages_are_put_into_the_variables_after_each_call_of_the_update() -> None:
    opt, w = SGD(1.0, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5), np.zeros(1)
    opt.ema_overwrite_frequency = 2
    seen = []
    for _ in range(8):
        opt.apply([np.ones(1)], [w])
        seen.append((w[0], opt.slots(w)["average"][0]))
    assert seen[4:] == [(-1.5, -1.5), (-2.5, -2), (-2.25, -2.25), (-2.75, -2.75)]


def test_finalize_variable_values() -> None:
    opt = SGD(1.0, use_ema=True, ema_momentum=0.5)
    models: list[list[Array]] = [[np.zeros(3), np.zeros(2, np.float16)] for _ in range(2)]
    for model in models:
        opt.build(model)
        for _ in range(3):
            opt.apply([np.ones_like(w) for w in model], model)
    averages = [opt.slots(w)["average"].copy() for w in models[0]]
    assert averages[0][0] == -2.25
    opt.finalize_variable_values(models[0])
    assert all((w == average).all() for w, average in zip(models[0], averages, strict=True))
    assert (models[1][0] == -3).all(), "of another build"
    opt.finalize_variable_values()
    assert (models[1][0] == -2.25).all()


def test_finalize_leaves_what_was_summed_for_the_next_update() -> None:
    opt, w = SGD(1.0, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.0), np.zeros(2)
    opt.apply([np.ones(2)], [w])
    opt.finalize_variable_values()
    opt.apply([np.full(2, 3.0)], [w])
    assert w.tolist() == [-2.0] * 2


def test_finalize_takes_names_and_refuses_what_was_never_built() -> None:
    opt, w = SGD(1.0, use_ema=True, ema_momentum=0.5), np.zeros(3)
    opt.build({"w": w})
    for _ in range(3):
        opt.apply([np.ones(3)])
    with pytest.raises(ValueError, match=r"finalize_variable_values: var_list\[1\] was never built"):
        opt.finalize_variable_values([w, np.zeros(3)])
    with pytest.raises(TypeError, match="must be a list"):
        opt.finalize_variable_values(w)
    assert (w == -3).all()
    opt.finalize_variable_values({"w": w})
    assert (w == -2.25).all()


def test_averages_go_only_into_memory_that_is_still_the_variables() -> None:
    """Where one is not, nothing is written, of other builds neither."""
    opt = SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    other, w, b = np.zeros(3), np.zeros(1000), np.zeros(2)
    opt.apply([np.ones(3)], [other])
    opt.build([w, b])
    opt.apply([np.ones(1000), np.ones(2)], [w, b])
    w.flags.writeable = False
    before = [a.tobytes() for a in (other, w, b, *opt.variables)]
    with pytest.raises(ValueError, match=r"SGD\.finalize_variable_values: variables\[0\] is read-only now"):
        opt.finalize_variable_values()
    with pytest.raises(ValueError, match=r"SGD\.apply: variables\[0\] is read-only now"):
        opt.apply([np.ones(2)], [b])  # it would move the average of w
    assert [a.tobytes() for a in (other, w, b, *opt.variables)] == before
    w.flags.writeable = True
    opt.finalize_variable_values()


def test_without_averages_there_is_nothing_to_finalize() -> None:
    opt, w = SGD(1.0, use_ema=True, ema_momentum=0.5), np.zeros(3)
    for _ in range(3):
        opt.apply([np.ones(3)], [w])
    opt.use_ema = False
    opt.finalize_variable_values()
    assert (w == -3).all()


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
def test_replicas(options: dict[str, Any], mean: bool, threads: int) -> None:
    rng = np.random.default_rng(6)
    cases = [(s, d) for s, d in itertools.product((0, 5, 4097, 50_000), DTYPES)]
    variables = [random_array(rng, size, dtype) for size, dtype in cases]
    opt = Adam(0.01, **options)
    reference = Reference(opt, variables)
    for step in range(5):
        replicas: list[list[Any]] = [
            [random_array(rng, size, DTYPES[(k + step) % 4]) for k, (size, _) in enumerate(cases)]
            for _ in range(3)
        ]
        replicas[step % 3][5] = replicas[0][6] = None
        for replica in replicas:
            replica[7] = None
        reference.apply(replicas=replicas, mean=mean)
        opt.apply(variables=variables, replicas=replicas, mean=mean)
    assert_same(opt, variables, reference)


def test_replicas_by_name_and_refused_ones() -> None:
    opt, w = SGD(1.0), np.zeros(2)
    replicas = [{"a": {"w": np.ones(2)}}, {"a": {"w": np.full(2, 2.0)}}]
    assert opt.apply(variables={"a": {"w": w}}, replicas=replicas) == 1
    assert opt.apply(replicas=replicas, mean=True) == 2
    assert (w == -4.5).all()
    assert SGD().apply(variables=[], replicas=[[], []]) == 0
    for refused, sentence in (
        ({"grads": [w.copy()], "replicas": [[w.copy()]]}, "and grads is given, too; put all into replicas"),
        ({"replicas": []}, "replicas has 0 lists of gradients; pass one at least"),
        (
            {"replicas": [[w.copy()], []]},
            "replicas[1] has length 0, replicas[0] 1; pass one gradient",
        ),
        ({"replicas": [[None], [None]]}, "all 1 gradients are None"),
        (
            {"replicas": [[w.copy()], [np.ones(3)]]},
            "replicas[1]['a/w'] has shape (3,), its variable",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            opt.apply(variables=None, **refused)
    fresh = SGD(1.0)
    with pytest.raises(ValueError, match=re.escape("replicas[1][0] has shape (3,), its variable has (2,)")):
        fresh.apply(variables=[w], replicas=[[w.copy()], [np.ones(3)]])
    assert fresh.variables == []
    assert fresh.apply([np.ones(2)], [np.zeros(2)]) == 1, "the build of a first step that was refused is gone"
    assert (w == -4.5).all()


def test_settings_of_single_variables(threads: int) -> None:
    rng = np.random.default_rng(7)
    variables = {f"layer{i}/{name}": random_array(rng, 40_000, np.float32) for i in range(4) for name in "ab"}
    opt = AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0, use_ema=True)
    opt.adjust("layer1", learning_rate_multiplier=0.5)
    opt.build(variables)
    opt.adjust([variables["layer2/a"], "layer1/b"], weight_decay=0.0)
    opt.adjust(variables["layer3/b"], frozen=True)
    opt.adjust("layer3/a", learning_rate_multiplier=-2.0, weight_decay=0.5)
    settings: dict[int, dict[str, Any]] = {
        2: {"learning_rate_multiplier": 0.5},
        3: {"learning_rate_multiplier": 0.5, "weight_decay": 0.0},
        4: {"weight_decay": 0.0},
        6: {"learning_rate_multiplier": -2.0, "weight_decay": 0.5},
        7: {"frozen": True},
    }
    listed = list(variables.values())
    reference = Reference(opt, listed, settings)
    for step in range(4):
        if step == 3:
            opt.adjust("layer3/b", frozen=False)
            settings[7]["frozen"] = False
        grads = [random_array(rng, 40_000, np.float32) for _ in listed]
        opt.apply(grads)
        reference.apply(grads)
    assert_same(opt, listed, reference)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gradients_of_frozen_variables_are_checked_in_every_step(library: str) -> None:
    """They were in the first one alone; they are not used, so that none is as good as any."""
    xp: Any = pytest.importorskip(library)
    opt, w, x = SGD(1.0), xp.ones((3, 2)), xp.ones(2)
    opt.adjust(w, frozen=True)
    opt.build([w, x])
    wrong = ([xp.ones((2, 2))], [([9], np.ones((1, 2)))], [w[:, :1]], ["?"])
    for given in (xp.ones((3, 2)), None, ([1], np.ones((1, 2))), xp.ones((3, 2)) * math.inf, xp.ones((3, 2))):
        calls = opt.apply([given, xp.ones(2)])
        for (bad,) in wrong:
            with pytest.raises((TypeError, ValueError), match=r"^SGD\.apply: grads\[0\] "):
                opt.apply([bad, xp.ones(2)])
        assert (opt.iterations, float(x[0])) == (calls, 1 - calls)
    assert bool((w == 1).all())
    opt.adjust(w, frozen=False)
    opt.apply([xp.ones((3, 2)), xp.ones(2)])
    assert bool((w == 0).all())


def settings_of(opt: Optimizer) -> list[tuple[float, float, bool]]:
    """Of each variable: the learning rate's multiplier, the weight decay, and whether it is frozen."""
    plan: Any = opt._plan
    found = [(1.0, opt.weight_decay or 0.0, False) for _ in range(len(plan))]
    for index, its in opt._adjustments.of(plan).items():
        given = (its.multiplier, its.weight_decay, its.frozen)
        found[index] = tuple(  # type: ignore[assignment]
            before if now is None else now for before, now in zip(found[index], given, strict=True)
        )
    return found


def test_a_name_is_that_of_all_below_it_and_of_no_other() -> None:
    opt = SGD(1.0)
    w = {name: np.zeros(1) for name in ("layer1/a", "layer10/a", "layer1/b", "my/layer1", "layer1x")}
    opt.build(w)
    opt.adjust("layer1", learning_rate_multiplier=2.0)
    opt.apply([np.ones(1) for _ in w])
    assert [float(one[0]) for one in w.values()] == [-2, -1, -2, -1, -1]
    for name in ("layer", "layer1/", "a", ""):
        with pytest.raises(ValueError, match=f"no variable was built with the name '{name}', or below it"):
            opt.adjust(name, frozen=True)


def test_settings_that_are_not_given_stay() -> None:
    """Whatever named the variable before."""
    opt, w = SGD(1.0), np.zeros(1)
    opt.build({"w": w})
    opt.adjust("w", frozen=True)
    opt.adjust((w,), learning_rate_multiplier=2.0)
    opt.adjust(["w"], weight_decay=0.5)
    assert settings_of(opt) == [(2.0, 0.5, True)]
    opt.apply([np.ones(1)])
    assert w[0] == 0


def test_settings_go_with_the_arrays_that_are_forgotten() -> None:
    """Those by name stay."""
    opt, w = SGD(1.0), {"w": np.zeros(1)}
    opt.build(w)
    opt.adjust("w", weight_decay=0.5)
    opt.adjust(w["w"], frozen=True)
    opt.forget(w)
    opt.build(w)
    assert settings_of(opt) == [(1.0, 0.5, False)]


def test_settings_that_are_refused_in_a_step_leave_the_others() -> None:
    class Meddles(fusedstep.CustomOptimizer):
        _meddles = True

        def update(self, variable: Any, gradient: Any, slots: Any, learning_rate: float, t: int) -> None:
            if self._meddles:
                self.adjust("w", frozen=True)
            variable -= learning_rate * gradient

    opt, w, v = Meddles(1.0), np.zeros(1), np.zeros(1)
    opt.build({"w": w})
    with pytest.raises(RuntimeError, match="in the middle of another step"):
        opt.apply([np.ones(1)])
    opt._meddles = False
    opt.adjust("w", weight_decay=0.0)
    opt.apply([np.ones(1)])
    opt.build({"w": v})
    opt.apply([np.ones(1)])
    assert w[0] == v[0] == -1


def test_settings_that_change_in_every_step_are_kept_once() -> None:
    """Of each kind, in the order in which they came last, whatever their selectors have in common."""
    opt = AdamW(1.0, weight_decay=0.1)
    w = {f"layer{i}/{name}": np.zeros(2) for i in range(3) for name in "ab"}
    opt.build(w)
    pattern = re.compile("/a$")
    expected = {name: [1.0, 0.1, False] for name in w}
    for step in range(5):
        for selector, chosen in (
            ("".join(["layer", "1"]), ["layer1/a", "layer1/b"]),  # not the same string
            (pattern, ["layer0/a", "layer1/a", "layer2/a"]),
            (w["layer1/a"][:], ["layer1/a"]),
            ("layer1", ["layer1/a", "layer1/b"]),
        )[step % 2 :]:
            opt.adjust(selector, learning_rate_multiplier=step + len(chosen))
            opt.adjust(selector, weight_decay=step / len(chosen), frozen=step % 2 == 0)
            for name in chosen:
                expected[name] = [step + len(chosen), step / len(chosen), step % 2 == 0]
        assert len(opt._adjustments.entries) <= 9
        changes = opt._adjustments.of(opt._plan)  # type: ignore[arg-type]
        assert changes == type(opt._adjustments)(opt._adjustments.entries).of(opt._plan)  # type: ignore[arg-type]
        for index, name in enumerate(w):
            if index in changes:
                one = changes[index]
                assert [one.multiplier, one.weight_decay, one.frozen] == expected[name]
    twin = copy.deepcopy(opt)
    twin.build({name: array.copy() for name, array in w.items()})
    assert twin._adjustments.of(twin._plan) == changes  # type: ignore[arg-type]


def test_settings_that_another_build_refuses_are_taken_back() -> None:
    """It is in the middle of a step; the one before it had them already."""
    opt, w, v = SGD(1.0), np.zeros(1), np.zeros(1)
    opt.build([w])
    opt.build([v])

    def gradients() -> Iterator[Any]:
        opt.adjust([w, v], frozen=True)
        yield np.ones(1)

    with pytest.raises(RuntimeError, match="in the middle of another step"):
        opt.apply(gradients(), [v])
    for one in (w, v):
        opt.apply([np.ones(1)], [one])
    assert (w[0], v[0]) == (-1, -1)


def test_a_learning_rate_that_is_not_finite_is_told_without_the_multiplier() -> None:
    opt, w = SGD(1e39), np.zeros(1, np.float32)
    opt.build([w])
    opt.adjust(w, learning_rate_multiplier=0.5)
    with pytest.raises(ValueError, match=r"^SGD: learning_rate must be finite in float32, got 1e\+39$"):
        opt.apply([w.copy()], [w])


def test_refused_settings() -> None:
    opt, w = SGD(0.1), np.zeros(3, np.float32)
    opt.adjust("later", frozen=True)  # nothing was built yet
    opt.build({"dense": {"kernel": w}})
    for variables, arguments, sentence in (
        (
            "dense/kernle",
            {"frozen": True},
            "with the name 'dense/kernle', or below it; did you mean 'dense/kernel'?",
        ),
        (
            "bias",
            {"frozen": True},
            "with the name 'bias', or below it; there are ['dense/kernel', 'dense']",
        ),
        (np.zeros(3), {"frozen": True}, "an array of shape (3,) was never built; build(variables) adds"),
        (w, {"weight_decay": -1.0}, "SGD.adjust: weight_decay must lie in [0, inf), got -1.0"),
        (w, {"learning_rate_multiplier": np.nan}, "learning_rate_multiplier must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            opt.adjust(variables, **arguments)
    for chosen, frozen, sentence in (
        (w, "yes", "SGD.adjust: frozen must be True or False, got 'yes'"),
        (3, True, "SGD.adjust: variables must be arrays or names, got 3 of type int"),
        ([w, None], True, "SGD.adjust: variables must be arrays or names, got None of type NoneType"),
    ):
        with pytest.raises(TypeError, match=re.escape(sentence)):
            opt.adjust(chosen, frozen=frozen)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("'(' is no regular expression")):
        opt.exclude_from_weight_decay(var_names=["("])
    opt.adjust(w, learning_rate_multiplier=1e300)
    sentence = "learning_rate times a variable's multiplier must be finite in float32, got 0.1 * 1e+300"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        opt.apply([np.ones(3)], [w])
    assert (w == 0).all()


@pytest.mark.parametrize("given", ["bias", ["dense/bias"]])
def test_names_in_the_place_of_variables_are_not_excluded_in_silence(given: Any) -> None:
    """The letters of a string were names, and a name in the list was not looked for as an expression."""
    opt, b = SGD(1.0, weight_decay=0.5), np.ones(1)
    name = given if isinstance(given, str) else given[0]
    sentence = (
        f"SGD.exclude_from_weight_decay: var_list must be arrays, got '{name}'; pass var_names=['{name}']"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        opt.exclude_from_weight_decay(given)
    opt.build({"dense": {"bias": b}})
    opt.exclude_from_weight_decay(var_names=re.compile("BIAS", re.IGNORECASE))
    opt.apply([np.zeros(1)])
    assert b[0] == 1


def test_exclude_from_weight_decay() -> None:
    variables = {"dense": {"kernel": np.ones(3), "bias": np.ones(2)}, "scale": np.ones(4)}
    opt = AdamW(0.1, weight_decay=0.5)
    opt.exclude_from_weight_decay(var_list=[variables["scale"]], var_names=["^dense/b"])
    zeros = {"dense": {"kernel": np.zeros(3), "bias": np.zeros(2)}, "scale": np.zeros(4)}
    opt.apply(zeros, variables)
    assert variables["dense"]["kernel"][0] == 0.95  # type: ignore[index]
    assert variables["dense"]["bias"][0] == variables["scale"][0] == 1  # type: ignore[index]


# Sparse rows.


def sparse(rng: np.random.Generator, rows: int, shape: tuple[int, ...], count: int, dtype: Any) -> Any:
    indices = rng.integers(0, rows, count)
    return indices, random_array(rng, (count, *shape), dtype)


@pytest.mark.parametrize("options", [{}, *OPTIONS, *LAZY_OPTIONS], ids=id_of)
@pytest.mark.parametrize(
    "variant", [SGD(0.1), SGD(0.1, momentum=0.9), Adam(0.1), AdamW(0.1), Lamb(0.1)], ids=repr
)
def test_sparse_gradients(variant: Optimizer, options: dict[str, Any], threads: int) -> None:
    """The bits of dense ones, with zeros elsewhere; of those for the rows that are touched, if lazy."""
    rng = np.random.default_rng(8)
    cases = [(s, d) for s in [(50,), (), (3, 7), (700,), (0,), (4097,)] for d in DTYPES]
    variables = [random_array(rng, (30, *shape), dtype) for shape, dtype in cases]
    opt = with_arguments(variant, **options)
    reference = Reference(opt, variables)
    for step in range(4):
        grads: list[Any] = [
            sparse(rng, 30, shape, step * 9, DTYPES[k % 4]) for k, (shape, _) in enumerate(cases)
        ]
        grads[3] = random_array(rng, variables[3].shape, np.float32)
        if step == 1:
            grads[8] = None
        opt.apply(grads, variables)
        reference.apply(grads)
        norm = opt.gradient_norm
        assert norm == reference.norm or (norm is not None and math.isnan(norm))
    assert_same(opt, variables, reference)


@pytest.mark.parametrize("options", LAZY_OPTIONS, ids=id_of)
def test_lazy_steps_of_replicas(options: dict[str, Any], threads: int) -> None:
    """Of the rows that any of them has; of all where one is dense."""
    rng = np.random.default_rng(12)
    shapes = [(50, 6), (50, 600), (300,), (50, 6)]
    variables = [random_array(rng, shape, np.float32) for shape in shapes]
    opt = Adam(0.01, **options)
    reference = Reference(opt, variables)
    for step in range(4):
        replicas: list[list[Any]] = [
            [sparse(rng, shape[0], shape[1:], 9 * (k + 1), np.float32) for k, shape in enumerate(shapes)]
            for _ in range(3)
        ]
        replicas[step % 3][0] = replicas[0][1] = None
        replicas[step % 2][3] = random_array(rng, shapes[3], np.float32)
        opt.apply(variables=variables, replicas=replicas, mean=step == 2)
        reference.apply(replicas=replicas, mean=step == 2)
    assert_same(opt, variables, reference)


def test_lazy_steps_touch_only_their_rows(threads: int) -> None:
    """Each row is then what the step is for a variable of its own."""
    rng = np.random.default_rng(9)
    table, other = random_array(rng, (1000, 64), np.float32), random_array(rng, 70_000, np.float32)
    opt = AdamW(0.1, lazy=True, clipvalue=0.5, use_ema=True, ema_momentum=0.5)
    rows = [row.copy() for row in table]
    twin, other_twin = with_arguments(opt), other.copy()
    twin.build([*rows, other_twin])
    for _ in range(4):
        indices, values = sparse(rng, 1000, (64,), 300, np.float32)
        gradient = random_array(rng, 70_000, np.float32)
        opt.apply([(indices, values), gradient], [table, other])
        grads: list[Any] = [None] * 1000
        for index, value in zip(indices, values, strict=True):
            grads[index] = value if grads[index] is None else grads[index] + value
        # The twin's averages move at every step; those of rows that are not touched must not.
        averages = [twin.slots(row)["average"].copy() for row in rows]
        twin.apply([*grads, gradient], [*rows, other_twin])
        for row, average, g in zip(rows, averages, grads, strict=True):
            if g is None:
                twin.slots(row)["average"][...] = average
    assert (table == np.array(rows)).all()
    assert (other == other_twin).all()
    for name in ("momentum", "velocity", "average"):
        assert (opt.slots(table)[name] == np.array([twin.slots(row)[name] for row in rows])).all()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not isinstance(v, Lamb)], ids=repr)
def test_lazy_steps_of_every_rule(variant: Optimizer) -> None:
    rng = np.random.default_rng(10)
    for dtype in DTYPES:
        table = random_array(rng, (20, 7), dtype)
        opt = with_arguments(variant, lazy=True, weight_decay=0.01, global_clipnorm=1e9)
        rows = [row.copy() for row in table]
        twin = with_arguments(opt)
        twin.build(rows)
        for _ in range(3):
            indices, values = sparse(rng, 20, (7,), 9, np.float32)
            opt.apply([(indices, values)], [table])
            grads: list[Any] = [None] * 20
            for index, value in zip(indices, values.astype(compute_type(dtype)), strict=True):
                grads[index] = value if grads[index] is None else grads[index] + value
            twin.apply(grads)
        assert same_bits(table, np.array(rows))
        for name, slot in opt.slots(table).items():
            assert same_bits(slot, np.array([twin.slots(row)[name] for row in rows]))


def test_lazy_lamb_takes_norms_of_the_touched_rows() -> None:
    table = np.arange(12.0).reshape(4, 3)
    part = table[[1, 3]].copy()
    gradient = np.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
    Lamb(0.1, lazy=True).apply([([1, 3], gradient)], [table])
    Lamb(0.1).apply([gradient], [part])
    assert same_bits(table[[1, 3]], part)
    assert (table[[0, 2]] == [[0, 1, 2], [6, 7, 8]]).all()


@pytest.mark.parametrize("lazy", [False, True])
def test_norms_of_sparse_gradients(lazy: bool) -> None:
    opt, w = SGD(1.0, clipnorm=1.0, lazy=lazy), np.zeros((5, 2))
    opt.apply([([3, 1, 3], np.array([[1.0, 0], [0, 4.0], [2.0, 0]]))], [w])
    assert opt.gradient_norm == 5
    assert w[[1, 3]].tolist() == [[0, -4 * (1 / 5)], [-3 * (1 / 5), 0]]


ROWS = "its variable has shape (5, 2): indices must lie in [0, 5)"
VALUES = "but with 1 index they must have (1, 2)"
INTEGERS = "but they must be integers in one dimension"


@pytest.mark.parametrize(
    ("gradient", "error", "sentence"),
    [
        (([5], np.ones((1, 2))), ValueError, f"has the index 5, {ROWS}"),
        (([-1], np.ones((1, 2))), ValueError, f"has the index -1, {ROWS}"),
        (
            (np.array([2**63 + 1], np.uint64), np.ones((1, 2))),
            ValueError,
            f"has the index {2**63 + 1}, {ROWS}",
        ),
        (([1], np.ones((2, 2))), ValueError, f"has values of shape (2, 2), {VALUES}"),
        (([1], np.ones((1, 3))), ValueError, f"has values of shape (1, 3), {VALUES}"),
        (([1.0], np.ones((1, 2))), TypeError, f"has indices of dtype float64 and shape (1,), {INTEGERS}"),
        (([[1]], np.ones((1, 2))), TypeError, f"has indices of dtype int64 and shape (1, 1), {INTEGERS}"),
        (([1], np.ones((1, 2), int)), TypeError, "values has dtype int64, but a gradient must be float32"),
        (([1], [[1.0, 2.0]]), TypeError, "values is of type list, but a gradient must be a numpy.ndarray"),
        (([1],), TypeError, "is a tuple of 1, but must be an array, or (indices, values) for some rows"),
    ],
)
def test_refused_rows(gradient: Any, error: type[Exception], sentence: str) -> None:
    opt, w = SGD(1.0), np.zeros((5, 2))
    opt.build([w])
    with pytest.raises(error) as caught:
        opt.apply([gradient], [w])
    assert f"SGD.apply: grads[0] {sentence}" in str(caught.value)
    assert (w == 0).all()
    assert opt.iterations == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"clipnorm": 1.0, "clipvalue": 1.0},
            "SGD: clipnorm=1.0 and clipvalue=1.0 are given; choose one way",
        ),
        ({"clipnorm": 0.0}, "SGD: clipnorm must lie in (0, inf), got 0.0"),
        ({"ema_momentum": 1.5}, "SGD: ema_momentum must lie in [0, 1], got 1.5"),
        ({"ema_overwrite_frequency": 3}, "there is no average; pass use_ema=True"),
        (
            {"gradient_accumulation_steps": 0},
            "SGD: gradient_accumulation_steps must lie in [1, 2^63), got 0",
        ),
        (
            {"loss_scale_factor": -1.0},
            "SGD: loss_scale_factor must lie in [2^-126, 2^126], got -1.0",
        ),
        ({"lazy": True, "gradient_accumulation_steps": 2}, "cannot both be"),
    ],
)
def test_refused_options(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SGD(0.1, **arguments)


def test_refused_changes_of_options() -> None:
    """Slots are made by build; an option that needs one more cannot come later."""
    opt, w = SGD(0.1), np.zeros(3)
    opt.build([w])
    for name, value in (("use_ema", True), ("gradient_accumulation_steps", 2)):
        with pytest.raises(ValueError, match="which was not built; give the argument to the constructor"):
            setattr(opt, name, value)
        assert not getattr(opt, name)
    opt.clipnorm = 1.0
    opt.apply([np.full(3, 10.0)], [w])
    assert np.linalg.norm(w) == pytest.approx(0.1)


def test_build_starts_averages_with_the_variables() -> None:
    opt, w = SGD(0.1, use_ema=True), np.array([1.0, 2.0], np.float16)
    opt.build([w])
    opt.finalize_variable_values()
    assert (w == [1, 2]).all()
    assert fusedstep.get(opt) is opt


def test_accumulation_changes_between_whole_updates() -> None:
    """Sums of some calls would make an update as if they were those of all."""
    opt, w = SGD(1.0, gradient_accumulation_steps=4), np.zeros(1)
    for _ in range(2):
        opt.apply([np.ones(1)], [w])
    sentence = (
        "SGD: gradient_accumulation_steps would go from 4 to 2 after 2 calls, but can change where both"
        " numbers have whole updates; change it after such a call"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        opt.gradient_accumulation_steps = 2
    waiting = copy.deepcopy(opt)
    with pytest.raises(ValueError, match="from 4 to 1 after 2 calls"):
        waiting.gradient_accumulation_steps = None
    other = SGD(1.0, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="from 4 to 2 after 2 calls"):
        other.load_state_dict(opt.state_dict())
    for bad in ("4", [2], 0):
        state = opt.state_dict()
        state["config"]["gradient_accumulation_steps"] = bad
        with pytest.raises(ValueError, match="gradient_accumulation_steps must"):
            opt.load_state_dict(state)
    for _ in range(2):
        opt.apply([np.ones(1)])
    with pytest.raises(ValueError, match="from 4 to 3 after 4 calls"):
        opt.gradient_accumulation_steps = 3
    opt.gradient_accumulation_steps = 2
    for _ in range(2):
        opt.apply([np.ones(1)])
    assert w[0] == -2


@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "ema_overwrite_frequency"])
def test_counts_have_room(name: str) -> None:
    with pytest.raises(ValueError, match=rf"SGD: {name} must lie in \[1, 2\^63\), got 9223372"):
        SGD.from_config({"use_ema": True, name: 2**63})


def test_names_to_exclude_are_a_list_or_one() -> None:
    scale, bias = np.ones(1), np.ones(1)
    opt = SGD(1.0, weight_decay=0.5)
    opt.exclude_from_weight_decay(var_names="bias")
    opt.build({"scale": scale, "bias": bias})
    opt.apply([np.zeros(1), np.zeros(1)])
    assert (scale[0], bias[0]) == (0.5, 1)
    with pytest.raises(
        TypeError, match=r"exclude_from_weight_decay: var_list is one numpy\.ndarray, but must be"
    ):
        opt.exclude_from_weight_decay(scale)


def test_a_decay_that_is_not_finite_is_refused() -> None:
    w, opt = np.ones(2, np.float32), SGD(1e20, weight_decay=1e20)
    with pytest.raises(
        ValueError, match=r"learning_rate times weight_decay must be finite in float32, got 1e\+20 \*"
    ):
        opt.apply([w.copy()], [w])
    assert (w == 1).all()


def test_gradients_that_later_replicas_alone_have() -> None:
    opt, ws = SGD(1.0), [np.zeros(1) for _ in range(3)]
    opt.build(ws)
    opt.adjust(ws[2], frozen=True)
    opt.apply(replicas=[[None, None, np.ones(1)], [np.ones(1), None, np.ones(1)]])
    assert [w[0] for w in ws] == [-1, 0, 0]
    opt.apply(replicas=[[None] * 3, [None, np.ones(1), None]])
    assert [w[0] for w in ws] == [-1, -1, 0]
    with pytest.raises(ValueError, match=r"SGD\.apply: replicas\[1\] has length 4, replicas\[0\] 3"):
        opt.apply(replicas=[[np.ones(1)] * 3, [np.ones(1)] * 4])
    assert [w[0] for w in ws] == [-1, -1, 0]


def test_a_variable_without_dimensions_has_no_rows() -> None:
    w = np.zeros(())
    with pytest.raises(ValueError, match=r"has rows, but its variable has shape \(\); pass an array"):
        SGD(1.0).apply([([0], np.ones(1))], [w])
    assert w == 0


@pytest.mark.parametrize(("indices", "expected"), [([0, 1, 2], [0, 0, 0]), ([2, 1, 0], [-2, 0, 2])])
def test_values_of_rows_may_be_the_variable(indices: list[int], expected: list[float]) -> None:
    w = np.array([[1.0], [2.0], [3.0]])
    SGD(1.0).apply([(indices, w)], [w])
    assert w[:, 0].tolist() == expected


def test_rows_that_come_twice_in_order_are_summed() -> None:
    for opt, expected in ((SGD(1.0), [0, -3, -5, 0]), (Adam(0.5, lazy=True), [0, -0.5, -0.5, 0])):
        w = np.zeros((4, 1))
        opt.apply([([1, 1, 2], np.array([[1.0], [2.0], [5.0]]))], [w])
        assert np.allclose(w[:, 0], expected, atol=1e-6), opt


def test_values_of_rows_wherever_they_lie() -> None:
    w, v, memory = np.zeros((4, 2)), np.zeros((2, 2)), np.arange(8.0).reshape(2, 4)
    opt = SGD(1.0)
    opt.build([w, v])
    opt.apply([([1, 3], memory[:, ::2]), None])
    assert w.tolist() == [[0, 0], [0, -2], [0, 0], [-4, -6]]
    with pytest.raises(ValueError, match=r"grads\[0\] shares memory with variables\[1\], which this step"):
        opt.apply([([1, 3], v), v])
    before = w.copy()
    opt.apply([([], np.zeros((0, 2))), None])  # NumPy makes float64 of no indices
    assert (w == before).all()
