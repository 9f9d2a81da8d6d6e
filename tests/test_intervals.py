"Intervals, agreement and arenas: what they promise, on planted data with fixed seeds."
import json, math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from llmi_kit import intervals
from llmi_kit.agreement import features, kappa, kappa_of, position_bias, swaps
from llmi_kit.arena import Game, WAYS, bradley_terry, win_rates
from llmi_kit.intervals import compare, estimate, groups_needed, sign_flip_p, studentized, t_limits, wilson


def covered(limits, truth): return 100*np.mean((limits[0] <= truth) & (truth <= limits[1]))

def rewards(groups, size=3, sets=2000, seed=0):
    "Skewed planted rewards of mean 4/4.8: (sets, groups, size)."
    rng = np.random.default_rng(seed)
    return rng.beta(4, .8, (sets, groups, 1)) + .05*rng.normal(size=(sets, groups, size))


# --- means
@pytest.mark.parametrize('groups', [8, 12, 30, 100])
def test_clustered_intervals_cover_and_naive_ones_do_not(groups):
    x = rewards(groups)
    sums, sizes = x.sum(-1), np.full(x.shape[:2], 3.)
    assert 93 <= covered(studentized(sums, sizes), 4/4.8) <= 97
    flat = x.reshape(len(x), -1)
    assert covered(t_limits(flat, np.ones_like(flat)), 4/4.8) < 80

def test_five_groups_are_a_little_short():
    x = np.concatenate([rewards(5, seed=s) for s in range(3)])
    assert 92 <= covered(studentized(x.sum(-1), np.full(x.shape[:2], 3.)), 4/4.8) <= 97

def test_the_error_of_single_answers_is_the_textbooks():
    x = np.random.default_rng(0).random(9)
    assert estimate(x).se == pytest.approx(stats.sem(x))

def test_groups_of_unequal_size_are_covered():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, (1000, 40)).astype(float)
    sums = sizes*rng.normal(.5, .1, sizes.shape) + np.sqrt(sizes)*.1*rng.normal(size=sizes.shape)
    assert 93 <= covered(studentized(sums, sizes), .5) <= 97

@pytest.mark.parametrize('groups', [10, 24, 150])
@pytest.mark.parametrize('p', [.5, .8, .95, .99])
def test_shares_are_covered_near_the_ends_too(groups, p):
    rng = np.random.default_rng(1)
    right = rng.binomial(3, rng.beta(p*1.5, (1 - p)*1.5, (2000, groups))).astype(float)
    n = np.full(right.shape, 3.)
    assert covered(wilson(right, n), p) >= 93
    if groups == 150 and p < .9: assert covered(wilson(right, n), p) <= 97

def test_resampling_shares_near_one_would_fail():
    right = np.random.default_rng(1).binomial(1, .99, (1000, 24)).astype(float)
    assert covered(t_limits(right, np.ones_like(right)), .99) < 30

@pytest.mark.parametrize('groups', [10, 24, 60, 150])
def test_rare_failures_are_covered(groups):
    rng = np.random.default_rng(2)
    drawn = [estimate(np.where(rng.random(groups) < .95, 1, rng.random(groups))) for _ in range(300)]
    assert np.mean([e.low <= .975 <= e.high for e in drawn]) >= .93
    drawn = [estimate(rng.choice([1., -1, 0], groups, p=[.06, .02, .92]), bounds=(-1, 1)) for _ in range(300)]
    assert np.mean([e.low <= .04 <= e.high for e in drawn]) >= .93

@pytest.mark.parametrize('groups', [5, 20, 100])
def test_estimate_as_a_whole_covers(groups):
    x = .5 + .1*np.random.default_rng(3).normal(size=(1000, groups, 1)) + .05*np.random.default_rng(4).normal(size=(1000, groups, 3))
    x = np.clip(x, 0, 1)
    labels = np.repeat(np.arange(groups), 3)
    drawn = [estimate(one.ravel(), labels) for one in x]
    assert 93 <= 100*np.mean([e.low <= .5 <= e.high for e in drawn]) <= 97

def test_narrow_rewards_get_narrow_intervals():
    "What could be is not stretched to the bounds when nothing like it was seen."
    x = .6 + .05*(rewards(50, size=1, sets=300, seed=3)[..., 0] - 4/4.8)
    drawn = [estimate(one) for one in x]
    assert np.mean([e.low <= .6 <= e.high for e in drawn]) >= .93
    assert np.mean([e.high - e.low for e in drawn]) < .01

