"GRPO on rows of the kit: parts of the reward, recipes, and trainings that are killed, stopped and gone on with."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llmi_kit.config import Store
from llmi_kit.grpo import PARTS, Part, Recipe, Rewards, contributions, dataset_of, paid, policy, row_json, small_copy, trainer_of, trl_config
from llmi_kit.grpo_run import RunFolder, TrainingError, train
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.prompts import embedded_rows
from llmi_kit.reward import Reward
from llmi_kit.scorer import Scored, row_from
from llmi_kit.tiny_policy import tiny_policy
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROWS = embedded_rows("train")[:40]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    "The folder of a policy of bytes with random weights."
    return tiny_policy(tmp_path_factory.mktemp("tiny")/"model")


def child(folder, model, *words):
    "Run training_child.py to its end, whatever that is."
    folder.mkdir(exist_ok=True)
    if not (folder/"model").exists(): (folder/"model").symlink_to(model)
    return subprocess.run([sys.executable, HERE/"training_child.py", folder, *map(str, words)], capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(OMP_NUM_THREADS="1"))


def losses(folder):
    logs = [json.loads(line) for line in (folder/"run"/"log.jsonl").read_text().splitlines()]
    return [(log["step"], log["loss"], log["grad_norm"], log["llmi/text"]) for log in logs if "loss" in log]


