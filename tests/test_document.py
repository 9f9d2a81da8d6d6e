"The tag protocol: the reference's defects, its verdicts, and text that nobody sane would write."
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llmi_kit.document import MOST_TAGS, PARAMS, Document, Params, Words, instructions, parse, tag_error
from llmi_kit.picture import Failure, Origin, Picture

HERE = Path(__file__).parent
VECTORS = [HERE / 'parity/reward_vectors.json', HERE.parents[1] / 'shared/parity/reward_vectors.json']
VERDICTS = [v for f in VECTORS if f.exists() for v in json.loads(f.read_text())['tags']]


def tag(source='search', description='d', **params):
    return '<imgen>' + repr(dict(source=source, description=description, params=params or dict(query='q'))) + '</imgen>'


def code_tag(spelt, quote="'"):
    return f"<imgen>{{'source': 'code', 'description': 'd', 'params': {{'code': {quote}{spelt}{quote}}}}}</imgen>"


def only(answer, n_inputs=0):
    document = parse(answer, n_inputs)
    assert str(document) == answer and len(document.tags) == 1
    return document.tags[0]


def rebuilt(document):
    return ''.join(x if isinstance(x, str) else document.answer[x.start:x.end] for x in document.text_and_tags())


@pytest.mark.parametrize('v', VERDICTS, ids=lambda v: v['note'])
def test_the_references_verdicts(v):
    assert (tag_error(v['body'], n_tags=v['tags'], n_inputs=v['inputs']) is None) == v['valid']


# Defects of the reference

def test_a_literal_image_is_text():
    document = parse('Look: <image> and <fail_to_generate_image>')
    assert document.tags == [] and list(document.text_and_tags()) == ['Look: <image> and <fail_to_generate_image>']


@pytest.mark.parametrize('body', ["{'source': 'search', 'description': 'A', 'params': {'query': 'a'}}", "{'source': 'sea", 'x'])
def test_an_unclosed_tag_leaves_the_next_one_alone(body):
    document = parse(f'One\n\n<imgen>{body}\n\nprose\n\n{tag(query="b")}\n\nTwo')
    first, second = document.tags
    assert 'not closed' in first.error and second.error is None and second.params == dict(query='b')
    assert any('prose' in x for x in document.text_and_tags() if isinstance(x, str))    # the prose between is kept


def test_an_unclosed_tag_at_the_end_is_cut_off_text():
    tag = only("Text\n\n<imgen>{'source': 'code', 'description': 'd', 'params': {'code': 'import x\nplt.")
    assert 'not closed' in tag.error


@pytest.mark.parametrize('answer', [
    "<imgen> {'source': 'search', 'description': 'd', 'params': {'query': 'q'}} </imgen>",
    "<imgen>\n\n{'source': 'search',\n 'description': 'd',\n\t'params': {'query': 'q'}}\n</imgen>",
    "< imgen >{ 'source' : 'search' , 'description' : 'd' , 'params' : { 'query' : 'q' , } , } < / imgen >",
    "<imgen>{'source':'search','description':'d','params':{'query':'q'}}</imgen>",
    '<imgen>{"source": "search", "description": \'d\', "params": {"query": r"q"}}</imgen>',
    "<imgen>{'source': 'search', 'description': '' 'd', 'params': {'query': '''q'''}}</imgen>",
])
def test_white_space_and_quoting_do_not_matter(answer):
    tag = only(answer)
    assert tag.error is None and tag.description == 'd' and tag.params == dict(query='q')


@pytest.mark.parametrize(('spelt', 'meant'), [
    ("plt.title('Sales')\nplt.plot([1, 3])", None),                     # unescaped quotes, real newlines
    ('plt.title("Sales")\nplt.plot([1, 3])', None),                     # real newlines only
    ("df = pd.DataFrame({'a': ['x', 'y'], 'b': [1, 2]})\nplt.bar(df['a'], df['b'])", None),
    ("plt.title('It\\'s')\nplt.plot([1])", None),
    (r"plt.title('Sales')\nplt.plot([1, 3])", "plt.title('Sales')\nplt.plot([1, 3])"),
    (r'plt.title("a\nb")\nplt.plot([1])', 'plt.title("a\\nb")\nplt.plot([1])'),     # a line break inside the title
    (r'x = 1\\nplt.plot([x])', 'x = 1\nplt.plot([x])'),                 # escaped twice
    (r'x = 1  # don\'t\nplt.plot([x])', "x = 1  # don't\nplt.plot([x])"),
    (r'plt.title(r"$\alpha$")', None),                                  # no bell
    (r'plt.title("日本\n語")', None),                                    # no mojibake
    ("print('<imgen>')\nplt.plot([1])", None),
])
def test_code_means_what_the_model_meant(spelt, meant):
    tag = only(code_tag(spelt)) if '<imgen>' not in spelt else None
    if tag is None:     # markers in badly quoted code are ambiguous; well quoted, they are text
        tag = only('<imgen>' + repr(dict(source='code', description='d', params=dict(code=spelt))) + '</imgen>')
    assert tag.error is None
    assert tag.params['code'] == (spelt if meant is None else meant)
    compile(tag.params['code'], 'tag', 'exec')


