"The fast GRPO step: TRL's gradient, the same answers and rewards, and TRL's own path where ours does not apply."
import asyncio
import itertools
import platform
import random
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from statistics import pvariance

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers import GemmaForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from llmi_kit.backbone import embedded_folder, load
from llmi_kit.grpo_trainer import FastGRPOTrainer, informative, pack, packable, regroup
from llmi_kit.grpo_writing import sampler
from llmi_kit.writing import give_back, write_answers

KINDS = dict(llama=(LlamaConfig, LlamaForCausalLM), qwen2=(Qwen2Config, Qwen2ForCausalLM), qwen3=(Qwen3Config, Qwen3ForCausalLM),
             gemma=(GemmaConfig, GemmaForCausalLM))
LENGTHS = {"one token, full, equal": (1, 10, 3, 3, 7, 2, 10, 1), "all full": (10,)*8, "all one token": (1,)*8, "all but the last short": (1, 1, 1, 1, 1, 1, 1, 10)}


@pytest.fixture(scope="module")
def tokenizer():
    t = AutoTokenizer.from_pretrained(embedded_folder())
    t.padding_side = "left"
    return t


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    def tiny(kind, **config):
        torch.manual_seed(0)
        shape = dict(vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=12, max_position_embeddings=512, eos_token_id=2, initializer_range=.3)
        c, m = KINDS[kind]
        return m(c(**shape | config))

    def make(trainer, kind="llama", reward=None, model=None, prompts=range(1, 9), own=None, **config):
        base = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, max_completion_length=10, max_steps=1,
                    loss_type="grpo", bf16=False, gradient_checkpointing=False, use_cpu=True, seed=1, report_to=[], save_strategy="no",
                    logging_steps=1, disable_tqdm=True, learning_rate=1e-3)
        rows = [dict(prompt=[dict(role="system", content="Be nice."), dict(role="user", content="word "*n)], number=n) for n in prompts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer(model or tiny(kind), reward or length, GRPOConfig(str(tmp_path_factory.mktemp("out")), **base | config),
                           Dataset.from_list(rows), processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
                           **own or {})
    return make


def length(completions, **kwargs): return [float(len(c[0]["content"]) % 7) for c in completions]


def by_place(completions, **kwargs): return [float(i % 4) for i in range(len(completions))]


def padded(rows, side="right", fill=0):
    n = max(map(len, rows))
    return torch.tensor([r + [fill]*(n - len(r)) if side == "right" else [fill]*(n - len(r)) + r for r in rows])


def batch(lengths=LENGTHS["one token, full, equal"], prompts=None, **more):
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(3, 500) for _ in range(n)]
    asked = ids(3)
    prompts = prompts or [asked + [7, 8]]*4 + [asked + [9, 7, 8, 9, 9]]*2 + [asked]*2
    answers = [ids(n) for n in lengths]
    ones = lambda rows, side="right": padded([[1]*len(r) for r in rows], side)
    advantages = torch.tensor([rng.gauss(0, 1) for _ in answers])
    return dict(prompt_ids=padded(prompts, "left"), prompt_mask=ones(prompts, "left"), completion_ids=padded(answers), completion_mask=ones(answers),
                advantages=advantages, num_items_in_batch=torch.tensor(float(sum(lengths)))) | more


def gradient(t, inputs):
    t.model.train(); t.model.zero_grad()
    t.current_gradient_accumulation_steps = 1
    loss = t.compute_loss(t.model_wrapped, inputs)
    t.accelerator.backward(loss)
    return loss.item(), torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None]), t._metrics["train"]


def differs(a, b): return ((a - b).norm()/a.norm()).item()


def same(make, inputs, tolerance=1e-4, **how):
    stock, ours = make(GRPOTrainer, **how), make(FastGRPOTrainer, **how)
    assert ours.packs
    (a, ga, ma), (b, gb, mb) = gradient(stock, inputs), gradient(ours, inputs)
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6) and ga.norm() > 1e-3 and differs(ga, gb) < tolerance
    assert {k: v[0] for k, v in ma.items()} == pytest.approx({k: v[0] for k, v in mb.items()}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LENGTHS)
def test_gradient_for_answers_of_any_length(make, name): same(make, batch(LENGTHS[name]))


@pytest.mark.parametrize("how", [dict(kind="qwen2"), dict(kind="qwen3"), dict(loss_type="dr_grpo"), dict(loss_type="dapo"), dict(loss_type="bnpo"),
                                 dict(importance_sampling_level="sequence"), dict(temperature=.7), dict(top_entropy_quantile=.5), dict(entropy_coef=.1)], ids=str)
