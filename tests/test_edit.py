"""The edit tool: what it understands, what it must not, and its pictures; backends over real HTTP and a real (tiny) pipeline."""
import asyncio, io, time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from image_server import ImageServer
from PIL import Image
from skimage import data

from llmi_kit.config import Profile
from llmi_kit.picture import MAX_SIDE, Failure, Origin, Picture
from llmi_kit.tools.edit import EditTool, PillowEdits, from_profile, retouch_picture
from llmi_kit.tools.image_model import ImageModel, tiny_pipeline
from llmi_kit.tools.image_server import ImagesAPI, QwenServers
from llmi_kit.tools.wording import OPERATIONS, read_instruction


def picture(width=60, height=40, mode='RGB', **origin):
    "Left half red, right half blue, the top row white; RGBA has a transparent right half."
    image = Image.new('RGB', (width, height), 'red')
    image.paste((0, 0, 255), (width//2, 0, width, height))
    image.paste((255, 255, 255), (0, 0, width, 1))
    if mode == 'RGBA':
        image = image.convert('RGBA')
        image.paste((0, 0, 255, 0), (width//2, 0, width, height))
    return Picture.from_pil(image.convert(mode), Origin(tool='input', **origin))


PHOTO = Image.fromarray(data.chelsea()).resize((60, 40))


def names(instruction):
    steps = read_instruction(instruction)
    return steps.message if isinstance(steps, Failure) else [op.name for op, _ in steps]


UNDERSTOOD = {
    'make it black and white': 'grayscale', 'Convert the photo to grayscale.': 'grayscale', 'turn the picture into a black-and-white photo': 'grayscale',
    'Please remove all colours from the image': 'grayscale', 'give it a sepia look': 'sepia', 'add a sepia filter to the photo': 'sepia',
    'invert the colors': 'invert', 'turn it into a negative': 'invert', 'crop it to a square': 'crop_square', 'crop to the center': 'crop_part',
    'crop the image to the left half': 'crop_part', 'keep only the right half': 'crop_part', 'crop to the central 50%': 'crop_part',
    'crop it to 40x30': 'crop_size', 'crop to a 16:9 aspect ratio': 'crop_ratio', 'crop 10% from the left': 'crop_margin',
    'cut 2 px off the top': 'crop_margin', 'crop it to a circle': 'crop_circle', 'rotate it by 90 degrees': 'rotate',
    'rotate the photo 45° clockwise': 'rotate', 'turn it upside down': 'rotate', 'flip it horizontally': 'flip', 'mirror the image': 'flip',
    'resize it to 64 x 48': 'resize', 'resize it to 30 pixels wide': 'resize_side', 'scale it to half its size': 'scale', 'shrink it by 30%': 'scale',
    'make it twice as big': 'scale', 'make it slightly brighter': 'brightness', 'darken the chart by 30 %': 'brightness',
    'increase the contrast': 'contrast', 'make the colors more vivid': 'saturation', 'sharpen the image': 'sharpen', 'make it warmer': 'warmth',
    'give the photo a cool tone': 'warmth', 'add a blue tint': 'tint', 'tint it dark green': 'tint', 'blur the photo of my cat': 'blur',
    'apply a gaussian blur with a radius of 5 pixels': 'blur', 'pixelate it with blocks of 4 pixels': 'pixelate', 'reduce it to 8 colors': 'posterize',
    'solarize it': 'solarize', 'detect the edges': 'edges', 'turn it into a pencil sketch': 'sketch', 'emboss it': 'emboss', 'add film grain': 'grain',
    'add a vignette': 'vignette', 'add a thick black frame': 'border', 'add a 3 pixel #ff8800 border': 'border', 'pad it to a square with black': 'pad',
    'give it rounded corners': 'rounded', 'make it 40% transparent': 'transparent', 'equalize the histogram': 'normalize',
    "add the text 'Hello' at the bottom": 'text', 'write “Café” in the top left corner in red': 'text', "add the title 'Black and white, then blue'": 'text',
    'draw a red circle in the center': 'circle', 'add a blue box in the top left corner': 'box', 'draw an arrow pointing to the left': 'arrow',
    'draw a horizontal red line through the center': 'line',
}


@pytest.mark.parametrize('instruction, name', UNDERSTOOD.items())
def test_understood_and_done(instruction, name):
    assert names(instruction) == [name]
    for mode in ('RGB', 'RGBA'):
        before = Picture.from_pil(PHOTO.convert(mode), Origin(tool='input'))
        after = retouch_picture(before, instruction)
        assert isinstance(after, Picture), after
        assert after.data != before.data, 'the edit changed nothing'
        assert mode == 'RGB' or after.pil().mode == 'RGBA', 'alpha was lost'


def test_every_operation_has_an_example():
    assert set(OPERATIONS) == set(UNDERSTOOD.values())


@pytest.mark.parametrize('instruction', [
    'replace the black and white cat by a dog', 'make it black and white except the cat', 'make the black and white photo colorful',
    'blur the background', 'blur the cat', 'make the sky pink', 'make the cat brighter', 'remove the person', 'add a hat to the cat', 'add a cat',
    'turn it into a Van Gogh painting', 'rotate the cat by 90 degrees', 'crop out the person', 'make the left half grayscale', 'add a red hat',
    'do not make it grayscale', "don't crop it", 'make it night', 'draw a circle around the cat', 'draw an arrow pointing to the cat',
    'remove the black and white border', 'change the background to blue', 'add a caption', 'add text', 'write hello', 'invert the left half',
    'make the text bigger', 'flip the coin', 'sharpen the pencil', 'make the photo of the cat on the table brighter by tomorrow', '', ' ', ',', 'and',
    'colorize the black and white photo', 'make it brighter in the corners', 'remove the border', 'replace the text with "Hello"', '"Hello" "World"',
    'resize the cat to 30x30', 'make it', 'crop', 'increase', 'the image', 'remove the text "Hello"', 'circle the cat', 'make it less', 'make the dog blurry',
])
def test_not_understood(instruction):
    answer = retouch_picture(picture(), instruction)
    assert isinstance(answer, Failure) and answer.kind == 'unsupported', names(instruction)


@pytest.mark.parametrize('instruction, expected', [
    ('crop it to a square and make it black and white', ['crop_square', 'grayscale']),
    ('Rotate it by 90 degrees, then add a thin white border.', ['rotate', 'border']),
    ("convert to grayscale; increase the contrast by 30% and add the caption 'A, then B and C' at the bottom", ['grayscale', 'contrast', 'text']),
    ('increase the brightness and the contrast by 20%', ['brightness', 'contrast']),
    ('resize it to 51x51 and then blur it slightly, and finally add a vignette', ['resize', 'blur', 'vignette']),
    ('make it brighter and warmer', ['brightness', 'warmth']),
    ('Can you please flip it horizontally? ', ['flip']), ('draw an arrow from the left to the right', ['arrow']),
])
def test_compound(instruction, expected): assert names(instruction) == expected


def test_both_levels_get_the_percent():
    assert [s.factor() for _, s in read_instruction('reduce the brightness and contrast by 20%')] == [.8, .8]


def test_order_matters():
    half_then_turn = retouch_picture(picture(), 'crop it to the left half and rotate it by 90 degrees')
    turn_then_half = retouch_picture(picture(), 'rotate it by 90 degrees and crop it to the left half')
    assert (half_then_turn.width, half_then_turn.height) == (40, 30) and (turn_then_half.width, turn_then_half.height) == (20, 60)


def test_nothing_is_done_halfway():
    answer = retouch_picture(picture(), 'crop it to a square, replace the cat by a dog and blur it')
    assert answer.kind == 'unsupported' and "'replace the cat by a dog'" in answer.message and 'grayscale' in answer.message


def test_unquoted_text_is_told_to_quote():
    assert 'in quotes' in retouch_picture(picture(), 'add the caption Hello at the bottom').message


@pytest.mark.parametrize('instruction, at, color', [
    ('flip it horizontally', (5, 20), (0, 0, 255)), ('turn it upside down', (5, 20), (0, 0, 255)), ('rotate it to the right', (20, 5), (255, 0, 0)),
    ('rotate it to the left', (20, 5), (0, 0, 255)), ('crop it to the right half', (2, 20), (0, 0, 255)), ('invert it', (5, 20), (0, 255, 255)),
    ('make it black and white', (5, 20), (76, 76, 76)), ('add a 5 pixel green border', (2, 20), (0, 128, 0)), ('flip it vertically', (5, 39), (255, 255, 255)),
    ('pad it to a square with yellow', (30, 2), (255, 255, 0)), ('darken it by 50%', (5, 20), (128, 0, 0)), ('reduce the saturation by 100%', (5, 20), (76, 76, 76)),
])
def test_pixels(instruction, at, color):
    got = retouch_picture(picture(), instruction).pil().convert('RGB').getpixel(at)
    assert max(abs(a - b) for a, b in zip(got, color, strict=True)) <= 2, got


@pytest.mark.parametrize('instruction', ['crop it to 900x900', 'resize it to 9000x20', 'resize it to 0x5', 'enlarge it by 90000%', 'add a 5000 pixel border',
                                         'pixelate it with blocks of 900 pixels', 'blur it with a radius of 999', 'crop to 0:9', 'crop 60% from each side',
                                         'tint it #12', 'reduce the contrast by 130%', 'posterize it to 1 colors', 'crop to the central 0%', "write ''",
                                         "write '\ue123'", 'double the size, double the size, double the size, double the size, double the size, double the size, double the size'])
def test_impossible_numbers_are_sentences(instruction):
    answer = retouch_picture(picture(), instruction)
    assert isinstance(answer, Failure) and answer.kind == 'invalid' and 'Error' not in answer.message, answer


def test_exif_orientation_is_kept_upright():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6    # to be shown turned clockwise
    picture().pil().save(buffer, 'JPEG', exif=exif)
    source = Picture.read(buffer.getvalue(), Origin(tool='input'))
    after = retouch_picture(source, 'crop it to the top half')
    assert (source.width, source.height) == (40, 60) == (after.width, 2*after.height)
    assert after.pil().getpixel((20, 15))[0] > 200, 'the red half is on top once turned upright'


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'I;16', 'RGBA'])
def test_every_mode(mode):
    source = Image.new('I;16', (30, 20), 40000) if mode == 'I;16' else picture(30, 20, 'RGBA').pil().convert(mode)
    after = retouch_picture(Picture.from_pil(source, Origin(tool='input')), 'make it brighter and add a border')
    assert isinstance(after, Picture) and np.asarray(after.pil()).max() > 100


def test_transparent_palette_stays_transparent():
    buffer = io.BytesIO()
    picture(mode='RGBA').pil().save(buffer, 'GIF')
    after = retouch_picture(Picture.read(buffer.getvalue(), Origin(tool='input')), 'make it darker')
    assert after.pil().getpixel((50, 20))[3] == 0 and after.pil().getpixel((10, 20))[3] == 255


def test_other_scripts():
    for text in ('Ελληνικά', 'Привет мир', 'مرحبا'):
        assert isinstance(retouch_picture(picture(200, 100), f"write '{text}' in the center"), Picture)
    answer = retouch_picture(picture(200, 100), "write '漢字' in the center")      # right letters or a sentence, never boxes
    assert isinstance(answer, Picture) or 'no installed font' in answer.message


def test_broken_source_is_a_sentence():
    broken = picture().model_copy(update=dict(data=b'nothing'))
    assert retouch_picture(broken, 'make it brighter').kind == 'invalid'


WORDS = sorted({w for i in UNDERSTOOD for w in i.split()} | {'and', 'then', ',', '"', "'", '%', '10', '0', '-5', 'cat', 'half', 'slightly', '\n', '9999999', '#fff'})

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=10).map(' '.join),
                 st.lists(st.sampled_from(list(UNDERSTOOD)), min_size=1, max_size=4).map(' and '.join)),
       st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(['RGB', 'RGBA']))
