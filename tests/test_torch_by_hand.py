"""fusedstep.torch where groups, parameters and state are changed by hand between steps."""

import copy
import pickle
import re
import weakref
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fusedstep.torch as adapted  # noqa: E402


def parameter(*shape: int, seed: int = 0) -> Any:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def step(optimizer: Any, seed: int) -> None:
    """One step with gradients for all parameters, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def both(name: str, shapes: list[tuple[int, ...]], **arguments: Any) -> list[Any]:
    """An optimizer of ours and one of PyTorch's, over equal parameters."""
    return [
        getattr(library, name)([parameter(*shape, seed=k) for k, shape in enumerate(shapes)], **arguments)
        for library in (adapted, torch.optim)
    ]


def params_of(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_same(ours: Any, theirs: Any) -> None:
    """Parameters and state, step counts too."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            torch.testing.assert_close(
                ours.state[p][key].to(value.dtype).view_as(value), value, rtol=1e-4, atol=1e-4
            )


# Groups.


@pytest.mark.parametrize("shape", [(3,), (), (1,)], ids=str)
def test_a_parameter_that_is_replaced_in_its_group(shape: tuple[int, ...]) -> None:
    ours, theirs = both("Adam", [(2,), shape])
    for each in (ours, theirs):
        step(each, 0)
        old = each.param_groups[0]["params"][1]
        new = torch.nn.Parameter(old.detach().clone())
        each.param_groups[0]["params"][1] = new
        before = old.detach().clone()
        step(each, 1)
        step(each, 2)
        assert torch.equal(old, before)
        assert each.state[new]["step"] == 2
        del each.state[old]
    assert_same(ours, theirs)


def test_gaussians_that_are_pruned_and_added() -> None:
    """As 3D Gaussian Splatting does: a parameter of another length, with the state of the one before."""

    def replace(optimizer: Any, change: Callable[[Any], Any]) -> None:
        for group in optimizer.param_groups:
            old = group["params"][0]
            stored = optimizer.state.get(old, None)
            stored["exp_avg"] = change(stored["exp_avg"])
            stored["exp_avg_sq"] = change(stored["exp_avg_sq"])
            del optimizer.state[old]
            group["params"][0] = torch.nn.Parameter(change(old.detach()).requires_grad_(True))
            optimizer.state[group["params"][0]] = stored

    optimizers = []
    for library in (adapted, torch.optim):
        groups = [{"params": [parameter(6, 3)]}, {"params": [parameter(6, 1, seed=1)], "lr": 0.1}]
        optimizers.append(library.Adam(groups, lr=0.01))
    for each in optimizers:
        step(each, 0)
        replace(each, lambda tensor: tensor[[0, 2, 3]])
        step(each, 1)
        replace(each, lambda tensor: torch.cat([tensor, torch.zeros_like(tensor)]))
        step(each, 2)
        step(each, 3)
    assert_same(*optimizers)


@pytest.mark.parametrize("way", ["materialized", "replaced"])
def test_a_lazy_parameter_that_sees_no_input_before_the_first_step(way: str) -> None:
    results = []
    for library in (adapted, torch.optim):
        torch.manual_seed(0)
        known, lazy = torch.nn.Linear(3, 1), torch.nn.LazyLinear(1)
        optimizer = library.Adam([*known.parameters(), *lazy.parameters()], lr=0.1)
        for module in (known, known, lazy, known):
            if module is lazy and way == "replaced":
                lazy = module = torch.nn.Linear(1, 1)
                optimizer.param_groups[0]["params"][2:] = module.parameters()
            optimizer.zero_grad()
            module(torch.ones(2, 1 if module is lazy else 3)).sum().backward()
            optimizer.step()
        results.append([*known.parameters(), *lazy.parameters()])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)


def test_a_group_in_the_place_of_one_with_other_numbers() -> None:
    """Of the very same parameters."""
    ours, theirs = both("Adam", [(3,)])
    for each in (ours, theirs):
        step(each, 0)
        each.param_groups[0] = {**each.param_groups[0], "lr": 0.5}
        step(each, 1)
    assert_same(ours, theirs)


def test_a_parameter_that_leaves_its_group() -> None:
    """It stays as it is, whatever its gradient."""
    ours, theirs = both("Adam", [(3,), (2,)])
    for each in (ours, theirs):
        step(each, 0)
        gone = each.param_groups[0]["params"].pop()
        before = gone.detach().clone()
        gone.grad = torch.ones(2)
        step(each, 1)
        assert torch.equal(gone, before)
    assert_same(ours, theirs)


def test_groups_and_lists_in_the_place_of_others() -> None:
    """Also where Python gives a new one the id of one that is gone."""
    ours, theirs = both("Adam", [(2,)])
    for each in (ours, theirs):
        step(each, 0)
        for k in range(1, 4):
            for seed in (2 * k, 2 * k + 1):
                each.param_groups.pop()
                each.add_param_group({"params": [parameter(2, seed=seed)], "lr": 0.1 * k})
            step(each, k)
        for k in range(4, 7):
            for seed in (2 * k, 2 * k + 1):
                each.param_groups[0]["params"] = [parameter(2, seed=seed)]
            step(each, k)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax"])
def test_keys_that_other_programs_put_into_a_group(name: str) -> None:
    """As SAM does, whose radius is "rho": a class reads its own alone."""
    more = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs = both(name, [(3,)], lr=0.1, weight_decay=0.1, **more)
    for each in (ours, theirs):
        for key, value in {"rho": 0.05, "alpha": 0.5, "decoupled_weight_decay": True}.items():
            if key not in each.defaults:
                each.param_groups[0][key] = value
        for k in range(3):
            step(each, k)
    assert_same(ours, theirs)


def test_a_refused_step_leaves_the_optimizer_with_its_state() -> None:
    """Where one call of several cannot be made, the others must not have been taken over."""
    ours, theirs = both("Adam", [(3,)])
    for each in (ours, theirs):
        step(each, 0)
    state = ours.state[params_of(ours)[0]]["exp_avg"]
    complex_one = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    complex_one.grad = torch.ones_like(complex_one)
    ours.add_param_group({"params": [complex_one], "amsgrad": True})
    for _ in range(2):
        with pytest.raises(TypeError, match="must be real"):
            ours.step()
    ours.param_groups.pop()
    for each in (ours, theirs):
        step(each, 1)
    assert_same(ours, theirs)
    assert ours.state[params_of(ours)[0]]["exp_avg"] is state


OF_OTHER = "of another parameter"
REFUSED: dict[str, Callable[[Any], Any]] = {
    "sparse": lambda p: p.grad.to_sparse(),
    "without memory": lambda p: torch._efficientzerotensor(p.shape),
    OF_OTHER: lambda p: p.other.data,
}


# (Of several calls, the first would have been made before a gradient in another's memory is refused.)
@pytest.mark.parametrize(
    ("way", "rules"), [(way, rules) for way in REFUSED for rules in (1, 2) if (way, rules) != (OF_OTHER, 2)]
)
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_a_refused_first_step_leaves_no_state(name: str, rules: int, way: str) -> None:
    """As it would be one of a step that was made, whose first update is another."""
    arguments = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    ours, theirs = both(name, [(3,), (3,)], **arguments)
    for each in (ours, theirs):
        first, second = params_of(each)
        each.param_groups[0]["params"] = [first]
        each.add_param_group({"params": [second], "maximize": rules == 2})
        first.other = second
    first, second = params_of(ours)
    first.grad, second.grad = torch.ones(3), torch.ones(3)
    first.grad = REFUSED[way](first)
    values = [p.detach().clone() for p in (first, second)]
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            ours.step()
        assert not ours.state
        assert not ours.state_dict()["state"]
    assert all(torch.equal(p, value) for p, value in zip((first, second), values, strict=True))
    for each in (ours, theirs):
        step(each, 0)
        each.add_param_group({"params": [parameter(2, seed=9)]})
        step(each, 1)
    assert_same(ours, theirs)


def test_a_refused_step_that_would_have_been_a_parameter_s_first() -> None:
    """The state of the others stays, to the tensors."""
    ours, theirs = both("SGD", [(3,), (2,)], lr=0.1, momentum=0.9, dampening=0.5)
    for each in (ours, theirs):
        first, second = params_of(each)
        first.grad = torch.ones(3)
        each.step()
    first, second = params_of(ours)
    state = ours.state[first]["momentum_buffer"]
    second.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match="must be dense"):
        ours.step()
    assert ours.state[first]["momentum_buffer"] is state
    assert second not in ours.state
    for each in (ours, theirs):
        for k in range(3):
            step(each, k)
    assert_same(ours, theirs)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda data: data.t(),
    "flipped and back": lambda data: data.t().contiguous().t(),
}


@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("first", CHANGES)
@pytest.mark.parametrize("change", CHANGES)
def test_data_that_is_laid_out_anew(name: str, first: str, change: str) -> None:
    """Also over the same memory; the state goes by positions, as PyTorch's does."""
    arguments = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {}
    ours, theirs = both(name, [(3, 3)], **arguments)
    for each in (ours, theirs):
        (p,) = params_of(each)
        step(each, 0)
        for k, do in enumerate([first, change]):
            p.data = CHANGES[do](p.data)
            for seed in (2 * k + 1, 2 * k + 2):
                p.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
                each.step()
    (p,), (q,) = params_of(ours), params_of(theirs)
    torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)