def test_missing_values_are_counted_and_bound_the_mean():
    e = estimate([1, None, .5, float('nan'), .5, 0], 'aabbcd')
    assert (e.value, e.n, e.missing, e.groups) == (.5, 4, 2, 4)
    assert e.extremes == (2/6, 4/6) and '2 missing' in str(e)
    assert estimate([None]).value is None and estimate([]).missing == 0
    assert json.loads(estimate([None, 1, 1, 0]).model_dump_json())['missing'] == 1

def test_what_can_not_be_known_is_said():
    assert estimate([.5]*9, 'a'*9).low is None and 'one group' in estimate([.5]).method
    assert estimate([3.]*9, bounds=(0, math.inf)).low is None
    alike = estimate([1.]*24)
    assert alike.high == 1 and .8 < alike.low < .9       # not a point, though nothing has failed
    assert estimate([.7]*24).low < .7 < estimate([.7]*24).high

def test_one_lump_gives_no_absurd_interval():
    "Rewards near 0.35 and three near 1: resamples without the three must not stretch the interval to the bounds."
    x = list(.35 + .001*np.arange(21)) + [.8, 1, 1]
    e = estimate(x)
    assert e.low > .25 and e.high < .65
    d = compare([0]*24, x, range(24))
    assert d.p < .001 and d.difference.low > 0

@pytest.mark.parametrize('call, says', [
    (lambda: estimate([4]), r'bounds=\(1, 5\)'), (lambda: estimate([math.inf]), 'infinite'), (lambda: estimate([1, 0], 'a'), 'its group'),
    (lambda: groups_needed(0, 1), 'never found'), (lambda: kappa([1], [1, 2]), 'same answers'), (lambda: position_bias(['first']), 'a verdict is A'),
    (lambda: swaps(['A'], []), 'twice'), (lambda: bradley_terry([]), 'no game'), (lambda: bradley_terry([Game('a', 'a', 'A')]), 'itself')])
def test_errors_are_sentences(call, says):
    with pytest.raises(ValueError, match=says): call()

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.integers(0, 9)), max_size=30))
def test_any_rewards_have_a_sound_estimate(pairs):
    e = estimate([v for v, _ in pairs], [g for _, g in pairs])
    assert e.n + e.missing == len(pairs)
    if e.low is not None: assert 0 <= e.low <= e.value + 1e-9 and e.value - 1e-9 <= e.high <= 1

def test_the_seed_decides():
    x = np.random.default_rng(0).random(20)
    assert estimate(x, seed=1) == estimate(x, seed=1) != estimate(x, seed=2)
    assert compare(x, x[::-1], range(20), seed=1) == compare(x, x[::-1], range(20), seed=1)


# --- comparisons
def test_p_is_scipys_and_exact_for_few_groups():
    for n in (2, 6, 13):
        d = np.random.default_rng(n).normal(.3, 1, n)
        theirs = stats.permutation_test((d,), np.sum, permutation_type='samples', vectorized=True, n_resamples=np.inf).pvalue
        assert float(sign_flip_p(d)) == pytest.approx(float(theirs), abs=1e-12)
    assert float(sign_flip_p(np.ones(5))) == 2/32 and float(sign_flip_p(np.zeros(30))) == 1

def test_equal_systems_are_told_apart_five_times_in_a_hundred():
    rng = np.random.default_rng(4)
    apart = (rng.normal(size=(2000, 24, 1)) + rng.normal(size=(2000, 24, 3))).sum(-1)
    assert 3.5 <= 100*np.mean(sign_flip_p(apart) < .05) <= 6.5
    alone = rng.normal(size=(500, 24, 1)) + .3*rng.normal(size=(500, 24, 3))
    assert np.mean(sign_flip_p(alone.reshape(500, -1)) < .05) > .15      # as if each answer stood alone: false alarms

def test_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(5)
    hard = rng.beta(3, 2, 40)
    a, b = hard*.9, np.clip(hard*.9 + .05 + .02*rng.normal(size=40), 0, 1)
    both = compare(a, b, range(40))
    assert both.p < .001 and both.difference.low > 0
    assert estimate(a).high > estimate(b).low

