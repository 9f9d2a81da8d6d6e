"""What a training gained, where its numbers come from, and how it starts."""
import json
import subprocess
import sys

import pytest
import torch

from llmi_kit import learning, provenance
from llmi_kit.adapter import AdapterError, add_figures, save_adapter
from llmi_kit.config import load_profile
from llmi_kit.grpo import PARTS, Part, Recipe, Rewards, contributions, row_json, trl_config
from llmi_kit.learning import Held, Run, ablation_table, card_figures, gain, gains, measure, over_seeds
from llmi_kit.prompts import embedded_rows, reference_answer
from llmi_kit.reward import Reward, ToolUse
from llmi_kit.scorer import Scored
from llmi_kit.short_start import lesson, short_start
from llmi_kit.tiny_policy import tiny_policy


def answered(question, value, right=1., pictures=.5):
    return Held(question=question, tools=("search",), value=value, count=1, text=.5, pictures=pictures, made=1, right_tools=right,
                served=right, answer="")


def run(name="a run", seed=0, without="", after=.8, log=()):
    before = [answered(str(i), .5, i % 2) for i in range(20)]
    later = [answered(str(i), after + .01*(i % 3), 1) for i in range(20)]
    return Run(name=name, recipe=Recipe(seed=seed, without=without), log=list(log), before={"0": before}, after={"0": later})


def test_a_gain_pairs_questions_and_not_places():
    before = [answered("a", .1), answered("b", .9), answered("c", .5), answered("d", .4)]
    after = [answered("d", .6), answered("c", .7), answered("b", 1.), answered("a", .3)]
    found = gain(before, after).difference
    assert found.value == pytest.approx((.2 + .1 + .2 + .2)/4)
    assert found.spread == pytest.approx(.05)   # of .2, .1, .2, .2; place by place it would be .5


def test_a_missing_verdict_is_left_out_and_not_zero():
    before, after = [answered(q, .5) for q in "abcde"], [answered(q, None if q == "a" else .7) for q in "abcde"]
    found = gain(before, after).difference
    assert (found.value, found.groups, found.missing) == (pytest.approx(.2), 4, 1)


def test_the_table_of_gains_says_before_after_and_interval():
    line = gains([run()], "0").loc[("a run", "right tools")]
    assert (line["before"], line["after"], line["gain"], line["questions"]) == (.5, 1, .5, 20)
    assert 0 < line["low"] < .5 < line["high"] and line["p"] < .01


def test_a_run_is_one_file(tmp_path):
    one = run().model_copy(update=dict(extra_note="kept"))
    one.save(tmp_path/"new"/"run.json")
    again = Run.read(tmp_path/"new"/"run.json")
    assert again.after == one.after and again.model_extra is not None


def test_curves_take_only_steps_that_all_runs_have():
    logs = [[dict(step=s, entropy=s*k) for s in range(1, n)] for k, n in ((1, 6), (3, 5))]
    found = over_seeds([run(log=log) for log in logs], "entropy")
    assert list(found.index) == [1, 2, 3, 4]
    middle = found.loc[3]       # running means 3 and 9
    assert (middle["mean"], middle["low"], middle["high"]) == (6, 3, 9)


def test_an_ablation_is_compared_with_the_run_of_its_seed():
    whole = [run(f"seed {s}", s, after=.8 if s == 1 else .6) for s in (1, 2)]
    table = ablation_table(whole, [run("without text", 2, "text", after=.7)], "0").set_index("measure")
    assert table.loc["reward", "difference"] == pytest.approx(.1)
    with pytest.raises(ValueError, match="no run with the whole reward"): ablation_table(whole, [run("x", 7)], "0")


@pytest.mark.parametrize("without", PARTS)
def test_a_part_that_is_left_out_is_nowhere(without):
    reward = Reward(value=.6, count=.5, text=.8, pictures=.6)
    left = contributions(reward, without)
    assert without not in left and len(left) == 2
    if without == "count": assert left["pictures"] == pytest.approx(.3*.6)      # the count rule is no factor either
    elif without == "text": assert left["pictures"] == pytest.approx(.3*.5*.6)