def test_never_raises(instruction, size, mode):
    source = Picture.from_pil(Image.new(mode, size, 'teal'), Origin(tool='input'))
    a, b = (retouch_picture(source, instruction) for _ in range(2))
    assert a == b, 'the same request gives the same bytes'
    if isinstance(a, Failure): assert a.kind in ('unsupported', 'invalid') and a.message
    else: assert isinstance(Picture.read(a.data, a.origin), Picture) and max(a.width, a.height) <= MAX_SIDE


@pytest.mark.parametrize('hostile', ['make ' * 119, 'the photo of ' * 46, 'a ' * 299, 'add a border, ' * 42, '"' * 600, "'" * 600, '1x' * 300,
                                     'increase the brightness and ' * 21, '#' * 600, 'very ' * 120, 'x' * 10**6])
def test_reading_is_quick(hostile):
    start = time.perf_counter()
    read_instruction(hostile)
    assert time.perf_counter() - start < .5


# ---- the chain

async def test_first_backend_that_can_answers():
    with ImageServer() as s:
        tool = EditTool(PillowEdits(), ImagesAPI('m', s.url + '/v1'))
        assert (await tool(picture(), 'make it brighter')).origin.backend == 'pillow' and not s.requests
        answer = await tool(picture(author='Ada', licence='CC0', page='https://example.org/1'), 'make it snow', seed=5)
        assert answer.origin.backend.startswith('m at') and answer.pil().getpixel((5, 20)) == (0, 255, 255)
        o = answer.origin
        assert (o.tool, o.author, o.licence, o.seed, o.request) == ('edit', 'Ada', 'CC0', 5, {'prompt': 'make it snow'}) and o.seconds > 0


