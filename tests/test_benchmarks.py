"Benchmarks as tasks of inspect_ai: recorded and written answers, a judge over real HTTP, faults, going on after a kill, tables and pages."
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from inspect_ai import eval as evaluate
from inspect_ai.log import read_eval_log
from inspect_ai.model import get_model
from typer.testing import CliRunner

from judge_server import judge_server, said
from llmi_kit import leaderboard
from llmi_kit.benchmarks import answers_file, checked, in_domain, isg, llmi_bench, opening
from llmi_kit.chat import Chat, Completion, Message
from llmi_kit.checked_questions import load_checked, reference_answer
from llmi_kit.cli import app
from llmi_kit.config import asset
from llmi_kit.data import DataError
from llmi_kit.document import Document
from llmi_kit.inspect_chat import ChatError, InspectChat, Together
from llmi_kit.llmi_bench import load
from llmi_kit.picture import Failure
from llmi_kit.prompts import embedded_rows
from llmi_kit.prompts import reference_answer as row_answer
from llmi_kit.run_figures import outcomes
from test_published_benchmarks import replies

QUESTIONS = [q for q in load_checked() if q.group in ("search", "code")][:4]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path/"inspect-cache"))
    monkeypatch.chdir(tmp_path)


def lines(tmp_path, answers, name="answers.jsonl"):
    file = tmp_path/name
    file.write_text("".join(json.dumps(dict(id=i, answer=a)) + "\n" for i, a in answers.items()))
    return str(file)


def run(task, tmp_path, model="none/none", **how):
    return evaluate(task, model=model, display="none", log_dir=str(tmp_path/"logs"), **how)[0]


def means(log):
    "The mean of each measure by scorer and name; None where nothing has a value."
    found = {}
    for key, measured in leaderboard.scores_of(log).items():
        there = [v for v in measured.values if v is not None]
        found[key] = sum(there)/len(there) if there else None
    return found


