"Rewards as trainers and `llmi score` ask for them: one core, real tools, real faults."
import asyncio, json, os, pickle, signal, subprocess, sys, time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llmi_kit.cli import app
from llmi_kit.data import DataError, row_of
from llmi_kit.hacks import HACKS
from llmi_kit.picture import Failure, Picture
from llmi_kit.prompts import embedded_rows, reference_answer
from llmi_kit.reward import Reward, summary
from llmi_kit.scorer import Scorer, TRLReward, row_from
from llmi_kit.scoring import Book, Entry, read_answers, score_answers
from llmi_kit.verdict import GRADES, Verdict
from llmi_kit.verl_reward import NoVerdict, compute_score, verl_record

CAT = "Chelsea is a tabby cat with orange fur. Look first at her head.\n\n<imgen>{'source': 'search', 'description': 'Chelsea the cat', 'params': {'query': 'Chelsea the cat'}}</imgen>"
ASKED = row_of('What does Chelsea the cat look like?', image_num=1, tools=['search'])


class Fixed:
    "Judges with fixed grades, or a failure; they count how often they were asked."
    key = 'fixed'
    def __init__(self, grade=4): self.grade, self.asked = grade, 0
    def ready(self): return dict(text=None, pictures=None)
    async def __call__(self, document, row):
        self.asked += 1
        if self.grade is None: return {r: Verdict(judge='fixed', failure=Failure(kind='timeout', message='the judge took too long')) for r in GRADES}
        made = any(isinstance(t.result, Picture) for t in document.tags)
        return {r: Verdict(judge='fixed', grades=dict.fromkeys(names, self.grade)) if r == 'text' or made
                else Verdict(judge='fixed', skipped='there is no picture to judge') for r, names in GRADES.items()}


@pytest.fixture(scope='module')
def scorer():
    with Scorer('cpu') as s: yield s