def test_pairs_with_a_missing_half_and_questions_of_one_side():
    pair = compare([1, None, 0, 0], [1, 1, None, 1], 'abcd')
    assert (pair.difference.n, pair.difference.missing, pair.difference.value) == (2, 2, .5)
    runs = compare([0, 1, 0], [1, 1, 1, None], 'aab', 'abcd')
    assert runs.difference.value == .75 and runs.difference.missing == 2
    assert compare([1, 2], [4, 5], 'ab', bounds=(1, 5)).difference.value == 3

def test_the_planned_sample_has_the_planned_power():
    n = groups_needed(.1, .3, chance=.8)
    rng = np.random.default_rng(6)
    found = np.mean(sign_flip_p(rng.normal(.1, .3, (2000, n))) < .05)
    assert .77 <= found <= .83 and groups_needed(.5, 1) == 34
    pilot = compare(np.zeros(4000), rng.normal(.1, .1, 4000), range(4000)).difference
    assert pilot.spread == pytest.approx(.1, rel=.05)


# --- agreement
def judges(groups, size, rng, skill=.7, alike=.3):
    truth = rng.integers(1, 6, (groups, size))
    skilled = np.clip(skill + alike*rng.normal(size=(groups, 1)), 0, 1)
    return [np.where(rng.random((groups, size)) < skilled, truth, rng.integers(1, 6, (groups, size))).ravel().astype(float) for _ in range(2)]

@pytest.mark.parametrize('weights', ['plain', 'quadratic'])
def test_kappa_is_scikit_learns_and_its_interval_covers(weights):
    rng = np.random.default_rng(7)
    a, b = judges(40, 3, rng)
    theirs = cohen_kappa_score(a.astype(int), b.astype(int), weights=None if weights == 'plain' else weights)
    assert kappa(a, b, weights).value == pytest.approx(theirs)
    truth = float(kappa_of(features(*judges(200_000, 3, rng), weights).sum(0), weights))
    for groups, size in ((24, 8), (100, 3)):
        question = np.repeat(np.arange(groups), size)
        drawn = [judges(groups, size, rng) for _ in range(400)]
        clustered, naive = ([kappa(a, b, weights, g) for a, b in drawn] for g in (question, None))
        rate = lambda found: 100*np.mean([e.low <= truth <= e.high for e in found])
        assert 92.5 <= rate(clustered) <= 97.5
        if size == 8: assert rate(naive) < 90

def test_kappa_of_judges_that_hardly_differ():
    few = [1, 2, 3, 4, 5]*5
    full = kappa(few, few, 'quadratic')
    assert full.value == full.high == 1 and 0 < full.low < .95
    once = kappa(few, [2] + few[1:])
    assert once.low < once.value < once.high < 1
    assert kappa([5]*9, [5]*9).value is None
    assert kappa([1, 2, None], [1, 2, 3]).missing == 1

def test_kappa_near_one_is_covered():
    rng = np.random.default_rng(8)
    def hit():
        truth = rng.integers(0, 2, 24)
        a, b = (np.where(rng.random(24) < .9, truth, rng.integers(0, 2, 24)) for _ in range(2))
        e = kappa(a, b)
        return e.value is None or e.low <= .81 <= e.high
    assert np.mean([hit() for _ in range(400)]) >= .93

def test_a_position_bias_is_found_95_times_in_100_and_no_bias_5():
    "60 % of 400 games won by the answer shown first; OpenING's judge has 64.1 %."
    rng = np.random.default_rng(9)
    play = lambda share: np.where(rng.random((1000, 400)) < share, 1., -1)
    assert np.mean(sign_flip_p(play(.6)) < .05) >= .95
    assert .035 <= np.mean(sign_flip_p(play(.5)) < .05) <= .065

def pairwise(pairs, soft_spot, rng):
    better = rng.normal(size=pairs)
    said = lambda gap: np.where(np.abs(gap) < .3, 'Tie', np.where(gap > 0, 'A', 'B')).tolist()
    see = lambda gap: said(gap + soft_spot + rng.normal(size=pairs))
    return see(better), see(-better)

def test_a_planted_judge_is_caught_by_swapping():
    rng = np.random.default_rng(10)
    caught = [swaps(*pairwise(200, .3, rng)).bias.p < .05 for _ in range(100)]
    accused = [swaps(*pairwise(200, 0, rng)).bias.p < .05 for _ in range(200)]
    assert np.mean(caught) >= .95 and np.mean(accused) <= .09

