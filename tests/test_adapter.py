"Adapters: saved so that others can use them, told about truly, merged without a change."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmi_kit import adapter as module
from llmi_kit.adapter import AdapterError, Figure, Record, apart, average, card, hub_name, merge, misfit, save_adapter, scores_of
from llmi_kit.backbone import BackboneError, embedded_folder, load
from llmi_kit.grpo import Recipe, Rewards, policy, trainer_of
from llmi_kit.prompts import embedded_rows
from llmi_kit.reward import Reward
from llmi_kit.scorer import Scored

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")   # names that TRL still uses
F32 = torch.float32


def tiny(folder, layers=2, hidden=32, dtype=F32):
    words = AutoTokenizer.from_pretrained(embedded_folder())
    torch.manual_seed(0)
    shape = dict(vocab_size=len(words), hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, initializer_range=.2)
    LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=2, tie_word_embeddings=True)).to(dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory): return tiny(tmp_path_factory.mktemp("b")/"tiny-llama")


def lora(backbone, seed=1, **how):
    torch.manual_seed(seed)
    model = load(backbone, dtype=F32)[0]
    return get_peft_model(model, LoraConfig(**dict(r=4, target_modules="all-linear", init_lora_weights=False) | how)).eval()


@pytest.fixture(scope="module")
def adapter(backbone, tmp_path_factory): return str(save_adapter(lora(backbone), tmp_path_factory.mktemp("a")/"a", dict(backbone=backbone)))


class Letters:
    key = "letters"
    async def __call__(self, answer, row):
        text = sum("a" <= c <= "z" for c in answer)/max(1, len(answer))
        return Scored(None, Reward(value=.2 + .5*text, count=1, text=text, pictures=0.))


@pytest.mark.parametrize("how", [{}, dict(sequence=True), dict(quantization="nf4")], ids=["GRPO", "GSPO", "QLoRA"])
def test_a_step_of_grpo_is_saved_loads_back_and_answers_differently(backbone, tmp_path, how):
    quantization = dict(how).pop("quantization", "none")
    recipe = Recipe(**dict(steps=1, prompts=2, answers=4, micro=8, max_tokens=8, rank=4, lr=.05, warmup=0, sequence="sequence" in how))
    model, words = policy(backbone, quantization, rank=4)
    linear = type(model.get_base_model().model.layers[0].mlp.up_proj.base_layer).__name__
    assert linear == dict(none="Linear", nf4="Linear4bit")[quantization]
    trainer = trainer_of(model, words, embedded_rows("train", 2), Rewards(Letters()), recipe, tmp_path/"run")
    trainer.train()
    assert trainer.importance_sampling_level == ("sequence" if "sequence" in how else "token") and trainer.state.log_history[0]["grad_norm"] > 0
    folder = save_adapter(model, tmp_path/"adapter", dict(backbone=backbone, quantization=quantization, steps=1))
    base, (again, _) = load(backbone, quantization)[0], load(backbone, quantization, str(folder))
    with torch.no_grad(): trained, plain, loaded = (scores_of(m.eval(), words) for m in (trainer.model, base, again))
    assert apart(loaded, trained) < .01 < .05 < apart(loaded, plain)