def rows_and_answers(n):
    rows, tricks = embedded_rows('test')[:n//2], list(HACKS.values())
    return [p for i, r in enumerate(rows) for p in ((r, reference_answer(r)), (r, tricks[i % len(tricks)](r, reference_answer(r))))]


async def test_both_adapters_give_200_answers_the_same_numbers(scorer):
    pairs = rows_and_answers(200)
    trl = await TRLReward(scorer)([[dict(role='assistant', content=a)] for _, a in pairs], [r.extra_info.model_dump() for r, _ in pairs], [r.images for r, _ in pairs])
    verl = [f['score'] for f in await asyncio.gather(*(compute_score(r.data_source, a, '', verl_record(r)['extra_info']) for r, a in pairs))]
    assert trl == verl and len(trl) == 200
    assert len({round(v, 3) for v in trl}) > 30, 'numbers that tell answers apart'


async def test_a_scorer_survives_pickling_and_any_event_loop(scorer):
    await scorer(CAT, ASKED)    # its tools are open now, and stay here
    assert len(pickle.dumps(scorer)) < 3000
    copy = pickle.loads(pickle.dumps(scorer))
    here = (await copy(CAT, ASKED)).reward
    there = await asyncio.to_thread(lambda: asyncio.run(copy(CAT, ASKED)))
    assert here.value == there.reward.value == (await scorer(CAT, ASKED)).reward.value == 1
    copy.close()


async def test_missing_verdicts_are_none_for_trl_and_an_error_for_verl(scorer, monkeypatch):
    broken = Scorer('cpu', toolkit=scorer.toolkit, judges=Fixed(None))
    logged = {}
    assert await TRLReward(broken)([CAT, ''], [ASKED.extra_info.model_dump()]*2, log_metric=logged.__setitem__) == [None, 0]
    assert logged['llmi/missing'] == 1 and logged['llmi/value'] == 0
    monkeypatch.setattr('llmi_kit.verl_reward._scorer', lambda *_: broken)
    with pytest.raises(NoVerdict, match='took too long.*reward_kwargs.missing'): await compute_score('interleaved', CAT, '', ASKED.extra_info.model_dump())
    found = await compute_score('interleaved', CAT, '', ASKED.extra_info.model_dump(), missing=.25)
    assert found['score'] == .25 and found['missing'] == 1 and all(isinstance(v, float) for v in found.values())


async def test_a_real_trl_trainer_takes_the_reward_and_leaves_none_out(tmp_path, scorer):
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {'<end>': 256}
    words = Tokenizer(models.BPE(letters, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<end>', pad_token='<end>')
    LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path/'model')
    tokenizer.save_pretrained(tmp_path/'model')
    model = LlamaForCausalLM.from_pretrained(tmp_path/'model')
    class Moody(Fixed):     # every third verdict fails
        async def __call__(self, document, row):
            self.grade = None if self.asked % 3 == 2 else 2 + self.asked % 3
            return await super().__call__(document, row)
    judges = Moody()
    reward = TRLReward(Scorer('cpu', toolkit=scorer.toolkit, judges=judges))
    data = Dataset.from_list([dict(prompt='What does a cat look like?', extra_info=dict(ASKED.extra_info.model_dump()))]*4)
    config = GRPOConfig(str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8, report_to=[],
                        logging_steps=1, save_strategy='no', use_cpu=True, bf16=False)
    trainer = GRPOTrainer(model, reward, config, data, tokenizer)
    trainer.train()
    log = [l for l in trainer.state.log_history if 'llmi/value' in l]
    assert len(log) == 2 and any(l['llmi/missing'] > 0 for l in log) and judges.asked == 8
    assert all(l['reward'] == pytest.approx(l['llmi/value']) for l in log), 'TRL averages over those that have a reward, as we do'


async def test_thinking_is_no_answer_for_either_form(scorer):
    thought = '<think>A picture? ' + CAT + '</think>It is a cat with fur, and that is all there is to say.'
    done = await scorer(thought, ASKED)
    assert done.document.tags == [] and done.reward.n_pictures == 0
    assert (await Scorer('cpu', variant='reference', toolkit=scorer.toolkit, judges=Fixed())(thought.removeprefix('<think>'), ASKED)).reward.n_pictures == 1


async def test_a_broken_toolkit_costs_the_number_not_the_training(scorer):
    class Broken:
        tools = {}
        def _limit(self, _): raise RuntimeError('no')
        async def timed_call(self, *_): raise RuntimeError('disk full')
    reward = (await Scorer('cpu', toolkit=Broken(), judges=Fixed())(CAT, ASKED)).reward
    assert reward.value is None and 'please report it' in reward.missing[0]


@pytest.mark.parametrize('info, says', [(None, 'row is none'), ({}, 'split'), (dict(question='x', split='train', image_num='many'), 'image_num'), ('{', 'row is none'), (7, 'row is none'),
                                        (dict(question='x', split='train', image_num=1, images=['data:image/png;base64,AAAA']), 'picture')])
def test_columns_that_are_no_row(info, says):
    with pytest.raises(DataError, match=says): row_from(info)


def test_columns_as_trainers_hand_them_on():
    import numpy as np
    image = Image.new('RGB', (8, 8), 'red')
    row = row_from(dict(question='Make it gray.', split='train', image_num=np.int64(1), tools=np.array(['edit'], dtype=object)), [image])
    assert row.extra_info.tools == ('edit',) and row.extra_info.image_num == 1 and row.images[0].width == 8 and row.data_source == 'interleaved_mm'
    again = row_from(json.dumps(verl_record(row)['extra_info']))
    assert again.images[0].sha256 == row.images[0].sha256


# -- llmi score

def write(path, *records):
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


@pytest.mark.parametrize('line, says', [('{"answer": 3}', 'line 2: each line is one object'), ('no json', 'line 2'), ('{"answer": "x", "row": 9}', 'no row 9: they are numbered from 1 to 1'),
                                        ('{"answer": "x", "row": "two"}', 'row: '), ('[', 'line 2: each line is one object'), ('{"answer": "x"}', "names a row and others don't"),
                                        ('{"answer": "x", "question": "Why?"}', "no row asks 'Why\\?'"), ('{"answer": "x", "row": 0}', 'no row 0')])
def test_answers_that_fit_no_row(tmp_path, line, says):
    with pytest.raises(DataError, match=says): read_answers(write(tmp_path/'a.jsonl', dict(answer='x', row=1), line), [ASKED])


def test_files_that_are_no_answers(tmp_path):
    with pytest.raises(DataError, match='can not be read'): read_answers(tmp_path/'none.jsonl', [ASKED])
    with pytest.raises(DataError, match='has no answers'): read_answers(write(tmp_path/'a.jsonl', '', ''), [ASKED])
    (tmp_path/'b.jsonl').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='UTF-8'): read_answers(tmp_path/'b.jsonl', [ASKED])
    found = read_answers(write(tmp_path/'c.jsonl', '', dict(answer='y', question=ASKED.extra_info.question + ' ')), [ASKED])
    assert found == [(2, 1, 'y')]


async def test_nothing_is_scored_twice_and_what_failed_is_tried_again(tmp_path, scorer):
    answers = [(i, 1, f'{CAT} {i}') for i in range(1, 7)]
    judges = Fixed(None)
    run = lambda: score_answers(answers, [ASKED], Scorer('cpu', toolkit=scorer.toolkit, judges=judges), tmp_path/'out')
    assert all(e.reward.value is None for e in await run()) and judges.asked == 6
    judges.grade = 4
    first = await run()
    assert judges.asked == 12 and [e.line for e in first] == [1, 2, 3, 4, 5, 6] and await run() == first and judges.asked == 12
    assert len((tmp_path/'out/scores.jsonl').read_text().splitlines()) == 6, 'an answer that is scored again replaces its line'
    answers[2] = (3, 1, 'Another answer altogether.')
    await run()
    assert judges.asked == 13
    judges.key = 'stricter'
    await run()
    assert judges.asked == 19
    assert len((tmp_path/'out/scores.jsonl').read_text().splitlines()) == 6 and len((tmp_path/'out/earlier.jsonl').read_text().splitlines()) == 7
    said = json.loads((tmp_path/'out/summary.json').read_text())
    assert said['answers'] == 6 and said['missing'] == 0


def test_a_torn_line_spoils_no_other(tmp_path):
    one = Entry(key='a', line=1, row=1, reward=Reward(value=.5, count=1, text=.5, pictures=None))
    with Book(tmp_path) as book: book.add(one)
    with (tmp_path/'scores.jsonl').open('a') as f: f.write('{"key": "torn')
    with Book(tmp_path) as book: book.add(one.model_copy(update=dict(key='b', line=2)))
    with Book(tmp_path) as book: assert list(book.entries) == ['a', 'b']


async def test_two_runs_into_one_folder(tmp_path, scorer):
    with Book(tmp_path/'out'), pytest.raises(DataError, match='another run is scoring into out'):
        await score_answers([(1, 1, CAT)], [ASKED], scorer, tmp_path/'out')


SLOW = '''
import asyncio, json, sys, time
sys.path.insert(0, {tests!r})
from llmi_kit.scorer import Scorer
from llmi_kit.scoring import read_answers, score_answers
from test_scorer import ASKED, Fixed
class Slow(Fixed):
    async def __call__(self, document, row):
        await asyncio.sleep(.15)
        with open({asked!r}, 'a') as f: print(str(document)[-3:].strip(), file=f, flush=True)
        return await super().__call__(document, row)
judges = Slow()
with Scorer('cpu', judges=judges) as scorer: entries = asyncio.run(score_answers(read_answers({answers!r}, [ASKED]*99), [ASKED]*99, scorer, {out!r}, at_once=2))
print(len(entries))
'''

def test_kill_nine_loses_nothing_that_was_scored(tmp_path):
    answers = write(tmp_path/'a.jsonl', *[dict(answer=f'A cat has fur and four legs, number {i}', row=i) for i in range(1, 31)])
    code = SLOW.format(tests=str(Path(__file__).parent), asked=str(tmp_path/'asked'), answers=str(answers), out=str(tmp_path/'out'))
    first = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(OMP_NUM_THREADS='1'))
    end = time.monotonic() + 100
    while time.monotonic() < end and not ((tmp_path/'out/scores.jsonl').exists() and len((tmp_path/'out/scores.jsonl').read_text().splitlines()) >= 8): time.sleep(.05)
    first.send_signal(signal.SIGKILL); first.wait()
    kept = (tmp_path/'out/scores.jsonl').read_text()
    assert 8 <= len(kept.splitlines()) < 30
    (tmp_path/'out/scores.jsonl').write_text(kept + '{"key": "torn')
    done = {Entry.model_validate_json(l).line for l in kept.splitlines()}
    before = len((tmp_path/'asked').read_text().splitlines())
    again = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=200, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert again.stdout.strip() == '30', again.stderr[-2000:]
    assert len((tmp_path/'asked').read_text().splitlines()) - before == 30 - len(done), 'exactly those that were not in the book'


