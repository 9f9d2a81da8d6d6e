"""The rules of the reward against the official functions' inputs and outputs, and their edges."""
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from llmi_kit.data import row_of
from llmi_kit.document import Call, parse
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.reward import DIFFICULTY, Reward, hybrid_reward, image_count_score, score, summary, tool_use_score
from llmi_kit.verdict import GRADES, Verdict

VECTORS = json.loads((Path(__file__).parent/'parity'/'reward_vectors.json').read_text())


def test_image_count_equals_the_release():
    for v in VECTORS['image_count']:
        for split, key in (('train', 'train'), ('test', 'eval')):
            assert image_count_score(v['images'], v['image_num'], split) == pytest.approx(v[key], abs=1e-9), v
    assert len(VECTORS['image_count']) == 200


def test_tool_use_equals_the_release():
    for v in VECTORS['tool_use']:
        assert tool_use_score(v['required'], v['attempted'], v['succeeded']) == pytest.approx(v['r_tool'], abs=1e-9), v


def test_composite_equals_the_release():
    for v in VECTORS['composite']:
        n = image_count_score(v['images'], v['image_num'])
        grades = (v['llm_text'], v['llm_image'], v['quality'], v['task_relevance'], v['text_image_relevance'])
        assert hybrid_reward(n, *grades, weights=v['profile']) == pytest.approx(v['reward'], abs=1e-9), v


TOOLS = st.lists(st.sampled_from(sorted(DIFFICULTY)), max_size=6)


@given(TOOLS, TOOLS)
def test_tool_use_is_a_share(required, tried):
    assert tool_use_score(required, tried, []) <= .5 and tool_use_score(iter(required), iter(tried), tried) <= 1
    assert tool_use_score(required, required, required) == pytest.approx(float(bool(required)))


@given(st.integers(0, 30), st.sampled_from([-1, 0, 99, 1, 2, 3, 7]), st.sampled_from(['train', 'test']))
def test_count_is_0_to_1_and_best_when_right(made, wanted, split):
    assert 0 <= image_count_score(made, wanted, split) <= 1
    right = dict([(-1, 0), (0, made), (99, max(1, made))]).get(wanted, wanted)
    assert image_count_score(right, wanted, split) == 1


@given(st.floats(0, 1), st.lists(st.integers(1, 5), min_size=5, max_size=5), st.sampled_from(['llm', 'mllm']), st.integers(0, 4))
def test_a_better_grade_is_never_worse(n, grades, weights, which):
    better = [min(5, g + (i == which)) for i, g in enumerate(grades)]
    assert 0 <= hybrid_reward(n, *grades, weights=weights) <= hybrid_reward(n, *better, weights=weights) + 1e-12 <= 1 + 1e-9


@pytest.mark.parametrize('call', [
    lambda: image_count_score(-1, 3), lambda: image_count_score(1, -2), lambda: image_count_score(1, 1, 'eval'),
    lambda: tool_use_score(['video'], [], []), lambda: hybrid_reward(1, 6, 1, 1, 1, 1), lambda: hybrid_reward(1, 1, 1, 1, 1, 0),
    lambda: hybrid_reward(1.1, 1, 1, 1, 1, 1), lambda: hybrid_reward(1, 1, 1, 1, 1, 1, 'vlm')])
def test_nonsense_is_a_sentence(call):
    with pytest.raises(ValueError, match=r'^[^\n]{10,140}$'): call()


# -- score: what an answer is worth, with everything that may be missing. Each defect of the release, side by side with ours.

RED, BLUE = (Picture.from_pil(Image.new('RGB', (64, 64), c), Origin(tool='diffusion', seconds=1, cost=.01)) for c in ('red', 'blue'))
def tag(what='red', source='diffusion'): return '<imgen>' + repr(dict(source=source, description=what, params=dict(prompt=what))) + '</imgen>'
def asked(n, tools=('diffusion',), split='train'): return row_of('Show me something red.', n, () if n == -1 else tools, split=split)
def made(answer, *results, inputs=()):
    d = parse(answer, len(inputs)).model_copy(update=dict(inputs=list(inputs)))
    return d.model_copy(update=dict(tags=[t.model_copy(update=dict(result=r)) for t, r in zip(d.tags, results, strict=True)]))