def test_gradient_for_any_loss_and_architecture(make, how): same(make, batch(), **how)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_off_policy_with_clipping_and_a_reference(make, level):
    inputs = batch()
    stock = make(GRPOTrainer, beta=.1)
    with torch.no_grad():
        ids, mask = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
        now = stock._get_per_token_logps_and_entropies(stock.model, ids, mask, 10)[0]
    noise = torch.randn(now.shape, generator=torch.Generator().manual_seed(0))*inputs["completion_mask"]
    same(make, inputs | dict(old_per_token_logps=now + .3*noise, ref_per_token_logps=now - .5*noise), beta=.1, importance_sampling_level=level)


def test_masked_tokens_do_not_learn(make):
    mask = batch()["completion_mask"].clone()
    mask[1, 2:5] = 0
    same(make, batch(tool_mask=mask))


def test_answers_cut_off_are_left_out(make):
    inputs = batch()
    inputs["completion_mask"][1] = 0    # TRL's mask_truncated_completions
    same(make, inputs)
    inputs["completion_mask"][:] = 0
    assert not gradient(make(FastGRPOTrainer), inputs)[1].any()


def test_one_prompt_and_prompts_without_a_common_beginning(make):
    same(make, batch(prompts=[[5, 6, 7]]*8))
    same(make, batch(prompts=[[i, 6, 7][:1 + i % 3] for i in range(10, 18)]))


def change(make, kind, **how):
    "What a whole step does to the weights, in one vector; both trainers get the same answers."
    t = make(kind, reward=by_place, optim="sgd", max_grad_norm=0., learning_rate=1., lr_scheduler_type="constant", **how)
    rng = random.Random(0)
    written = [[rng.randrange(3, 500) for _ in range(n)] for n in LENGTHS["one token, full, equal"]]
    t._generate_single_turn = lambda *args: (written, None)
    weights = lambda: torch.cat([p.detach().flatten().clone() for n, p in t.model.named_parameters() if "lora" in n])
    before = weights()
    t.train()
    return weights() - before


def test_a_whole_step_changes_the_weights_as_stock_does(make):
    exact = change(make, GRPOTrainer)
    assert exact.norm() > .1 and differs(exact, change(make, FastGRPOTrainer)) < 1e-4
    assert differs(exact, change(make, FastGRPOTrainer, gradient_checkpointing=True)) < 1e-4
    # bfloat16 rounds each sum, and ours run in another order: so both are compared with float32
    assert differs(exact, change(make, FastGRPOTrainer, bf16=True)) < 1.2*differs(exact, change(make, GRPOTrainer, bf16=True)) < .2


def test_the_informative_answers_are_those_of_the_largest_variance():
    rng = random.Random(0)
    for size in range(2, 8):
        for n in range(2, size + 1):
            rewards = [rng.choice([0., .2, .3, .7, 1.]) for _ in range(size)]
            found = informative(rewards, n)
            assert len(set(found)) == n
            best = max(pvariance(some) for some in itertools.combinations(rewards, n))
            assert pvariance([rewards[i] for i in found]) == pytest.approx(best)
    assert sorted(informative([.1, .5], 4)) == [0, 1]


@pytest.mark.parametrize("how", [dict(loss_type="dr_grpo", scale_rewards="none"), dict(loss_type="dapo")], ids=str)
def test_only_informative_answers_are_learned_from(make, how):
    "The same change of the weights as by stock TRL, whose other answers are masked by hand; and no work for them."
    class Masked(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            batch["completion_mask"][[1, 2, 5, 6]] = 0     # rewards are 0, 1, 2, 3 in both groups: 0 and 3 differ most
            return batch | dict(num_items_in_batch=batch["completion_mask"].sum())
    exact = change(make, Masked, **how)
    assert exact.norm() > .01 and differs(exact, change(make, FastGRPOTrainer, own=dict(learned=2), **how)) < 1e-4
    assert differs(exact, change(make, FastGRPOTrainer, **how)) > .1


def test_answers_that_were_cut_off_are_not_among_the_informative(make):
    t = make(FastGRPOTrainer, own=dict(learned=2))
    mask = torch.ones(8, 3, dtype=torch.int)
    mask[[0, 7]] = 0
    found = t._thinned(dict(completion_mask=mask, advantages=torch.tensor([-3., -1., 0., 1., -1., 0., 1., 3.])))
    assert found["completion_mask"].any(1).tolist() == [False, True, False, True, True, False, True, False]
    assert found["num_items_in_batch"] == 12
    t.model.eval()
    assert t._thinned(dict(whatever=1)) == dict(whatever=1)


def test_other_architectures_take_trls_path(make):
    t = make(FastGRPOTrainer, kind="gemma")
    assert not t.packs and not t._writes()
    t.train()
    window = make(FastGRPOTrainer, kind="qwen2").model.get_base_model()
    window.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert not packable(window)


def test_packing_computes_every_token_once():
    row = pack([[1, 2, 3], [1, 2, 3], [1, 2, 4, 5]], [[6, 7], [8], [9, 9, 9]])
    assert row.ids.tolist() == [[1, 2, 3, 6, 4, 5, 9, 9]] and row.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5]]
    assert row.targets.tolist() == [[6, 7, 8, 9, 9, 9]] and row.sources.tolist() == [2, 3, 2, 5, 6, 7]