def adapter(folder): return load_file(folder/"run"/"adapter"/"adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    "A training that nothing happened to."
    folder = tmp_path_factory.mktemp("whole")
    done = child(folder, model)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [step for step, *_ in losses(folder)] == [1, 2, 3, 4, 5, 6]
    return folder


def same(folder, whole):
    "Are the losses and the adapter those of the whole training?"
    for (step, *got), (other, *want) in zip(losses(folder), losses(whole), strict=True):
        assert step == other and got == pytest.approx(want, abs=1e-6), step
    a, b = adapter(folder), adapter(whole)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.timeout(300)
def test_a_training_at_its_end_makes_no_more_steps(tmp_path, model, whole):
    "Resumed after its last step it is as it was; with its adapter lost, the checkpoint has it."
    folder = tmp_path/"again"
    shutil.copytree(whole, folder, symlinks=True)
    begun = folder/"run"/"begun.json"
    begun.write_text(begun.read_text().replace(str(whole), str(folder)))     # the backbone's place
    for lost in (False, True):
        if lost: shutil.rmtree(folder/"run"/"adapter")
        done = child(folder, model, "--resume")
        assert done.returncode == 0, done.stderr[-2000:]
        same(folder, whole)
        assert all(torch.equal(v, adapter(whole)[k]) for k, v in adapter(folder).items())


@pytest.mark.parametrize("step", [3, 4])
def test_killed_and_gone_on_with(tmp_path, model, whole, step):
    "Between checkpoints, and while one is due: the same losses as without, and nothing scored twice."
    assert child(tmp_path, model, "--die", step).returncode == -9
    assert not (tmp_path/"run"/"adapter").exists()
    done = child(tmp_path, model, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    same(tmp_path, whole)
    scored = (tmp_path/"scored.txt").read_text().splitlines()
    assert len(scored) == len(set(scored)) == len(set((whole/"scored.txt").read_text().splitlines()))
    pages = sorted(p.name for p in (tmp_path/"run"/"rollouts").glob("*.jsonl"))
    assert pages == [f"step_{i:04}.jsonl" for i in range(1, 7)]


@pytest.mark.timeout(300)
def test_ctrl_c_saves_the_last_finished_step(tmp_path, model, whole):
    stopped = child(tmp_path, model, "--interrupt", 2*3 + 2)     # in the fourth step; checkpoints are of every second
    assert stopped.returncode == 130, stopped.stderr[-2000:]
    assert RunFolder(tmp_path/"run").last.name == "checkpoint-3"
    assert child(tmp_path, model, "--resume").returncode == 0
    same(tmp_path, whole)


def test_resuming_in_an_empty_folder_begins(tmp_path, model, whole):
    assert child(tmp_path, model, "--resume").returncode == 0
    same(tmp_path, whole)


def test_a_folder_is_held_to_what_it_was_begun_with(tmp_path):
    folder = RunFolder(tmp_path/"run")
    folder.begin(dict(rows=3, recipe=dict(lr=1., steps=4)))
    with pytest.raises(TrainingError, match="--resume"): folder.begin(dict(rows=3, recipe=dict(lr=1., steps=4)))
    folder.begin(dict(rows=3, recipe=dict(lr=1., steps=4)), resume=True)
    with pytest.raises(TrainingError, match=r"recipe\.lr was 1\.0 and is 2\.0"):
        folder.begin(dict(rows=3, recipe=dict(lr=2., steps=4)), resume=True)


class Fixed:
    "A scorer that gives prescribed rewards, by the answer."
    key = "fixed"
    def __init__(self, rewards=None): self.rewards, self.calls = rewards, 0

    async def __call__(self, answer, row):
        self.calls += 1
        if self.rewards: return Scored(None, self.rewards(answer))
        text = sum("a" <= c <= "z" for c in answer)/max(1, len(answer))
        return Scored(None, Reward(value=.2 + .5*text, count=1, text=text, pictures=0.))


def tiny_trainer(model, out, scorer, **more):
    recipe = Recipe(**dict(steps=1, prompts=2, answers=4, micro=8, max_tokens=12, warmup=0, rank=4, lr=1e-2) | more)
    policy_model, words = policy(str(model), rank=4)
    return trainer_of(policy_model, words, ROWS, Rewards(scorer), recipe, out)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_says_what_to_lower(tmp_path, model, error):
    trainer = tiny_trainer(model, tmp_path, Fixed())
    def training_step(*args, **kwargs): raise error
    trainer.training_step = training_step
    with pytest.raises(TrainingError, match="lower `micro`"): train(trainer)


@pytest.mark.parametrize("normalize", [True, False])
def test_an_answer_without_a_reward_teaches_nothing(tmp_path, model, normalize):
    "Its advantage is 0, and the others' are those of a group without it."
    lost = Reward(value=None, count=1, text=None, pictures=None, missing=("the judge is away",))
    seen = []
    def rewards(answer):
        seen.append(answer)
        good = sum(map(ord, answer)) % 7/7      # random bytes: their number alone may be the same for all
        return lost if len(seen) in (2, 7) else Reward(value=.2 + .5*good, count=1, text=good, pictures=0.)
    trainer, kept = tiny_trainer(model, tmp_path, Fixed(rewards), normalize_parts=normalize), []
    usual = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: kept.append(usual(inputs)) or kept[-1]
    train(trainer)
    advantages = kept[0]["advantages"]
    assert (advantages == 0).sum() >= 2 and advantages.isfinite().all()
    assert advantages[advantages != 0].numel() and abs(advantages.sum().item()) < 1e-3


@pytest.mark.parametrize("reward", [
    Reward(value=1., count=1, text=1, pictures=1), Reward(value=.2*.5 + .5*.25 + .3*.5*.75, count=.5, text=.25, pictures=.75),
    Reward(value=.5*.6, count=0, text=.6, pictures=None), Reward(value=(.2*1 + .5*.6)/.7, count=1, text=.6, pictures=None)])
def test_parts_add_up(reward):
    assert sum(contributions(reward).values()) == pytest.approx(reward.value)


def test_a_missing_reward_has_no_part():
    assert set(contributions(Reward(value=None, count=1, text=None, pictures=.5)).values()) == {None}


async def test_an_answer_is_scored_once_for_all_parts_and_runs(tmp_path):
    scorer, info = Fixed(), row_json(ROWS[0])
    rewards = Rewards(scorer, Store(tmp_path))
    for name in PARTS: await Part(name, rewards)(["an answer", "an answer", "another"], [info]*3)
    assert scorer.calls == 2 and len(rewards.seen) == 3
    again = Rewards(scorer, Store(tmp_path))
    assert await again.of("an answer", info) == await rewards.of("an answer", info) and scorer.calls == 2
    assert (await again.of("an answer", row_json(ROWS[1]))) and scorer.calls == 3     # of another question


async def test_what_answers_cost_is_added_up(tmp_path):
    priced = Fixed(lambda answer: Reward(value=1., count=1, text=1, pictures=1, cost=.25 if answer == "an answer" else .5))
    rewards = Rewards(priced, Store(tmp_path))
    for answer in ("an answer", "another", "an answer"): await rewards.of(answer, row_json(ROWS[0]))
    rewards.store.disk.set("flight:x", "somewhere:1:2")
    assert paid(rewards.store) == .75


async def test_a_missing_reward_is_asked_for_again_in_the_next_run(tmp_path):
    scorer, info = Fixed(lambda answer: Reward(value=None, count=1, text=None, pictures=None)), row_json(ROWS[0])
    for _ in range(2): assert (await Rewards(scorer, Store(tmp_path)).of("an answer", info)).reward.value is None
    assert scorer.calls == 2


def test_rows_survive_the_journey_as_json():
    for row in ROWS:
        back = row_from(row_json(row))
        assert back.extra_info == row.extra_info and [p.sha256 for p in back.images] == [p.sha256 for p in row.images]


def test_a_policy_reads_what_the_writer_will(tmp_path):
    from llmi_kit.document import instructions
    data = dataset_of(ROWS, "compact")
    with_pictures = next(i for i, row in enumerate(ROWS) if row.images)
    assert data[with_pictures]["prompt"][0]["content"] == instructions("compact")
    assert data[with_pictures]["prompt"][1]["content"].startswith("[image 0: ")


def test_recipes():
    assert [Recipe(prompts=3, answers=4, micro=m).at_once for m in (1, 5, 16)] == [1, 4, 12]
    with pytest.raises(ValueError, match="2 or more"): Recipe(prompts=16, answers=1)
    with pytest.raises(ValueError): Recipe(learning_rate=1)
    gspo, dr = trl_config(Recipe(sequence=True), "out"), trl_config(Recipe(loss="dr_grpo", normalize_parts=False), "out")
    assert (gspo.importance_sampling_level, gspo.loss_type, gspo.epsilon, gspo.epsilon_high) == ("sequence", "grpo", 3e-4, 4e-4)
    assert dr.scale_rewards == "none" and dr.reward_weights is None and dr.multi_objective_aggregation == "sum_then_normalize"
    usual = trl_config(Recipe(), "out")
    assert usual.reward_weights == [.2, .5, .3] and usual.per_device_train_batch_size*usual.gradient_accumulation_steps == 64


@pytest.mark.parametrize("how, rates, first", [
    (dict(schedule="constant", momentum=0.), [1e-2]*3, 0.), (dict(warmup=1), [0., 1e-2, .505e-2], .9), (dict(schedule="constant", warmup=1), [0., 1e-2, 1e-2], .9)])
def test_rates_and_momentum_are_the_recipe_s(tmp_path, model, how, rates, first):
    seen, trainer = [], tiny_trainer(model, tmp_path, Fixed(), steps=3, **how)
    train(trainer, tell=seen.append)
    assert [log["learning_rate"] for log in seen if "learning_rate" in log] == pytest.approx(rates)
    assert trainer.optimizer.param_groups[0]["betas"][0] == first


def test_small_copies_are_small():
    big = Picture.from_pil(Image.effect_noise((2000, 1000), 80), Origin(tool="code", backend="x"))
    assert len(small_copy(big)) < 60_000
    assert small_copy(Failure(kind="code", message="no picture")) == "no picture"