def gapped(values: Any) -> Any:
    return torch.stack([values, values], dim=-1)[..., 0]


def channels_last(values: Any) -> Any:
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [gapped, channels_last])
def test_data_that_is_written_between_steps_in_whatever_layout(layout: Callable[[Any], Any]) -> None:
    """Also where the parameter has no gradient, beside one that has."""
    ours, theirs = both("Adam", [(2, 3, 4, 5), (2,)], lr=0.1)
    for each in (ours, theirs):
        odd, plain = params_of(each)
        odd.data = layout(odd.data)
        assert not odd.is_contiguous()
        for k in range(4):
            odd.grad = torch.full((2, 3, 4, 5), float(k)) if k != 2 else None
            plain.grad = torch.ones(2)
            odd.data.add_(1.0)
            each.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize("moved", [[1], [1, 2]], ids=str)
def test_data_that_moves_between_the_calls_of_one_step(moved: list[int]) -> None:
    """Every parameter is updated once, also where parts are made anew after the first of them."""
    params = [parameter(3, seed=k) for k in range(3)]
    groups = [{"params": params[:1]}, {"params": params[1:2], "maximize": True}, {"params": params[2:]}]
    optimizer = adapted.SGD(groups, lr=1.0, momentum=0.5)
    step(optimizer, 0)
    for k in moved:
        params[k].data = params[k].data.clone()
    before = [(p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()) for p in params]
    step(optimizer, 1)
    for p, (value, momentum), sign in zip(params, before, (-1, 1, -1), strict=True):
        momentum = 0.5 * momentum - sign * p.grad
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], momentum)
        torch.testing.assert_close(p.detach(), value - momentum)