def test_swap_consistency():
    fixed = swaps(['A', 'B', 'Tie', 'A', None], ['B', 'A', 'Tie(A)', 'A', 'B'])
    assert fixed.consistent.value == .75 and fixed.consistent.missing == 1
    assert fixed.flipped.value == pytest.approx(1/3)
    always = swaps(['A']*20, ['A']*20)
    assert always.consistent.value == 0 and always.flipped.value == 1 and always.bias.difference.value == 1
    assert swaps([], []).consistent.value is None
    once = swaps(['A', 'A', 'Tie'], ['Tie', 'A', 'B']).flipped
    assert (once.value, once.n) == (1, 1)     # a pair that was a tie once has not changed its winner


# --- arenas
def test_the_four_win_rates_by_hand():
    games = [Game('x', 'y', v, q) for q, v in enumerate(['A', 'A', 'B', 'Tie(A)', 'Tie(B)', 'Tie(A)', 'Tie', None])]
    x, y = (win_rates(games)[n] for n in 'xy')
    assert {w: x[w].value for w in WAYS} == {'forced': 4/6, 'decided': 2/3, 'tie 0': 2/7, 'tie 0.5': 4/7}
    assert y['tie 0.5'].value == pytest.approx(1 - x['tie 0.5'].value) and y['tie 0'].value == 1/7
    assert {w: x[w].missing for w in WAYS} == {'forced': 2, 'decided': 5, 'tie 0': 1, 'tie 0.5': 1}

def test_two_systems_without_ties_differ_by_the_log_odds():
    found = bradley_terry([Game('x', 'y', 'A' if i % 4 else 'B', i) for i in range(4000)])
    assert found.systems['x'].value - found.systems['y'].value == pytest.approx(math.log(3), abs=.01)
    assert found.chance('x', 'y') == pytest.approx(.75, abs=.005) and found.ties < .01
    tied = bradley_terry([Game('x', 'y', ('A', 'A', 'B', 'Tie')[i % 4], i) for i in range(4000)])
    assert tied.chance('x', 'y') == pytest.approx(.625, abs=.005) and tied.chance('x', 'x') == .5

def arena(questions, rng, strengths=(-1, -.4, 0, .4, 1.), nu=.7, suits=1.2):
    theta = np.array(strengths) + suits*rng.normal(size=(questions, len(strengths)))
    a, b = np.tile(np.triu_indices(len(strengths), 1), 2)
    logits = np.stack([theta[:, a], np.log(nu) + (theta[:, a] + theta[:, b])/2, theta[:, b]], -1)
    said = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return [Game(f's{i}', f's{j}', ('A', 'Tie', 'B')[said[q, k]], q) for q in range(questions) for k, (i, j) in enumerate(zip(a, b, strict=True))]

def test_strengths_are_found_again_and_covered():
    plain = bradley_terry(arena(1500, np.random.default_rng(0), suits=0))
    assert [round(e.value, 1) for e in plain.systems.values()] == [1., .4, 0, -.4, -1.] and plain.ties == pytest.approx(.7, abs=.05)
    truth = {n: e.value for n, e in bradley_terry(arena(3000, np.random.default_rng(999))).systems.items()}
    drawn = [arena(30, np.random.default_rng(seed)) for seed in range(100)]
    hits = lambda games: [e.low <= truth[n] <= e.high for n, e in bradley_terry(games).systems.items()]
    assert .92 <= np.mean([hits(d) for d in drawn]) <= .98
    assert np.mean([hits([g._replace(question=None) for g in d]) for d in drawn[:50]]) < .9

def test_who_won_everything_is_not_certain():
    e = bradley_terry([Game('x', 'y', 'A', q) for q in range(10)]).systems['x']
    assert math.isfinite(e.value) and e.high - e.low > 2
    one = bradley_terry([Game('x', 'y', 'A', 1), Game('x', 'y', None, 2)]).systems['x']
    assert one.low is None and one.missing == 1

def test_sides_do_not_matter_to_strengths():
    games = arena(20, np.random.default_rng(1))
    turned = [Game(g.second, g.first, dict(A='B', B='A', Tie='Tie')[g.verdict], g.question) for g in games]
    for name, e in bradley_terry(games).systems.items():
        other = bradley_terry(turned).systems[name]
        assert (e.value, e.low) == pytest.approx((other.value, other.low), abs=1e-3)

def test_draws_and_flips_are_shared_not_drawn_again():
    "A thousand estimates must not cost a thousand sets of draws."
    assert intervals.draws(17) is intervals.draws(17) and intervals.signs(17) is intervals.signs(17)
