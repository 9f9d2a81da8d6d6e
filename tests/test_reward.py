"""The rules of the reward against the official functions' inputs and outputs, and their edges."""
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from llmi_kit.reward import DIFFICULTY, hybrid_reward, image_count_score, tool_use_score

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