async def test_a_refusal_ends_the_chain_an_outage_does_not():
    with ImageServer('policy') as first, ImageServer() as second:
        tool = EditTool(ImagesAPI('a', first.url + '/v1'), ImagesAPI('b', second.url + '/v1'))
        assert (await tool(picture(), 'make it snow')).kind == 'refused' and not second.requests
        first.faults.append('500')
        assert (await tool(picture(), 'make it snow')).origin.backend.startswith('b at')


async def test_all_failed_tells_of_each():
    with ImageServer('500') as s:
        answer = await EditTool(PillowEdits(), ImageModel('no-such', edits=True), QwenServers([s.url]))(picture(), 'make it snow')
    assert answer.transient and '500' in answer.message and 'no-such' in answer.message
    assert (await EditTool()(picture(), 'make it snow')).kind == 'unavailable'
    assert (await EditTool(PillowEdits())(picture(), ' ')).kind == 'invalid'


async def test_qwen_edit_and_ark_without_an_edits_path():
    with ImageServer() as s:
        answer = await EditTool(QwenServers([s.url]))(picture(), 'make it snow', seed=3)
        assert answer.pil().getpixel((5, 20)) == (0, 255, 255)
        assert s.requests[0]['path'] == '/edit/' and s.requests[0]['body']['num_inference_steps'] == 50
    with ImageServer(edits=False) as s:
        answer = await EditTool(ImagesAPI('seededit', s.url + '/v1'))(picture(), 'make it snow')
        assert answer.pil().getpixel((5, 20)) == (0, 255, 255) and s.paths == ['/v1/images/edits', '/v1/images/generations']