def settings(tmp_path, monkeypatch, **fields):
    "A profile `there` whose servers are on loopback."
    file = tmp_path/"settings.ini"
    file.write_text("[llmi_kit]\nprofile = there\n[cpu]\n[there]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()))
    monkeypatch.setenv("LLMI_SETTINGS", str(file))


def test_reference_answers_meet_all_criteria_and_others_do_not(tmp_path):
    answers = {q.id: reference_answer(q) for q in QUESTIONS[:3]} | {QUESTIONS[3].id: "I would rather not."}
    log = run(checked(answers=lines(tmp_path, answers)), tmp_path, sample_id=[q.id for q in QUESTIONS])
    by_id = {s.id: s.scores["fixed"].value for s in log.samples}
    assert all(by_id[q.id]["all met"] == 1 and by_id[q.id]["recall"] == 1 for q in QUESTIONS[:3])
    assert by_id[QUESTIONS[3].id]["all met"] == 0 and by_id[QUESTIONS[3].id]["recall"] == 0


def test_an_answer_that_is_not_there_scores_nothing_and_stays_in_the_mean(tmp_path):
    log = run(checked(answers=lines(tmp_path, {QUESTIONS[0].id: reference_answer(QUESTIONS[0])})), tmp_path, sample_id=[q.id for q in QUESTIONS[:2]])
    assert means(log)["fixed", "criteria"] == .5


def test_the_log_shows_the_pictures_and_keeps_the_document(tmp_path):
    log = run(checked(answers=lines(tmp_path, {QUESTIONS[0].id: reference_answer(QUESTIONS[0])})), tmp_path, sample_id=QUESTIONS[0].id)
    again = read_eval_log(log.location)
    assert [c.type for c in again.samples[0].output.message.content].count("image") == 1
    assert '"answer"' in again.samples[0].store["document"]


def test_held_out_rows_are_scored_by_both_rewards(tmp_path):
    row = next(r for r in embedded_rows("test") if list(r.extra_info.tools) == ["code"] and r.extra_info.image_num == 1)
    i = embedded_rows("test").index(row)
    log = run(in_domain(answers=lines(tmp_path, {f"row-{i}": row_answer(row)})), tmp_path, sample_id=f"row-{i}")
    found = means(log)
    assert found["fixed", "reward"] > .8 and found["fixed", "right tools"] == 1 and found["as_published", "count"] == 1


@pytest.mark.parametrize("text, says", [("{", "line 1 is no JSON"), ('{"id": "a"}', "line 1: give an object"), ('{"id": "a", "answer": "x"}\n'*2, "line 2: 'a' was answered before")])
def test_a_bad_file_of_answers_is_named_with_its_line(tmp_path, text, says):
    (tmp_path/"a.jsonl").write_text(text)
    with pytest.raises(DataError, match=says): answers_file(tmp_path/"a.jsonl")


def test_an_answer_to_no_question_is_refused(tmp_path):
    with pytest.raises(DataError, match="answer to 'nowhere', and there is no such question"): checked(answers=lines(tmp_path, {"nowhere": "x"}))


def judged(tmp_path, monkeypatch, task, value, faults=None):
    with judge_server(reply=replies(value), faults=faults or {}) as server:
        settings(tmp_path, monkeypatch, judge_server=server.base, mllm_judge="judge", judge_seconds=60)
        return run(task("there"), tmp_path), server


def bench(): return len(load(asset("benchmarks/llmi_bench/text_only.json")))


def test_llmi_bench_is_judged_over_http_and_failed_verdicts_stay(tmp_path, monkeypatch):
    answers = lines(tmp_path, {f"text_only-{i}": "An answer without pictures." for i in range(bench())})
    task = lambda profile: llmi_bench(profile=profile, answers=answers)
    log, server = judged(tmp_path, monkeypatch, task, lambda name, material: 2)
    assert means(log)["fixed", "score"] == means(log)["as_published", "score"] == 1 and server.seen
    n = len(server.seen)
    assert n == sum(s.scores["fixed"].metadata["score"]["asked"] for s in log.samples)      # both scorers share one verdict a criterion


def test_a_judge_that_says_nothing_gives_no_published_score_and_zero_as_fixed(tmp_path, monkeypatch):
    answers = lines(tmp_path, {f"text_only-{i}": "An answer." for i in range(bench())})
    log, _ = judged(tmp_path, monkeypatch, lambda profile: llmi_bench(profile=profile, answers=answers), lambda name, material: None)
    assert means(log)["fixed", "score"] == 0 and means(log)["as_published", "score"] is None
    assert all(s.scores["fixed"].metadata["score"]["failed"] for s in log.samples)


def test_opening_and_isg_read_their_own_formats(tmp_path, monkeypatch):
    value = lambda name, material: "yes" if name == "Answer" else 8
    log, _ = judged(tmp_path, monkeypatch, lambda p: opening(profile=p, answers=str(asset("benchmarks/opening/kit_output"))), value)
    assert means(log)["fixed", "score"] > 0, [s.scores["fixed"].explanation for s in log.samples]
    log, _ = judged(tmp_path, monkeypatch, lambda p: isg(profile=p, answers=str(asset("benchmarks/isg/answers.jsonl"))), value)
    assert {k for _, k in means(log)} == {"structure", "block", "image", "holistic"}


def test_a_writer_over_http_answers_and_its_tools_draw(tmp_path, monkeypatch):
    q = QUESTIONS[0]
    with judge_server(reply=lambda body: reference_answer(q)) as server:
        settings(tmp_path, monkeypatch, server=server.base, backbone="writer")
        log = run(checked(profile="there"), tmp_path, model="llmi/there", sample_id=q.id)
    assert means(log)["fixed", "all met"] == 1 and q.text in said(server.seen[-1]["body"])


def test_scaling_chooses_the_better_of_several_answers(tmp_path, monkeypatch):
    "The writer is right in one answer of three; the judge of rules, who knows the question alone, finds it."
    q = next(q for q in QUESTIONS if q.group == "search")
    said_so_far = []
    def reply(body):
        said_so_far.append(body)
        return reference_answer(q) if len(said_so_far) == 2 else "I would rather not show anything."
    with judge_server(reply=reply) as server:
        settings(tmp_path, monkeypatch, server=server.base, backbone="writer", batch=1, temperature=.7)
        command = ["eval", "checked", "--profile", "there", "--n", "3", "--limit", str(load_checked().index(q) + 1), "--out", str(tmp_path/"eval")]
        log = run(checked(profile="there", n=3), tmp_path, model="llmi/there", sample_id=q.id)
        assert len(said_so_far) == 3 and means(log)["fixed", "all met"] == 1
        assert leaderboard.leaderboard([log])["checked"]["system"][0] == "llmi/there, best of 3"
        command[command.index("--limit") + 1] = "1"
        out = CliRunner().invoke(app, command)
        assert out.exit_code == 0 and "1 answers, 0 broke down" in out.output, out.output
        assert len(said_so_far) == 6


def test_what_broke_down_is_tried_again_and_the_rest_is_not(tmp_path, monkeypatch):
    "A server that is down for one question; the same command goes on when it is up again."
    answers, down = {q.text: reference_answer(q) for q in QUESTIONS[:3]}, [QUESTIONS[1].text]
    def reply(body):
        text = next(t for t in answers if t in said(body))
        if text in down: raise ConnectionAbortedError
        return answers[text]
    with judge_server(reply=reply) as server:
        settings(tmp_path, monkeypatch, server=server.base, backbone="writer")
        command = ["eval", "checked", "--profile", "there", "--limit", "3", "--out", str(tmp_path/"eval")]
        broken = CliRunner().invoke(app, command)
        assert broken.exit_code == 1 and "1 broke down" in broken.output, broken.output
        n, down[:] = len(server.seen), []
        whole = CliRunner().invoke(app, command)
        assert whole.exit_code == 0 and "0 broke down" in whole.output, whole.output
        assert len(server.seen) == n + 1


def test_together_gives_everybody_their_own_answer_and_a_failure_to_all():
    import asyncio
    class Upper(Chat):
        async def _write(self, conversations, n, seed, **how):
            if any(c[-1].text == "boom" for c in conversations): raise RuntimeError("it broke")
            return [[Completion(text=c[-1].text.upper(), seed=seed)]*n for c in conversations]
    async def ask(*words):
        chat = Together(Upper(), most=3)
        return await asyncio.gather(*(chat.write([[Message("user", w)]], seed=i) for i, w in enumerate(words)), return_exceptions=True)
    assert [a[0][0].text for a in asyncio.run(ask(*"abcdefg"))] == list("ABCDEFG")
    assert [a[0][0].seed for a in asyncio.run(ask(*"abc"))] == [0, 1, 2]
    assert all(isinstance(a, RuntimeError) for a in asyncio.run(ask("boom")))


async def test_a_model_that_fails_is_a_failure_and_no_verdict():
    from inspect_ai.model import ModelAPI, modelapi
    class Broken(ModelAPI):
        async def generate(self, input, tools, tool_choice, config): raise ChatError(Failure(kind="network", message="nobody is there"))
    @modelapi("broken")
    def broken(): return Broken
    (failure,), = await InspectChat(get_model("broken/one")).write([[Message("user", "Is this a cat?")]])
    assert failure == Failure(kind="network", message="nobody is there")


def two(tmp_path):
    good = lines(tmp_path, {q.id: reference_answer(q) for q in QUESTIONS}, "good.jsonl")
    poor = lines(tmp_path, {q.id: reference_answer(QUESTIONS[0]) for q in QUESTIONS}, "poor.jsonl")
    ids = [q.id for q in QUESTIONS]
    return [evaluate(checked(answers=a), model="none/none", display="none", log_dir=str(tmp_path/n), sample_id=ids)[0] for n, a in (("poor", poor), ("good", good))]


def test_two_runs_are_compared_question_by_question(tmp_path):
    poor, good = two(tmp_path)
    line = leaderboard.comparison_table(poor, good).loc[("fixed", "all met")]
    assert line["difference"] == pytest.approx(.75) and line["questions"] == 4 and line["low"] < .75 < line["high"]
    out = CliRunner().invoke(app, ["compare", str(tmp_path/"poor"), str(tmp_path/"good"), "--out", str(tmp_path/"figure")])
    assert out.exit_code == 0 and (tmp_path/"figure"/"comparison.svg").exists(), out.output
    page = CliRunner().invoke(app, ["leaderboard", str(tmp_path)])
    assert page.exit_code == 0, page.output + repr(page.exception)
    text = (tmp_path/"leaderboard.html").read_text()
    assert "good.jsonl" in text and "Published by others" in text and "8.57" in text


def test_each_system_is_compared_with_the_one_before_it(tmp_path):
    poor, good = two(tmp_path)
    systems = {name: leaderboard.scores_of(log) for name, log in (("poor", poor), ("good", good), ("again", good))}
    table = leaderboard.systems_table(systems, "all met")
    assert table["mean"].tolist() == [.25, 1, 1] and table["gain"].tolist()[1:] == [.75, 0]
    other = leaderboard.systems_table(systems, "all met", baseline="good")
    assert other["gain"].tolist()[::2] == [-.75, 0] and math.isnan(other["gain"].iloc[1])
    assert len(leaderboard.systems_figure(systems, ["criteria", "recall"]).axes) == 2


def test_a_measure_that_no_system_has_leaves_its_panel_empty(tmp_path):
    scores = leaderboard.scores_of(two(tmp_path)[0])
    scores["fixed", "recall"] = scores["fixed", "recall"]._replace(values=[None]*len(scores["fixed", "recall"].values))
    table = leaderboard.systems_table({"poor": scores, "again": scores}, "recall")
    assert table.drop(columns="questions").isna().all(axis=None)
    fig = leaderboard.systems_figure({"poor": scores, "again": scores}, ["criteria", "recall"])
    assert [math.isfinite(ax.containers[0][0].get_xdata()[0]) for ax in fig.axes] == [True, False]


def test_scores_come_back_from_a_record(tmp_path):
    scores = leaderboard.scores_of(two(tmp_path)[0])
    samples = {q: {m: scores["fixed", m].values[i] for m in ("criteria", "recall")} for i, q in enumerate(scores["fixed", "recall"].questions)}
    again = leaderboard.read_scores(json.loads(json.dumps(samples)))
    assert all(again["fixed", m] == scores["fixed", m] for m in ("criteria", "recall"))


def test_a_tool_taken_away_leaves_its_tags_without_a_picture(tmp_path):
    file, asked = lines(tmp_path, {q.id: reference_answer(q) for q in QUESTIONS}), [q.id for q in QUESTIONS]
    whole, less = (run(checked(answers=file, without=tool), tmp_path, sample_id=asked) for tool in ("", QUESTIONS[0].group))
    ends = [outcomes(Document.model_validate_json(s.store["document"]) for s in log.samples) for log in (whole, less)]
    gone = QUESTIONS[0].group.title()
    assert set(ends[0][gone]) == {"picture"} and set(ends[1][gone]) == {"unavailable"}
    assert {k: v for k, v in ends[0].items() if k != gone} == {k: v for k, v in ends[1].items() if k != gone}
    assert means(less)["fixed", "criteria"] < means(whole)["fixed", "criteria"] == 1
    with pytest.raises(DataError, match="choose search, diffusion"): checked(without="chisel")


def test_runs_of_two_benchmarks_are_not_compared(tmp_path):
    one = run(checked(answers=lines(tmp_path, {})), tmp_path, limit=1)
    other = run(in_domain(answers=lines(tmp_path, {})), tmp_path, limit=1)
    with pytest.raises(DataError, match="compare runs of one benchmark"): leaderboard.comparison_table(one, other)


@pytest.mark.parametrize("command, says", [
    (["eval", "nothing"], "there is no benchmark 'nothing': choose one of checked"), (["eval", "opening"], "has no model that judges criteria"),
    (["eval", "checked", "--answers", "gone.jsonl"], "gone.jsonl can not be read"), (["compare", "gone", "gone"], "there is no log and no folder gone"),
    (["leaderboard", "gone"], "has no log of an evaluation")])
def test_mistakes_are_said_in_one_sentence(command, says):
    out = CliRunner().invoke(app, command)
    assert out.exit_code == 2 and says in out.output and "Traceback" not in out.output


def test_killed_in_the_middle_it_goes_on_without_what_is_finished(tmp_path, monkeypatch):
    answers, asked = {q.text: reference_answer(q) for q in load_checked()[:6]}, []
    def reply(body):
        text = next(t for t in answers if t in said(body))
        asked.append(text)
        if len(asked) == 4: time.sleep(20)
        return answers[text]
    with judge_server(reply=reply) as server:
        settings(tmp_path, monkeypatch, server=server.base, backbone="writer", batch=1)
        command = [sys.executable, "-c", "from llmi_kit.cli import main; main()", "eval", "checked", "--profile", "there", "--limit", "6", "--out", str(tmp_path/"eval")]
        first = subprocess.Popen(command, env=os.environ | dict(INSPECT_EVAL_LOG_BUFFER="1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while len(asked) < 4 and time.time() < deadline: time.sleep(.1)
        time.sleep(3)
        first.send_signal(signal.SIGKILL); first.wait()
        assert len(asked) == 4
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 answers, 0 broke down" in done.stdout
    assert len(asked) <= 8     # what was being answered when it was killed, and nothing that was finished
