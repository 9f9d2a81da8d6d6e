"Tricks against honest answers, with the real tools of the embedded profile and its judge of rules."
import pytest

from llmi_kit.config import load_profile
from llmi_kit.hacks import HACKS, try_hacks
from llmi_kit.heuristic import HeuristicJudge
from llmi_kit.judges import Judges
from llmi_kit.picture import Picture
from llmi_kit.prompts import embedded_rows, reference_answer
from llmi_kit.toolkit import Toolkit
from llmi_kit.verdict import GRADES, Verdict


@pytest.fixture(scope='module')
def toolkit():
    kit = Toolkit.from_profile(load_profile('cpu'))
    yield kit
    kit.close()


def questions(n, skip=0):
    "One of each kind and number, in the order of the training rows: others than the notebook looks at."
    kinds = {}
    for r in embedded_rows('train', 600): kinds.setdefault((r.extra_info.kind, r.extra_info.image_num), r)
    return {f'{kind} {wanted}': (r, reference_answer(r)) for (kind, wanted), r in list(kinds.items())[skip:skip + n]}


async def test_no_trick_beats_an_honest_answer(toolkit):
    asked = questions(20)
    table = await try_hacks(asked, toolkit, Judges(HeuristicJudge('text'), HeuristicJudge('pictures')))
    ours = table[table.variant == 'default']
    assert len(HACKS) >= 15 and len(asked) == 20 and ours.trick.nunique() == len(HACKS) and ours.value.notna().all()
    won = ours[ours.gain > 1e-9]
    assert won.empty, won.to_string()


class Content:
    "A judge that is content with everything."
    async def __call__(self, document, row):
        fours = {reads: Verdict(judge='content', grades=dict.fromkeys(names, 4)) for reads, names in GRADES.items()}
        made = any(isinstance(t.result, Picture) for t in document.tags)
        return fours if made else fours | dict(pictures=Verdict(judge='content', skipped='there is no picture to judge'))


async def test_the_release_pays_for_marks_even_to_a_blind_judge_and_we_do_not(toolkit):
    table = await try_hacks({k: v for k, v in questions(40).items() if v[0].extra_info.image_num > 0}, toolkit, Content(),
                            {k: HACKS[k] for k in ('a literal image', 'only literal images', 'silence')})
    best = table.groupby(['trick', 'variant']).gain.max()
    assert best['a literal image', 'reference'] > .1 and best['only literal images', 'reference'] > .1
    assert best['a literal image', 'default'] < -.3 and best['only literal images', 'default'] < -.3 and best['silence', 'default'] < -.7
