"""Profiles, the files that must agree about the project, and the cache across processes."""
import asyncio
import multiprocessing
import os
import re
import signal
import time
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

import llmi_kit
from llmi_kit.config import Profile, Settings, SettingsError, Store, cache_key, derive_seed, load_profile

ROOT = Path(__file__).parent.parent
PROFILES = ['cpu', 'gpu8', 'gpu12', 'gpu24', 'api']


def ini():
    parser = ConfigParser(default_section='-', interpolation=None)
    parser.read(ROOT/'settings.ini')
    return parser


def pins(): return dict(l.strip().split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if l.strip())


def test_one_version_everywhere():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())
    assert ini()['llmi_kit']['version'] == llmi_kit.__version__
    assert project['tool']['setuptools']['dynamic']['version'] == {'attr': 'llmi_kit.__version__'}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    named = project['dependencies'] + project['optional-dependencies']['test']
    plain = {re.sub(r'[-_.]+', '-', n).lower() for n in pins()}
    assert {re.split(r'[<>=\[]', n)[0].lower() for n in named} - plain == set()
    assert pins()['torch'] == '2.13.0'


def test_conda_installs_through_the_same_pins():
    text = (ROOT/'environment.yml').read_text()
    assert '- -c constraints.txt' in text and '- -e .[test]' in text


def test_cpu_is_the_default_and_what_the_code_says_without_a_file():
    assert ini()['llmi_kit']['profile'] == 'cpu'
    assert load_profile('cpu', ROOT/'settings.ini') == Profile()
    assert set(ini()['cpu']) == set(Settings.model_fields), 'the first profile shows every line there is'


@pytest.mark.parametrize('name', PROFILES)
def test_profiles_load(name): assert load_profile(name, ROOT/'settings.ini').name == name


def test_no_key_in_the_file():
    for section in PROFILES:
        for line, value in ini()[section].items():
            if line.endswith('_key'): assert re.fullmatch(r'[A-Z][A-Z0-9_]*', value)


def test_a_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv('MY_KEY', 'secret')
    assert Profile(chat_key='MY_KEY').key('chat') == 'secret'
    assert 'secret' not in repr(Profile(chat_key='MY_KEY'))
    monkeypatch.delenv('MY_KEY')
    assert Profile(chat_key='MY_KEY').key('chat') is None


@pytest.mark.parametrize('text, says', [
    ('[cpu]\nbatch = many\n', 'batch'),
    ('[cpu]\ntemprature = 1\n', 'temprature'),
    ('[cpu]\nchat_key = sk-abc123\n', 'never write the key'),
    ('batch = 3\n', 'not readable'),
    ('[gpu8]\nbatch = 3\n', "no profile 'cpu'"),
])
def test_a_bad_file_is_one_sentence(tmp_path, text, says):
    (tmp_path/'settings.ini').write_text(text)
    with pytest.raises(SettingsError) as e: load_profile('cpu', tmp_path/'settings.ini')
    assert says in str(e.value) and '\n' not in str(e.value)


def test_a_percent_sign_is_only_that(tmp_path):
    (tmp_path/'settings.ini').write_text('[cpu]\nserver = http://127.0.0.1/%7Elab/v1\n')
    assert load_profile('cpu', tmp_path/'settings.ini').server.endswith('%7Elab/v1')


def test_seeds_and_keys_are_the_same_everywhere():
    assert derive_seed(0, 'tag', 1) == 654299550
    assert cache_key(a=1, b='x') == cache_key(b='x', a=1)
    assert len({cache_key(a=1), cache_key(a='1'), cache_key(a=1.5), cache_key(a=b'1'), cache_key(a=None)}) == 5
    with pytest.raises(TypeError): cache_key(a=object())


def _ask(folder, log, key, seconds):
    async def make():
        with open(log, 'a') as f: f.write(f'{os.getpid()}\n')  # noqa: ASYNC230 (the test's own record)
        await asyncio.sleep(seconds)
        return 'answer'
    with Store(folder) as store: asyncio.run(store.once(key, make))


def test_eight_processes_make_one_call(tmp_path):
    context = multiprocessing.get_context('spawn')
    workers = [context.Process(target=_ask, args=(tmp_path/'c', tmp_path/'log', 'k', .3)) for _ in range(8)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert [w.exitcode for w in workers] == [0]*8
    assert len((tmp_path/'log').read_text().split()) == 1


def test_a_killed_flight_is_taken_over(tmp_path):
    context = multiprocessing.get_context('spawn')
    worker = context.Process(target=_ask, args=(tmp_path/'c', tmp_path/'log', 'k', 60))
    worker.start()
    while not (tmp_path/'log').exists(): time.sleep(.05)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    start = time.perf_counter()
    _ask(tmp_path/'c', tmp_path/'log', 'k', 0)
    assert time.perf_counter() - start < 5
    assert len((tmp_path/'log').read_text().split()) == 2


async def test_different_keys_fly_together(tmp_path):
    async def make():
        await asyncio.sleep(.2)
        return 'x'
    with Store(tmp_path) as store:
        start = time.perf_counter()
        await asyncio.gather(*(store.once(str(i), make) for i in range(20)))
        assert time.perf_counter() - start < 2


async def test_a_cancelled_flight_frees_its_key(tmp_path):
    async def slow():
        await asyncio.sleep(60)
    async def quick(): return 'x'
    with Store(tmp_path) as store:
        task = asyncio.create_task(store.once('k', slow))
        await asyncio.sleep(.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        assert await asyncio.wait_for(store.once('k', quick), 2) == 'x'
