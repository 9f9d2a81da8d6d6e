"Pages of a training's rollouts: whose answers are hostile, whose disk is full, and that was stopped in the middle."
import json, os, re, warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from llmi_kit.backbone import embedded_folder
from llmi_kit.grpo import Recipe, Rewards, Rollout, small_copy, trainer_of
from llmi_kit.grpo_run import train
from llmi_kit.picture import Origin, Picture
from llmi_kit.prompts import embedded_rows
from llmi_kit.reward import Reward, ToolUse
from llmi_kit.rollouts import (Rollouts, advantages, body_of, grouped, line_of, lines_of, page_of, read_step, remove_after, right_tools, scored_part,
                               steps_in, write_index, write_step)
from llmi_kit.scorer import Scorer
from llmi_kit.verdict import Verdict

TAG = "<imgen>{'source': 'search', 'description': 'DESCRIBED', 'params': {'query': 'QUERY'}}</imgen>"
BLUE = small_copy(Picture.from_pil(Image.new('RGB', (40, 30), 'blue'), Origin(tool='search')))
RED = small_copy(Picture.from_pil(Image.new('RGB', (40, 30), 'red'), Origin(tool='search')))
HOSTILE = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)' x='", '</style><script>alert(1)</script>',
           '</title></textarea></pre></code></details><svg onload=alert(1)>', '[click](javascript:alert(1)) ![x](https://evil.example/x.png)', '{{ 7*7 }}{% raw %}']


def rollout(answer='words', value=.5, question='Why?', pictures=(), required=('search',), attempted=('search',), missing=(), says='', variant='default', **reward):
    verdict = Verdict(judge=says or 'heuristic', grades=dict(text=4, image=3), reasons=dict(text=says) if says else {})
    tools = ToolUse(required=required, attempted=attempted, succeeded=attempted)
    worth = dict(value=value, count=1., text=None if value is None else value, pictures=None, missing=missing, image_num=1, verdicts=dict(text=verdict), tools=tools, variant=variant)
    return Rollout(question=question, answer=answer, inputs=0, pictures=list(pictures), reward=Reward(**(worth | reward)))


class Seen(HTMLParser):
    "What a browser would see: text, elements, and what could run or load."
    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.bad, self.links = '', [], [], []
        self.feed(page)
    def handle_data(self, data): self.text += data
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith('on') or name in ('style', 'srcset', 'formaction'): self.bad.append(f'{tag} {name}')
            if name == 'src' and not value.startswith('data:image/webp;base64,'): self.bad.append(value)
            if name == 'href': self.links.append(value)
        if tag in ('script', 'iframe', 'object', 'form', 'base', 'embed'): self.bad.append(tag)


# What a model wrote

@pytest.mark.parametrize('evil', HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(evil):
    tag = TAG.replace('DESCRIBED', evil.replace("'", '')).replace('QUERY', evil.replace("'", ''))
    broken = rollout(f'{evil}\n\n{tag}\n\n<imgen>{evil}</imgen>', question=evil, pictures=[evil, evil], missing=[evil], value=None, says=evil)
    thinking = rollout(f'<think>{evil}</think>\n# {evil}', question=evil)
    drawn = rollout(tag, pictures=[BLUE])
    seen = Seen(page_of(1, [broken, thinking, drawn]))
    assert seen.bad == [] and {l for l in seen.links if not re.fullmatch(r'data:,|index\.html|#question-\d', l)} <= {'https://evil.example/x.png'}
    assert seen.tags.count('article') == 3 and seen.tags.count('img') <= 1 and 'svg' not in seen.tags
    assert seen.text.count('[click' if '[click' in evil else evil) >= 4, 'shown, not swallowed'


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([*HOSTILE, TAG, '<imgen>', '</imgen>', '<think>', '</think>', '\n\n', '```', '|a|', '> ', '- ', 'words']), max_size=12).map(''.join))
def test_any_answer_gives_a_clean_body_with_each_picture_once(answer):
    r = rollout(answer)
    tags = scored_part(r)[1].tags
    body = body_of(r.model_copy(update=dict(pictures=[BLUE]*len(tags))))
    assert Seen(body).bad == [] and body.count('<img ') == len(tags)


def test_only_small_copies_are_pictures():
    for address in ('data:image/svg+xml;base64,PHN2Zz4=', 'https://evil.example/x.png', BLUE + '" onerror="alert(1)', 'data:text/html;base64,aaaa'):
        seen = Seen(body_of(rollout(TAG, pictures=[address])))
        assert 'img' not in seen.tags and seen.bad == [] and address[:20] in seen.text


