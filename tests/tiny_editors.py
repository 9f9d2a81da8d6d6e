"""Instruction editors of diffusers with a few thousand random weights: FLUX Kontext, Qwen-Image-Edit and Qwen-Image-Edit Plus, built and
saved without a download. Tokenizers know single characters; autoencoders divide by 8 as the published ones do, so sizes come out as theirs.
The tiny InstructPix2Pix is `llmi_kit.tools.image_model.tiny_pipeline(edits=True)`.

    qwen_image_edit(folder)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe(image=picture, prompt='make it red', width=64, height=48, num_inference_steps=2).images[0]
"""
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from llmi_kit.tools.image_model import quiet_diffusers, tiny_pipeline

LATENTS = 16        # channels, as published: with 4, a picture with alpha would pass for latents
HEAD = 8            # width of the only attention head
ROPE = (2, 2, 4)    # its shares for frame, row and column
WIDTH = 16          # of the text encoders
MARKS = dict(image_token='<|image_pad|>', video_token='<|video_pad|>', vision_start='<|vision_start|>', vision_end='<|vision_end|>',
             turn_start='<|im_start|>', turn_end='<|im_end|>')


def flux_kontext(folder):
    "FluxKontextPipeline, guidance-distilled as the published one. Makes 1 MP unless `max_area` says less."
    d = quiet_diffusers()
    with _seeded():
        clip = tiny_pipeline()      # for its text encoder and tokenizer
        words, reader = _t5()
        transformer = d.FluxTransformer2DModel(
            in_channels=4*LATENTS, num_layers=1, num_single_layers=1, attention_head_dim=HEAD, num_attention_heads=1, axes_dims_rope=ROPE,
            joint_attention_dim=WIDTH, pooled_projection_dim=clip.text_encoder.config.hidden_size, guidance_embeds=True)
        vae = d.AutoencoderKL(
            block_out_channels=(4,)*4, layers_per_block=1, norm_num_groups=2, latent_channels=LATENTS, mid_block_add_attention=False,
            down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, scaling_factor=.36, shift_factor=.12)
    pipe = d.FluxKontextPipeline(
        scheduler=_scheduler(d), vae=_loud(vae), transformer=_loud(transformer), text_encoder=clip.text_encoder, tokenizer=clip.tokenizer,
        text_encoder_2=reader, tokenizer_2=words)
    pipe.save_pretrained(folder)
    return Path(folder)


def qwen_image_edit(folder, plus=False):
    "QwenImageEditPipeline. It reads the picture at 1 MP whatever its size; `width` and `height` are those of the result alone."
    d = quiet_diffusers()
    with _seeded():
        tokenizer = _qwen_tokenizer()
        transformer = d.QwenImageTransformer2DModel(
            in_channels=4*LATENTS, out_channels=LATENTS, num_layers=1, attention_head_dim=HEAD, num_attention_heads=1, axes_dims_rope=ROPE,
            joint_attention_dim=WIDTH)
        vae = d.AutoencoderKLQwenImage(base_dim=2, z_dim=LATENTS, dim_mult=[1]*4, num_res_blocks=0, latents_mean=[0.]*LATENTS,
                                       latents_std=[1.]*LATENTS)
        kind = d.QwenImageEditPlusPipeline if plus else d.QwenImageEditPipeline
        pipe = kind(scheduler=_scheduler(d), vae=_loud(vae), transformer=_loud(transformer), text_encoder=_qwen(tokenizer),
                    tokenizer=tokenizer, processor=_processor(tokenizer))
    pipe.save_pretrained(folder)
    return Path(folder)


def qwen_image_edit_plus(folder):
    "QwenImageEditPlusPipeline: a list of pictures is several references; the last one gives the result its shape."
    return qwen_image_edit(folder, plus=True)


def as_published(folder, processor='Qwen2VLProcessor'):
    "The same Qwen folder with the processor class that published models name: it can't be loaded where torchvision is missing."
    index = Path(folder)/'model_index.json'
    index.write_text(json.dumps(json.loads(index.read_text()) | dict(processor=['transformers', processor]), indent=2))
    videos = dict(video_processor_type='Qwen2VLVideoProcessor', patch_size=14, temporal_patch_size=2, merge_size=2)
    (Path(folder)/'processor'/'video_preprocessor_config.json').write_text(json.dumps(videos))
    return Path(folder)


@contextmanager
def _seeded():
    "The same weights every time, without a trace in the caller's random numbers."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _loud(model):
    "Weights twice their usual size: with less, picture and words change the result by less than one grey level."
    for weights in model.parameters():
        if weights.ndim > 1: weights.data *= 2
    return model


def _scheduler(d):
    return d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.)


def _t5():
    "(tokenizer, encoder) that know letters, digits and some marks."
    from transformers import T5Config, T5EncoderModel, T5Tokenizer
    names = ['<pad>', '</s>', '<unk>', *"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'-"]
    words = T5Tokenizer(vocab=[(name, 0. if i < 3 else -1.) for i, name in enumerate(names)], extra_ids=0)
    return words, T5EncoderModel(T5Config(vocab_size=len(names), d_model=WIDTH, d_kv=HEAD, d_ff=WIDTH, num_layers=1, num_heads=2)).eval()


def _qwen_tokenizer():
    "All 256 bytes and the marks of the prompt templates."
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer
    letters = sorted(ByteLevel.alphabet())
    return Qwen2Tokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[], extra_special_tokens=MARKS)


def _qwen(tokenizer):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    number = tokenizer.convert_tokens_to_ids
    text = dict(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, bos_token_id=None, eos_token_id=number('<|im_end|>'),
                rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[1, 1, 2]))
    vision = dict(depth=1, hidden_size=WIDTH, intermediate_size=WIDTH, num_heads=2, out_hidden_size=WIDTH, fullatt_block_indexes=[0])
    ids = {f'{name}_token_id': number(f'<|{name}|>') for name in ('vision_start', 'vision_end')}
    ids |= {f'{name}_token_id': number(f'<|{name}_pad|>') for name in ('image', 'video')}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).eval()


def _processor(tokenizer):
    """Qwen's picture processor, which makes 16 tokens of a picture at most. A Qwen2VLProcessor needs torchvision, for videos; the class
    below does the same to text and pictures, and loads without it."""
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessorPil
    return PaddleOCRVLProcessor(Qwen2VLImageProcessorPil(min_pixels=28*28, max_pixels=16*28*28), tokenizer)
