"""Several processes train as one does. Run by accelerate's launcher (below), this file is the training itself:

    accelerate launch --config_file nbs/recipes/gpus.yaml --num_processes 2 tests/test_more_machines.py OUT dapo nf4

with OUT/model made by `tiny`.
"""
import asyncio, json, os, shlex, shutil, subprocess, sys, zlib
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RECIPES = ROOT/"nbs"/"recipes"
QUICK, SLOW = ("dapo",), ("dr_grpo", "gspo", "kl", "activation", "nf4")
CASES = dict(dapo={}, dr_grpo=dict(loss="dr_grpo"), gspo=dict(sequence=True), kl=dict(beta=.1), activation={}, nf4={})


def tiny(folder):
    "The policy that all cases train."
    from llmi_kit.tiny_policy import tiny_policy
    tiny_policy(folder, reads=60)


class Letters:
    "The share of small letters in an answer; some answers take longer than others."
    key = "letters"
    def __init__(self): self.asked = []
    async def __call__(self, answer, row):
        from llmi_kit.reward import Reward
        from llmi_kit.scorer import Scored
        self.asked.append((row.extra_info.question, answer))
        await asyncio.sleep(.004*(len(answer) % 5))
        text = sum("a" <= c <= "z" for c in answer)/max(1, len(answer))
        return Scored(None, Reward(value=.2 + .5*text, count=1, text=text, pictures=0.))


def fixed(trainer):
    "Answers are drawn from the policy, by question, place in its group and step: not by the process that writes them."
    import llmi_kit.grpo_trainer as module
    usual, streams, written = trainer._generate_single_turn, [], []
    def write(prompts, *args, **kwargs):
        places = Counter()
        streams.clear()
        for p in map(tuple, prompts):
            places[p] += 1
            streams.append(torch.Generator().manual_seed(zlib.crc32(repr((p, places[p], trainer.state.global_step)).encode())))
        assert set(places.values()) == {trainer.num_generations}
        found = usual(prompts, *args, **kwargs)
        written.append(found[0])
        return found
    def draw(scores, rows):
        at, end = torch.stack([torch.rand(2, generator=streams[i], dtype=torch.float64) for i in rows]).T
        token = (scores.double().softmax(-1).cumsum(-1) < at[:, None]).sum(-1).clamp(max=256)
        return torch.where(end < .1, 256, token)    # so that answers have many lengths
    module.sampler = lambda *_: draw
    trainer._generate_single_turn = write
    return written


def one(folder, name, resume=False, **how):
    "Train one case in `folder`/`name` with as many processes as there are; what this process saw of it."
    from llmi_kit.grpo import Recipe, Rewards, policy, trainer_of
    from llmi_kit.grpo_run import RunFolder, train
    from llmi_kit.grpo import processes, share
    from llmi_kit.prompts import embedded_rows
    run, letters, told = RunFolder(folder/name), Letters(), []
    recipe = Recipe(**dict(steps=2, prompts=4, answers=4, micro=4, max_tokens=16, lr=2e-2, rank=4, warmup=0) | CASES.get(name, how))
    run.begin(recipe.model_dump(), resume)
    model, words = policy(str(folder/"model"), "nf4" if name == "nf4" else "none", rank=recipe.rank)
    with run.rewards as store:
        trainer = trainer_of(model, words, embedded_rows("train")[:24], Rewards(letters, store), share(recipe), run.out, save_steps=2)
        for p in model.parameters():
            if p.requires_grad: p.data = p.data.float()     # TRL casts adapters on quantized weights to bfloat16, of three digits
        written = fixed(trainer) if name in CASES else []
        train(trainer, resume, told.append)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    log = [x for x in trainer.state.log_history if "reward" in x]
    return dict(log=log, written=written, weights=weights, asked=letters.asked, told=len(told), processes=processes(),
                how=str(trainer.accelerator.distributed_type), ours=trainer.packs and trainer._writes() and trainer._overlaps())