def test_pictures_stand_at_their_tags_and_failures_say_why():
    r = rollout(f'First.\n\n{TAG}\n\nSecond.\n\n{TAG}\n\nThird.\n\n{TAG}\n\nLast.', pictures=[RED, 'the server is away', BLUE])
    body = body_of(r)
    places = [body.index(x) for x in ('First.', RED, 'Second.', 'the server is away', 'Third.', BLUE, 'Last.')]
    assert places == sorted(places) and body.count('<img ') == 2
    short = body_of(r.model_copy(update=dict(pictures=[RED])))
    assert short.count('was not recorded') == 2, 'a tag without an entry'


@pytest.mark.parametrize('variant, answer, thought, shown', [
    ('default', f'<think>{TAG}</think>{TAG}', TAG, 1), ('default', '<think>no end', 'no end', 0), ('reference', f'<think>a</think>{TAG}<think>b</think>', 'a\n\nb', 1)])
def test_thinking_is_apart_and_takes_no_picture(variant, answer, thought, shown):
    r = rollout(answer, variant=variant, pictures=[BLUE]*shown)
    assert scored_part(r)[0] == thought and len(scored_part(r)[1].tags) == shown
    page = page_of(1, [r])
    assert page.count('<img ') == shown and 'Thinking, which is not scored' in page and 'not recorded' not in page


# Groups and numbers

def test_groups_that_differ_most_come_first_and_their_best_answer():
    alike, far = [rollout(f'a{v}', v, 'alike') for v in (.4, .5)], [rollout(f'f{v}', v, 'far', missing=['away']*(v is None)) for v in (.1, None, .9, .3)]
    lost = [rollout('l', None, 'lost')]
    groups = grouped([*lost, *alike, *far])
    assert [g[0].question for g in groups] == ['far', 'alike', 'lost']
    assert [r.reward.value for r in groups[0]] == [.9, .3, .1, None]
    page = page_of(1, [*lost, *alike, *far])
    shown = [page.index(f'>{x}<') for x in ('f0.9', 'f0.3', 'f0.1', 'fNone', 'a0.5', 'a0.4', 'l')]
    assert shown == sorted(shown)


def test_questions_with_other_wishes_are_other_groups():
    assert len(grouped([rollout(image_num=n, required=t) for n in (1, 99) for t in (('code',), ('search',))])) == 4


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=16))
def test_advantages_add_up_to_nothing(found):
    made = advantages([rollout(value=v) for v in found])
    assert [a is None for a in made] == [v is None for v in found]
    assert abs(sum(a for a in made if a is not None)) < 1e-9


def test_a_missing_reward_is_shown_and_not_counted():
    rows = [rollout('good', .9), rollout('bad', .3), rollout('lost', None, missing=['text: the judge is away'])]
    line = line_of(3, rows)
    assert (line.reward, line.unscored, line.answers) == (pytest.approx(.6), 1, 3)
    assert advantages(rows) == [pytest.approx(.3), pytest.approx(-.3), None]
    text = ' '.join(Seen(page_of(3, rows)).text.split())
    assert 'text: the judge is away' in text and 'no reward' in text and '+0.30' in text and '−0.30' in text and 'Without reward 1' in text
    assert '0.30 to 0.90, mean 0.60' in text


def test_only_missing_rewards():
    line = line_of(1, [rollout('lost', None, missing=['away'])]*2)
    assert line.reward is None and line.unscored == 2
    assert 'no rewards' in page_of(1, [rollout('lost', None)])


def test_a_broken_scorer_says_nothing_about_tools():
    broken = rollout(value=None, verdicts={}, tools=ToolUse())
    assert right_tools(broken.reward) is None and line_of(1, [broken, rollout()]).right_tools == 1
    assert [right_tools(rollout(attempted=a).reward) for a in (('search',), (), ('search', 'code'))] == [True, False, False]


def test_equal_answers_share_a_card():
    page = page_of(1, [rollout('same', .2), rollout('same', .2), rollout('other', .8)])
    assert page.count('<article') == 2 and 'written 2 times' in page and '−0.20' in page and '+0.40' in page


def test_a_card_says_parts_grades_and_tools():
    text = ' '.join(Seen(page_of(1, [rollout('x', .5, attempted=('code',), says='well said')])).text.split())
    for words in ('adds 0.29', 'text 4, image 3', 'well said', 'wrong tools', 'search needed, not tried', 'code not needed, made a picture'): assert words in text, words


# Files

def test_a_record_reads_back(tmp_path):
    rows = [rollout(f'line\nbreak \u2028 \x85 {TAG}', pictures=[BLUE]), rollout('ß', None, missing=['away'])]
    page = write_step(tmp_path/'new'/'folder', 7, rows)
    assert page.name == 'step_0007.html' and read_step(page.with_suffix('.jsonl')) == rows
    assert len(page.with_suffix('.jsonl').read_bytes().split(b'\n')) == 3
    assert sorted(f.name for f in page.parent.iterdir()) == ['step_0007.html', 'step_0007.jsonl']