def llmi(*words):
    "A command of `llmi` in this process: (exit code, what it printed, what it complained about)."
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_command_line_scores_and_says_what_is_wrong(tmp_path):
    rows = tmp_path/'rows.jsonl'
    assert '(6 rows)' in llmi('data', 'embedded', '--split', 'test', '--n', 6, '--out', rows)[1]
    answers = write(tmp_path/'a.jsonl', *[dict(answer=reference_answer(r)) for r in embedded_rows('test', 6)])
    code, said, _ = llmi('score', answers, '--rows', rows, '--out', tmp_path/'out')
    assert code == 0 and 'answers            6' in said
    entries = [Entry.model_validate_json(l) for l in (tmp_path/'out/scores.jsonl').read_text().splitlines()]
    assert len(entries) == 6 and summary([e.reward for e in entries])['value'] > .8
    for words, says in ([['score', answers, '--rows', tmp_path/'none.jsonl', '--out', tmp_path/'out'], 'none.jsonl can not be read'],
                        [['score', answers, '--rows', rows, '--out', tmp_path/'out', '--variant', 'paper'], 'default or reference'],
                        [['score', answers, '--rows', rows, '--out', tmp_path/'out', '--weights', 'vlm'], 'llm or mllm'],
                        [['score', answers, '--rows', rows, '--out', answers], 'is a file'],
                        [['data', 'embedded', '--split', 'dev', '--out', rows], 'train or test'],
                        [['data', 'embedded', '--out', tmp_path/'x.csv'], 'neither .parquet nor .jsonl'],
                        [['data', 'embedded', '--out', tmp_path/'no/x.jsonl'], 'there is no folder']):
        code, _, complaint = llmi(*words)
        assert code == 2 and says in complaint and len(complaint.splitlines()) == 1, (words, complaint)