def everything(folder, *names):
    "Train these cases; what each process saw goes to a file of its own."
    import llmi_kit.backbone, llmi_kit.grpo, llmi_kit.grpo_trainer
    torch.set_num_threads(1)
    llmi_kit.backbone.native_dtype = lambda device: torch.float32     # 16 bits round differently in another order
    config, sampler, found = llmi_kit.grpo.GRPOConfig, llmi_kit.grpo_trainer.sampler, {}
    for name in (n for n in names if n in CASES):
        llmi_kit.grpo.GRPOConfig = lambda *a, name=name, **k: config(*a, **k | dict(gradient_checkpointing=name == "activation"))
        found[name] = one(folder, name)
    llmi_kit.grpo_trainer.sampler = sampler
    if "chance" in names:
        found["chance"] = one(folder, "chance", steps=3)
        shutil.copytree(folder/"chance"/"checkpoint-2", folder/"again"/"checkpoint-2", dirs_exist_ok=True)  # as if it had been killed
        shutil.copy(folder/"chance"/"begun.json", folder/"again")
        found["again"] = one(folder, "again", resume=True, steps=3)
    torch.save(found, folder/f"seen-{os.environ.get('RANK', 0)}.pt")


if __name__ == "__main__":
    everything(Path(sys.argv[1]), *sys.argv[2:])
    raise SystemExit