def links(page): return re.findall(r'rel="(prev|next)" href="(.*?)"', page.read_text())


def test_steps_are_linked_in_any_order(tmp_path):
    for step in (4, 10_000, 2): write_step(tmp_path, step, [rollout()])
    assert list(steps_in(tmp_path)) == [2, 4, 10_000]
    assert links(tmp_path/'step_0002.html') == [('next', 'step_0004.html')]*2
    assert set(links(tmp_path/'step_0004.html')) == {('prev', 'step_0002.html'), ('next', 'step_10000.html')}
    assert set(links(tmp_path/'step_10000.html')) == {('prev', 'step_0004.html')}


def test_a_step_written_again_replaces_itself(tmp_path):
    for value in (.2, .7):
        for step in (1, 2): write_step(tmp_path, step, [rollout(f'answer {value}', value)])
        index = write_index(tmp_path).read_text()
        assert [l.reward for l in lines_of(tmp_path)[0]] == [value, value] and index.count('<th scope="row">') == 2 and f'>{value:.2f}<' in index
    page = (tmp_path/'step_0001.html').read_text()
    assert 'answer 0.7' in page and 'answer 0.2' not in page


def test_the_index_leaves_gaps_and_names_what_it_can_not_read(tmp_path):
    for step, value in enumerate((.2, None, .6, .8), 1): write_step(tmp_path, step, [rollout(value=value)])
    (tmp_path/'step_0005.jsonl').write_text('{"question": 1}\n')
    index = write_index(tmp_path).read_text()
    assert '<path class="reward" d="M0.0 80.0M666.7 40.0L1000.0 20.0"/>' in index
    assert 'step_0005.jsonl' in index and index.count('<th scope="row">') == 4
    write_step(tmp_path, 6, [rollout()])    # a neighbour that can't be read stops nothing
    assert index.index('>4</a>') < index.index('>1</a>') and Seen(index).bad == []


def test_an_index_of_nothing(tmp_path): assert 'No step has been written yet' in write_index(tmp_path).read_text()


def test_later_steps_go_and_nothing_else(tmp_path):
    for step in (1, 2, 3, 10): write_step(tmp_path, step, [rollout()])
    (tmp_path/'step_notes.html').write_text('mine'); (tmp_path/'.step_0011.html.99.part').write_text('half')
    remove_after(tmp_path, 2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['index.html', 'step_0001.html', 'step_0001.jsonl', 'step_0002.html', 'step_0002.jsonl', 'step_notes.html']
    assert links(tmp_path/'step_0002.html') == [('prev', 'step_0001.html')]*2
    assert (tmp_path/'index.html').read_text().count('<th scope="row">') == 2

    for step in (9_999, 10_000): write_step(tmp_path, step, [rollout()])
    remove_after(tmp_path, 9_999)
    assert list(steps_in(tmp_path)) == [1, 2, 9_999]


def test_a_crash_leaves_the_old_page(tmp_path, monkeypatch):
    page = write_step(tmp_path, 1, [rollout('old')])
    monkeypatch.setattr(os, 'replace', lambda a, b: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'): write_step(tmp_path, 1, [rollout('new')])
    assert '>old<' in page.read_text() and len(list(tmp_path.iterdir())) == 2


# In a training

def at(step, main=True): return SimpleNamespace(global_step=step, is_world_process_zero=main)


def steps(callback, numbers, main=True):
    for n in numbers:
        callback.rewards.seen.append(rollout(f'answer {n}'))
        callback.on_step_end(None, at(n, main), None)
        assert callback.rewards.seen == []


def test_every_few_steps_and_never_old_answers(tmp_path):
    steps(Rollouts(Rewards(None), tmp_path, every=2), range(1, 6))
    assert list(steps_in(tmp_path)) == [2, 4]
    assert [r.answer for r in read_step(tmp_path/'step_0004.jsonl')] == ['answer 4']
    steps(Rollouts(Rewards(None), tmp_path/'second'), [1], main=False)
    assert not (tmp_path/'second').exists(), 'one process writes'


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('in the way')
    callback = Rollouts(Rewards(None), tmp_path/'file')
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        callback.on_train_begin(None, at(0), None)
        steps(callback, range(1, 4))
    assert len(heard) == 1 and str(heard[0].message).startswith('the rollouts of step 1 could not be written') and '\n' not in str(heard[0].message)
    assert (tmp_path/'file').read_text() == 'in the way'


class Answers(TrainerCallback):
    "A policy that answers."
    def __init__(self, rewards, fails=None): self.rewards, self.fails = rewards, fails
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.fails: raise KeyboardInterrupt
        self.rewards.seen.append(rollout(f'answer {state.global_step + 1}', question='fails' if self.fails else 'goes on'))


class Line(torch.nn.Module):
    def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x, labels=None): return dict(loss=((x*self.weight - 1)**2).mean())


def trainer(folder, fails=None):
    rewards = Rewards(None)
    args = TrainingArguments(str(folder), max_steps=5, save_steps=2, per_device_train_batch_size=1, report_to='none', use_cpu=True, disable_tqdm=True, logging_steps=100)
    return Trainer(Line(), args, train_dataset=[dict(x=torch.ones(1), labels=torch.ones(1))]*8, callbacks=[Answers(rewards, fails), Rollouts(rewards, folder/'rollouts')])


def test_a_trainer_that_was_stopped_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt): trainer(tmp_path, fails=3).train()
    assert list(steps_in(tmp_path/'rollouts')) == [1, 2, 3], 'the checkpoint is of step 2'
    trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path/'checkpoint-2'))
    found = {n: read_step(f)[0] for n, f in steps_in(tmp_path/'rollouts').items()}
    assert {n: r.answer for n, r in found.items()} == {n: f'answer {n}' for n in range(1, 6)}
    assert [r.question for r in found.values()] == ['fails']*2 + ['goes on']*3
    assert (tmp_path/'rollouts'/'index.html').read_text().count('<th scope="row">') == 5