def test_data_that_moves_so_that_more_calls_are_needed(monkeypatch: Any) -> None:
    """As where some of the parameters go to another device: here each gets a call of its own."""
    params = [parameter(3, seed=k) for k in range(3)]
    optimizer: Any = adapted.SGD(params, lr=1.0)
    step(optimizer, 0)
    assert len(optimizer._parts) == 1
    params[1].data = params[1].data.clone()
    before = [p.detach().clone() for p in params]
    group = optimizer.param_groups[0]
    apart = [type(optimizer._parts[0])(optimizer, "sgd", False, [(p, group, "")]) for p in params]
    monkeypatch.setattr(optimizer, "_make_parts", lambda: apart)
    step(optimizer, 1)
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p, value - p.grad)


def test_data_of_another_dtype() -> None:
    p = parameter(3)
    optimizer = adapted.Adam([p])
    step(optimizer, 0)
    p.data = p.data.double()
    p.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float64
    assert optimizer.state[p]["step"] == 2


def test_data_that_is_a_part_of_what_it_was() -> None:
    p = parameter(4, 3)
    optimizer = adapted.SGD([p], lr=1.0)
    step(optimizer, 0)
    p.data = p.data[:2]
    before = p.detach().clone()
    step(optimizer, 1)
    assert torch.equal(p, before - p.grad)


# State.


def clear(optimizer: Any) -> None:
    optimizer.state.clear()


def replace_mapping(optimizer: Any) -> None:
    optimizer.state = defaultdict(dict)


def replace_mapping_and_keep_it(optimizer: Any) -> None:
    optimizer.kept = optimizer.state
    optimizer.state = defaultdict(dict)


def empty_one(optimizer: Any) -> None:
    optimizer.state[params_of(optimizer)[0]] = {}


def empty_one_and_keep_it(optimizer: Any) -> None:
    optimizer.kept = optimizer.state[params_of(optimizer)[0]]
    optimizer.state[params_of(optimizer)[0]] = {}


def swap_all(optimizer: Any) -> None:
    optimizer.kept = dict(optimizer.state)
    for p, state in optimizer.kept.items():
        optimizer.state[p] = {key: value / 2 if value.ndim else value.clone() for key, value in state.items()}


def delete_one(optimizer: Any) -> None:
    del optimizer.state[params_of(optimizer)[0]]


