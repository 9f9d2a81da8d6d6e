"""Stopping rules and their replay: thresholds that are known, rules that must hold for any scores, and numbers worked out by hand."""
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmi_kit.scaling_study import Studied, Tried, read_studies
from llmi_kit.stopping import Fixed, Prior, Recorded, Stopper, best, path, replay, tune, tuned_price

SCORE = st.one_of(st.sampled_from([0., .25, .3, .5, 1.]), st.floats(0, 1))
SCORES = st.lists(st.one_of(st.none(), SCORE), min_size=1, max_size=20)
KNOWN = st.lists(SCORE, min_size=1, max_size=16)
PRIORS = st.lists(KNOWN, max_size=5).map(Prior.fit)
PRICE = st.floats(0, .5)
MANY = np.random.default_rng(0).random(100_000)
UNIFORM, COIN = Prior.fit([MANY]), Prior.fit([(MANY < .3).astype(float)*.5 + .25])     # 0.75 with chance 0.3, else 0.25
spec = importlib.util.spec_from_file_location('scaling_replay', Path(__file__).parent.parent/'benchmarks'/'scaling_replay.py')
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


# Known distributions

@pytest.mark.parametrize('price', [.005, .02, .1])
def test_the_threshold_of_a_uniform_distribution(price):
    "Weitzman: stop at 1 - sqrt(2 price cost)."
    edge, stopper = 1 - math.sqrt(2*price*3), Stopper(price=price, prior=UNIFORM)
    assert not stopper.stop([edge - .02], [3]).stop
    assert stopper.stop([edge + .02], [3]).stop


def test_the_threshold_of_two_points():
    "At 0.25, one more gains 0.3 * 0.5 = 0.15; at 0.75, next to nothing."
    low = Stopper(price=.1, prior=COIN).stop([.25], [1])
    assert low.expected_gain == pytest.approx(.15, abs=.005) and low.expected_cost == 1
    assert not Stopper(price=.14, prior=COIN).stop([.25], [1]).stop
    assert Stopper(price=.16, prior=COIN).stop([.25], [1]).stop
    assert Stopper(price=.001, prior=COIN).stop([.75], [1]).stop


def test_the_optimum_is_found_by_simulation():
    "With the true price, no other price earns more than the stopper does, but for noise."
    draws = np.random.default_rng(1).random((2000, 40))

    def earns(edge): return np.mean([row[k := int(np.argmax(row >= edge))] - .02*(k + 1) for row in draws])
    grid = np.linspace(.5, .95, 46)
    optimum = grid[np.argmax([earns(e) for e in grid])]
    low, high = 0., 1.
    for _ in range(20):
        middle = (low + high)/2
        low, high = (low, middle) if Stopper(price=.02, prior=UNIFORM).stop([middle], [1]).stop else (middle, high)
    assert low == pytest.approx(.8, abs=.005) and abs(optimum - low) < .05


def test_what_a_prior_says_by_hand():
    "Two recorded questions, one score of each: weights, excess and gain, worked out."
    prior, scores = Prior(questions=[(1.,), (.25,)]), [.25]
    pool = (1 + 1/21)/3     # of either bin
    like = np.array([pool/2, (1 + pool)/2])
    assert prior.weights(scores) == pytest.approx(like/like.sum(), abs=1e-12)
    left = (.75 + .75**2/2)/3
    assert prior.excess(.25) == pytest.approx([.75 + left, left], abs=1e-12)
    assert prior.gain(scores) == pytest.approx(like/like.sum() @ [.75 + left, left]/3, abs=1e-12)


def test_a_prior_that_knows_nothing_is_even():
    assert Prior().gain([]) == pytest.approx(.5) and Prior().gain([.4]) == pytest.approx(.18/2)


def test_questions_that_look_alike_are_believed():
    "One 0.3 looks like the hopeless questions, which never rise; one 0.6 like the others, which do."
    prior = Prior.fit([[.3]*16]*10 + [[.6]*8 + [.9]*8]*10)
    assert prior.gain([.3]*3) < .02 < .08 < prior.gain([.6])
    assert prior.weights([.3]*3)[:10].sum() > .99


# What must hold for any scores

@given(SCORES, PRIORS, PRICE, PRICE)
def test_a_higher_price_never_takes_more(scores, prior, one, other):
    low, high = sorted((one, other))
    counts = [replay(Stopper(price=p, prior=prior), scores, [1.]*len(scores)) for p in (low, high)]
    assert counts[1] <= counts[0]