@pytest.fixture(scope="module")
def questions(make, tokenizer):
    t = make(FastGRPOTrainer)
    rows = [tokenizer.apply_chat_template(t.train_dataset[i // 2]["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False) for i in range(16)]
    model = t.model.eval()
    want = [model.generate(torch.tensor([p]), max_new_tokens=12, do_sample=False, eos_token_id=[49151])[0, len(p):].tolist() for p in rows]
    ends = {w[i % 9] for i, w in enumerate(want) if i % 4}      # so that answers have many lengths
    first = lambda w: next((k for k, token in enumerate(w) if token in ends), 11) + 1
    return model, rows, ends, [w[:first(w)] for w in want]


@pytest.mark.parametrize("slots", [None, 1, 3, 8])
def test_writes_what_generate_writes(questions, slots):
    model, rows, ends, want = questions
    told = {}
    written = write_answers(model, rows, 12, ends, lambda scores, _: scores.argmax(-1), slots, told.__setitem__)
    assert len({len(w) for w in want}) > 3 and written == want and [told[i] for i in range(16)] == want


def test_drawn_answers_depend_on_the_seed_only(questions):
    model, rows, ends, _ = questions
    def write(seed, slots, threads):
        numbers = torch.rand(len(rows), 12, generator=torch.Generator().manual_seed(seed))
        with threads_of(threads): return write_answers(model, rows, 12, ends, sampler(1., numbers=numbers), slots)
    first = write(0, 5, 1)
    assert first == write(0, 5, 1) == write(0, None, 1) == write(0, 3, 2) == write(0, None, 2) != write(1, 5, 1)


@contextmanager
def threads_of(n):
    "PyTorch computes with `n` threads inside."
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)


def test_two_threads_write_half_of_the_answers_each(questions):
    model, rows, ends, want = questions
    told, who = {}, set()
    def done(i, ids): told[i] = ids; who.add((threading.get_ident(), i % 2, torch.get_num_threads()))
    with threads_of(2):
        assert write_answers(model, rows, 12, ends, lambda scores, _: scores.argmax(-1), 4, done) == want
        assert torch.get_num_threads() == 2
    assert [told[i] for i in range(16)] == want
    assert len({thread for thread, *_ in who}) == 2 and sorted((half, n) for _, half, n in who) == [(0, 1), (1, 1)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries can't be asked")
def test_freed_memory_is_given_back():
    "Blocks below the size that gets pages of its own, freed but for every hundredth, lie between those that live."
    use = lambda: int(Path("/proc/self/statm").read_text().split()[1])
    before, blocks = use(), [torch.ones(20_000) for _ in range(4000)]
    grown = use() - before
    blocks = blocks[::100]
    kept = use() - before
    give_back()
    assert kept > .5*grown and use() - before < .2*grown


def test_a_step_gives_memory_back_three_times(make, monkeypatch):
    given = []
    for place in ("writing", "grpo_trainer"): monkeypatch.setattr(f"llmi_kit.{place}.give_back", lambda place=place: given.append(place))
    make(FastGRPOTrainer).train()
    assert given == ["grpo_trainer", "writing", "grpo_trainer"]      # before writing, after it, and when the answers are judged


def test_an_error_in_one_thread_ends_the_other(questions):
    model, rows, _, _ = questions
    drawn = []
    def draw(scores, which):
        drawn.append(which)
        if which[0] % 2 and len(drawn) > 5: raise RuntimeError("this half breaks")
        time.sleep(.01)
        return scores.argmax(-1)
    with threads_of(2):
        with pytest.raises(RuntimeError, match="this half breaks"): write_answers(model, rows, 1000, set(), draw)
        assert torch.get_num_threads() == 2
    assert len(drawn) < 200


def test_sampler_draws_as_the_filters_say():
    scores = torch.tensor([[3., 2., 1., 0.]]).repeat(4000, 1)
    torch.manual_seed(0)
    share = sampler(.5)(scores, None).bincount(minlength=4)/4000
    assert torch.allclose(share, (scores[0]/.5).softmax(0), atol=.03)
    for how, left in (dict(top_k=2), 2), (dict(top_p=.5), 1), (dict(min_p=.3), 2): assert sampler(**how)(scores, None).unique().tolist() == list(range(left))


def test_the_trainer_samples_as_configured(make, monkeypatch):
    asked, how = [], dict(temperature=.7, top_k=5, top_p=.9, min_p=.1)
    monkeypatch.setattr("llmi_kit.grpo_trainer.sampler", lambda *args: asked.append(args) or sampler(*args))
    make(FastGRPOTrainer, **how).train()
    assert [a[:4] for a in asked] == [tuple(how.values())]


def test_regrouped_batches_keep_rows_whole():
    rng = random.Random(0)
    rows = [(p, a) for p in range(4) for a in range(4)]
    rng.shuffle(rows)
    cut = [dict(prompt_ids=torch.tensor([[p, 0] for p, _ in part]), advantages=torch.tensor([10.*p + a for p, a in part]), n=torch.tensor(9))
           for part in (rows[:8], rows[8:])]
    new = regroup(cut)
    assert [len(b["prompt_ids"].unique(dim=0)) for b in new] == [2, 2] and all(b["n"] == 9 for b in new)
    assert all((b["advantages"]//10 == b["prompt_ids"][:, 0]).all() for b in new)
    assert sorted(torch.cat([b["advantages"] for b in new]).tolist()) == sorted(10.*p + a for p, a in rows)


def slow_judge(events, none_of=()):
    async def judge(prompts, completions, number, log_extra, log_metric, **kwargs):
        events.append(("asked", len(completions)))
        text = completions[0][0]["content"]
        await asyncio.sleep(.02*(len(text) % 5))    # not in the order of the answers
        log_extra("text", [c[0]["content"] for c in completions]); log_metric("seen", 1.)
        return [None if n in none_of else float(len(c[0]["content"]) % 7) + n for c, n in zip(completions, number, strict=True)]
    return judge


@pytest.mark.parametrize("none_of", [(), (1, 2, 3, 4, 5, 6, 7, 8), (2, 3, 5)], ids=["all", "none", "some"])
def test_rewards_are_the_same_with_and_without_overlap(make, none_of):
    found = []
    for overlap in False, True:
        events = []
        t = make(FastGRPOTrainer, reward=[slow_judge(events, none_of), length], own=dict(overlap=overlap, slots=3))
        t.train()
        assert {n for _, n in events} == ({1} if overlap else {8})
        last = t.state.log_history[0]
        found.append((dict(t._logs["rewards"]), list(t._logs["advantages"]), list(t._logs["extra"]["text"]), list(t._logs["completion"]), last["reward"], last["seen"]))
    assert str(found[0]) == str(found[1])   # NaN is not equal to itself


def test_scoring_starts_before_writing_ends(make):
    events = []
    t = make(FastGRPOTrainer, reward=slow_judge(events), own=dict(slots=2))
    write = t._generate_single_turn
    def watched(*args):
        found = write(*args)
        events.append("written")
        return found
    t._generate_single_turn = watched
    t.train()
    assert 4 <= events.index("written") and len(events) == 9


def test_a_failing_reward_stops_training_as_with_trl(make):
    async def broken(**kwargs): raise OSError("the judge is gone")
    with pytest.raises(OSError, match="the judge is gone"): make(FastGRPOTrainer, reward=broken).train()


def test_resumed_training_goes_on_as_if_it_had_not_stopped(make):
    def losses(t, **how):
        t.train(**how)
        return {h["step"]: (h["grad_norm"], h["reward"]) for h in t.state.log_history if "reward" in h}
    how = dict(save_strategy="steps", save_steps=2, save_total_limit=2, max_steps=4, own=dict(slots=3))
    whole = make(FastGRPOTrainer, **how)
    first = losses(whole)
    resumed = losses(make(FastGRPOTrainer, **how), resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert all(resumed[s] == pytest.approx(first[s], rel=1e-6) for s in (3, 4)) and first[3] != first[4]


def test_the_saved_configuration_names_no_attention_of_ours(make):
    assert "packed" not in str(make(FastGRPOTrainer).model.get_base_model().config.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_gradient_on_the_embedded_backbone(make, quantization):
    rng = random.Random(0)
    asked = [rng.randrange(3, 40000) for _ in range(60)]
    inputs = batch((1, 10, 30, 17), prompts=[asked, asked, asked[:40] + [9]*7, asked[:40] + [9]*7])
    def found(kind):
        t = make(kind, model=load("embedded", quantization, dtype=torch.float32)[0], max_completion_length=30)
        for p in t.model.parameters():
            if p.requires_grad: p.data = p.data.float()     # TRL casts adapters on quantized weights to bfloat16, of three digits
        return gradient(t, inputs)[1]
    assert differs(found(GRPOTrainer), found(FastGRPOTrainer)) < 1e-3