def clone_all(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for key in state:
            state[key] = state[key].clone()


def halve_slots(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for key in state:
            if state[key].ndim:
                state[key] = state[key] / 2


def copy_dicts(optimizer: Any) -> None:
    for p in params_of(optimizer):
        optimizer.state[p] = {key: value.clone() for key, value in optimizer.state[p].items()}


BY_HAND = [
    clear,
    replace_mapping,
    replace_mapping_and_keep_it,
    empty_one,
    empty_one_and_keep_it,
    swap_all,
    delete_one,
    clone_all,
    halve_slots,
    copy_dicts,
]
by_hand = pytest.mark.parametrize("change", BY_HAND, ids=lambda change: change.__name__)


@by_hand
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_state_that_is_replaced_by_hand(name: str, change: Callable[[Any], None]) -> None:
    """The next step starts from what stands there, as PyTorch's does, and so does one after a remake."""
    arguments = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    ours, theirs = both(name, [(3,), (2, 2)], **arguments)
    for each in (ours, theirs):
        step(each, 0)
        step(each, 1)
        change(each)
        step(each, 2)
        step(each, 3)
    assert_same(ours, theirs)
    for each in (ours, theirs):
        each.add_param_group({"params": [parameter(2, seed=9)]})
        step(each, 4)
    assert_same(ours, theirs)


def test_a_momentum_buffer_of_none_is_a_new_start() -> None:
    ours, theirs = both("SGD", [(3,)], lr=0.1, momentum=0.9, dampening=0.5)
    for each in (ours, theirs):
        step(each, 0)
        each.state[params_of(each)[0]]["momentum_buffer"] = None
        step(each, 1)
        step(each, 2)
    assert_same(ours, theirs)


def test_an_average_tells_of_no_momentum() -> None:
    """That of a parameter whose momentum starts anew goes on."""
    ours, theirs = both("SGD", [(3,)], lr=0.1, momentum=0.9, dampening=0.5)
    ours.ema = 0.75
    for each in (ours, theirs):
        step(each, 0)
        each.state[params_of(each)[0]]["momentum_buffer"] = None
        step(each, 1)
    (p,), (q,) = params_of(ours), params_of(theirs)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("buffer", ["none", "missing"])
def test_no_momentum_before_the_first_update_with_it(buffer: str) -> None:
    """Of a parameter that has a state; a buffer of zeros would be one of an update that was made."""
    ours, theirs = both("SGD", [(3,), (2,)], lr=0.1, momentum=0.9, dampening=0.5)
    for each in (ours, theirs):
        first, second = params_of(each)
        each.state[second]["mine"] = torch.ones(2)
        if buffer == "none":
            each.state[second]["momentum_buffer"] = None
        first.grad = torch.ones(3)
        each.step()
        assert each.state[second].get("momentum_buffer") is None
        each.add_param_group({"params": [parameter(2, seed=9)]})
        for k in range(3):
            step(each, k)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_counts_that_are_edited_in_place(name: str) -> None:
    ours, theirs = both(name, [(3,), (2, 2)])
    for each in (ours, theirs):
        step(each, 0)
        step(each, 1)
        first, second = params_of(each)
        each.state[first]["step"].fill_(7)
        each.state[second]["step"].zero_()
        if name == "NAdam":
            each.state[first]["mu_product"].fill_(0.5)
        step(each, 2)
        step(each, 3)
        assert each.state[first]["step"] == 9
    assert_same(ours, theirs)


@pytest.mark.parametrize("look", [False, True], ids=["step", "state_dict"])
def test_state_that_is_edited_after_a_refused_step(look: bool) -> None:
    """The step that was refused was the first one with that state."""
    ours, theirs = both("Adam", [(3,)], lr=0.1)
    for each in (ours, theirs):
        step(each, 0)
        each.load_state_dict(copy.deepcopy(each.state_dict()))
    (p,) = params_of(ours)
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="must be dense"):
        ours.step()
    for each in (ours, theirs):
        (one,) = params_of(each)
        each.state[one]["exp_avg"].fill_(7.0)
        if look:
            assert torch.equal(each.state_dict()["state"][0]["exp_avg"], torch.full((3,), 7.0))
        step(each, 1)
    assert_same(ours, theirs)


def test_state_that_is_replaced_after_a_step_without_gradients() -> None:
    optimizer = adapted.Adam([parameter(3)])
    (p,) = params_of(optimizer)
    step(optimizer, 0)
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.step()
    kept = optimizer.state[p]["exp_avg"]  # so that the new one is found by looking
    optimizer.state[p]["exp_avg"] = torch.zeros(3)
    step(optimizer, 1)
    assert kept.any()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.1 * p.grad)


@pytest.mark.parametrize("change", ["replaced", "deleted and kept"])
def test_state_of_a_later_parameter_that_is_changed(change: str) -> None:
    ours, theirs = both("Adam", [(3,), (2,)], lr=0.1)
    kept = []
    for each in (ours, theirs):
        step(each, 0)
        _, p = params_of(each)
        if change == "replaced":
            each.state[p]["exp_avg"] = torch.zeros(2)
        else:
            kept.append(each.state.pop(p))
        step(each, 1)
    assert_same(ours, theirs)


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_what_state_dict_says_of_state_that_was_changed(change: str) -> None:
    ours, theirs = both("Adam", [(3,), (2,)], lr=0.1)
    kept = []  # or the state would be known by what was lost
    for each in (ours, theirs):
        step(each, 0)
        _, p = params_of(each)
        if change == "replaced":
            each.state[p]["exp_avg"] = torch.zeros(2)
        else:
            kept.append(each.state.pop(p))
    states = [each.state_dict()["state"] for each in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    if change == "replaced":
        assert not states[0][1]["exp_avg"].any()
    for each in (ours, theirs):
        step(each, 1)
    assert_same(ours, theirs)


def test_an_optimizer_without_state_has_none_for_its_parameters() -> None:
    states = []
    for each in both("SGD", [(3,)], lr=0.1):
        step(each, 0)
        states.append(each.state_dict()["state"])
    assert states == [{}, {}]


def test_a_tensor_that_was_replaced_while_the_former_is_kept() -> None:
    """It cannot be told at once; a checkpoint and the steps after it agree."""
    p = parameter(3)
    optimizer = adapted.Adam([parameter(3), p])
    step(optimizer, 0)
    kept = optimizer.state[p]["exp_avg"]
    optimizer.state[p]["exp_avg"] = torch.zeros(3)
    saved = copy.deepcopy(optimizer.state_dict())
    assert kept.any()
    assert not saved["state"][1]["exp_avg"].any()
    step(optimizer, 1)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.1 * p.grad)


def test_the_only_tensor_that_a_loop_leaves_to_its_variable() -> None:
    ours, theirs = both("SGD", [(3,)], lr=0.1, momentum=0.9)
    for each in (ours, theirs):
        step(each, 0)
        for state in each.state.values():
            for key, value in state.items():
                state[key] = value / 2
        step(each, 1)
    assert value.any()
    assert_same(ours, theirs)


def share(tensor: Any) -> None:
    tensor.share_memory_()


