"""What scaling gains: studies of questions, the best of n, and the figures drawn from them."""
import asyncio
import random
from itertools import combinations
from statistics import mean

import pytest
from hypothesis import given, settings, strategies as st
from test_scaling import Colours, Replies, chart, graders

from llmi_kit.data import row_of
from llmi_kit.ledger import Ledger, Spent
from llmi_kit.picture import Failure
from llmi_kit.sandbox import Sandbox
from llmi_kit.scaling import Plan
from llmi_kit.scaling_study import Studied, Tried, best_of, by_number, by_stage, costs, cut_torn, quality_figure, read_studies, stage_figure, study
from llmi_kit.selection import order_of
from llmi_kit.stages import Means
from llmi_kit.toolkit import CodeTool, Toolkit

QUESTION = 'How much did it rain? One picture, please.'
ROW = row_of(QUESTION, 1, ['code'])
GOOD = 'plt.bar(["May"], [41])'


@pytest.fixture(scope='module')
def toolkit():
    with Sandbox(workers=1, seconds=20) as sandbox: yield Toolkit(dict(code=CodeTool(sandbox), diffusion=Colours(), edit=Colours()))


def made(*rows, **more):
    tried = [Tried(seed=i, score=s, reward=r, tokens=100, holes=0, answer='') for i, (s, r) in enumerate(rows)]
    return Studied(**dict(number=0, question='q', tools=(), tried=tried, after={}, cost={}) | more)


def run(toolkit, plan, *texts, of=lambda d: 3. + ('Rain.' in d.answer)):
    means = Means(QUESTION, Replies(*texts), toolkit, graders(of), Ledger())
    return asyncio.run(study(7, ROW, means, plan))


def test_each_stage_is_measured(toolkit):
    "The kept answer's chart fails, is mended, and its reward rises by what a picture is worth; the other answer has none."
    found = run(toolkit, Plan(n=2, keep=1, repairs=1, pictures=1, wave=2), chart('plt.bars(["May"], [41])'), '# Rain\n\nIt did.', f'```python\n{GOOD}\n```')
    assert [t.holes for t in found.tried] == [1, 0] and [t.tokens for t in found.tried] == [120 + 2*55]*2     # written, and two verdicts
    assert list(found.after) == ['select', 'mend'] and (found.broken, found.mended) == (1, 1)
    assert found.after['select'] == found.tried[0].reward and found.after['mend'] == pytest.approx(found.after['select'] + .2 + .3*.75)
    assert set(found.cost) == {'sample', 'check', 'mend'} and found.cost['mend'].tokens_out >= 20 and found.cost['sample'].tokens == 240
    assert (found.number, found.tools, found.question) == (7, ('code',), QUESTION)


def test_the_reward_knows_what_the_score_does_not(toolkit):
    "The question doesn't say how many pictures; the row does."
    row = row_of('How much did it rain?', 2, ['code'])
    means = Means('How much did it rain?', Replies(chart(GOOD)), toolkit, graders(lambda d: 5.), Ledger())
    tried, = asyncio.run(study(0, row, means, Plan(n=1, keep=1, repairs=0))).tried
    assert tried.score == 1 and tried.reward == pytest.approx(.2*.5 + .3*.5 + .5)


def test_a_chart_that_stays_broken_is_not_counted_as_mended(toolkit):
    found = run(toolkit, Plan(n=1, keep=1, repairs=1, pictures=1), chart('plt.bars(["May"], [41])'), 'I can not.')
    assert (found.broken, found.mended) == (1, 0) and found.after['mend'] == found.after['select']


def test_stages_that_a_plan_leaves_out_are_not_measured(toolkit):
    assert list(run(toolkit, Plan(n=1, keep=1, repairs=0, pictures=1), chart(GOOD)).after) == ['select']
    assert list(run(toolkit, Plan(n=1, keep=1, repairs=1, pictures=2, polish=True), chart(GOOD)).after) == ['select', 'mend', 'choose', 'polish']


