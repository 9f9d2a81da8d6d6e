"""Rows: both kinds of file, every way to be wrong, nothing skipped in silence."""
import json

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from typer.testing import CliRunner

from llmi_kit.cli import app
from llmi_kit.data import DataError, check, load_rows, misleading, mix, row_of, save_rows
from llmi_kit.picture import Origin, Picture

CAT = Picture.from_pil(Image.new('RGB', (40, 30), 'orange'), Origin(tool='input'))
GOOD = [row_of('How high is the Eiffel Tower? A photo, please.', 1, ['search']), row_of('Grau, bitte: “Ä”, <image>', 1, ['edit'], [CAT], split='test'),
        row_of('Why is the sky blue?', 0, topic='physics'), row_of('Say it in words.', -1)]


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.parquet'])
def test_there_and_back(tmp_path, name):
    save_rows(GOOD, tmp_path/name)
    again = load_rows(tmp_path/name)
    assert [r.prompt for r in again] == [r.prompt for r in GOOD] and [r.data_source for r in again] == [r.data_source for r in GOOD]
    assert again[1].images[0].data == CAT.data and [len(r.images) for r in again] == [0, 1, 0, 0]
    assert again[2].extra_info.topic == 'physics' and again[1].extra_info.tools == ('edit',)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_release_s_parquet_shape(tmp_path):
    "Message dicts, an images column of `datasets` and extra fields of the trainer."
    import pyarrow
    from pyarrow import parquet
    record = dict(prompt=[dict(role='system', content='Use tags.'), dict(role='user', content='Make it grey.')], data_source='interleaved_mm', ability='x',
                  images=[dict(bytes=CAT.data, path=None)], reward_model=dict(style='rule', ground_truth=''),
                  extra_info=dict(split='train', question='Make it grey.', image_num=1, tools=['edit'], index=7))
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path/'train_mm.parquet')
    row, = load_rows(tmp_path/'train_mm.parquet')
    assert row.prompt[0].role == 'system' and row.images[0].width == 40 and row.extra_info.index == 7


def test_a_path_beside_the_file(tmp_path):
    (tmp_path/'cat.png').write_bytes(CAT.data)
    record = json.loads(row_of('Make it grey.', 1, ['edit'], [CAT]).model_dump_json()) | dict(images=['cat.png'])
    (tmp_path/'rows.jsonl').write_text(json.dumps(record))
    assert load_rows(tmp_path/'rows.jsonl')[0].images[0].data == CAT.data


WRONG = [
    (dict(image_num=-1, tools=['code']), 'no picture and takes tools'), (dict(image_num=1, tools=['code', 'search']), 'takes 2 tools and wants 1'),
    (dict(image_num=1, tools=['edit']), 'no picture to edit'), (dict(image_num=-2), 'image_num is -2'), (dict(image_num=2, tools=['code', 'code']), 'twice'),
    (dict(question='  '), 'empty'), (dict(question='Use <imgen> here.'), 'names the protocol')]


@pytest.mark.parametrize('changes, why', WRONG)
def test_misleading_rows(tmp_path, changes, why):
    row = row_of(**dict(question='Show it.') | changes)
    assert any(why in w for w in misleading(row)), misleading(row)
    save_rows([GOOD[0], row], tmp_path/'rows.jsonl')
    rows, problems = check(tmp_path/'rows.jsonl')
    assert [r.extra_info for r in rows] == [GOOD[0].extra_info] and {p.number for p in problems} == {2}
    with pytest.raises(DataError, match='row 2'): load_rows(tmp_path/'rows.jsonl')


def test_good_rows_are_not_called_misleading():
    for row in [*GOOD, row_of('Find it and then grey it.', 2, ['search', 'edit']), row_of('A lot.', 99, ['code', 'search'])]: assert not misleading(row)


@pytest.mark.parametrize('line, why', [
    ('{"prompt": 3}', 'prompt'), ('[1]', 'a row is an object'), ('nonsense', 'not JSON'), ('{"prompt": [], "data_source": "else", "extra_info": {}}', 'data_source'),
    (json.dumps(dict(prompt=[dict(role='user', content='x')], data_source='interleaved', extra_info=dict(split='train', question='x', image_num=1, tools=['video']))),
     'extra_info.tools.0'),
    (json.dumps(dict(prompt=[dict(role='user', content='x')], data_source='interleaved_mm', images=['../nowhere.png'],
                     extra_info=dict(split='train', question='x', image_num=1))), 'can not be read'),
    (json.dumps(dict(prompt=[dict(role='user', content='x')], data_source='interleaved_mm', images=['data:image/png;base64,AAAA'],
                     extra_info=dict(split='train', question='x', image_num=1))), 'not a readable')])
def test_every_bad_line_has_its_reason(tmp_path, line, why):
    save_rows(GOOD[:1], tmp_path/'rows.jsonl')
    with (tmp_path/'rows.jsonl').open('a') as f: f.write('\n' + line + '\n')
    rows, problems = check(tmp_path/'rows.jsonl')
    assert len(rows) == 1 and [p.number for p in problems] == [3] and why in problems[0].reason and '\n' not in problems[0].reason


def test_the_same_question_twice(tmp_path):
    save_rows([GOOD[0], GOOD[2], GOOD[0]], tmp_path/'rows.jsonl')
    assert [p.number for p in check(tmp_path/'rows.jsonl').problems] == [3]


@pytest.mark.parametrize('name, data', [('rows.parquet', b'PAR1 no'), ('rows.jsonl', b'\xff\xfe\x00'), ('missing.jsonl', None), ('empty.jsonl', b'')])
def test_files_that_are_none(tmp_path, name, data):
    if data is not None: (tmp_path/name).write_bytes(data)
    with pytest.raises(DataError, match='^[^\n]+$'): load_rows(tmp_path/name)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes(tmp_path_factory, data):
    for name in ('a.jsonl', 'a.parquet'):
        path = tmp_path_factory.mktemp('rows')/name
        path.write_bytes(data)
        try: check(path)
        except DataError: pass


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    save_rows(GOOD, tmp_path/'rows.jsonl')
    def dies():
        yield GOOD[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): save_rows(dies(), tmp_path/'rows.jsonl')
    assert len(load_rows(tmp_path/'rows.jsonl')) == len(GOOD)


def test_the_mix():
    found = mix(GOOD)
    assert found['tool'] == dict(search=1, edit=1) and found['tools']['none'] == 2 and found['image_num'][1] == 2 and found['split'] == dict(train=3, test=1)


def test_llmi_data_check(tmp_path):
    save_rows([*GOOD, row_of('Draw it.', -1, ['diffusion'])], tmp_path/'rows.jsonl')
    done = CliRunner().invoke(app, ['data', 'check', str(tmp_path/'rows.jsonl')])
    assert done.exit_code == 1 and 'row 5: it wants no picture and takes tools' in done.stdout and '4 good rows, 1 bad' in done.stdout
    save_rows(GOOD, tmp_path/'rows.jsonl')
    assert CliRunner().invoke(app, ['data', 'check', str(tmp_path/'rows.jsonl')]).exit_code == 0
    done = CliRunner().invoke(app, ['data', 'check', str(tmp_path/'nowhere.jsonl')])
    assert done.exit_code == 2 and 'nowhere.jsonl can not be read' in done.stderr and 'Traceback' not in done.stderr