def pickle_for_a_process(tensor: Any) -> None:
    """As torch.multiprocessing does: it shares the memory."""
    ForkingPickler.dumps(tensor)


def to_clone(tensor: Any) -> None:
    tensor.data = tensor.data.clone()


def halve_data(tensor: Any) -> None:
    tensor.data = tensor.data / 2


MOVES = [share, pickle_for_a_process, to_clone, halve_data]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_state_whose_memory_is_replaced_under_its_tensors(name: str, move: Callable[[Any], None]) -> None:
    arguments = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    ours, theirs = both(name, [(3,), (2, 2)], **arguments)
    for each in (ours, theirs):
        step(each, 0)
        for state in each.state.values():
            for key, value in state.items():
                if move is not halve_data or key.startswith(("exp", "momentum")):
                    move(value)
        for k in range(1, 11):
            step(each, k)
    assert_same(ours, theirs)
    for each in (ours, theirs):
        p = params_of(each)[0]
        p.data = p.data.clone()
        step(each, 11)
    assert_same(ours, theirs)
    if name != "SGD":
        assert ours.state_dict()["state"][0]["step"] == 12


def test_memory_of_a_later_parameter_s_state_that_is_replaced() -> None:
    """It cannot be told at once; a checkpoint and the steps after it agree."""
    p = parameter(3)
    optimizer = adapted.Adam([parameter(3), p])
    step(optimizer, 0)
    optimizer.state[p]["exp_avg"].data = torch.zeros(3)
    assert not optimizer.state_dict()["state"][1]["exp_avg"].any()
    step(optimizer, 1)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.1 * p.grad)


def make_again(optimizer: Any, way: str) -> Any:
    if way == "add_param_group":
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
        params_of(optimizer)[-1].grad = torch.zeros(1)
        return optimizer
    if way == "pickle":
        return pickle.loads(pickle.dumps(optimizer))
    other = type(optimizer)([torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)], ema=0.75)
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize("way", ["add_param_group", "pickle", "load_state_dict"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_averages_go_on_after_a_remake(momentum: float, way: str) -> None:
    optimizer = adapted.SGD([parameter(3)], lr=0.1, momentum=momentum, ema=0.75)
    expected: Any = None
    for k in range(6):
        step(optimizer, k)
        now = params_of(optimizer)[0].detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now
        if k == 2:
            optimizer = make_again(optimizer, way)
    torch.testing.assert_close(optimizer.state[params_of(optimizer)[0]]["ema"], expected)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_the_average_of_a_late_parameter_starts_with_it(name: str) -> None:
    """As that of the first ones: the average is the parameter after its first update."""
    p, late, added = parameter(3), parameter(3, seed=1), parameter(2, seed=2)
    optimizer = getattr(adapted, name)([p, late], lr=0.1, ema=0.75)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    optimizer.add_param_group({"params": [added]})
    step(optimizer, 3)
    for one in (late, added):
        assert torch.equal(optimizer.state[one]["ema"], one)
    before = late.detach().clone()
    step(optimizer, 4)
    torch.testing.assert_close(optimizer.state[late]["ema"], 0.75 * before + 0.25 * late)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_averages_of_parameters_whose_rule_has_no_gradient(name: str, dtype: Any) -> None:
    """They move in every step of the optimizer, to the bits, however many calls its groups need."""
    averages = []
    for rules in (1, 2):
        params = [torch.nn.Parameter(parameter(5, seed=k).detach().to(dtype)) for k in range(3)]
        params[1] = torch.nn.Parameter(torch.stack([params[1].detach()] * 2, dim=1)[:, 0])  # one with gaps
        groups = [{"params": params[:1]}, {"params": params[1:], "maximize": rules == 2}]
        optimizer = getattr(adapted, name)(groups, lr=0.1, ema=0.7)
        sign = 1 if rules == 1 else -1
        for given in ([0], [0, 1], [0, 1], [0], [0], [1], [], [0, 1], [0]):
            for k, p in enumerate(params):
                p.grad = torch.ones_like(p) * (sign if k else 1) if k in given else None
            optimizer.step()
        assert "ema" not in optimizer.state.get(params[2], {})  # it starts with an update of its own
        averages.append([optimizer.state[p]["ema"] for p in params[:2]] + params)
    assert all(torch.equal(*pair) for pair in zip(*averages, strict=True))


def set_in_place(p: Any) -> None:
    p.data.fill_(3.0)


def set_data_with_gaps(p: Any) -> None:
    p.data = torch.full((3, 4), 3.0)[:, ::2]


def set_permuted_data(p: Any) -> None:
    p.data = torch.full((2, 3), 3.0).t()


@pytest.mark.parametrize("change", [set_in_place, set_data_with_gaps, set_permuted_data])
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "with gaps"])
def test_the_average_of_a_parameter_without_gradient_that_was_set(
    layout: str, change: Callable[[Any], None]
) -> None:
    """It is one of what the parameter has, also where steps go through a copy of it."""
    values = {
        "contiguous": torch.ones(3, 2),
        "permuted": torch.ones(2, 3).t(),
        "with gaps": torch.ones(3, 4)[:, ::2],
    }
    p, other = torch.nn.Parameter(values[layout]), parameter(2)
    optimizer = adapted.SGD([p, other], lr=0.0, ema=0.5)
    step(optimizer, 0)
    change(p)
    p.grad = None
    optimizer.step()
    assert torch.equal(optimizer.state[p]["ema"], torch.full((3, 2), 2.0))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("shape", [(1, 4), (3, 4)])