def test_json_code_keeps_its_lines():
    body = json.dumps(dict(source='code', description="it's", params=dict(code='plt.title("a\\nb 😀")\nplt.plot([1])')))
    assert only(f'<imgen>{body}</imgen>').params['code'] == 'plt.title("a\\nb 😀")\nplt.plot([1])'


@pytest.mark.parametrize('field', ['description', 'query'])
def test_an_apostrophe_is_no_end(field):
    words = dict(description='d', query='q') | {field: "Hubble's view of the 'Pillars'"}
    tag = only(f"<imgen>{{'source': 'search', 'description': '{words['description']}', 'params': {{'query': '{words['query']}'}}}}</imgen>")
    assert tag.error is None and {'description': tag.description, **tag.params} == words


@pytest.mark.parametrize('body', [
    "{'source': 'search', 'description': 'd', 'params': {'query': 'it's', 'seed': 'one'}}",     # a second key may hide here
    "{'source': 'code', 'description': 'd', 'params': {'code': 'plt.title('a')', 'seed': 'y'}}",
    "{'source': 'search', 'description': 'it's', 'params': {'query': 'q'}}}",
    "{'source': 'search', 'description': 'it's', 'params': {'query': 'q'}",
    "{'source': 'search', 'description': 'it's', 'params': {'query': 'q'}} or so",
    "{'source': 'edit', 'description': 'it's', 'params': {'img_index': True, 'prompt': 'p'}}",
    "{'source': 'search', 'source': 'search', 'description': 'd', 'params': {'query': 'q'}}",
    "{'source': 'search', 'description': 'd', 'params': {'query': '  '}}",
    "{'source': 'search', 'description': 'd', 'params': 'q'}", "{'source': ['search'], 'description': 'd', 'params': {}}",
    "```python\n{'source': 'search', 'description': 'd', 'params': {'query': 'q'}}\n```",
])
def test_what_is_not_clear_is_an_error(body):
    assert '\n' not in tag_error(body, 2)


@pytest.mark.parametrize('index', [
    'True', 'False', '0.0', '1.0', '-1', '2', '9'*19, '9'*9999, 'None', '"0"', '[0]', '{}', '1e0', '0x0', '+-1',
])
def test_no_image_index(index):
    body = f"{{'source': 'edit', 'description': 'd', 'params': {{'img_index': {index}, 'prompt': 'p'}}}}"
    assert tag_error(body, n_tags=1, n_inputs=1)
    assert len(tag_error(body, n_tags=1, n_inputs=1)) < 300


def test_an_edit_points_only_backwards():
    def edit(n): return tag('edit', img_index=n, prompt='p')
    forward = parse(edit(0) + tag())
    assert 'no picture stands before' in forward.tags[0].error
    assert 'use 0 to 1' in parse(tag() + edit(2), n_inputs=1).tags[1].error     # itself
    assert [t.error for t in parse(edit(0) + edit(1), n_inputs=1).tags] == [None, None]
    assert parse(tag() + edit(0)).tags[1].refers_to == 0


def test_given_pictures_found_later_are_counted():
    picture = Picture.from_pil(Image.new('RGB', (4, 4)), Origin(tool='input'))
    document = parse(tag('edit', img_index=0, prompt='p'))
    assert document.tags[0].error and document.with_inputs([picture]).tags[0].error is None
    assert document.with_inputs([picture]).pool() == [picture, None]
    assert parse('', n_inputs=2).pool() == [None, None]


def test_markers_inside_strings():
    shown = tag('code', code="plt.title('<imgen>{}</imgen>')\nplt.text(0, 0, '</imgen>')")
    document = parse(shown + tag())
    assert [t.error for t in document.tags] == [None, None]
    assert "'</imgen>'" in document.tags[0].params['code']


def test_stray_closing_markers_are_text_and_fences_do_not_hide_tags():
    assert parse('a </imgen> b').tags == []
    assert only(f'```\n{tag()}\n```').error is None


