"Loading backbones: the embedded one, broken folders, adapters, and what a batch is made of."
import threading, time

import pytest, torch
from hypothesis import given, settings, strategies as st

from llmi_kit import backbone
from llmi_kit.backbone import (BackboneError, Ends, GumbelNoise, adapter_folder, collate, cut, embedded_folder, load, load_embedded,
                               missing, native_dtype, plain_text, write_batch)


@pytest.fixture(scope='module')
def embedded(): return load_embedded()


def test_embedded_is_tied_quiet_and_offline(capfd, monkeypatch):
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')      # any look at the hub would fail
    model, tokenizer = load_embedded()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.dtype == native_dtype('cpu') and not model.training
    assert capfd.readouterr() == ('', '')


def test_embedded_tokens(embedded):
    model, tokenizer = embedded
    assert tokenizer.eos_token == '<|im_end|>' and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template([dict(role='system', content='S'), dict(role='user', content='Hi')],
                                           tokenize=False, add_generation_prompt=True)
    assert prompt == '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    tag = '<imgen>{"source": "code"}</imgen>'
    assert not set(tokenizer(tag).input_ids) & set(tokenizer.all_special_ids) and tokenizer.decode(tokenizer(tag).input_ids) == tag
    assert tokenizer.convert_ids_to_tokens(tokenizer('\n  123').input_ids)[-3:] == ['1', '2', '3']
    assert tokenizer.convert_ids_to_tokens(tokenizer('x  12').input_ids)[1] == 'ĠĠ'      # the space stays whole before a digit


def test_one_converts_others_wait(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMI_CACHE', str(tmp_path))
    calls = []
    def slow(folder):
        calls.append(folder); (folder/'half').touch(); time.sleep(.3); (folder/'config.json').touch()
    monkeypatch.setattr(backbone, '_convert', slow)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(sorted(f.name for f in embedded_folder().iterdir()))) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(calls) == 1 and seen == [['config.json', 'half']]*4


def test_broken_conversion_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMI_CACHE', str(tmp_path))
    def broken(folder): (folder/'config.json').touch(); raise OSError('disk full')
    monkeypatch.setattr(backbone, '_convert', broken)
    with pytest.raises(OSError): embedded_folder()
    assert not [f for f in (tmp_path/'embedded').iterdir() if f.is_dir()]


@pytest.mark.parametrize('args, says', [
    (('./nowhere',), 'no folder'), (('embedded', 'int3'), 'none or nf4'), (('embedded', 'none', './nowhere'), 'no adapter'),
    (('EMPTY',), "can't be loaded"), (('EMPTY', 'none', 'embedded'), 'fits the embedded backbone only')])
def test_what_cannot_be_loaded_is_one_sentence(args, says, tmp_path):
    args = tuple(str(tmp_path) if a == 'EMPTY' else a for a in args)
    with pytest.raises(BackboneError, match=says) as e: load(*args)
    assert '\n' not in str(e.value) and len(str(e.value)) < 450


def test_missing_knows_without_loading(tmp_path):
    assert missing('embedded') is None
    assert 'no adapter' in missing('embedded', adapter=str(tmp_path))
    assert 'model hub' in missing('nobody/no-such-model')
    if adapter_folder('embedded') is None: assert 'adapter' in missing('embedded', adapter='embedded')


def test_nf4_has_the_same_gradient_after_it_has_written():
    "On some processors bitsandbytes would pack the weights at the first answer, for a product without a gradient."
    model, tokenizer = load_embedded(quantization='nf4')
    ids = tokenizer('The cat sat on the mat.', return_tensors='pt').input_ids
    first = model.get_input_embeddings().weight.requires_grad_()
    def learned():
        first.grad = None
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return first.grad.float().clone()
    before = learned()
    with torch.inference_mode(): model.eval()(input_ids=ids)
    assert before.abs().max() > 0 and torch.equal(learned(), before)


def test_nf4_writes_in_less_memory(embedded):
    model, tokenizer = load_embedded(quantization='nf4')
    assert model.get_memory_footprint() < .5*embedded[0].get_memory_footprint()
    ids = tokenizer.apply_chat_template([dict(role='user', content='What is the capital of France?')], add_generation_prompt=True,
                                        return_dict=True, return_tensors='pt')
    assert 'Paris' in write_batch(model, tokenizer, [dict(ids)], [8])[0][0]


def test_adapter_changes_what_is_written(embedded, tmp_path):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    model = get_peft_model(load_embedded()[0], LoraConfig(r=2, target_modules=['q_proj'], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    ids = embedded[1]('Bread is', return_tensors='pt')
    with torch.inference_mode():
        a, b, c = (m(**ids).logits for m in (embedded[0], model.eval(), load_embedded(adapter=str(tmp_path))[0]))
    assert not torch.allclose(a, b) and torch.allclose(b, c, atol=.1)


PIECES = ['<|im_end|>', '<|im_start|>', '<|endoftext|>', '<', '|', '>', 'im_end', ' ', '\n', '<imgen>', 'a', '<repo_name>']

@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(PIECES)))
def test_no_text_acts_as_a_mark(parts):
    tokenizer = load_tokenizer()
    ids = tokenizer(plain_text(''.join(parts), tokenizer)).input_ids
    assert not set(ids) & set(tokenizer.added_tokens_decoder)


def load_tokenizer(kept=[]):    # noqa: B006 - kept on purpose
    from transformers import AutoTokenizer
    if not kept: kept.append(AutoTokenizer.from_pretrained(embedded_folder()))
    return kept[0]


def test_cut_takes_the_first(): assert cut('a.b,c', [',', '.']) == ('a', True) and cut('abc', []) == ('abc', False)


def test_noise_of_a_row_does_not_depend_on_its_neighbours():
    many = GumbelNoise([1, 2, 3], .5, 'cpu')
    one, scores = GumbelNoise([2], .5, 'cpu'), torch.randn(3, 100)
    for _ in range(3): assert torch.equal(many(None, scores)[1], one(None, scores[1:2])[0])


def test_rows_without_images_share_a_batch_with_rows_that_have_them():
    ids = lambda n: torch.arange(1, n + 1)[None]
    batch = collate([dict(input_ids=ids(2), kinds=ids(2), pixels=torch.ones(1, 3, 4, 4)), dict(input_ids=ids(4))], 9)
    assert batch['input_ids'].tolist() == [[9, 9, 1, 2], [1, 2, 3, 4]]
    assert batch['kinds'].tolist() == [[0, 0, 1, 2], [0]*4] and batch['pixels'].shape == (1, 3, 4, 4)


def test_ends_watches_stop_texts_over_tokens(embedded):
    tokenizer = embedded[1]
    ids = tokenizer('One two.\n\nThree', return_tensors='pt').input_ids
    watch = Ends(0, [100], {2}, ['.\n\nTh'], tokenizer, threading.Event())
    done = [bool(watch(ids[:, :n], None)[0]) for n in range(1, ids.shape[1] + 1)]
    assert done[-1] and not done[0] and watch.reason == ['stop']