def test_a_gradient_of_the_shape_that_a_parameter_had_is_refused(
    permuted: bool, shape: tuple[int, int]
) -> None:
    """It was broadcast, or PyTorch's error, to one whose axes lie in another order."""
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = adapted.SGD([p], lr=0.1)
    p.grad = torch.ones(shape)
    p.data = torch.ones(4, 6).t() if permuted else torch.ones(6, 4)
    words = f"the gradient of a parameter of shape (6, 4) has shape {shape}, its parameter has (6, 4)"
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.step()
    assert (p == 1).all()


REMAKES: dict[str, Callable[[Any], Any]] = {
    "load_state_dict": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    "add_param_group": lambda optimizer: optimizer.add_param_group({"params": [parameter(1, seed=9)]}),
    "data": lambda optimizer: setattr(params_of(optimizer)[0], "data", params_of(optimizer)[0].data.clone()),
    "state by hand": clone_all,
    "none": lambda optimizer: None,
}


@pytest.mark.parametrize("way", REMAKES)
@pytest.mark.parametrize("name", ["Adagrad", "Adam", "SGD"])
def test_no_average_before_the_first_update_of_a_parameter(name: str, way: str) -> None:
    """Also of one with a state, from before averages were kept or of Adagrad's constructor."""
    a, b = parameter(2), parameter(2, seed=1)
    optimizer = getattr(adapted, name)([a, b], lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    if name != "Adagrad":
        step(optimizer, 0)
    optimizer.ema = 0.5
    for _ in range(2):
        a.grad, b.grad = torch.ones(2), None
        optimizer.step()
        assert "ema" not in optimizer.state[b]
        before = b.detach().clone()
        with optimizer.averaged():
            assert torch.equal(a, optimizer.state[a]["ema"])
            assert torch.equal(b, before)
        REMAKES[way](optimizer)
    b.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(optimizer.state[b]["ema"], b)
    before = b.detach().clone()
    average = optimizer.state[b]["ema"]
    optimizer.step()
    if way != "none":
        REMAKES[way](optimizer)
    torch.testing.assert_close(optimizer.state[b]["ema"], 0.5 * before + 0.5 * b)
    assert optimizer.state[b]["ema"] is average or way != "none"


def test_an_average_goes_on_where_there_is_no_gradient() -> None:
    """Also after a remake."""
    a, b = parameter(2), parameter(2, seed=1)
    optimizer = adapted.Adam([a, b], lr=0.1, ema=0.5)
    step(optimizer, 0)
    step(optimizer, 1)
    for remake in (False, True):
        if remake:
            optimizer = make_again(optimizer, "pickle")
            a, b = params_of(optimizer)
        before = optimizer.state[b]["ema"].clone()
        a.grad, b.grad = torch.ones(2), None
        optimizer.step()
        torch.testing.assert_close(optimizer.state[b]["ema"], 0.5 * before + 0.5 * b.detach())


def test_an_average_that_started_late_is_watched_as_the_others() -> None:
    """What is put in its place counts."""
    a, b = parameter(2), parameter(2, seed=1)
    optimizer = adapted.Adam([a, b], lr=0.1)
    step(optimizer, 0)
    optimizer.ema = 0.5
    a.grad = None
    optimizer.step()
    step(optimizer, 1)
    optimizer.state[a]["ema"] = torch.zeros(2)
    step(optimizer, 2)
    torch.testing.assert_close(optimizer.state[a]["ema"], 0.5 * a.detach())


def test_averages_that_nobody_keeps_are_refused() -> None:
    """Those of a state that was loaded are of then."""
    optimizer = adapted.SGD([parameter(3)], lr=0.1, ema=0.75)
    step(optimizer, 0)
    other = adapted.SGD([parameter(3)], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    step(other, 1)
    with (
        pytest.raises(
            RuntimeError, match=r"SGD\.averaged: there are no averages, for ema is None; pass ema=0"
        ),
        other.averaged(),
    ):
        pass
    new = adapted.SGD([parameter(3)], lr=0.1, ema=0.75)
    with pytest.raises(RuntimeError, match="for there was no update; take a step first"), new.averaged():
        pass


@pytest.mark.parametrize("name", ["max_norm", "ema"])
def test_what_is_not_a_groups_is_told(name: str) -> None:
    """Not refused: other programs keep things of their own in groups."""
    optimizer = adapted.SGD([{"params": [parameter(3)], name: 0.5}], lr=0.1)
    with pytest.warns(UserWarning, match=f"SGD: '{name}' in a parameter group has no effect here; pass it"):
        step(optimizer, 0)


def test_a_largest_norm_that_is_changed_counts_at_once() -> None:
    p = parameter(3)
    optimizer = adapted.SGD([p], lr=1.0, max_norm=100.0)
    step(optimizer, 0)
    optimizer.max_norm = 0.001
    before = p.detach().clone()
    step(optimizer, 1)
    assert (p - before).norm().item() == pytest.approx(0.001, rel=1e-2)
    optimizer.max_norm = 0
    with pytest.raises(ValueError, match=r"SGD: max_norm must lie in \(0, inf\)"):
        step(optimizer, 2)


def test_no_norm_of_a_step_without_gradients() -> None:
    p = parameter(3)
    optimizer = adapted.SGD([p], lr=1.0, max_norm=1.0)
    step(optimizer, 0)
    assert optimizer.gradient_norm is not None
    p.grad = None
    optimizer.step()
    assert optimizer.gradient_norm is None


@pytest.mark.parametrize("way", ["load_state_dict", "state_dict"])
def test_the_memory_of_a_state_that_was_replaced_is_freed_at_once(way: str) -> None:
    """Not with the next step: a model in training may have no room for two states."""
    p = parameter(3)
    optimizer: Any = adapted.Adam([p])
    step(optimizer, 0)
    held = [weakref.ref(optimizer._parts[0]), weakref.ref(optimizer.state[p]["exp_avg"])]
    if way == "load_state_dict":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        clone_all(optimizer)
        optimizer.state_dict()
    assert [one() for one in held] == [None, None]


def test_no_norm_after_a_first_step_that_was_refused() -> None:
    """Of two calls neither was made."""
    params = [parameter(3), parameter(3)]
    optimizer = adapted.SGD([{"params": params[:1]}, {"params": params[1:], "maximize": True}], lr=1.0)
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="must be dense"):
        optimizer.step()
    assert optimizer.gradient_norm is None


def test_a_state_that_was_loaded_is_a_copy() -> None:
    """Steps of the optimizer that it came from do not change it."""
    first, second = (adapted.Adam([parameter(3)]) for _ in range(2))
    step(first, 0)
    second.load_state_dict(first.state_dict())
    (p,), (q,) = params_of(first), params_of(second)
    loaded = second.state[q]["exp_avg"].clone()
    step(first, 1)
    assert not torch.equal(first.state[p]["exp_avg"], loaded)
    assert torch.equal(second.state[q]["exp_avg"], loaded)


def test_a_state_whose_counts_are_numbers() -> None:
    """As in files of old versions of PyTorch."""
    optimizer = adapted.Adam([parameter(3)])
    step(optimizer, 0)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = 5
    optimizer.load_state_dict(saved)
    step(optimizer, 1)
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 6


def test_hooks_after_loading_have_the_last_word() -> None:
    optimizer = adapted.SGD([parameter(3)], lr=0.1, momentum=0.9)
    step(optimizer, 0)
    saved = optimizer.state_dict()
    seen = []

    def halve(optimizer: Any) -> None:
        for state in optimizer.state.values():
            seen.append(state["momentum_buffer"].clone())
            state["momentum_buffer"] = state["momentum_buffer"] / 2

    for hook in (halve, clear):
        other = adapted.SGD([parameter(3)], lr=0.1, momentum=0.9)
        other.register_load_state_dict_post_hook(hook)
        other.load_state_dict(saved)
        if hook is halve:
            (state,) = other.state.values()
            assert torch.equal(seen[0], saved["state"][0]["momentum_buffer"])
            assert torch.equal(state["momentum_buffer"], seen[0] / 2)
        else:
            assert not other.state
        assert len(other._optimizer_load_state_dict_post_hooks) == 1


def test_adagrad_starts_every_parameter_from_the_constructor_s_value() -> None:
    """As PyTorch's, whatever a group says; also after the state was cleared."""
    found = []
    for library in (adapted, torch.optim):
        own, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        groups: list[Any] = [{"params": [own], "initial_accumulator_value": 15.0}]
        optimizer = library.Adagrad(groups, lr=1.0, initial_accumulator_value=3.0, eps=0.0)
        optimizer.add_param_group({"params": [late], "initial_accumulator_value": 8.0})
        for _ in range(2):
            own.grad, late.grad = torch.ones(2), torch.ones(2)
            optimizer.step()
            found.append([own.tolist(), late.tolist()])
            optimizer.state.clear()
    assert found[:2] == found[2:] == [[[0.5] * 2] * 2, [[0.0] * 2] * 2]


def test_names_that_fit_no_more() -> None:
    """They are for messages alone."""
    named = [(f"p{k}", parameter(2, seed=k)) for k in range(3)]
    optimizer = adapted.SGD(named, lr=0.1)
    del optimizer.param_groups[0]["params"][0]
    step(optimizer, 0)
    optimizer.param_groups[0]["params"] += [parameter(2, seed=8), parameter(2, seed=9)]
    step(optimizer, 1)


@pytest.mark.parametrize("name", ["Adam", "SGD", "NAdam"])
def test_a_state_of_another_shape_is_refused(name: str) -> None:
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    p, slot = parameter(3, 2), "momentum_buffer" if name == "SGD" else "exp_avg"
    for names in (True, False):
        optimizer = getattr(adapted, name)([("w", p)] if names else [p], lr=0.1, **arguments)
        step(optimizer, 0)
        optimizer.state[p][slot] = torch.zeros(2)
        before, title = p.detach().clone(), "parameter 'w'" if names else r"a parameter of shape \(3, 2\)"
        with pytest.raises(ValueError, match=rf"state '{slot}' of {title} has shape \(2,\),.*\(3, 2\)"):
            step(optimizer, 1)
        assert torch.equal(p, before)
        optimizer.state[p][slot] = torch.zeros(3, 2)
        if name != "SGD":
            optimizer.state[p]["step"] = torch.zeros(2)
            with pytest.raises(ValueError, match=r"'step'.* \(2,\)"):
                step(optimizer, 1)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("count", [-1.0, 1.5, 1e30, float("inf"), float("nan")])
def test_counts_that_are_none_are_refused(count: float, live: bool) -> None:
    p = parameter(2)
    optimizer = adapted.Adam([("v", parameter(2)), ("w", p)])
    step(optimizer, 0)
    before = [one.detach().clone() for one in params_of(optimizer)]
    if live:
        optimizer.state[p]["step"].fill_(count)
    else:
        optimizer.state[p]["step"] = torch.tensor(count)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"Adam\.step: state 'step' of parameter 'w' is .*, but must be the number"
        ):
            step(optimizer, 1)
    assert all(torch.equal(*pair) for pair in zip(params_of(optimizer), before, strict=True))
    optimizer.state[p]["step"].fill_(1)
    step(optimizer, 1)
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("way", ["loaded", "by hand"])
@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_counts_of_one_dimension(name: str, way: str) -> None:
    """As in states of older PyTorchs, fused or capturable, and as programs make that share them."""
    ours, theirs = both(name, [(3,), (1,), ()], lr=0.1)
    for each in (ours, theirs):
        step(each, 0)
        saved = each.state_dict()
        for state in saved["state"].values():  # the very dicts of each.state
            for count in {"step", "mu_product"} & state.keys():
                state[count] = state[count].reshape(1).clone()
        if way == "loaded":
            each.load_state_dict(saved)
        step(each, 1)
        step(each, 2)
    assert_same(ours, theirs)


