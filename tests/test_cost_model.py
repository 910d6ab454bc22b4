"""The cheaper way to move an exec: in worlds where what each way takes is known."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkit.cost_model import CostModel, Move


def test_a_move_that_was_never_made_is_predicted():
    costs = CostModel()
    assert costs.cheaper("a", 1000, 10) is Move.NODES
    assert costs.cheaper("a", 1000, 1000) is Move.UPDATE


def test_a_measured_move_costs_what_it_took_and_not_what_the_first_one_did():
    costs = CostModel()
    for us in (500.0, 90.0, 95.0):
        costs.observe("a", 1000, 100, Move.NODES, us)
    assert costs.cost("a", 1000, 100, Move.NODES) == 90


def test_moves_of_one_topology_teach_those_of_others():
    costs = CostModel()
    for changed in (10, 20, 40, 80, 160) * 8:
        costs.observe("a", 1000, changed, Move.NODES, changed * 3.0)
        costs.observe("a", 1000, changed, Move.UPDATE, 200 + changed * 0.5)
    assert costs.cost("b", 500, 50, Move.NODES) == pytest.approx(150, rel=0.1)
    assert costs.cost("b", 500, 100, Move.UPDATE) == pytest.approx(150, rel=0.2)


def test_no_measurement_makes_a_cost_negative_or_breaks_on_nothing_to_change():
    costs = CostModel()
    for total, changed in ((0, 0), (1, 0), (1, 1), (1000, 0)):
        for move in Move:
            for us in (0.0, 1e9, 0.0, 0.0):
                costs.observe("a", total, changed, move, us)
            assert costs.cost("b", total, changed, move) >= 0
        assert costs.cheaper("a", total, changed) in Move
    costs.observe_instantiate(0, 0.0)
    assert costs.instantiate_node_us >= 0


def test_one_disturbed_instantiation_does_not_make_all_execs_seem_dear():
    costs = CostModel()
    before = costs.instantiate_node_us
    costs.observe_instantiate(100, 1e6)
    assert costs.instantiate_node_us < 2 * before


def test_asking_for_the_cheaper_way_changes_nothing():
    costs = CostModel()
    for move in (Move.NODES, Move.NODES, Move.UPDATE):
        costs.observe("a", 1000, 60, move, 60.0)
        assert len({costs.cheaper("a", 1000, 60) for _ in range(100)}) == 1


@st.composite
def cost_worlds(draw):
    """Places (total, changed) with the true microseconds of both ways, on one machine."""
    set_node, update_node = draw(st.floats(0.3, 3)), draw(st.floats(0.02, 0.3))
    update_changed = draw(st.floats(0.05, 1))
    worlds = []
    for _ in range(draw(st.integers(1, 4))):
        total = draw(st.integers(10, 2000))
        changed = draw(st.integers(1, total))
        nodes = changed * set_node * draw(st.floats(0.7, 1.4))
        update = (total * update_node + changed * update_changed) * draw(st.floats(0.7, 1.4))
        worlds.append((total, changed, {Move.NODES: nodes, Move.UPDATE: update}))
    return worlds


@pytest.mark.untraced
@given(cost_worlds(), st.integers(0, 2**32))
@settings(deadline=None, derandomize=True)  # one in some thousands has every try disturbed
def test_moves_cost_within_a_tenth_of_the_cheaper_way_after_a_few(worlds, seed):
    """Times are noisy, one in thirty is disturbed, and a first move makes what is kept.

    What was predicted wrongly is found out by trying it three times.
    """
    chance = random.Random(seed)
    costs = CostModel()
    spent = least = 0.0
    for round_ in range(700):
        for topology, (total, changed, true) in enumerate(worlds):
            move = costs.cheaper(topology, total, changed)
            us = true[move] * chance.lognormvariate(0, 0.03)
            if chance.random() < 1 / 30:
                us *= chance.uniform(1, 20)
            costs.observe(topology, total, changed, move, us + (round_ == 0) * 3 * true[move])
            if round_ >= 100:
                spent += true[move]
                least += min(true.values())
    tries = sum(3 * max(true.values()) for _, _, true in worlds)
    assert spent <= 1.1 * least + tries


def test_a_way_that_became_dearer_is_left():
    costs = CostModel()
    true = {Move.NODES: 50.0, Move.UPDATE: 80.0}
    for _ in range(100):
        move = costs.cheaper("a", 1000, 60)
        costs.observe("a", 1000, 60, move, true[move])
    assert costs.cost("a", 1000, 60, Move.NODES) < costs.cost("a", 1000, 60, Move.UPDATE)
    true[Move.NODES] = 400.0
    for _ in range(40):
        move = costs.cheaper("a", 1000, 60)
        costs.observe("a", 1000, 60, move, true[move])
    assert costs.cost("a", 1000, 60, Move.UPDATE) < costs.cost("a", 1000, 60, Move.NODES)
