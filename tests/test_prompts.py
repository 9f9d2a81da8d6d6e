"""The embedded set of prompts: what the words want, what the tools can make, train and test apart."""
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from llmi_kit.config import Store, asset, load_profile
from llmi_kit.data import check, load_rows, misleading, save_rows
from llmi_kit.document import parse
from llmi_kit.drawings import Scene, heldout
from llmi_kit.picture import Picture
from llmi_kit.prompts import SHARES, embedded_rows, facts, kept_back, pools, reference_answer, with_credits
from llmi_kit.questions import make_rows, words
from llmi_kit.reward import image_count_score
from llmi_kit.toolkit import Toolkit, resolve
from llmi_kit.tools import edit  # noqa: F401 (it registers its operations)
from llmi_kit.tools.model_notes import notes_of, unknown
from llmi_kit.tools.photos import LocalSearch
from llmi_kit.tools.wording import read_instruction

TRAIN, TEST = embedded_rows(), embedded_rows('test')
ROWS = TRAIN + TEST


def infos(rows): return [r.extra_info for r in rows]
def parts(rows, source): return [p for r in rows for p in facts(r)['parts'] if p['source'] == source]
def digest(rows): return hashlib.sha256(''.join(r.model_dump_json() for r in rows).encode()).hexdigest()


def test_enough_rows_of_every_sort():
    assert len(TRAIN) == 2000 and len(TEST) == 300 and {i.split for i in infos(TEST)} == {'test'} and {i.split for i in infos(TRAIN)} == {'train'}
    for rows in (TRAIN, TEST):
        assert {i.image_num for i in infos(rows)} == {-1, 0, 99, 1, 2, 3, 4}
        assert {t for i in infos(rows) for t in i.tools} == {'search', 'diffusion', 'code', 'edit'}
        assert .15 < sum(bool(r.images) for r in rows)/len(rows) < .4 and {len(r.images) for r in rows} == {0, 1, 2}
        assert {i.kind for i in infos(rows)} == {*SHARES} - {'ways'}


def test_all_rows_are_good_and_come_back_from_files(tmp_path):
    assert not [w for r in ROWS for w in misleading(r)]
    for name, rows in (('train.parquet', TRAIN), ('test.jsonl', TEST)):
        save_rows(rows, tmp_path/name)
        assert check(tmp_path/name).problems == [] and (tmp_path/name).stat().st_size < 5e6
        assert [with_credits(r) for r in load_rows(tmp_path/name)] == rows


def test_the_same_in_another_process_whatever_its_hashes():
    code = ("import hashlib; from llmi_kit.prompts import embedded_rows as e\n"
            "for rows in (e(n=400), e('test')): print(hashlib.sha256(''.join(r.model_dump_json() for r in rows).encode()).hexdigest())")
    seed = '1' if os.environ.get('PYTHONHASHSEED') != '1' else '2'
    out = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout
    assert out.split() == [digest(TRAIN[:400]), digest(TEST)]


def test_seeds_and_prefixes():
    assert embedded_rows(n=50) == TRAIN[:50] and embedded_rows(n=0) == []
    assert digest(embedded_rows('test', seed=1)) != digest(TEST)
    with pytest.raises(ValueError, match='train or test'): embedded_rows('heldout')


# how many pictures

def forms_of(pool):
    def pattern(form): return re.escape(form).replace(r'\{q\}', '(?P<q>.*)').replace(r'\{n\}', r'(one|two|three|four|\d) pictures?')
    return re.compile('|'.join(re.sub(r'\?P<q>', '', pattern(f)) for side in pool.values() for f in side), re.S)


MEANS = {-1: forms_of(words()['words_questions']), 0: forms_of(pools()['counts']['free']), 99: forms_of(pools()['counts']['some']),
         1: forms_of(pools()['counts']['exactly'])}
NUMBERS = dict(one=1, a=1, single=1, two=2, three=3, four=4) | {str(n): n for n in range(1, 5)}


def counted(question):
    "Numbers of pictures that the words name, but for the ordinals of given ones."
    found = re.findall(r'\b(one|single|two|three|four|[1-4]) (?:new )?(?:pictures?|photos?|versions)\b(?! or more| at the very least)', question, re.I)
    return {NUMBERS[w.lower()] for w in found}


def test_the_words_imply_the_number():
    for i in infos(ROWS):
        fit = {n for n, pattern in MEANS.items() if pattern.fullmatch(i.question)}
        own = min(i.image_num, 1) if i.image_num != 99 else 99
        if fit: assert fit == {own}, (i.image_num, i.question)
        else: assert counted(i.question) == {i.image_num} or (i.kind, i.image_num) == ('edit', 1), i.question


def test_no_question_contradicts_its_number():
    for i in infos(ROWS):
        if 0 < i.image_num < 99: assert counted(i.question) <= {i.image_num}, i.question
        if i.image_num == 0: assert not re.search(r'\b(show|let me see|draw|plot|imagine)\b', i.question, re.I), i.question
        if i.image_num == 99: assert not re.search(r'\b(two|three|four|exactly|precisely)\b (picture|photo|version)', i.question, re.I), i.question


def test_phrases_of_every_class_are_several_and_apart():
    for pool in (*pools()['counts'].values(), pools()['about'], pools()['story'], pools()['own photo'], pools()['first scene'], pools()['then photo'], pools()['styles']):
        assert len(pool['train']) >= 4 and len(pool['heldout']) >= 2 and not {*pool['train']} & {*pool['heldout']}