def test_a_state_is_read_where_it_is_whatever_the_default_device() -> None:
    ours, theirs = both("Adam", [(3,), (2,)])
    for each in (ours, theirs):
        step(each, 0)
        each.load_state_dict(copy.deepcopy(each.state_dict()))
        each.state[params_of(each)[0]]["step"] = (
            1 if each is ours else torch.tensor(1.0)
        )  # as ever, in old code
        for p in params_of(each):
            p.grad = torch.ones(p.shape)
        with torch.device("meta"):
            each.step()
    assert_same(ours, theirs)


def test_groups_that_become_differentiable_are_refused() -> None:
    optimizer = adapted.Adam([parameter(2)])
    optimizer.add_param_group({"params": [parameter(3)], "differentiable": True})
    with pytest.raises(ValueError, match="Adam: differentiable is True"):
        step(optimizer, 0)


def test_a_state_of_a_differentiable_optimizer_can_be_loaded() -> None:
    ours = adapted.Adam([parameter(2)])
    ours.load_state_dict(torch.optim.Adam([parameter(2)], differentiable=True).state_dict())
    with pytest.raises(ValueError, match="set it to False in the param_groups where a loaded state"):
        step(ours, 0)
    ours.param_groups[0]["differentiable"] = False
    step(ours, 0)