class Fixed:
    def __init__(self, text=4, pictures=4): self.says, self.read = dict(text=text, pictures=pictures), []
    def one(self, reads, made):
        if reads == 'pictures' and not made: return Verdict(judge='fixed', skipped='there is no picture to judge')
        if self.says[reads] is None: return Verdict(judge='fixed', failure=Failure(kind='timeout', message='it took too long'))
        return Verdict(judge='fixed', grades=dict.fromkeys(GRADES[reads], self.says[reads]), cost=.02, seconds=2)
    async def __call__(self, document, row):
        self.read.append(document.answer)
        return {reads: self.one(reads, any(isinstance(t.result, Picture) for t in document.tags)) for reads in GRADES}


async def both(document, row, judges=None):
    "The value under the default and under the reference."
    return [(await score(document, row, judges or Fixed(), variant=v)).value for v in ('default', 'reference')]


async def test_a_reward_says_what_it_is_made_of():
    r = await score(made(f'Red {tag()} and blue {tag("blue")} and {tag("green")}', RED, BLUE, Failure(kind='network', message='down')), asked(2, ('diffusion', 'search')), Fixed(5, 3))
    assert (r.count, r.text, r.pictures, r.n_pictures, r.value) == (1, 1, .5, 2, pytest.approx(.2 + .15 + .5))
    assert r.tools.required == ('diffusion', 'search') and r.tools.attempted == r.tools.succeeded == ('diffusion',) and r.tools.score == pytest.approx(1/3)
    assert r.cost == pytest.approx(.06) and r.seconds == 4 and r.missing == () and r.grades() == dict(text=5, image=5, quality=3, task=3, text_image=3)
    assert Reward.model_validate_json(r.model_dump_json()) == r


async def test_seconds_are_those_that_ran():
    answer = made(f'Red {tag()} and blue {tag("blue")}', RED, BLUE)
    calls = [Call(started=1, finished=3), Call(started=1, finished=9, tries=0, cached=True)]
    timed = answer.model_copy(update=dict(tags=[t.model_copy(update=dict(call=c)) for t, c in zip(answer.tags, calls, strict=True)]))
    assert (await score(timed, asked(2), Fixed())).seconds == 2 + 4


async def test_both_variants_agree_where_the_release_is_right():
    for n, answer, results in ((1, f'Red {tag()}', [RED]), (3, f'Red {tag()} blue {tag("blue")}', [RED, BLUE]), (99, f'Red {tag()}', [RED]), (0, f'Red {tag()}', [RED]), (-1, f'Red {tag()}', [RED])):
        for grade in (1, 3, 5):
            one, other = await both(made(answer, *results), asked(n), Fixed(grade, grade))
            assert one == pytest.approx(other) == pytest.approx(hybrid_reward(image_count_score(len(results), n), *[grade]*5))


async def test_defect_a_judge_that_failed_taught_the_lowest_grade():
    answer = made(f'Red {tag()}', RED)
    assert await both(answer, asked(1), Fixed(None, None)) == [None, pytest.approx(.2)]
    assert await both(answer, asked(1), Fixed(4, None)) == [None, pytest.approx(.2 + .5*.75)]
    missing = await score(answer, asked(1), Fixed(4, None))
    assert missing.missing == ('pictures: it took too long',) and missing.text == pytest.approx(.75) and missing.count == 1
    assert (await score(answer, asked(-1), Fixed(4, None))).value == pytest.approx(.5*.75), 'where no picture was wanted, its verdict would change nothing'


def test_defect_grades_were_not_clamped():
    with pytest.raises(ValueError, match='1 to 5'): hybrid_reward(1, 7, 7, 7, 7, 7)
    with pytest.raises(ValueError): Verdict(judge='x', grades=dict(text=7, image=7))


async def test_defect_a_literal_image_counted_as_a_picture():
    assert await both(parse('Red <image>'), asked(1)) == [pytest.approx(.5*.75), pytest.approx(.2 + .3 + .5*(1.4*.75 + .6)/2)]