@given(SCORES, PRIORS, PRICE, st.integers(1, 6), st.integers(0, 12), st.integers(1, 5))
def test_never_beyond_most_and_never_below_least(scores, prior, price, least, more, wave):
    stopper = Stopper(price=price, least=least, most=least + more, prior=prior)
    n = replay(stopper, scores, [1.]*len(scores), wave)
    assert 1 <= n <= stopper.most
    known = sum(s is not None for s in scores[:n])
    assert known >= least or n == min(len(scores), stopper.most)


@given(KNOWN, PRIORS, PRICE, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(scores, prior, price, random):
    mixed = random.sample(scores, len(scores))
    a, b = (Stopper(price=price, prior=prior).stop(s, [1.]*len(s)) for s in (scores, mixed))
    assert a == b


@given(KNOWN, PRIORS, PRICE, st.integers(-12, 12))
def test_the_unit_of_cost_does_not_matter(scores, prior, price, power):
    "Powers of two change no digits."
    unit, costs = 2.**power, [3. + i for i in range(len(scores))]
    one = Stopper(price=price, prior=prior).stop(scores, costs)
    other = Stopper(price=price/unit, prior=prior).stop(scores, [c*unit for c in costs])
    assert (one.stop, one.expected_gain) == (other.stop, other.expected_gain) and other.expected_cost == one.expected_cost*unit


@given(KNOWN, PRIORS, PRICE, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_failed_judge_neither_stops_nor_spoils(scores, prior, price, failed, random):
    "A candidate without a score, at the usual cost, changes nothing but its count."
    holes = scores + [None]*failed
    random.shuffle(holes)
    stopper = Stopper(price=price, prior=prior, most=100)
    with_holes, without = stopper.stop(holes, [2.]*len(holes)), stopper.stop(sorted(scores), [2.]*len(scores))
    assert with_holes == without


@given(KNOWN, PRIORS)
def test_gains_are_possible_gains(scores, prior):
    gain = prior.gain(scores)
    assert 0 <= gain <= 1 - max(scores) + 1e-12
    assert prior.weights(scores).sum() == pytest.approx(1)


@given(st.lists(SCORES, min_size=1, max_size=5), st.floats(0, .3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_tuned_price_keeps_its_promise(questions, loss, wave):
    "On the paths that it was tuned on, and what a path says a replay does."
    prior = Prior.fit(questions)
    recorded = [Recorded(q, [1. + i for i in range(len(q))], q) for q in questions]
    paths = [path(r, prior, wave=wave) for r in recorded]
    if all(np.isnan(p.value[-1]) for p in paths):
        with pytest.raises(ValueError, match='value'): tuned_price(paths, loss)
        return
    price = tuned_price(paths, loss)
    got = []
    for r, p in zip(recorded, paths, strict=True):
        n, i = replay(Stopper(price=price, prior=prior), r.scores, r.costs, wave), int((p.even <= price).argmax())
        assert sum(r.costs[:n]) == p.cost[i]
        got.append(p.value[i])
    assert np.nanmean(got) >= (1 - loss)*np.nanmean([p.value[-1] for p in paths]) - 1e-12


# Corners

def test_perfection_stops_at_once_and_least_comes_first():
    assert Stopper(price=0).stop([1.], [9]).stop
    assert not Stopper(price=0, least=2).stop([1.], [9]).stop
    assert Stopper(price=0, least=2).stop([1., .2], [9, 9]).stop
    assert not Stopper(price=0).stop([.999], [9]).stop


def test_equal_scores_stop_where_such_questions_are_known():
    prior = Prior.fit([[s]*16 for s in (.2, .3, .4, .5)]*4)
    assert replay(Stopper(price=.02, prior=prior), [.3]*16, [1]*16) <= 4


def test_all_judges_failed():
    assert replay(Stopper(price=1.), [None]*20, [1]*20) == 16
    assert best([None, None]) is None and best([]) is None
    found = Stopper(price=1.).stop([None], [1])
    assert not found.stop and '0 candidates have a score' in found.why


def test_one_candidate_is_enough_where_one_is_the_most():
    assert replay(Stopper(most=1), [.1, .9], [1, 1]) == 1 == replay(Fixed(n=1), [.1, .9], [1, 1])


def test_enough_is_enough_for_whoever_asks():
    "Without a replay that cuts waves: at n, at most, and beyond."
    for n in (3, 4): assert Fixed(n=3).stop([.1]*n, [1]*n).stop and Stopper(price=0, most=3).stop([.1]*n, [1]*n).stop
    assert not Fixed(n=3).stop([.1]*2, [1]*2).stop and not Stopper(price=0, most=3).stop([.1]*2, [1]*2).stop
    perfect = Stopper(price=0).stop([1.], [0])
    assert perfect.stop and perfect.why == 'the best possible score is reached'


def test_failed_judges_are_left_out_of_the_prior_and_zeros_are_not():
    assert Prior.fit([[0., None, .5], [None], []]).questions == ((0., .5),)


def test_hypotheses_of_unequal_size_are_weighed_by_hand():
    "Dirichlet-multinomial for one score: its count's share of all counts."
    prior = Prior(questions=[(.5,), (.5, .5, 1.)])
    pool = (3 + 1/21)/5     # of the bin of 0.5
    like = np.array([(1 + pool)/2, (2 + pool)/4])
    assert prior.weights([.5]) == pytest.approx(like/like.sum(), abs=1e-12)


def test_what_is_free_is_taken_and_what_costs_all_is_not():
    assert replay(Stopper(price=1.), [.1]*16, [0]*16) == 16
    assert replay(Stopper(price=1.), [.1]*16, [10]*16) == 1


def test_fixed_is_best_of_n():
    for n in (1, 2, 4, 16): assert replay(Fixed(n=n), [1.]*20, [1]*20) == n
    assert replay(Fixed(n=5), [.1]*20, [1]*20, wave=4) == 5
    assert best([.2, None, .9, .9]) == 2


def test_a_price_only_counts_with_its_cost():
    "The mean of the costs so far is what the next one will take."
    found = Stopper().stop([.2, None], [30, 50])
    assert found.expected_cost == 40


@pytest.mark.parametrize('make, why', [
    (lambda: Stopper(least=5, most=4), 'least is 5 and most is 4'), (lambda: Stopper(price=-1), 'greater than or equal to 0'),
    (lambda: Stopper(price=math.nan), 'finite'), (lambda: Fixed(n=0), 'greater than or equal to 1'), (lambda: Prior(questions=[()]), 'at least one'),
    (lambda: Stopper().stop([1.1], [1]), '0 to 1'), (lambda: Stopper().stop([math.nan], [1]), '0 to 1'), (lambda: Fixed().stop([.1], [-1]), 'costs are finite'),
    (lambda: Stopper().stop([.1], [1, 2]), '1 scores and 2 costs')])
def test_what_makes_no_sense_is_refused(make, why):
    with pytest.raises((ValueError, ValidationError), match=why): make()


def test_a_stopper_goes_through_json():
    stopper = tune([Recorded([.2, .6, None], [30, 40, 50], [.1, .7, None])]*3)
    used = stopper.stop([.6], [40])
    again = Stopper.model_validate_json(stopper.model_dump_json())
    assert again == stopper and again.stop([.6], [40]) == used and again == stopper


def test_tuning_leaves_the_question_itself_out():
    "A question that alone knows of 1.0 can not tell itself: its path has the price that the others give."
    odd = Recorded([.3, 1., .3], [1]*3, [.3, 1., .3])
    others = [Recorded([.3]*3, [1]*3, [.3]*3)]*3
    prior = Prior.fit([r.scores for r in [odd, *others]])
    assert path(odd, prior.without(0)).even[0] < path(odd, prior).even[0]
    seen = tune([odd, *others], loss=0, orders=1, seed=0)
    rng = np.random.default_rng(0)
    paths = [path(r.shuffled(rng), prior.without(i)) for i, r in enumerate([odd, *others])]
    assert seen.price == tuned_price(paths, 0.)


# The replay of the benchmark

def studied(part, question, rows):
    tried = [Tried(seed=i, score=s, reward=r, tokens=t, holes=0, answer='') for i, (t, s, r) in enumerate(rows)]
    return Studied(number=question, question=str(question), part=part, tools=(), tried=tried, after={}, cost={})


def write(file, studies, more=''): file.write_text(''.join(s.model_dump_json() + '\n' for s in studies) + more)


HAND = [[(10, .5, .4), (20, .7, .8), (40, .7, .1), (30, None, .9)], [(5, .2, .6), (5, .9, None), (10, .4, .3), (20, .3, .7)]]


def test_numbers_by_hand(tmp_path):
    "One order as recorded: best of 2 takes 10 + 20 and 5 + 5 tokens, and gets 0.8 and 0.6 (what has no reward is not chosen)."
    write(tmp_path/'r.jsonl', [studied('heldout', q, rows) for q, rows in enumerate(HAND)], '{"part": "held')
    questions = bench.recorded(read_studies(tmp_path/'r.jsonl'), 'heldout')
    assert questions[1].scores == [.2, None, .4, .3] and questions[0].costs == [10, 20, 40, 30]
    assert [bench.once(Fixed(n=2), q, 1) for q in questions] == [(2, 30, .8), (2, 10, .6)]
    assert [bench.once(Fixed(n=4), q, 1) for q in questions] == [(4, 100, .8), (4, 40, .3)]
    full, few = bench.Taken([4, 4], [100, 40], [.8, .3]), bench.Taken([2, 2], [30, 10], [.8, .6])
    saved, lost = bench.percent(full, few)
    assert saved == pytest.approx(1 - 20/70, abs=1e-12) and lost == pytest.approx(1 - .7/.55, abs=1e-12)


def test_orders_average_by_question():
    "Best of 1 over many orders is the mean of what can come first; best of all does not depend on the order where scores differ."
    questions = [Recorded([.1, .2, .3], [1, 2, 6], [.3, .6, .9])]
    first, whole = (bench.taken(Fixed(n=n), questions, orders=4000) for n in (1, 3))
    assert first.reward[0] == pytest.approx(.6, abs=.02) and first.cost[0] == pytest.approx(3, abs=.15)
    assert whole.reward[0] == pytest.approx(.9, abs=1e-12) and whole.cost[0] == 9
    assert bench.taken(Fixed(n=1), questions, 7) == bench.taken(Fixed(n=1), questions, 7)


def test_tuning_never_sees_the_held_out_questions(monkeypatch):
    "Other held-out questions, the same stopper."
    args = bench.arguments([])
    calibration = bench.recorded(bench.made_up(), 'calibration')[:15]
    seen = []
    monkeypatch.setattr(bench, 'tune', lambda questions, *a, **k: seen.extend(questions) or tune(questions, *a, **k))
    stopper = bench.rules(calibration, 16, args)['stopper']
    assert seen == calibration and len(stopper.prior.questions) == 15


def test_made_up_questions_meet_the_target(capsys):
    assert bench.main(['--orders', '3'])
    told = capsys.readouterr().out
    assert 'best of 16' in told and ': met' in told


def test_where_stopping_does_not_help_the_target_is_not_met(tmp_path, capsys):
    "Scores with a long tail: the best of 16 is often far above the second, and nothing says that it is there."
    rng, lines = np.random.default_rng(3), []
    for part in bench.PARTS: lines += [studied(part, q, [(10, s, s) for s in np.minimum(rng.exponential(.1, 16), 1)]) for q in range(30)]
    write(tmp_path/'r.jsonl', lines)
    assert not bench.main([str(tmp_path/'r.jsonl'), '--orders', '4'])
    assert 'NOT MET' in capsys.readouterr().out


def test_saving_is_not_enough_where_the_reward_suffers(tmp_path, capsys):
    "Every calibration question is hopeless and every held-out one is not: stopping early saves much, and loses more than may be lost."
    lines = [studied('calibration', q, [(10, .3, .3)]*16) for q in range(12)]
    lines += [studied('heldout', q, [(10, .3, .3)]*15 + [(10, .9, .9)]) for q in range(12)]
    write(tmp_path/'r.jsonl', lines)
    assert not bench.main([str(tmp_path/'r.jsonl'), '--orders', '4'])
    told = capsys.readouterr().out.splitlines()[-1]
    assert float(told.split()[1].rstrip('%')) > 40 and 'NOT MET' in told


@pytest.mark.parametrize('argv', [['nowhere.jsonl'], ['--wave', '0'], ['--cost', 'hours']])
def test_wrong_arguments_are_named(argv, capsys):
    with pytest.raises(SystemExit) as told: bench.main(argv)
    assert told.value.code == 2 and 'error:' in capsys.readouterr().err


def test_the_record_in_git_can_be_replayed():
    "The line of a study and the same study in the record of its figure."
    record = Path(__file__).parent.parent/'figures'/'cpu'/'runs'/'scaling.json'
    heldout, tuned_on = (bench.recorded(bench.studies_of(record), part) for part in ('heldout', 'calibration'))
    assert len(heldout) == 60 and len(tuned_on) >= 20 and {len(q.scores) for q in heldout} == {16}