async def test_the_log_shows_all_parts_whichever_is_left_out():
    class Judged:
        key = "judged"
        async def __call__(self, answer, row): return Scored(None, Reward(value=.6, count=.5, text=.8, pictures=.6, tools=ToolUse()))
    rewards, told = Rewards(Judged()), []
    info = row_json(embedded_rows("test")[0])
    recipe = Recipe(without="count")
    assert list(recipe.parts) == ["text", "pictures"] and trl_config(recipe, "unused").reward_weights == [.5, .3]
    for name in recipe.parts: await Part(name, rewards, recipe.without)(["x"], [info], log_metric=lambda *m: told.append(m[0]))
    assert sorted(told) == sorted({"llmi/value", "llmi/count", "llmi/text", "llmi/pictures", "llmi/made", "llmi/right_tools"})
    assert len(rewards.seen) == 1


async def test_measuring_writes_an_answer_to_each_question_at_each_temperature(tmp_path):
    class Letters:
        key = "letters"
        async def __call__(self, answer, row): return Scored(None, Reward(value=len(answer)/99, count=1, text=.5, pictures=None))
    profile = load_profile("cpu").model_copy(update=dict(backbone=str(tiny_policy(tmp_path/"model"))))
    rows = embedded_rows("test")[:3]
    found = await measure(profile, "", rows, Rewards(Letters()), (0., .5), max_tokens=6)
    again = await measure(profile, "", rows, Rewards(Letters()), (0., .5), max_tokens=6)
    assert list(found) == ["0", "0.5"] and [h.question for h in found["0"]] == [r.extra_info.question for r in rows]
    assert found == again and [h.answer for h in found["0"]] != [h.answer for h in found["0.5"]]


def test_right_tools_without_a_picture_do_not_serve():
    reward = Reward(value=.5, count=0., text=.5, pictures=None, tools=ToolUse(required=("code",), attempted=("code",)))
    one = learning.held(learning.Rollout(question="q", answer="a", inputs=0, pictures=[], reward=reward))
    assert (one.right_tools, one.served) == (1, 0)


def test_a_card_takes_figures_and_keeps_those_that_it_had(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = torch.nn.Linear(2, 2)
        def save_pretrained(self, folder, **_):
            folder.mkdir()
            (folder/"adapter_config.json").write_text(json.dumps(dict(target_modules=["x"])))
    save_adapter(Model(), tmp_path/"a", dict(backbone="embedded", recipe=dict(sequence=False)))
    add_figures(tmp_path/"a", {"older": learning.adapter.Figure(value=.25)})
    record = add_figures(tmp_path/"a", card_figures(run(), "0"))
    assert list(record.held_out) == ["older", "reward", "right tools", "right tools, all with a picture"]
    text = (tmp_path/"a"/"README.md").read_text()
    assert "| right tools | 0.5 | 1 |" in text and "0.25" in text
    with pytest.raises(AdapterError, match="record.json"): add_figures(tmp_path, {})


def test_a_lesson_is_what_the_policy_will_be_asked():
    row = next(r for r in embedded_rows("train") if r.images)
    one = lesson(row)
    assert row.extra_info.question in one.prompt and row.images[0].origin.title in one.prompt
    assert one.answer == reference_answer(row)


def test_a_start_that_is_there_is_kept(tmp_path):
    (tmp_path/"adapter_model.safetensors").write_bytes(b"kept")
    assert short_start([], tmp_path, backbone="a backbone that is nowhere") == tmp_path
    assert (tmp_path/"adapter_model.safetensors").read_bytes() == b"kept"


def test_where_numbers_come_from_names_no_path_and_no_user(tmp_path):
    found = provenance.provenance()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory_gb"] > 0
    text = json.dumps(found)
    assert sys.prefix not in text and "/home" not in text and "/root" not in text


def test_the_commit_says_when_files_differ_from_it(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                                        capture_output=True)
    (tmp_path/"__init__.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(provenance.llmi_kit, "__file__", str(tmp_path/"__init__.py"))
    clean = provenance.commit()
    assert len(clean) == 12 and not clean.endswith("+")
    (tmp_path/"__init__.py").write_text("# changed")
    assert provenance.commit() == clean + "+"
    monkeypatch.setattr(provenance.llmi_kit, "__file__", "/")
    assert provenance.commit() == ""


def test_a_peak_of_memory_is_never_forgotten():
    if provenance.peak_gb() is None: pytest.skip("the system does not tell")
    in_its_own_process = """if True:
        from llmi_kit.provenance import peak_gb
        before = peak_gb()
        big = b'x'*400_000_000
        with_it = peak_gb()
        del big
        print(before, with_it, peak_gb())"""      # here, an earlier test may have had more
    before, with_it, after = map(float, subprocess.run([sys.executable, '-c', in_its_own_process], capture_output=True, text=True, check=True).stdout.split())
    assert .3 < with_it - before < .5 and after > with_it - .05