@pytest.mark.parametrize("name", ["Lion", "Lamb"])
def test_a_state_of_another_library_s_class_of_the_same_name(name: str) -> None:
    """Whose groups have no more than its own arguments; the decay is decoupled all the same."""
    whole, partial = [getattr(adapted, name)([parameter(3)], lr=0.1, weight_decay=0.1) for _ in range(2)]
    step(whole, 0)
    step(partial, 0)
    saved = partial.state_dict()
    for key in ("decoupled_weight_decay", "maximize"):
        del saved["param_groups"][0][key]
    partial.load_state_dict(saved)
    step(whole, 1)
    step(partial, 1)
    assert torch.equal(*(params_of(each)[0] for each in (whole, partial)))


def test_two_optimizers_over_one_state() -> None:
    ours, theirs = both("Adam", [(3,)])
    for each in (ours, theirs):
        step(each, 0)
        other = copy.copy(each)
        for k in range(1, 6):
            step(other if k % 2 else each, k)
    assert_same(ours, theirs)


@pytest.mark.parametrize("beta", [1.0, float("nan"), -0.5])
def test_betas_out_of_their_interval_are_refused_before_anything_changes(beta: float) -> None:
    """PyTorch divides by zero for 1, when some parameters have been updated."""
    optimizer = adapted.Adam([parameter(2)])
    step(optimizer, 0)
    (p,) = optimizer.param_groups[0]["params"]
    before, optimizer.param_groups[0]["betas"] = p.detach().clone(), (beta, 0.9)
    with pytest.raises(ValueError, match=r"the betas of a group must be in \[0, 1\), got"):
        step(optimizer, 1)
    assert torch.equal(p, before)
    optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    step(optimizer, 1)
    assert not torch.equal(p, before)