def test_deep_nesting_and_odd_characters_are_sentences():
    for body in ("{'a':" * 100_000, '{' * 100_000 + '}' * 100_000, '[' * 100_000, '-' * 100_000 + '1', '\0', 'é' * 9):
        assert parse(f'<imgen>{body}</imgen>').tags[0].error and tag_error(body, 0)
    nul = only("<imgen>{'source': 'search', 'description': 'a\0b', 'params': {'query': 'q\0'}}</imgen>")
    assert nul.error is None and nul.params == dict(query='q\0')


@pytest.mark.parametrize('half', ['\ud83d', '\udead'])
def test_half_a_character_is_an_error(half):
    assert 'half a character' in only(tag(description='X').replace('X', half)).error


@pytest.mark.parametrize(('spelt', 'meant'), [
    (r"r'C:\new'", r'C:\new'), (r"'C:\\new'", r'C:\new'), (r"'a\nb'", 'a\nb'), (r"'\x41\u00e9\U0001F600\ud83d\ude00'", 'Aé😀😀'),
    (r"'\ud83d'", '\ufffd'), (r"'$\beta$'", r'$\beta$'), (r"'\\' r'\\'", '\\\\\\'), ("'''it's'''", "it's"),
    (r"'it\'s'", "it's"), (r"'\u12'", r'\u12'),
])
def test_escapes(spelt, meant):
    assert only(f"<imgen>{{'source': 'search', 'description': {spelt}, 'params': {{'query': 'q'}}}}</imgen>").description == meant


def test_known_fields_survive_in_an_invalid_tag():
    bad = only(tag('search', 'Tower', query='q', seed=1))
    assert (bad.source, bad.description, bad.params) == ('search', 'Tower', {}) and 'seed' in bad.error


# Documents

def test_json_round_trip_with_pictures():
    origin = Origin(tool='search', licence='CC0', request=dict(query='q'))
    picture = Picture.from_pil(Image.new('RGBA', (8, 8), (9, 8, 7, 6)), origin)
    document = parse(tag() + ' a ' + tag('edit', img_index=0, prompt='p') + '\ud83d' + tag('video'), n_inputs=1)
    document.inputs, document.tags[0].result = [picture], picture
    document.tags[1].result = Failure(kind='timeout', message='too slow', transient=True)
    again = Document.model_validate_json(document.model_dump_json())
    assert again == document and str(again) == document.answer and again.tags[0].result.pil().mode == 'RGBA'
    assert isinstance(again.tags[1].result, Failure) and again.pool()[2].transient


def test_a_fifth_source_is_one_entry(monkeypatch):
    class Map(Params):
        "a map of a place"
        place: Words
    monkeypatch.setitem(PARAMS, 'map', Map)
    assert only(tag('map', place='Brest')).error is None and 'Map' not in instructions('compact')
    loose = "<imgen>{'source': 'map', 'description': 'd', 'params': {'place': 'King's Lynn'}}</imgen>"
    assert only(loose).params == dict(place="King's Lynn")
    assert "'map' {'place': str}: a map of a place" in instructions('full')
    assert 'map' in only(tag('video')).error


def test_instructions_hold_the_whole_protocol():
    full = instructions('full')
    for word in ('<imgen>', '</imgen>', "'source'", "'description'", "'params'", 'img_index', 'code block', *PARAMS): assert word in full
    assert [t.error for t in parse(full.partition('## Example')[2]).tags] == [None] * 3
    with pytest.raises(ValueError, match='full or compact'): instructions('long')


# Anything at all

PIECES = st.sampled_from(['<imgen>', '</imgen>', '< imgen >', "{'source': 'search', ", "'description': 'd', ", "'params': {'query': 'q'}}",
                          "'", '"', "'''", '\\', '\\n', '{', '}', ',', ':', ' ', '\n', '\n\n', '0', 'True', 'null', 'word',
                          '\0', '\ud800', 'é', '😀'])
ANSWERS = st.one_of(st.text(st.characters(exclude_categories=())), st.lists(PIECES, max_size=40).map(''.join))


@settings(max_examples=600, deadline=None)
@given(ANSWERS, st.integers(0, 3))
def test_any_answer_gives_a_document(answer, n_inputs):
    document = parse(answer, n_inputs)
    assert str(document) == answer == rebuilt(document)
    assert Document.model_validate_json(document.model_dump_json()) == document
    for i, tag in enumerate(document.tags):
        assert (tag.error is None) or tag.error.strip()
        assert (tag.error is None) <= (tag_error(tag.body, i, n_inputs) is None)    # a closed tag has its body's verdict


# \b and \f stay as spelt: LaTeX such as \beta is meant more often than a backspace
WRITTEN = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\b\f'))