async def test_defect_no_picture_had_full_marks():
    one, other = await both(parse('No picture.'), asked(0), Fixed(2))
    assert one == pytest.approx((.2 + .5*.25)/.7) and other == pytest.approx(.5 + .5*(1.4*.25 + .6)/2) and other > one
    perfect = await score(parse('In words.'), asked(-1), Fixed(5))
    assert perfect.value == pytest.approx(1) and perfect.pictures is None and perfect.missing == ()


async def test_defect_more_than_ten_pictures_had_the_lowest_grade():
    many = [Picture.from_pil(Image.new('RGB', (8, 8), (i, 0, 0)), Origin(tool='diffusion')) for i in range(11)]
    answer = made(' '.join(f'{i} {tag(str(i))}' for i in range(11)), *many)
    assert await both(answer, asked(11), Fixed(5, 5)) == [pytest.approx(1), pytest.approx(.7)]


async def test_copies_are_one_picture_and_given_pictures_none():
    again = Picture.from_pil(Image.new('RGBA', (64, 64), 'red'), Origin(tool='edit'))   # other bytes, the same pixels
    assert again.data != RED.data
    assert await both(made(tag()*3, RED, RED, again), asked(3)) == [pytest.approx(.2/3 + .3*.75/3 + .5*.75), pytest.approx(.2 + .3*.75 + .5*.75)]
    assert (await score(made('<imgen></imgen>', again, inputs=[RED]), asked(1), Fixed())).n_pictures == 0


@pytest.mark.parametrize('thought', ['<think>Shall I? ' + tag('blue') + '</think>', 'Shall I? ' + tag('blue') + '</think>\n\n'])
async def test_defect_thinking_was_judged_as_answer(thought):
    judges = Fixed()
    r = await score(made(thought + f'Red {tag()}', BLUE, RED), asked(1), judges)
    assert judges.read == [f'Red {tag()}'] and r.n_pictures == 1 and r.value == (await score(made(f'Red {tag()}', RED), asked(1), Fixed())).value
    lone = thought.removeprefix('<think>')
    assert (await score(made(lone + f'Red {tag()}', BLUE, RED), asked(1), Fixed(), variant='reference')).n_pictures == 2


@pytest.mark.parametrize('nothing', ['', ' \n', '<think>What is red', 'Red is a colour.</think>'])
async def test_defect_an_empty_answer(nothing):
    for n in (-1, 0, 1):
        judges = Fixed()
        r = await score(parse(nothing), asked(n), judges)
        assert r.value == 0 and judges.read == [], 'nobody is asked about nothing'
    assert (await score(parse(''), asked(0), Fixed(1), variant='reference')).value == pytest.approx(.5 + .5*.3)


async def test_defect_zeros_were_left_out_of_the_means():
    rewards = [await score(d, asked(1), j) for d, j in ((made(f'Red {tag()}', RED), Fixed(5, 5)), (parse(''), Fixed()), (made(f'Red {tag()}', RED), Fixed(None, 5)))]
    s = summary(rewards)
    assert s['value'] == .5 and s['answers'] == 3 and s['missing'] == 1 and s['count'] == pytest.approx(2/3) and s['grade text'] == 5


async def test_the_test_split_counts_exactly():
    two = made(f'{tag()} {tag("blue")}', RED, BLUE)
    assert [(await score(two, asked(3, split=s), Fixed(1, 1))).count for s in ('train', 'test')] == [pytest.approx(2/3), 0]


async def test_misuse_is_said():
    with pytest.raises(ValueError, match='resolve the tags first'): await score(parse(tag()), asked(1), Fixed())
    with pytest.raises(ValueError, match="not 'paper'"): await score(parse('x'), asked(1), Fixed(), variant='paper')
    with pytest.raises(ValueError, match='llm or mllm'): await score(parse('x'), asked(1), Fixed(), weights='x')


async def test_multimodal_weights():
    answer = made(f'Red {tag()}', RED)
    class Uneven(Fixed):
        async def __call__(self, document, row): return (await super().__call__(document, row)) | dict(text=Verdict(judge='x', grades=dict(text=5, image=1)))
    values = [(await score(answer, asked(1), Uneven(), weights=w)).text for w in ('llm', 'mllm')]
    assert values == [pytest.approx(.7), pytest.approx(.75)]