def test_nothing_of_this_machine_is_written(backbone, tmp_path):
    record = dict(backbone=backbone, adapter=str(tmp_path/"warm"), data=str(tmp_path/"rows.jsonl"), out=str(tmp_path), more=dict(files=["~/x/y.png"]))
    folder = save_adapter(lora(backbone), tmp_path/"a", record)
    done = merge(str(folder), backbone, tmp_path/"m")
    texts = [f.read_bytes() for place in (folder, done.folder) for f in place.iterdir() if f.name != "tokenizer.json"]
    for text in texts: assert str(tmp_path).encode() not in text and str(Path(backbone).parent).encode() not in text
    assert json.loads((folder/"adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-llama"
    assert json.loads((folder/"record.json").read_text()) | dict(out="") == dict(backbone="tiny-llama", adapter="warm", data="rows.jsonl", out="", more=dict(files=["y.png"]))
    assert not list(tmp_path.glob(".merging-*"))


def test_weights_have_the_precision_that_was_asked_for(backbone, tmp_path):
    model = lora(backbone)
    for dtype in (torch.float16, F32):
        kept = load_file(save_adapter(model, tmp_path/str(dtype), dict(backbone=backbone), dtype=dtype)/"adapter_model.safetensors")
        assert {w.dtype for w in kept.values()} == {dtype} and all("lora_" in k for k in kept)
        mine = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
        assert kept.keys() == mine.keys() and all(torch.equal(kept[k], mine[k].to(dtype)) for k in kept)


def test_the_same_adapter_gives_the_same_bytes(backbone, tmp_path):
    a, b = (save_adapter(lora(backbone), tmp_path/n, dict(backbone=backbone)) for n in "ab")
    for file in a.iterdir(): assert file.read_bytes() == (b/file.name).read_bytes()
    config = json.loads((a/"adapter_config.json").read_text())
    assert list(config) == sorted(config) and config["target_modules"] == sorted(config["target_modules"])     # PEFT's is a set: its order is chance


def test_what_can_not_be_saved_is_one_sentence(backbone, tmp_path):
    with pytest.raises(AdapterError, match="no LoRA weights"): save_adapter(load(backbone)[0], tmp_path/"a", dict(backbone=backbone))
    model = lora(backbone)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0] = 1e6     # too large for 16 bits
    with pytest.raises(AdapterError, match="not finite"): save_adapter(model, tmp_path/"a", dict(backbone=backbone))
    assert not (tmp_path/"a").exists()


FULL = dict(backbone="embedded", quantization="nf4", adapter="embedded", recipe=dict(prompts=3, lr=7e-5, sequence=True), steps=41, data="embedded", rows=1234,
            reward="reference", judges=dict(text="heuristic", pictures="some-judge"), seconds=600., device="a laptop", versions=dict(torch="2.0.1"),
            held_out=dict(tools=dict(before=.25, value=.5, low=.125, high=.375, n=96), reward=dict(value=.625, low=.5, high=.75)))
TOLD = dict(quantization="NF4", adapter="warm start", recipe=("GSPO", "7e-05"), steps="41", data="(embedded)", rows="1,234", reward="variant reference",
            judges="some-judge (pictures)", seconds="10 minutes", device="a laptop", versions="torch 2.0.1",
            held_out=("| tools | 0.25 | 0.5 | 0.125 to 0.375 (change) | 96 |", "| reward |  | 0.625 | 0.5 to 0.75 |  |"))


@pytest.mark.parametrize("left_out", [None, *TOLD])
def test_a_card_says_what_the_record_shows_and_nothing_else(left_out):
    said = card(Record.model_validate({k: v for k, v in FULL.items() if k != left_out}))
    for field, words in TOLD.items():
        for word in [words] if isinstance(words, str) else words: assert (word in said) == (field != left_out), (field, word)
    assert said.startswith("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlicense: apache-2.0\nlibrary_name: peft\n") or "library_name: peft" in said.split("---")[1]
    bare = card(Record(backbone="nobody/new"))
    assert "license" not in bare and not re.search(r"\d", bare.split("---\n", 2)[2].replace("| --- | --- |", ""))
    assert [line for line in bare.splitlines() if line.startswith("|")] == ["|  |  |", "| --- | --- |", "| backbone | nobody/new |"]
    assert "|  | after |\n| --- | --- |\n| tools | 0.5 |" in card(Record(backbone="x/y", held_out=dict(tools=Figure(value=.5))))


def test_a_figure_of_zero_is_told(): assert "| tools | 0 | 0 | 0 to 0 (change) | 0 |" in card(Record(backbone="x/y", held_out=dict(tools=Figure(value=0, before=0, low=0, high=0, n=0))))


@pytest.mark.parametrize("name, says", [("embedded", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"), ("/a/b/c", "c"), ("~/c", "c"), ("./d/e/", "e"),
                                        ("/h/models--Qwen--Qwen3-4B/snapshots/12ab", "Qwen/Qwen3-4B")])
def test_names_of_backbones(name, says): assert hub_name(name) == says


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_merged_answers_as_backbone_and_adapter(adapter, backbone, tmp_path, dtype):
    stored = backbone if dtype == F32 else tiny(tmp_path/"tiny-llama", dtype=dtype)
    done = merge(adapter, stored, tmp_path/"m")
    assert done.dtype == dtype and done.difference < .1*done.effect and done.difference < (1e-5 if dtype == F32 else .02)
    words = AutoTokenizer.from_pretrained(tmp_path/"m")
    plain, ours, both = AutoModelForCausalLM.from_pretrained(tmp_path/"m", dtype=F32), load(str(tmp_path/"m"), dtype=F32)[0], load(stored, adapter=adapter, dtype=F32)[0]
    assert apart(scores_of(plain, words), scores_of(both, words)) < (1e-5 if dtype == F32 else .02) and torch.equal(scores_of(plain, words), scores_of(ours, words))
    said = (tmp_path/"m"/"README.md").read_text()
    assert "library_name: transformers" in said and f"{done.difference:.1e}" in said and "base_model: tiny-llama" in said


def test_dtype_by_wish(adapter, tmp_path):
    done = merge(adapter, tiny(tmp_path/"tiny-llama", dtype=torch.bfloat16), tmp_path/"m", dtype="float32")
    assert done.dtype == F32 and done.difference < 1e-5


def sentence(adapter, backbone, out):
    with pytest.raises((AdapterError, BackboneError)) as e: merge(str(adapter), str(backbone), out)
    assert "\n" not in str(e.value) and not out.exists() and not list(out.parent.glob(".merging-*"))
    return str(e.value)


def changed(adapter, folder, weights=lambda w: w, **config):
    "A copy of an adapter with something else in it."
    folder.mkdir()
    save_file(weights(load_file(Path(adapter)/"adapter_model.safetensors")), folder/"adapter_model.safetensors")
    (folder/"adapter_config.json").write_text(json.dumps(json.loads((Path(adapter)/"adapter_config.json").read_text()) | config))
    return folder


def test_adapters_for_other_backbones_are_refused(adapter, backbone, tmp_path):
    assert "is for tiny-llama, not for HuggingFaceTB" in sentence(adapter, "embedded", tmp_path/"m")
    assert "this backbone has 48" in sentence(adapter, tiny(tmp_path/"wide", hidden=48), tmp_path/"m")
    assert "layers.1" in sentence(adapter, tiny(tmp_path/"flat", layers=1), tmp_path/"m")
    by_kind = save_adapter(lora(backbone, target_modules=["q_proj", "v_proj"]), tmp_path/"qv", dict(backbone=backbone))
    assert "lacks 4 matrices" in sentence(by_kind, tiny(tmp_path/"deep", layers=3), tmp_path/"m")
    assert "of type IA3" in sentence(changed(adapter, tmp_path/"ia3", peft_type="IA3"), backbone, tmp_path/"m")
    assert "no adapter in" in sentence(tmp_path/"none", backbone, tmp_path/"m")
    empty = changed(adapter, tmp_path/"e")
    (empty/"adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in sentence(empty, backbone, tmp_path/"m")


def test_a_backbone_stored_in_few_bits_is_refused(adapter, backbone, tmp_path):
    load(backbone, "nf4")[0].save_pretrained(tmp_path/"packed"); AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path/"packed")
    assert "few bits" in sentence(adapter, tmp_path/"packed", tmp_path/"m")


def test_a_merge_that_changes_answers_is_refused(adapter, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module.PeftModel, "merge_and_unload", lambda self: self.base_model.unload(), raising=False)     # forgets what was learned
    assert "does not answer as" in sentence(adapter, backbone, tmp_path/"m")


def test_a_folder_with_something_in_it_stays_as_it_is(adapter, backbone, tmp_path):
    (tmp_path/"m").mkdir(); (tmp_path/"m"/"mine.txt").write_text("mine")
    (tmp_path/"file").write_text("mine")
    for out in ("m", "file"):
        with pytest.raises(AdapterError, match="not empty"): merge(adapter, backbone, tmp_path/out)
    assert [f.name for f in (tmp_path/"m").iterdir()] == ["mine.txt"] and (tmp_path/"file").read_text() == "mine"
    (tmp_path/"void").mkdir()
    assert merge(adapter, backbone, tmp_path/"void").folder.is_dir()


def test_every_weight_is_looked_at(adapter, backbone):
    model, weights = load(backbone)[0], load_file(Path(adapter)/"adapter_model.safetensors")
    assert misfit(model, weights) is None
    for key, w in weights.items():
        assert key.split(".lora_")[0].removeprefix("base_model.model.") in misfit(model, weights | {key: torch.cat([w, w], 1 if ".lora_A" in key else 0)})


def test_adapters_that_a_training_went_on_from_ask_no_hub(backbone, adapter, tmp_path, monkeypatch, recwarn):
    "With a name of the hub in its configuration, PEFT would look there whether the vocabulary has grown."
    model = load(backbone, adapter=adapter)[0]
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a, **k: pytest.fail("the hub was asked"))
    save_adapter(model, tmp_path/"a", dict(backbone=backbone))
    merge(str(tmp_path/"a"), backbone, tmp_path/"m")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_adapter_of_the_embedded_backbone_in_a_profile(tmp_path):
    "The one that ships, saved by us, writes what it writes; without it the backbone writes something else."
    model, _ = load("embedded", adapter="embedded")
    save_adapter(model, tmp_path/"mine", dict(backbone="embedded"))
    assert json.loads((tmp_path/"mine"/"adapter_config.json").read_text())["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    merge(str(tmp_path/"mine"), "embedded", tmp_path/"merged")
    profiles = dict(ships=("embedded", "embedded"), mine=("embedded", tmp_path/"mine"), merged=(tmp_path/"merged", ""), bare=("embedded", ""))
    (tmp_path/"settings.ini").write_text("[llmi_kit]\nprofile = cpu\n[cpu]\nmax_tokens = 200\n" + "".join(
        f"[{name}]\nbackbone = {b}\nadapter = {a}\nmax_tokens = 200\n" for name, (b, a) in profiles.items()))
    said = {}
    for name in profiles:
        done = subprocess.run([Path(sys.executable).parent/"llmi", "generate", "Show me a photo of a coffee cup.", "--profile", name, "--out", tmp_path/f"out-{name}"],
                              cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"), timeout=400)
        assert done.returncode == 0, done.stderr
        said[name] = json.loads((tmp_path/f"out-{name}"/"document.json").read_text())
    answers = {name: d["answer"] for name, d in said.items()}
    assert answers["mine"] == answers["ships"] != answers["bare"]
    assert "<imgen>" in answers["mine"] and "<imgen>" in answers["merged"]


def moved(adapter, folder, by, seed):
    "A training that went elsewhere from the same weights."
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    for f in Path(adapter).iterdir(): (folder/f.name).write_bytes(f.read_bytes())
    weights = {k: v + by*torch.randn_like(v) for k, v in load_file(f"{adapter}/adapter_model.safetensors").items()}
    save_file(weights, folder/"adapter_model.safetensors", metadata=dict(format="pt"))
    return folder


def test_the_average_is_nearer_to_what_trainings_agree_on(adapter, backbone, tmp_path):
    others = [moved(adapter, tmp_path/f"seed-{s}"/"adapter", .003, s) for s in range(8)]
    mean = average(others, tmp_path/"mean")
    weights = [load_file(f/"adapter_model.safetensors") for f in (*others, mean)]
    for k, v in weights[-1].items():
        assert v.dtype == weights[0][k].dtype and torch.allclose(v.float(), sum(w[k].float() for w in weights[:-1])/8, atol=1e-3)
    says = lambda folder: scores_of(load(backbone, adapter=str(folder), dtype=F32)[0].eval(), AutoTokenizer.from_pretrained(backbone))
    far = [apart(says(f), says(adapter)) for f in (*others, mean)]
    assert far[-1] < .6*sum(far[:-1])/8     # by chance alone the root of 1/8, .35
    record = Record.model_validate_json((mean/"record.json").read_text())
    assert record.average_of == [f"seed-{s}/adapter" for s in range(8)] and "average of" in (mean/"README.md").read_text()


def test_the_average_of_adapters_without_a_record_names_their_backbone(adapter, tmp_path, monkeypatch):
    others = [moved(adapter, tmp_path/name, .003, s) for s, name in enumerate("ab")]
    for f in others: (f/"record.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert Record.model_validate_json((average(others, tmp_path/"mean")/"record.json").read_text()).backbone == "tiny-llama"


def test_adapters_without_an_average_are_refused(adapter, backbone, tmp_path):
    other = save_adapter(lora(backbone, seed=2), tmp_path/"other", dict(backbone=backbone))
    wide = save_adapter(lora(backbone, r=8), tmp_path/"wide", dict(backbone=backbone))
    few = save_adapter(lora(backbone, target_modules=["q_proj"]), tmp_path/"few", dict(backbone=backbone))
    empty = moved(adapter, tmp_path/"empty", 0, 1)
    (empty/"adapter_model.safetensors").unlink()
    for folders, says in (([adapter], "two adapters or more"), ([adapter, ""], "two adapters or more"), ([adapter, other], "began from other weights"), ([adapter, wide], "rank"),
                          ([adapter, few], "different layers"), ([adapter, empty], "no adapter_model")):
        with pytest.raises(AdapterError, match=says): average(folders, tmp_path/"mean")
    (tmp_path/"full").mkdir()
    (tmp_path/"full"/"mine.txt").write_text("kept")
    with pytest.raises(AdapterError, match="not empty"): average([adapter, adapter], tmp_path/"full")
    assert not (tmp_path/"mean").exists() and (tmp_path/"full"/"mine.txt").read_text() == "kept"
    done = subprocess.run([f"{Path(sys.executable).parent}/llmi", "adapter", "average", adapter, str(other), "--out", tmp_path/"mean"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "began from other weights" in done.stderr and "Traceback" not in done.stderr
