"""Local image models: notes in their folders, shared and 4-bit weights, and the right call for each family of editors, on real tiny pipelines."""
import inspect, json

import pytest
import tiny_editors
from PIL import Image
from skimage import data

from llmi_kit.config import Profile, load_profile
from llmi_kit.image_jobs import Artist, Job, edit_job
from llmi_kit.memory import FACTS, needs, total_gb, verdict, weights_gb
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.tools import diffusion, edit
from llmi_kit.tools.image_model import ImageModel, finished, tiny_pipeline
from llmi_kit.tools.model_notes import ModelNotes, heard, named
from llmi_kit.tools.pipeline_call import call_arguments, description, framed, instructs, unsquared

CAT = Picture.from_pil(Image.fromarray(data.chelsea()).resize((96, 64)), Origin(tool='input'))
NOTES = dict(steps=2, guidance=2, strength=.9, side=32, shown=64, names=['fox', 'cup of coffee', 'cherries'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    import torch
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp('models')/'small'
    tiny_pipeline().save_pretrained(path)
    (path/'llmi.json').write_text(json.dumps(NOTES))
    return path


@pytest.fixture(scope='module')
def editors(tmp_path_factory):
    root = tmp_path_factory.mktemp('editors')
    tiny_pipeline(edits=True).save_pretrained(root/'pix2pix')
    for name in ('flux_kontext', 'qwen_image_edit', 'qwen_image_edit_plus'): tiny_editors.as_published(getattr(tiny_editors, name)(root/name)) if 'qwen' in name else getattr(tiny_editors, name)(root/name)
    return root


# what the folder says

async def test_notes_set_steps_and_size(folder):
    model, steps = ImageModel(folder), []
    step = model.load().scheduler.step
    model.pipe.scheduler.step = lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1]
    drawn = await model.generate('a fox', 1)
    assert (drawn.width, drawn.height) == (64, 64) and len(steps) == 2
    assert ImageModel(folder, steps=5).notes.steps == 5 and ImageModel(folder, steps=5).key != model.key


async def test_a_model_that_knows_three_things_says_so(folder):
    answer = await ImageModel(folder).generate('a lighthouse in the fog')
    assert isinstance(answer, Failure) and answer.kind == 'unsupported' and 'fox' in answer.message and 'settings.ini' in answer.message
    assert isinstance(await ImageModel(folder).generate('Two Foxes!'), Picture)


@pytest.mark.parametrize('prompt, found', [
    ('a fox', ['fox']), ('FOXES in the snow', ['fox']), ('a firefox', []), ('an ox', []), ('a cup of coffee, and a fox', ['cup of coffee', 'fox']),
    ('a cup', []), ('a foxglove', []), ('cherries', ['cherries']), ('', [])])
def test_names_are_whole_words(prompt, found): assert named(prompt, tuple(NOTES['names'])) == found


def test_a_cup_of_coffee_is_not_also_a_cup(): assert named('a cup of coffee', ('cup', 'cup of coffee')) == ['cup of coffee']


@pytest.mark.parametrize('prompt, left', [
    ("a fox on a blue background, children's book illustration", 'a fox on a blue background'), ('a fox in a low poly art style', 'a fox'),
    ('a fox (oil painting)', 'a fox'), ('a fox, cherries', 'a fox, cherries'), ('a fox, a glass', 'a fox, a glass'), ('a fox as a watercolor.', 'a fox'),
    ('a drawing of a fox', 'a drawing of a fox'), ('', '')])
def test_a_model_of_one_style_does_not_hear_of_others(prompt, left):
    assert heard(prompt, ModelNotes(names=NOTES['names'])) == left and heard(prompt, ModelNotes()) == prompt


async def test_style_words_do_not_draw_a_book(folder):
    "To a model that knows books, a children's book illustration has a book in it."
    plain, styled = [await ImageModel(folder).generate(words, 4) for words in ('a fox', "a fox, children's book illustration")]
    assert plain.data == styled.data


async def test_bad_notes_are_a_sentence(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path/'bad')
    (tmp_path/'bad'/'llmi.json').write_text('{"step": 3}')
    for said in (ImageModel(tmp_path/'bad').ready(), (await ImageModel(tmp_path/'bad').generate('a fox')).message):
        assert 'llmi.json in bad, step' in said and '\n' not in said


async def test_a_model_of_one_size_edits_in_a_square(folder):
    wide = Picture.from_pil(Image.new('RGB', (90, 30), 'teal'), Origin(tool='input'))
    answer = await ImageModel(folder, edits=True).edit(wide, 'turn it into a fox')
    assert (answer.width, answer.height) == (90, 30)


async def test_what_it_shows_now_counts(folder):
    model = ImageModel(folder, edits=True)
    fox = CAT.with_origin(title='a fox on a blue background')
    assert isinstance(await model.edit(fox, 'make the background black'), Picture)
    assert (await model.edit(CAT, 'make the background black')).kind == 'unsupported'


def test_into_a_frame_and_out_again():
    red = Image.new('RGB', (90, 30), 'red')
    assert framed(red, (32, 32)).getcolors() == [(32*32, (255, 0, 0))] and unsquared(framed(red, (32, 32)), (90, 30)).size == (90, 30)
    half = Image.new('RGB', (64, 64), 'white')
    half.paste('blue', (0, 0, 32, 64))
    shown = finished(half, ModelNotes(side=64), (256, 128))
    assert shown.size == (256, 128) and shown.getpixel((10, 64)) == (0, 0, 255) and shown.getpixel((160, 64)) == (255, 255, 255)
    answer = framed(red, (64, 64))
    answer.paste('blue', (0, 22, 64, 42))      # what was the picture
    out = finished(answer, ModelNotes(side=64), (90, 30), edited=True)
    assert out.size == (90, 30) and out.getpixel((45, 2))[2] > 200 and out.getpixel((45, 27))[2] > 200


# one set of weights for drawing and editing

async def test_weights_are_shared_and_the_scheduler_is_not(folder):
    profile = Profile(diffusion=str(folder), edit=('pillow', f'diffusers:{folder}'), edit_strength=.5)
    draws = diffusion.from_profile(profile).backend
    edits = edit.from_profile(profile, draws).backends[1]
    a, b = draws.load(), edits.load()
    assert a.unet is b.unet and a.vae is b.vae and a.scheduler is not b.scheduler and draws._thread is edits._thread
    assert edits.notes.strength == .5 and instructs(a) and not instructs(b)
    alone = edit.from_profile(profile).backends[1]
    assert alone.load().unet is not a.unet
    assert (await alone.edit(CAT, 'a fox', 3)).data == (await edits.edit(CAT, 'a fox', 3)).data


async def test_strength_of_the_profile_reaches_the_pipeline(folder):
    near, far = (ImageModel(folder, edits=True, steps=20, strength=s) for s in (.1, 1.))
    plain = ImageModel(folder, edits=True, steps=20, strength=.05)
    distance = []
    for model in (plain, near, far):
        answer = (await model.edit(CAT, 'a fox')).pil().convert('L').resize((24, 16))
        distance.append(answer)
    off = [sum(abs(p - q) for p, q in zip(distance[0].getdata(), image.getdata(), strict=True)) for image in distance[1:]]
    assert off[0] < off[1]


async def test_4_bits_without_a_gpu_is_a_sentence(folder):
    model = ImageModel(folder, nf4=True, device='cpu')
    assert 'diffusion_quantization = none' in model.ready() and (await model.generate('a fox')).kind == 'unavailable'


@pytest.mark.skipif('not __import__("torch").cuda.is_available()', reason='diffusers quantizes on a GPU alone')
async def test_4_bit_weights(folder):
    model = ImageModel(folder, nf4=True)
    assert isinstance(await model.generate('a fox'), Picture)
    assert 'Linear4bit' in {type(m).__name__ for part in (model.pipe.unet, model.pipe.text_encoder) for m in part.modules()}


# the right call for each family

FAMILY = dict(pix2pix=dict(guidance_scale=3., image_guidance_scale=1.5), flux_kontext=dict(guidance_scale=3.),
              qwen_image_edit=dict(true_cfg_scale=3., negative_prompt=' '), qwen_image_edit_plus=dict(true_cfg_scale=3., negative_prompt=' '))


@pytest.mark.parametrize('name', FAMILY)
async def test_instruction_editors(editors, name):
    model = ImageModel(editors/name, edits=True, steps=2)
    first, other = [await model.edit(CAT, words, 5) for words in ('make it snow', 'much more red')]
    assert isinstance(first, Picture), first
    strong = await ImageModel(editors/name, edits=True, steps=2, guidance=9., beside=model).edit(CAT, 'make it snow', 5)
    assert (first.width, first.height) == (96, 64) and len({first.data, other.data, strong.data}) == 3
    given = call_arguments(model.pipe, 'make it snow', CAT.pil(), 0, guidance=3.)
    assert FAMILY[name].items() <= given.items() and instructs(model.pipe)


async def test_same_seed_same_edit(editors):
    model = ImageModel(editors/'pix2pix', edits=True, steps=2)
    a, b, c = [await model.edit(CAT, 'make it snow', seed) for seed in (5, 5, 6)]
    assert a.data == b.data != c.data


async def test_proportions_survive(editors):
    "Kontext answers in a square unless it is told better: a line across the middle must stay one."
    seen = []
    model = ImageModel(editors/'flux_kontext', edits=True, steps=1)
    call = type(model.load()).__call__
    class Watched(type(model.pipe)):
        def __call__(self, *args, **kwargs):
            answer = call(self, *args, **kwargs)
            seen.append(answer.images[0].size)
            return answer
        __call__.__signature__ = inspect.signature(call)
    model.pipe.__class__ = Watched
    answer = await model.edit(Picture.from_pil(Image.new('RGB', (192, 64), 'red'), Origin(tool='input')), 'make it snow')
    assert (answer.width, answer.height) == (192, 64) and 2.7 < seen[0][0]/seen[0][1] < 3.3


# instructions for models that only know captions

@pytest.mark.parametrize('said, title, wanted', [
    ('Turn the fox into an owl.', 'a fox', 'an owl'), ('replace the fox with a cat', 'a fox on a blue background', 'a cat on a blue background'),
    ('make the fox purple', 'a fox', 'a purple fox'), ('change the background to black', 'a fox on a blue background', 'a fox on a black background'),
    ('make the background black', '', 'a black background'), ('add an owl', 'a fox', 'a fox and an owl'),
    ('add an owl next to it', 'a fox on a red background', 'a fox and an owl on a red background'), ('make it a mushroom', 'a fox', 'a mushroom'),
    ('a blue whale', 'a fox', 'a blue whale'), ('', 'a fox', '')])
def test_instruction_to_description(said, title, wanted): assert description(said, title) == wanted


# what fits

def test_profiles_fit_their_cards():
    for size in (8, 12, 24): assert total_gb(load_profile(f'gpu{size}')) < size
    assert total_gb(load_profile('cpu')) == total_gb(load_profile('api')) == 0
    for size in (8, 12, 24):
        for need in needs(load_profile(f'gpu{size}')): assert not need.model or need.licence


def test_sums_and_sentences():
    profile = load_profile('gpu12')
    full = load_profile('gpu12', diffusion_quantization='none')
    flux = FACTS['black-forest-labs/FLUX.2-klein-4B']
    assert total_gb(full) - total_gb(profile) == pytest.approx(weights_gb(flux, False) - weights_gb(flux, True))
    assert [n.what for n in needs(profile)].count('pictures') == 1      # drawing and editing share it
    assert 'too much' in verdict(full, [12.9]) and 'diffusion_quantization = nf4' in verdict(full, [12.9]) and 'fits' in verdict(profile, [12.9])
    assert 'no' in verdict(profile, []) and 'some/model' in verdict(load_profile('gpu12', diffusion='some/model'), [12.9])


async def test_when_nobody_can_both_say_why(folder):
    tool = edit.EditTool(edit.PillowEdits(), ImageModel(folder, edits=True))
    answer = await tool(CAT, 'put a lighthouse behind it')
    assert answer.kind == 'unsupported' and 'done without a model' in answer.message and 'fox' in answer.message


def test_the_server_side_keeps_to_the_notes(folder):
    artist = Artist(str(folder), 'cpu')
    assert artist.load()['changes']
    drawn, lost, wide = artist.draw([Job('a fox', 1), Job('a lighthouse', 1), Job('a fox', 1)])
    assert (drawn.width, drawn.height) == (64, 64) and lost.kind == 'unsupported' and drawn.data == wide.data
    shaped, = artist.draw([Job('a fox', 1, size=(96, 48))])
    assert (shaped.width, shaped.height) == (96, 48)
    edited, = artist.draw([edit_job('turn it into a fox', CAT)])
    assert (edited.width, edited.height) == (96, 64)


def test_only_distilled_klein_gets_four_steps():
    from llmi_kit.tools.image_model import quiet_diffusers
    from llmi_kit.tools.pipeline_call import family_of
    klein = quiet_diffusers().Flux2KleinPipeline
    fast, base = klein.__new__(klein), klein.__new__(klein)
    fast.register_to_config(is_distilled=True); base.register_to_config(is_distilled=False)
    assert family_of(fast).own['num_inference_steps'] == 4 and not family_of(base).own
