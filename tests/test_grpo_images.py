"GRPO on tiny Qwen-VL models: pictures reach the policy, every question has its own, and a step changes the language layers only."
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from transformers.video_processing_utils import BaseVideoProcessor

from llmi_kit.local_chat import LocalChat
from llmi_kit.data import row_of
from llmi_kit.grpo import Recipe, Rewards
from llmi_kit.grpo_images import SEEING, SeeingTrainer, dataset_with_images, pictures_only, tiny_that_sees, trainer_with_images, with_language_lora
from llmi_kit.picture import Origin, Picture
from llmi_kit.prompts import embedded_rows
from llmi_kit.reward import Reward
from llmi_kit.scorer import Scored, row_from
from llmi_kit.writer import conversation

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")   # names that TRL still uses


class Letters:
    "The share of small letters in an answer, and what it was asked."
    key = "letters"
    def __init__(self): self.rows = []

    async def __call__(self, answer, row):
        self.rows.append(row)
        text = sum("a" <= c <= "z" for c in answer)/max(1, len(answer))
        return Scored(None, Reward(value=.2 + .5*text, count=1, text=text, pictures=0.))


def picture(colour, width=64, height=64, title="A square"):
    return Picture.from_pil(Image.new("RGB", (width, height), colour), Origin(tool="input", backend="file", title=title))


def row(question, *pictures): return row_of(question, 1, ("edit",) if pictures else ("search",), pictures)


def trainer(kind, rows, tmp_path, scorer=None, **recipe):
    recipe = dict(steps=1, prompts=len(rows), answers=4, micro=4, max_tokens=6, rank=4, lr=1e-2, warmup=0) | recipe
    model, words = tiny_that_sees(kind)
    return trainer_with_images(with_language_lora(model, 4), words, rows, Rewards(scorer or Letters()), Recipe(**recipe), tmp_path/"run", pixels=40_000)


def weights(t): return {n: p.detach().clone() for n, p in t.model.named_parameters()}


@pytest.mark.parametrize("sequence", [False, True], ids=["GRPO", "GSPO"])
@pytest.mark.parametrize("kind", SEEING)
def test_a_step_on_embedded_rows_changes_the_language_layers_only(kind, sequence, tmp_path):
    rows = [r for r in embedded_rows("train", 200) if r.images][:2] + [r for r in embedded_rows("train", 200) if not r.images][:2]
    scorer = Letters()
    t = trainer(kind, rows, tmp_path, scorer, sequence=sequence)
    assert isinstance(t, SeeingTrainer) and not t.packs and t.importance_sampling_level == ("sequence" if sequence else "token")
    before = weights(t)
    t.train()
    log = t.state.log_history[0]
    assert torch.tensor([log["loss"], log["grad_norm"]]).isfinite().all() and log["grad_norm"] > 0
    changed = {n for n, p in weights(t).items() if not torch.equal(p, before[n])}
    assert changed and all("language_model" in n and "lora_" in n for n in changed)
    assert {n for n in before if "lora_B" in n} <= changed
    assert len(scorer.rows) == 16 and sorted({len(r.images) for r in scorer.rows}) == [0, 1]
    asked = {r.extra_info.question: r for r in rows}
    for r in scorer.rows: assert [p.sha256 for p in r.images] == [p.sha256 for p in asked[r.extra_info.question].images]     # as they came, not shrunk


def ask(*pictures, text="What is it?"):
    return [dict(role="user", content=[dict(type="image", image=p.pil()) for p in pictures] + [dict(type="text", text=text)])]


@pytest.fixture(scope="module", params=SEEING)
def seeing(request, tmp_path_factory):
    return trainer(request.param, [row("Turn it, please.", picture("red")), row("What is tea?")], tmp_path_factory.mktemp("t"))


def test_another_picture_gives_other_log_probabilities(seeing):
    red, blue, again = (seeing.logps([ask(picture(c))], "A red square.") for c in ("red", "blue", "red"))
    assert torch.equal(red, again) and (red - blue).abs().max() > .01


sizes = st.lists(st.lists(st.sampled_from([("red", 64, 64), ("blue", 128, 64), ("green", 60, 200), ("gray", 30, 30)]), max_size=3), min_size=1, max_size=4)