def test_a_writer_that_is_away_is_told(toolkit):
    with pytest.raises(RuntimeError, match='nobody is there'): run(toolkit, Plan(n=2))
    found = run(toolkit, Plan(n=2, keep=1, repairs=0, wave=2), Failure(kind='network', message='away'), chart(GOOD))
    assert len(found.tried) == 1


SCORES = st.lists(st.tuples(st.one_of(st.none(), st.sampled_from([0., .3, .3, .7]), st.floats(0, 1)), st.floats(0, 1)), min_size=1, max_size=7)
@settings(deadline=None, max_examples=60)
@given(SCORES, st.data())
def test_the_best_of_n_is_the_mean_over_all_draws(rows, data):
    "Against a list of all subsets, in the order in which all answers rank."
    n, order = data.draw(st.integers(1, len(rows))), order_of([s for s, _ in rows])
    drawn = [rows[min(some, key=order.index)][1] for some in combinations(range(len(rows)), n)]
    assert best_of(made(*rows), n) == pytest.approx(mean(drawn), abs=1e-9)


def test_the_best_of_n_wants_the_rewards_that_it_needs():
    rows = [(.1, None), (.5, .4), (.9, .8)]
    assert best_of(made(*rows), 1) is None and best_of(made(*rows), 2) == pytest.approx(.8*2/3 + .4/3)
    with pytest.raises(ValueError, match='3 answers'): best_of(made(*rows), 4)


def many(n=30):
    rng = random.Random(1)
    for i in range(n):
        rows = [(r, r) for r in (rng.random() for _ in range(8))]
        best = max(r for _, r in rows)
        cost = dict(sample=Spent(tokens_in=400, tokens_out=400, busy=8.), mend=Spent(tokens_out=50 if i % 2 else 0, busy=1.))
        yield made(*rows, number=i, question=str(i), after=dict(select=best, mend=min(1, best + .05)), cost=cost, broken=2, mended=1)


def test_what_a_stage_adds_is_paired_by_question():
    found = by_stage(many())
    assert list(found.index) == ['one answer', 'select', 'mend'] and found.loc['mend', 'gain'] == pytest.approx(found.loc['mend', 'reward'] - found.loc['select', 'reward'])
    assert 0 < found.loc['mend', 'low'] <= found.loc['mend', 'gain'] <= found.loc['mend', 'high'] <= .0501
    better = by_number(many())
    assert better[1].value < better[2].value < better[8].value == pytest.approx(found.loc['select', 'reward'])


def test_costs_are_means_over_all_questions():
    found = costs(many())
    assert found.loc['mend', 'tokens_out'] == 25 and found.loc['sample', 'busy'] == 8
    assert costs([*many(), made((.5, .5))]).loc['sample', 'tokens_in'] == pytest.approx(400*30/31)


def test_figures_show_what_the_tables_say():
    studies = list(many())
    left, right = quality_figure(studies).axes
    line = dict(zip(left.lines[0].get_xdata(), left.lines[0].get_ydata(), strict=True))
    assert line == pytest.approx({n: e.value for n, e in by_number(studies).items()}) and list(right.lines[0].get_xdata()) == [100, 200, 400, 800]
    after, added, mended = stage_figure(studies).axes
    assert list(after.lines[0].get_ydata()) == pytest.approx(list(by_stage(studies)['reward'])) and [b.get_height() for b in mended.patches] == [60, 30]


def test_a_torn_line_is_cut_off(tmp_path):
    one, file = made((.5, .5)), tmp_path/'studies.jsonl'
    cut_torn(file)
    file.write_text(one.model_dump_json() + '\n' + one.model_dump_json()[:40])
    assert read_studies(file) == [one]
    cut_torn(file)
    with file.open('a') as pen: print(one.model_dump_json(), file=pen)
    assert read_studies(file) == [one, one]