async def test_the_loop_is_not_blocked():
    big, longest = picture(3000, 2000), 0.
    async def beat():
        nonlocal longest
        while True:
            start = time.perf_counter(); await asyncio.sleep(.005); longest = max(longest, time.perf_counter() - start)
    task = asyncio.create_task(beat())
    start = time.perf_counter()
    await EditTool(PillowEdits())(big, 'blur it strongly, sharpen it and add a vignette')
    took = time.perf_counter() - start
    task.cancel()
    assert longest < max(.1, took/3)


async def test_pipelines_that_edit(tmp_path):
    tiny_pipeline(edits=True).save_pretrained(tmp_path/'p2p')
    tiny_pipeline().save_pretrained(tmp_path/'t2i')
    for folder in ('p2p', 't2i'):
        model = ImageModel(tmp_path/folder, edits=True, steps=2)
        a, b, c = [await model.edit(picture(64, 48, mode), 'make it snow', seed=1) for mode in ('RGB', 'RGB', 'RGBA')]
        assert a.data == b.data and (a.width, a.height) == (64, 48) and isinstance(c, Picture)


def test_from_profile():
    tool = from_profile(Profile(edit='pillow, qwen:http://a:1, http://b:2, openai:m, diffusers:some/model'))
    assert [type(b).__name__ for b in tool.backends] == ['PillowEdits', 'QwenServers', 'ImagesAPI', 'ImageModel']
    assert [s.url for s in tool.backends[1].servers] == ['http://a:1', 'http://b:2'] and tool.backends[3].edits
    assert from_profile(Profile()).ready() is None and from_profile(Profile(edit='')).ready()
    assert from_profile(Profile()).key != tool.key