def test_the_same_question_with_other_numbers():
    groups = defaultdict(list)
    for r in ROWS:
        if group := facts(r)['group']: groups[group].append(r)
    whole = [g for g in groups.values() if len(g) == 4]
    assert len(whole) >= len(groups) - 1 and len(groups) > 50       # the last may be cut off
    for g in whole:
        assert {r.extra_info.image_num for r in g} == {-1, 0, 1, 99} and len({r.extra_info.question for r in g}) == 4
        assert len({json.dumps(facts(r)['parts']) for r in g}) == 1


# tools

def test_no_question_names_a_tool():
    for i in infos(ROWS):
        assert not re.search(r'\b(search\w*|diffus\w*|code\w*|python|matplotlib|pillow|edit\w*|imgen|img_index)\b', i.question, re.I), i.question
        assert not re.search(r'\btools?\b', i.question), i.question    # an invented town may be called Tool
        assert not re.search(r'[{}<>]|  | [,.;:?!)]|\.\.|None', i.question), i.question


def test_reference_answers_are_valid_and_have_the_tools_and_the_count():
    for r in ROWS:
        tags = parse(reference_answer(r), len(r.images)).tags
        assert [t.error for t in tags] == [None]*len(tags) and {t.source for t in tags} == {*r.extra_info.tools}
        assert image_count_score(len(tags), r.extra_info.image_num, 'test') == 1


def test_facts_stand_in_the_question():
    for r in ROWS:
        question = r.extra_info.question.lower()
        for p in facts(r)['parts']:
            if p['source'] == 'code': assert all(x.lower() in question for x in p['labels']) and all(str(v) in question for v in p['values'])
            if p['source'] == 'search': assert p['subject'].lower() in question and all(n.lower() in question for n in p['notes'])
            if p['source'] == 'diffusion': assert all(t['colour'] in question for t in p['things']) and (p['style'] or '').lower() in question
            if p['source'] == 'edit' and "'" in p['prompt']: assert p['prompt'].split("'")[1].lower() in question


def test_every_request_is_one_that_the_tools_know():
    model, search = notes_of(asset('picture_model')), LocalSearch()
    assert not [p for p in parts(ROWS, 'diffusion') if unknown(p['prompt'], model, '')]
    assert all(isinstance(read_instruction(p['prompt']), list) for p in parts(ROWS, 'edit'))
    for subject, photo in sorted({(p['subject'], p['photo']) for p in parts(ROWS, 'search')}):
        best, similarity = search.rank(subject, 1)[0]
        assert best.id in (photo, f'{photo}_right') and similarity > search.threshold, (subject, best.id, similarity)


async def test_reference_answers_give_every_picture(tmp_path):
    kinds = defaultdict(list)
    for r in TEST + TRAIN: kinds[r.extra_info.kind].append(r)
    sample = [r for rows in kinds.values() for r in rows[::len(rows)//2 + 1]] + [r for r in TRAIN if len(r.images) > 1][:4]
    assert len(sample) >= 60 and {bool(r.images) for r in sample} == {True, False}
    patient = load_profile('cpu').model_copy(update=dict(code_seconds=60, tool_seconds=400))   # on a busy machine, too
    async with Toolkit.from_profile(patient, Store(tmp_path)) as kit:
        done = await asyncio.gather(*(resolve(parse(reference_answer(r), len(r.images)), kit, inputs=list(r.images)) for r in sample))
    for r, document in zip(sample, done, strict=True):
        made = [t.result for t in document.tags if isinstance(t.result, Picture)]
        assert len(made) == len(document.tags), [str(t.result) for t in document.tags]
        assert image_count_score(len(made), r.extra_info.image_num, 'test') == 1 and {p.origin.tool for p in made} == {*r.extra_info.tools}
        assert len({p.sha256 for p in made}) == len(made), r.extra_info.question


# apart

def test_no_question_of_the_test_is_known():
    def plain(rows): return {re.sub(r'\W+', ' ', i.question.lower()) for i in infos(rows)}
    assert not plain(TRAIN) & plain(TEST)
    taught = {re.sub(r'\W+', ' ', r.question.lower()) for r in make_rows(2400)}
    assert not taught & plain(TEST) and len(taught & plain(TRAIN)) < 20


def test_names_scenes_and_photographs_are_apart():
    subjects, seen = ({p['subject'] for p in parts(rows, 'search')} for rows in (TEST, TRAIN))
    assert subjects and not subjects & seen
    assert len(kept_back()) == 5 and not {p['photo'] for p in parts(TRAIN, 'search')} & {*kept_back()}
    brought, known = ({i['photo'] for r in rows for i in facts(r)['images']} for rows in (TEST, TRAIN))
    assert brought == {*kept_back()} and not known & brought
    for rows, out in ((TRAIN, False), (TEST, True)):
        scenes = {Scene(things=p['things'], background=p['background']) for p in parts(rows, 'diffusion')}
        assert len(scenes) > 20 and {heldout(s) for s in scenes} == {out}


def test_given_pictures_are_small_and_credited():
    given = {p.sha256: p for r in ROWS for p in r.images}
    assert len(given) > 15
    for p in given.values(): assert max(p.width, p.height) <= 256 and p.origin.tool == 'input' and p.origin.author and p.origin.licence and p.origin.page
    for r in ROWS: assert [p.origin.title for p in r.images] == [i['title'] for i in facts(r)['images']]
