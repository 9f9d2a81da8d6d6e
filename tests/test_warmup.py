"The warm start: rows, exact loss, checks that can fail, and the adapter that ships."
import hashlib
import json

import pytest
import torch

from llmi_kit.backbone import load
from llmi_kit.local_chat import LocalChat
from llmi_kit.config import asset
from llmi_kit.document import instructions, parse
from llmi_kit.questions import SHARES, Source, chart_code, make_row, make_rows, words
from llmi_kit.sandbox import Sandbox
from llmi_kit.warmup import Recipe, answer_loss, batches, check, encode, evaluate, gradient, pad_right, plots, plotted, summary, train


@pytest.fixture(scope="module")
def backbone(): return load("embedded", dtype=torch.float32)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1) as s: yield s


def test_training_has_2000_distinct_questions_and_heldout_shares_none():
    prompts, unseen = {r.prompt for r in make_rows(2400)}, {r.prompt for r in make_rows(300, seed=1, split="heldout")}
    assert len(prompts) == 2400 and len(unseen) == 300 and not prompts & unseen


def test_pools_of_train_and_heldout_are_disjoint():
    def pools(node, path=""):
        if isinstance(node, dict) and set(node) == {"train", "heldout"}: yield path, node
        elif isinstance(node, dict):
            for k, v in node.items(): yield from pools(v, f"{path}/{k}")
        elif isinstance(node, list):
            for i, v in enumerate(node): yield from pools(v, f"{path}/{i}")
    found = dict(pools(words()))
    assert len(found) > 60
    for path, pool in found.items():
        if path in ("/slots/side", "/slots/edge", "/labels/months"): continue   # there are only so many sides, and one May
        assert not {str(x) for x in pool["train"]} & {str(x) for x in pool["heldout"]}, path


def test_heldout_names_can_be_asked_in_known_wordings():
    known, other = (make_rows(200, seed=1, split="heldout", wordings=w) for w in ("train", None))
    openers, names = words()["openers"], words()["towns"]
    def opened(rows, split): return sum(r.prompt.startswith(tuple(openers[split])) for r in rows)
    assert opened(known, "train") > 20 > 0 == opened(known, "heldout") and opened(other, "heldout") > 20 > 0 == opened(other, "train")
    assert not any(town in r.prompt for r in known + other for town in names["train"])


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", SHARES)
def test_every_kind_has_valid_answers(kind, split):
    source = Source(split, 7)
    for row in (make_row(source, kind) for _ in range(15)):
        tags = parse(row.answer, len(row.inputs)).tags
        assert [t.error for t in tags] == [None]*len(row.tools) and [t.source for t in tags] == row.tools
        assert not any(tool in row.question for tool in ("imgen", "diffusion", "python", "matplotlib")), row.question
        assert "{" not in row.question and "  " not in row.question


def test_model_answers_pass_their_own_check(sandbox):
    for row in make_rows(40, seed=3, split="heldout"):
        if row.kind == "words": continue
        found = check(row, row.answer, sandbox)
        assert found.tools and found.valid == found.tags
        assert False not in (found.numbers, found.query, found.index, found.instruction)


def broken(row, old, new):
    assert old in row.answer
    return row.answer.replace(old, new)


def test_checks_see_what_is_wrong(sandbox):
    source = Source("train", 5)
    bar, edit, thing = (make_row(source, k) for k in ("bar", "edit", "subject"))
    assert check(bar, broken(bar, f"y = [{bar.values[0]}", "y = [123456"), sandbox).numbers is False
    assert check(bar, broken(bar, f"x = ['{bar.labels[0]}'", "x = ['Nobody'"), sandbox).numbers is False
    assert check(edit, broken(edit, f"'img_index': {edit.edits[0][0]}", "'img_index': 7"), sandbox).valid == 0
    assert check(thing, broken(thing, "'query': '", "'query': 'x', 'more': '"), sandbox).tools is False
    assert check(thing, "# Nothing", sandbox).tools is False and check(thing, "# Nothing", sandbox).query is False
    assert check(bar, bar.answer + "\n\n" + thing.answer, sandbox).tools is False


@pytest.mark.parametrize("kind", ["bar", "barh", "line", "pie", "scatter"])
def test_plotted_numbers_are_read_back(kind, sandbox):
    x = [2, 5, 9] if kind == "scatter" else ["b", "a", "2010"]
    labels, values = [str(a) for a in x], [3.5, 4, 1]
    found = plotted(sandbox, chart_code(kind, x, values, "T", "mm"))
    assert plots(found, labels, values)
    assert not plots(found, labels, [3.5, 4, 2]) and not plots(found, labels[::-1], values) and not plots(found, labels[:2], values[:2])