def launched(folders, names, more=()):
    "What one process saw, and what each of two saw; both trainings run at once."
    for folder in folders: tiny(folder/"model")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(RECIPES/"gpus.yaml"), "--num_processes", "2"]
    env = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    calls = [[sys.executable, __file__, str(folders[0]), *names], [*launcher, __file__, str(folders[1]), *names, *more]]
    jobs = [subprocess.Popen(call, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for call in calls]
    try:
        said = [job.communicate(timeout=280)[0] for job in jobs]
    finally:
        for job in jobs: job.terminate()
    for job, text in zip(jobs, said, strict=True): assert job.returncode == 0, text[-3000:]
    read = lambda folder, i: torch.load(folder/f"seen-{i}.pt", weights_only=False)
    return read(folders[0], 0), [read(folders[1], i) for i in (0, 1)], folders[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory): return launched([tmp_path_factory.mktemp(n) for n in ("one", "two")], QUICK, ["chance"])


@pytest.fixture(scope="module")
def seen_slowly(tmp_path_factory): return launched([tmp_path_factory.mktemp(n) for n in ("one", "two")], SLOW)


def numbers(log): return {k: v for k, v in log.items() if isinstance(v, float | int) and k not in ("step_time", "step")}


def as_one(seen, case):
    one, (a, b) = seen[0][case], (x[case] for x in seen[1])
    assert (one["processes"], one["how"]) == (1, "DistributedType.NO") and (b["processes"], b["how"]) == (2, "DistributedType.MULTI_CPU")
    assert one["ours"] and a["ours"] and b["ours"]
    assert one["written"] == [x + y for x, y in zip(a["written"], b["written"], strict=True)] and len(one["written"]) == 2
    assert len({len(ids) for ids in one["written"][0]}) > 3
    for x, y in zip(one["log"], a["log"], strict=True):
        x, y = numbers(x), numbers(y)
        means = [[z.pop(k, 0) for k in ("entropy", "kl")] for z in (x, y)]      # TRL logs means over micro-batches, and these are others
        assert means[0] == pytest.approx(means[1], rel=.2)
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6)
    assert ((one["weights"] - a["weights"]).norm()/one["weights"].norm()).item() < 1e-5
    assert torch.equal(a["weights"], b["weights"])


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_train_as_one(seen, case): as_one(seen, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_processes_train_as_one_in_other_ways(seen_slowly, case): as_one(seen_slowly, case)


def test_processes_share_rewards_and_write_once(seen):
    _, (a, b), folder = seen
    assert len(a["chance"]["asked"]) + len(b["chance"]["asked"]) == len({*a["chance"]["asked"], *b["chance"]["asked"]}) > 40
    assert (a["chance"]["told"], b["chance"]["told"]) == (3, 0)
    log = [json.loads(line) for line in (folder/"chance"/"log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in log if "reward" in x] == [1, 2, 3] and len(log) == 4
    assert json.loads((folder/"chance"/"begun.json").read_text())["prompts"] == 4
    assert {"adapter_model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in (folder/"chance"/"checkpoint-3").iterdir()}


def test_resumed_in_two_processes_as_if_it_had_not_stopped(seen):
    for x in seen[1]:
        whole, again = x["chance"], x["again"]
        assert numbers(whole["log"][2]) == pytest.approx(numbers(again["log"][2]), rel=1e-6) and torch.equal(whole["weights"], again["weights"])


def test_questions_that_cannot_be_shared(monkeypatch):
    from llmi_kit.grpo import Recipe
    from llmi_kit.grpo import share
    assert share(Recipe()) == Recipe() and share(Recipe(micro=8), 4).prompts == 2
    with pytest.raises(ValueError, match="multiple of 3"): share(Recipe(), 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share(Recipe()).prompts == 4


@pytest.mark.parametrize("name, machines, count", [("gpus", 1, 2), ("two_machines", 2, 16)])
def test_accelerate_reads_its_files(name, machines, count):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    args = launch_command_parser().parse_args(["--config_file", str(RECIPES/f"{name}.yaml"), "--no_python", "llmi", "train"])
    args, config, _ = _validate_launch_command(args)
    assert (args.multi_gpu, args.num_machines, args.num_processes, args.mixed_precision, args.use_cpu) == (True, machines, count, "no", False)
    assert args.training_script_args == ["train"] and args.training_script == "llmi" and args.no_python


def test_the_vllm_server_is_started_as_trl_wants_it():
    from trl.scripts.vllm_serve import build_command, make_parser
    said = shlex.split((RECIPES/"vllm.sh").read_text(), comments=True)
    said = said[said.index("serve"):]
    args, = make_parser().parse_args_and_config(["--model", said[1], "--host", "127.0.0.1", "--dtype", "bfloat16", "--max_model_len", "16384"])
    wanted = build_command(args)
    pairs = lambda words: {k: v for k, v in zip(words, words[1:], strict=False) if k.startswith("--")}
    assert pairs(said).items() <= pairs(wanted).items()     # each option of ours is one that TRL gives too, with its value
    assert all(k in said for k in ("--weight-transfer-config", "--logprobs-mode", "--max-logprobs", "--max-model-len"))


class Server:
    "TRL's client for vLLM, with a transformers model where the server would be."
    def __init__(self, base_url, **_):
        from transformers import LlamaForCausalLM
        Server.last, self.url, self.updates, self.asked = self, base_url, 0, []
        self.model = LlamaForCausalLM.from_pretrained(Server.folder)

    def init_communicator(self, device): pass
    def reset_prefix_cache(self): pass
    def get_server_info(self): return dict(model_config=dict(logprobs_mode="processed_logprobs"))

    def update_named_params(self, metadata, params):
        own = dict(self.model.named_parameters())
        assert {n: tuple(shape) for n, _, shape in metadata} == {n: tuple(p.shape) for n, p in own.items()}
        for name, p in params: own[name].data.copy_(p)      # at once: LoRA is taken out of them again after the last one
        self.updates += 1

    @torch.no_grad()
    def generate(self, prompts, n, temperature, max_tokens, **_):
        self.asked.append((len(prompts), n, temperature, max_tokens))
        ids, logps = [], []
        for p in (p for p in prompts for _ in range(n)):
            out = self.model.generate(torch.tensor([p]), max_new_tokens=max_tokens, do_sample=True, top_k=0, eos_token_id=256, pad_token_id=256)[:, len(p):]
            scores = self.model(torch.cat([torch.tensor([p]), out], 1)).logits[:, len(p) - 1:-1].log_softmax(-1)
            ids.append(out[0].tolist())
            logps.append(scores.gather(-1, out[..., None])[0].tolist())
        return dict(prompt_ids=prompts, completion_ids=ids, logprobs=logps, logprob_token_ids=[[[i] for i in x] for x in ids])


@pytest.fixture
def served_trainer(tmp_path, monkeypatch):
    def make(quantization="none"):
        import trl.generation.vllm_generation as module
        from llmi_kit import backbone
        from llmi_kit.grpo import PARTS, Part, Recipe, Rewards, dataset_of, policy, trl_config
        from llmi_kit.grpo_trainer import FastGRPOTrainer
        from llmi_kit.more_machines import served
        from llmi_kit.prompts import embedded_rows
        tiny(tmp_path/"model")
        Server.folder = tmp_path/"model"
        monkeypatch.setattr(module, "is_vllm_available", lambda *a, **k: True)
        monkeypatch.setattr(module, "VLLMClient", Server)
        monkeypatch.setattr(backbone, "native_dtype", lambda device: torch.float32)
        model, words = policy(str(Server.folder), quantization, rank=4)
        recipe = Recipe(steps=3, prompts=2, answers=4, micro=4, max_tokens=12, lr=5e-2, rank=4, warmup=0)
        config = served(trl_config(recipe, tmp_path/"run"), "http://127.0.0.1:8000", model)
        parts = [Part(name, Rewards(Letters())) for name in PARTS]
        return FastGRPOTrainer(model, parts, config, dataset_of(embedded_rows("train")[:8]), processing_class=words)
    return make


def test_a_vllm_server_writes_with_the_policys_weights(served_trainer, monkeypatch):
    monkeypatch.setattr("llmi_kit.grpo_trainer.write_answers", None)    # ours would fail
    t = served_trainer()
    t.train()
    server, log = Server.last, [x for x in t.state.log_history if "reward" in x]
    assert t.packs and not t._writes() and not t._overlaps()
    assert server.updates == 3 and server.asked == [(2, 4, 1., 12)]*3 and server.url == "http://127.0.0.1:8000"
    for x in log:   # what the server wrote with is the policy of this step: so the ratios of their probabilities are 1
        assert x["sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3) == x["sampling/importance_sampling_ratio/max"]
    assert len({round(x["entropy"], 6) for x in log}) == 3      # the policy moved


def test_packed_weights_are_not_sent(served_trainer):
    with pytest.raises(ValueError, match="without quantization"): served_trainer("nf4")


def test_verls_rows_carry_what_prompt_and_reward_need(tmp_path):
    from pyarrow import parquet
    from llmi_kit.more_machines import verl_rows
    from llmi_kit.prompts import embedded_rows
    from llmi_kit.scorer import row_from
    rows = embedded_rows("train")[:40]
    assert {bool(r.images) for r in rows} == {True, False}
    for sees in (False, True):
        records = parquet.read_table(verl_rows(rows, tmp_path/"rows.parquet", sees)).to_pylist()
        for row, record in zip(rows, records, strict=True):
            system, user = record["prompt"]
            again = row_from(record["extra_info"])
            assert again.extra_info.question == row.extra_info.question in user["content"] and [p.sha256 for p in again.images] == [p.sha256 for p in row.images]
            assert system["role"] == "system" and record["reward_model"] == dict(style="rule", ground_truth="")
            marks = user["content"].count("<image>")
            assert marks == len(record["images"]) == len(row.images) if sees else "images" not in record and not marks
            if row.images and not sees: assert row.images[0].origin.title in user["content"]


def test_verls_files_name_our_reward():
    import importlib
    import yaml
    base, moe = (yaml.safe_load((RECIPES/f"{name}.yaml").read_text()) for name in ("verl", "verl_gspo"))
    ours = base["reward"]["custom_reward_function"]
    f = getattr(importlib.import_module(ours["path"].removeprefix("pkg://")), ours["name"])
    assert asyncio.iscoroutinefunction(f) and ours["reward_kwargs"].keys() <= f.__annotations__.keys()
    assert moe["defaults"] == ["verl", "_self_"] and base["data"]["train_batch_size"]*base["actor_rollout_ref"]["rollout"]["n"] % 16 == 0