def test_judges_that_are_not_there_are_said_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text('[llmi_kit]\nprofile = cpu\n[cpu]\nllm_judge = some-model\njudge_server = http://127.0.0.1:9/v1\n')
    monkeypatch.setenv('LLMI_SETTINGS', str(tmp_path/'settings.ini'))
    llmi('data', 'embedded', '--split', 'test', '--n', 2, '--out', tmp_path/'rows.jsonl')
    code, _, complaint = llmi('score', write(tmp_path/'a.jsonl', dict(answer='x')), '--rows', tmp_path/'rows.jsonl', '--out', tmp_path/'out')
    assert code == 2 and 'no chat server answers at http://127.0.0.1:9/v1' in complaint and not (tmp_path/'out/scores.jsonl').exists()


async def test_an_interrupted_run_keeps_its_book(tmp_path, scorer):
    class Stuck(Fixed):
        async def __call__(self, document, row):
            if self.asked >= 3: await asyncio.sleep(60)
            return await super().__call__(document, row)
    task = asyncio.create_task(score_answers([(i, 1, f'{CAT} {i}') for i in range(1, 9)], [ASKED], Scorer('cpu', toolkit=scorer.toolkit, judges=Stuck()), tmp_path, at_once=1))
    while not (tmp_path/'scores.jsonl').exists() or len((tmp_path/'scores.jsonl').read_text().splitlines()) < 3: await asyncio.sleep(.02)  # noqa: ASYNC110
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    with Book(tmp_path) as book: assert len(book.entries) == 3