def test_a_training_begins_with_an_empty_page(tmp_path):
    write_step(tmp_path/'rollouts', 9, [rollout()])
    stopped = trainer(tmp_path, fails=1)
    with pytest.raises(KeyboardInterrupt): stopped.train()
    assert list(steps_in(tmp_path/'rollouts')) == [1]


def test_a_real_policy_leaves_its_answers(tmp_path):
    "Random weights, real answers, tools, judges and trainer."
    words = AutoTokenizer.from_pretrained(embedded_folder())
    torch.manual_seed(0)
    shape = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=2, **shape)), LoraConfig(r=4, target_modules='all-linear'))
    rows = [r for r in embedded_rows('train', 40) if len(r.extra_info.question) < 100][:2]
    with Scorer('cpu') as scorer, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rewards = Rewards(scorer)
        learner = trainer_of(model, words, rows, rewards, Recipe(steps=2, prompts=2, answers=4, micro=4, max_tokens=12), tmp_path, save_steps=100)
        learner.add_callback(Rollouts(rewards, tmp_path/'rollouts'))
        train(learner)
    found = [read_step(f) for f in steps_in(tmp_path/'rollouts').values()]
    assert [len(r) for r in found] == [8, 8] and rewards.seen == []
    assert {r.question for r in found[1]} == {r.extra_info.question for r in rows}
    logged = [json.loads(l) for l in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [l['llmi/value'] for l in logged if 'reward' in l] == [pytest.approx(l.reward) for l in lines_of(tmp_path/'rollouts')[0]], 'the mean that is in the log'


# In a browser

def test_nothing_runs_loads_or_spills_over(tmp_path):
    browser_tests = pytest.importorskip('test_report_browser', exc_type=ImportError)
    if not os.access(browser_tests.CHROMIUM, os.X_OK): pytest.skip('no chromium')
    attacks = [*browser_tests.HOSTILE.values(), 'x'*3000, '| ' + 'wide | '*60 + '\n|' + '-|'*60, '```\n' + 'y'*500 + '\n```']
    rows = [rollout(f'{a}\n\n{TAG}', .1*(i % 5), question=a if i % 2 else 'Why?', pictures=[a if i % 3 else RED], missing=[a]*(i % 4 == 0), says=a)
            for i, a in enumerate(x.encode('utf8', 'replace').decode() for x in attacks)]
    for step in (1, 2): write_step(tmp_path, step, rows)
    index = write_index(tmp_path)
    with browser_tests.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_tests.CHROMIUM, args=browser_tests.ARGS)
        for options in (dict(), dict(bypass_csp=True, viewport=dict(width=390, height=800))):
            page = browser.new_context(**options).new_page()
            watch = browser_tests.Watch(page, own=[f.as_uri() for f in Path(tmp_path).iterdir()])
            for file in (tmp_path/'step_0001.html', index):
                page.goto(file.as_uri())
                browser_tests.poke(page)
                assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), f'{file.name} spills over'
                assert page.evaluate('[...document.querySelectorAll("*")].filter(e => /^(script|iframe|form|object|base)$/.test(e.localName) || [...e.attributes].some(a => /^on|^style$/.test(a.name))).length') == 0
            page.click('tbody tr:last-child a')     # the first step, and on from there
            page.click('a[rel=next] >> nth=0')
            page.wait_for_load_state()      # a click only waits until the next page begins
            assert page.title() == 'Step 2: rollouts' and page.locator('article.answer').count() == len(rows)
            assert watch.seen == []
        browser.close()