def test_plotted_survives_bad_code(sandbox):
    assert plotted(sandbox, "1/0") is None and plotted(sandbox, "x = (") is None
    assert not plots(plotted(sandbox, "plt.title('empty')"), ["a"], [1])


def test_loss_and_gradient_are_those_of_the_ordinary_way(backbone):
    model, tokenizer = backbone
    prefix, pairs = encode(tokenizer, make_rows(30), instructions("compact"))
    few = [p for p in pairs if sum(map(len, p)) < 120][:2]
    weight = model.model.layers[3].mlp.down_proj.weight
    ids, mask, labels = pad_right([(prefix + q, a) for q, a in few], tokenizer.pad_token_id)
    ordinary = model(input_ids=ids, attention_mask=mask, labels=labels).loss*sum(len(a) for _, a in few)
    ours = answer_loss(model, prefix, few, tokenizer.pad_token_id)
    a, b = (torch.autograd.grad(loss, weight)[0] for loss in (ours, ordinary))
    assert torch.isclose(ours, ordinary, rtol=1e-4) and torch.allclose(a, b, rtol=1e-3, atol=1e-4*b.abs().max().item())


def test_batches_cover_all_and_repeat_with_the_seed():
    pairs = [([i], [i]*(i % 7 + 1)) for i in range(64)]
    def first(seed): return [b for b, _ in zip(batches(pairs, 4, seed, window=4), range(16), strict=False)]
    assert sorted(q[0] for b in first(0) for q, _ in b) == list(range(64))
    assert first(0) == first(0) != first(1)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("n", [1, 5, 15])
def test_fewer_answers_than_a_window_make_batches_too(n):
    found = [b for b, _ in zip(batches([([i], [i]) for i in range(n)], 4, 0, window=4), range(2*-(-n//4)), strict=False)]
    assert sorted(q[0] for b in found for q, _ in b) == sorted([*range(n)]*2) and max(map(len, found)) == min(n, 4)
    with pytest.raises(ValueError, match="no answers to learn from"): next(batches([], 4, 0))


def test_training_lowers_the_loss_and_repeats(backbone):
    model, tokenizer = backbone
    rows = sorted(make_rows(60), key=lambda r: len(r.prompt + r.answer))[:16]
    runs = []
    for _ in range(2):
        tuned, losses = train(model, tokenizer, rows, Recipe(steps=3, batch=2, warmup=1, first_layer=27, lr=3e-3))
        runs.append(losses)
        prefix, pairs = encode(tokenizer, rows, instructions("compact"))
        first = next(batches(pairs, 2, 0))
        loss, _ = gradient(tuned, prefix, first, tokenizer.pad_token_id)
        model = tuned.unload()
    assert runs[0] == pytest.approx(runs[1], rel=1e-4) and loss < runs[0][0]


def test_shipped_adapter_is_small_and_carries_its_record():
    folder = asset("adapter")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 10e6
    record = json.loads((folder/"metrics.json").read_text())
    assert record["heldout"] == 100 and record["metrics"]["valid tags"][0] >= .95
    assert record["metrics"].keys() == record["metrics_known_wordings"].keys() and len(record["losses"]) == record["recipe"]["steps"]
    config = json.loads((folder/"adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and (folder/"README.md").exists()


def test_shipped_adapter_was_trained_on_the_rows_that_the_code_makes():
    record = json.loads((asset("adapter")/"metrics.json").read_text())
    rows = make_rows(record["rows"], record["recipe"]["seed"])
    assert hashlib.sha256("".join(r.model_dump_json() for r in rows).encode()).hexdigest()[:16] == record["rows_sha256"]


async def test_shipped_adapter_writes_valid_tags():
    chat = LocalChat(loaded=load("embedded", adapter="embedded", dtype=torch.float32))
    rows = make_rows(100, seed=1, split="heldout", wordings="train")
    some = [next(r for r in rows if r.kind == k) for k in ("edit", "subject", "scene", "line")]
    shares, answers, checks = await evaluate(chat, some, max_tokens=200)
    assert shares["valid tags"][0] == 1 and shares["right tools"][0] >= .75, answers
    assert shares == summary(checks)