@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=sizes)
def test_every_question_has_its_own_pictures_whoever_is_beside_it(seeing, batch):
    if not any(batch): batch = [*batch, [("red", 64, 64)]]      # without any picture the processor is not asked for one
    questions = [ask(*(picture(*p) for p in pictures), text="long "*i) for i, pictures in enumerate(batch)]
    words = seeing.processing_class
    ids, images, _ = seeing._tokenize_prompts(questions)
    assert [len(i) for i in images] == [len(b) for b in batch]
    together = seeing.logps(questions, "So it is.")
    torch.testing.assert_close(seeing.logps(questions, "So it is.", size=1), together, atol=2e-4, rtol=1e-4)     # parts without pictures, too
    for i, q in enumerate(questions):
        if batch[i]: torch.testing.assert_close(seeing.logps([q], "So it is.")[0], together[i], atol=2e-4, rtol=1e-4)
    assert [sum(t == words.image_token_id for t in row) > 0 for row in ids] == [bool(b) for b in batch]


def test_parts_of_a_batch_without_pictures_learn_too(seeing, tmp_path):
    kind = next(k for k in SEEING if k in type(seeing.model.get_base_model()).__module__)
    t = trainer(kind, [row("What is tea?"), row("Turn it.", picture("red")), row("What is ale?"), row("And rye?")], tmp_path, micro=1)
    t.train()       # sixteen parts of one answer, twelve of them without a picture
    assert t.state.log_history[0]["grad_norm"] > 0


def test_rows_without_any_picture(tmp_path):
    t = trainer("qwen3_vl", [row("What is tea?"), row("And rye?")], tmp_path)
    t.train()
    assert t.state.log_history[0]["grad_norm"] > 0


def test_training_reads_what_the_writer_reads(tmp_path):
    pictures = [picture("red", title="A red square"), picture("navy", 90, 60, title="A flag")]
    for pics in (pictures[:1], pictures):
        t = trainer("qwen2_5_vl", [row("Turn both.", *pics)], tmp_path, micro=4)
        example = t.train_dataset[0]
        from trl.data_utils import prepare_multimodal_messages
        ids, _, fields = t._tokenize_prompts([prepare_multimodal_messages(example["prompt"], images=example["images"])])
        chat = LocalChat(loaded=(t.model, t.processing_class)).encode(conversation("Turn both.", pics, "compact", sees=True))
        assert ids[0] == chat["input_ids"][0].tolist()
        torch.testing.assert_close(torch.as_tensor(fields["pixel_values"]), chat["pixel_values"])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1_000, 200_000))
def test_no_picture_has_more_pixels_than_the_cap(width, height, cap):
    image = dataset_with_images([row("Turn it.", picture("red", width, height))], pixels=cap)[0]["images"][0]
    assert image.width*image.height <= cap and image.mode == "RGB"
    if width*height <= cap: assert image.size == (width, height)


def test_the_reward_gets_the_row_and_marks_are_no_pictures(tmp_path):
    r = row("A literal <|image_pad|> and <|im_end|>.", picture("red", 300, 300, "Red"))
    words = tiny_that_sees()[1]
    data = dataset_with_images([r], pixels=10_000, tokenizer=words.tokenizer)[0]
    text = data["prompt"][1]["content"]
    assert text.startswith("[image 0: Red]\n") and not set(words.tokenizer(text).input_ids) & set(words.tokenizer.all_special_ids)
    again = row_from(data["extra_info"])
    assert (again.extra_info, [(p.sha256, p.origin.title) for p in again.images]) == (r.extra_info, [(r.images[0].sha256, "Red")])
    assert json.loads(data["extra_info"])["question"] == r.extra_info.question       # the judge reads it as it was asked
    t = trainer("qwen2_5_vl", [r], tmp_path)
    t.train()       # one mark too many, and pictures and marks would not match
    assert t.state.log_history[0]["grad_norm"] > 0


def test_a_saved_processor_is_everybodys_class(tmp_path):
    for kind, (_, processor, *_) in SEEING.items():
        model, words = tiny_that_sees(kind)
        words.save_pretrained(tmp_path/kind); model.save_pretrained(tmp_path/kind)
        assert processor.__name__ in (tmp_path/kind/"processor_config.json").read_text()
        assert BaseVideoProcessor.get_video_processor_dict(tmp_path/kind)[0]["patch_size"] == words.image_processor.patch_size     # with torchvision it would load
        again = pictures_only(processor).from_pretrained(tmp_path/kind)
        read = [w(text="<|image_pad|>Hi", images=[Image.new("RGB", (80, 40), "red")], return_tensors="pt") for w in (words, again)]
        assert all(torch.equal(read[0][k], read[1][k]) for k in read[0]) and set(read[0]) == set(read[1])


def test_an_adapter_goes_on_where_it_ended(tmp_path):
    model = with_language_lora(tiny_that_sees()[0], 4)
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.ones_(p)
    model.save_pretrained(tmp_path)
    again = with_language_lora(tiny_that_sees()[0], adapter=str(tmp_path))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all((p == 1).all() for n, p in again.named_parameters() if "lora_B" in n)