@settings(max_examples=300, deadline=None)
@given(WRITTEN, WRITTEN.filter(str.strip), st.booleans())
def test_what_python_and_json_write_is_read_back(description, query, as_json):
    body = (json.dumps if as_json else repr)(dict(source='search', description=description, params=dict(query=query)))
    tag = only(f'before <imgen>{body}</imgen> after')
    assert tag.error is None and tag.description == description and tag.params == dict(query=query)


LINES = st.sampled_from([
    "x = 1", "plt.title('a')", 'plt.title("it\'s")', "d = {'a': 'b', 'c': 'd'}", "s = '''t\nu'''", 's = "a\\nb"', "# don't",
])


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES,
                min_size=1, max_size=5), st.sampled_from(['repr', 'json', 'raw']))
def test_well_formed_code_survives_every_quoting(lines, how):
    code = '\n'.join(lines)
    tree = dict(source='code', description='d', params=dict(code=code))
    answer = code_tag(code) if how == 'raw' else f"<imgen>{repr(tree) if how == 'repr' else json.dumps(tree)}</imgen>"
    tag = only(answer)
    if how != 'raw': assert tag.error is None
    if tag.error is None: assert tag.params['code'] == code


# Hostile answers of one megabyte

N = 1_000_000
CODE = "<imgen>{'source': 'code', 'description': 'd', 'params': {'code': '"
HOSTILE = {
    'opens': '<imgen>', 'closes': '</imgen>', 'less': '<', 'less and spaces': '<         ', 'valid': tag(), 'unclosed': tag()[:-8],
    'unclosed prose': tag()[:-8] + ' prose\n\n', 'blank lines': '<imgen>\n\n', 'brace': '<imgen>{', 'quote': "<imgen>{'",
    'two quotes': "<imgen>{'\"",
    'triple': "<imgen>{'''", 'three triples': "<imgen>{'a\"\"\"<imgen>{\"'''", 'crossing': "<imgen>{'a': '</imgen>', ",
    'crossing both': "<imgen>{'a':\"b\",'c':'", 'escaped triple': "<imgen>{'''\\'''\"\"\"", 'nul': '\0',
    'loose code': code_tag("x('a')\\n\\a"),
}
INSIDE = {   # one unclosed or wrong body: what it begins with, what is repeated
    'braces': ('', '{'), 'brace pairs': ('{', '{}'), 'nest': ('', "{'a':"), 'quotes': ('{', "'"),
    'both quotes': ('{', "'\""), 'strings': ('{', "'a' "),
    'backslashes': ("{'", '\\'), 'escapes': ("{'a': '", '\\n'), 'halves': ('{"a": "', '\\ud83d'), 'spaces': ('', ' '),
    'newlines': ('', '\n'), 'commas': ('{', ', '),
    'digits': ("{'a': ", '9'), 'sums': ("{'a': ", '1+'), 'signs': ("{'a': ", '-'), 'keys': ('{', "'source': 'code', "),
    'hidden': (tag()[:-30], "' , 'a"),
    'params': ("{'source': 'code', 'description': 'it's'", ", 'params': {"), 'code quotes': (CODE[7:], "x('a')\n"),
    'code triples': (CODE[7:], "='''a'''b"),
    'code marks': (CODE[7:], "'''"), 'code escapes': (CODE[7:], "'\\\\'\\n"), 'code prefixes': (CODE[7:], "rb'"),
    'code comments': (CODE[7:], "#'\""),
    'code spaces': (CODE[7:] + "x('a')'}", ' '), 'code ends': (CODE[7:] + "x('a')'", '} '),
}


def seconds(answer):
    start = time.thread_time()
    document = parse(answer)
    taken = time.thread_time() - start
    assert str(document) == answer
    return taken


def check_fast(answer):
    "Under a second of a processor; a busy machine gets two more tries."
    assert any(seconds(answer) < 1 for _ in range(3))


@pytest.mark.parametrize('shape', HOSTILE)
def test_a_hostile_megabyte_takes_less_than_a_second(shape): check_fast((HOSTILE[shape] * (N // len(HOSTILE[shape]) + 1))[:N])


@pytest.mark.parametrize('end', ['', '}', "'}}</imgen>"])
@pytest.mark.parametrize('shape', INSIDE)
def test_a_hostile_megabyte_in_one_tag_takes_less_than_a_second(shape, end):
    head, unit = INSIDE[shape]
    check_fast('<imgen>' + head + (unit * (N // len(unit) + 1))[:N] + end)


def test_tags_without_end_are_cut_off():
    document = parse(tag() * (MOST_TAGS + 500))
    assert len(document.tags) == MOST_TAGS + 1 and 'at most' in document.tags[-1].error and rebuilt(document) == document.answer
