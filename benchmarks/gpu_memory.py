"""Does a step of GRPO take the GPU memory that `llmi doctor --backbone` says?

A step of FastGRPOTrainer on random weights of the real shape (nothing is downloaded), random prompts, and answers that are made to
have the full length, under a cap on the memory: measured beside `llmi_kit.train_memory.estimate`, held to 15 %. By default the two
targets: Qwen3-4B in NF4 with 8 answers, 1024 + 1024 tokens under 12 GB and 1024 + 4096 tokens under 24 GB.
Run: python benchmarks/gpu_memory.py [--shape Qwen3-4B] [--quantization nf4|none] [--rank 16] [--answers 8] [--tokens 1024,1024] [--cap 12]
     [--micro 4] [--slots 8] [--short 200]      settings other than those proposed for the cap; an answer that ends early
     python benchmarks/gpu_memory.py --shape tiny --device cpu      the same step, small and on the processor: does all of it run?
     python benchmarks/gpu_memory.py --count [...]      no GPU: counts the backward pass's tensors at the real shape, without their memory
"""
import argparse
import gc
import io
import sys
import tempfile
import warnings
from contextlib import contextmanager, nullcontext, redirect_stdout

from llmi_kit.train_memory import COPIES, MOMENTS, Live, Shape, UnknownShape, at_moment, estimate, lora_weights, peak_gb, propose, shape_of, step_from, weights
from llmi_kit.memory import SPARE

TINY = Shape(64, 3, 8, 2, 16, 192, 512, True, 'qwen3')
TARGETS = (('1024,1024', 12.), ('1024,4096', 24.))
WITHIN, SEED = .15, 0


def configured(shape):
    "A transformers configuration of this shape."
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config
    kind = dict(llama=LlamaConfig, qwen2=Qwen2Config, qwen3=Qwen3Config)[shape.kind]
    return kind(hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv,
                head_dim=shape.head_dim, intermediate_size=shape.inner, vocab_size=shape.vocab, tie_word_embeddings=shape.tied,
                max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def quantized(model, device):
    "The model with its linear maps, but the head, in NF4: what `from_pretrained` makes of a file, layer by layer as there."
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer
    for parent in list(model.modules()):
        for name, old in list(parent.named_children()):
            if type(old) is not torch.nn.Linear or name == 'lm_head': continue
            bias = old.bias is not None
            new = Linear4bit(old.in_features, old.out_features, bias=bias, compute_dtype=torch.bfloat16, quant_type='nf4', compress_statistics=True, device='meta')
            new.weight = type(new.weight)(old.weight.data.cpu(), requires_grad=False, quant_type='nf4', compress_statistics=True)
            if bias: new.bias = torch.nn.Parameter(old.bias.data.to(device), requires_grad=False)
            setattr(parent, name, new.to(device))
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = 'bitsandbytes'
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True)
    model.config.quantization_config, model.hf_quantizer = config, AutoHfQuantizer.from_config(config)
    return model


def built(shape, quantization, device):
    "Random weights in bfloat16, on the processor first: a GPU under a cap may not hold them before they are quantized."
    import torch
    from transformers import AutoModelForCausalLM
    torch.manual_seed(SEED)
    with torch.device('meta'): model = AutoModelForCausalLM.from_config(configured(shape), dtype=torch.bfloat16, attn_implementation='sdpa')
    model.to_empty(device='cpu')
    with torch.no_grad():
        for p in model.parameters(): p.uniform_(-.02, .02) if p.dim() > 1 else p.fill_(1.)
    for module in model.modules():      # frequencies of rotary embeddings are not parameters
        if hasattr(module, 'inv_freq'):
            module.inv_freq = module.original_inv_freq = module.compute_default_rope_parameters(model.config)[0]
    model.tie_weights()
    return (quantized(model, device) if quantization == 'nf4' else model).to(device)


def tokenizer(vocab):
    "Words w3, w4, ... are tokens 3, 4, ...: random prompts have exactly the length that they should."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = {w: i for i, w in enumerate(('<pad>', '<s>', '</s>', *(f'w{i}' for i in range(3, vocab))))}
    made = Tokenizer(models.WordLevel(words, unk_token='<pad>'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token='<pad>', bos_token='<s>', eos_token='</s>', padding_side='left')


@contextmanager
def forced(lengths, vocab):
    "Make answers as long as told: tokens are drawn at random, the end of an answer is not."
    import torch

    import llmi_kit.grpo_trainer as ours
    real = ours.sampler
    def sampler(*args):
        usual, drawn = real(*args), [0]*len(lengths)
        def draw(scores, rows):
            usual(scores, rows)
            tokens = torch.randint(3, vocab, (len(rows),)).tolist()
            for at, i in enumerate(rows):
                drawn[i] += 1
                if drawn[i] >= lengths[i]: tokens[at] = 2
            return torch.tensor(tokens, device=scores.device)
        return draw
    ours.sampler = sampler
    try: yield
    finally: ours.sampler = real


def trainer(shape, step, device, folder, model):
    "FastGRPOTrainer with LoRA on everything, one prompt, one step."
    import random

    from datasets import Dataset
    from llmi_kit.grpo_trainer import FastGRPOTrainer
    from peft import LoraConfig
    from trl import GRPOConfig
    rng = random.Random(SEED)
    rows = [dict(prompt=' '.join(f'w{rng.randrange(3, shape.vocab)}' for _ in range(step.prompt))) for _ in range(step.prompts)]
    config = GRPOConfig(folder, per_device_train_batch_size=step.micro, gradient_accumulation_steps=step.answers*step.prompts//step.micro,
                        num_generations=step.answers, max_completion_length=step.answer, max_steps=2, learning_rate=1e-6, loss_type='dr_grpo', bf16=True,
                        gradient_checkpointing=True, use_cpu=device == 'cpu', report_to=[], save_strategy='no', logging_strategy='no',
                        disable_tqdm=True, seed=SEED, dataloader_pin_memory=False)
    reward = lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))]
    return FastGRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows*2), slots=step.slots,
                           processing_class=tokenizer(shape.vocab), peft_config=LoraConfig(r=step.rank, target_modules='all-linear', task_type='CAUSAL_LM'))


def bytes_of(tensors): return sum(x.untyped_storage().nbytes() for x in {x.untyped_storage()._cdata: x for x in tensors}.values())


def held(t):
    "GB of parameters (with what NF4 keeps beside them), and of LoRA with gradients and AdamW's states: real tensors, counted."
    frozen, lora = [], []
    for p in t.model.parameters():
        if p.requires_grad: lora += [p, *(x for x in t.optimizer.state[p].values() if x.dim())]
        else:
            frozen.append(p)
            state = getattr(p, 'quant_state', None)
            if state is not None: frozen += [state.absmax, state.state2.absmax]
    grads = sum(p.nbytes for p in t.model.parameters() if p.requires_grad)   # of the same type; already freed here
    return bytes_of(frozen)/1e9, (bytes_of(lora) + grads)/1e9


class Peaks:
    "The most memory while writing and while learning: a GPU's own figures, or tensors counted by `Live`."
    def __init__(self, device): self.device, self.found, self.live = device, {}, Live() if device == 'cpu' else None

    def timed(self, name, method):
        def run(*args, **kwargs):
            self.reset()
            out = method(*args, **kwargs)
            self.found[name] = max(self.found.get(name, 0), self.now())
            return out
        return run

    def reset(self):
        import torch
        if self.live: self.live.peak = self.live.bytes
        else: torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()

    def now(self):
        import torch
        return (self.live.peak if self.live else torch.cuda.max_memory_allocated())/1e9


def run(shape, step, device, short):
    "A step: GB by moment, and the tensors that stay."
    import torch
    lengths = [step.answer]*step.answers*step.prompts
    if short: lengths[0] = min(short, step.answer)
    with tempfile.TemporaryDirectory() as folder, forced(lengths, shape.vocab), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        peaks = Peaks(device)
        with peaks.live or nullcontext():
            t = trainer(shape, step, device, folder, built(shape, step.quantization, device))
            gc.collect()
            t._generate_single_turn = peaks.timed('writing', t._generate_single_turn)
            t.training_step = peaks.timed('learning', t.training_step)
            real = t._prepare_inputs
            def prepared(batch):    # answers are written inside a training step: its peak begins after that
                out = real(batch)
                peaks.reset()
                return out
            t._prepare_inputs = prepared
            with redirect_stdout(io.StringIO()): t.train()     # it prints its own summary
        reserved = torch.cuda.max_memory_reserved()/1e9 if device == 'cuda' else None
        return peaks.found, held(t), reserved


def line(name, measured, said):
    "One row of the table; True if it is within the bound."
    off = measured/said - 1
    unit, size = ('GB', 1) if said > .1 else ('MB', 1000)
    print(f'  {name:26} {said*size:8.3f} {measured*size:8.3f} {unit} {off:+7.1%}', flush=True)
    return abs(off) <= WITHIN


def compare(name, shape, step, device, cap, short):
    parts = {p.name: p.gb for p in estimate(shape, step)}
    spare, total = SPARE, estimate(shape, step)
    print(f'{name}, {step.quantization}, rank {step.rank}, {step.answers} answers, {step.prompt} + {step.answer} tokens, micro-batch {step.micro}, '
          f'{step.slots} at once' + (f', cap {cap:g} GB' if cap else '') + f'; estimate with {spare} GB for CUDA: {peak_gb(total):.2f} GB')
    found, (frozen, lora), reserved = run(shape, step, device, short)
    print(f'  {"":26} {"estimate":>8} {"measured":>8}')
    even = not short and step.slots == step.answers*step.prompts    # all answers end at once: no cache is copied
    writing = at_moment(total, 'writing') - spare - (parts.get('cache, copied', 0) if even and COPIES else 0)
    learning = max(at_moment(total, m) for m in MOMENTS[1:]) - spare
    good = [line('weights', frozen, parts['weights']), line('LoRA, gradients, AdamW', lora, parts['LoRA'] + parts['gradients'] + parts['AdamW'])]
    good += [line('at most while writing', found['writing'], writing), line('at most while learning', found['learning'], learning)]
    if reserved: print(f'  {"reserved by the allocator":26} {"":8} {reserved:8.3f}')
    return all(good) if device == 'cuda' else all(good[:2])     # on a processor other kernels run: only what stays is held to the bound


def on_gpu(cap):
    "The device's name, with its memory capped."
    import torch
    free, whole = torch.cuda.mem_get_info()
    if cap and cap*1e9 > whole: raise SystemExit(f'this GPU has {whole/1e9:.1f} GB: give a --cap below that')
    context = (whole - free)/1e9
    if cap: torch.cuda.set_per_process_memory_fraction(max(cap - SPARE, .1)*1e9/whole)
    return f'{torch.cuda.get_device_name()}, {whole/1e9:.1f} GB ({context:.2f} GB taken before the step), PyTorch {torch.__version__}'


def count(name, shape, step):
    "The backward pass at the real shape on tensors that have no memory."
    import torch
    from torch._subclasses import FakeTensorMode

    import llmi_kit.grpo_trainer as ours
    import llmi_kit.train_memory as said
    import trl.kernels.chunked_logprob as chunked
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head
    chunked._forward_tile = chunked._backward_tile = chunked._addmm_fp32 = lambda *args, **kwargs: None  # a GPU has one kernel for them
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(configured(shape), dtype=torch.bfloat16, attn_implementation='sdpa')
        add_fused_lm_head(model, outputs=('log_probs', 'entropy'))
        model = get_peft_model(model, LoraConfig(r=step.rank, target_modules='all-linear', task_type='CAUSAL_LM'))
    model.gradient_checkpointing_enable(); model.enable_input_require_grads(); model.train()
    ours.base(model).set_attn_implementation('packed')
    lora = torch.bfloat16 if step.quantization == 'nf4' else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        made = {}
        for module in model.modules():
            for key, p in module._parameters.items():
                if p is None: continue
                if id(p) not in made:
                    made[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=lora if p.requires_grad else torch.bfloat16), requires_grad=p.requires_grad)
                module._parameters[key] = made[id(p)]
            for key, b in module._buffers.items(): module._buffers[key] = torch.empty(b.shape) if b is not None else None
        before = live.bytes
        with torch.autocast('cpu', torch.bfloat16):
            logps = ours.packed_logps(model, [list(range(step.prompt))]*step.micro, [[i]*step.answer for i in range(step.micro)])[0]
        kept, live.peak = live.bytes, live.bytes
        logps.sum().backward()
    said.SCORES = False     # the processor's kernel doesn't write them down
    parts = estimate(shape, step)
    fixed = sum(p.gb for p in parts if p.moments == MOMENTS) - lora_weights(shape, step.rank)*(2 if step.quantization == 'nf4' else 4)/1e9
    said.SCORES = True
    print(f'{name}, {step.quantization}, {step.micro} answers of {step.answer} in a backward pass, beside the weights, counted without memory')
    print(f'  {"":26} {"estimate":>8} {"counted":>8}')
    print(f'  (weights {before/1e9:.3f} GB unquantized, {sum(weights(shape))*2/1e9:.3f} and LoRA by the formula; kept after the forward pass {(kept - before)/1e9:.3f})')
    return line('at most while learning', (live.peak - before)/1e9, max(at_moment(parts, m) for m in MOMENTS[1:]) - fixed)


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shape', default='Qwen3-4B', help='a name that `llmi doctor --backbone` knows, a folder or config.json, or tiny')
    p.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    p.add_argument('--quantization', choices=('nf4', 'none'), default='nf4')
    p.add_argument('--tokens', help='of prompt and answer; left out: both targets')
    for name, default in dict(rank=16, answers=8, micro=0, slots=0, short=0).items(): p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--cap', type=float, default=0., help='GB (1e9 bytes) that the process may take, CUDA context included')
    p.add_argument('--count', action='store_true', help='count tensors at the real shape; needs no GPU')
    return p.parse_args()


def planned(o, shape, tokens, cap):
    "The step asked for, or what `propose` makes of it under the cap."
    step = step_from(o.quantization, o.rank, o.answers, tokens)
    found = propose(shape, cap, step) if cap else step
    if isinstance(found, str): raise SystemExit(found)
    return found._replace(**{k: getattr(o, k) for k in ('micro', 'slots') if getattr(o, k)})


def main():
    o = options()
    try: shape = TINY if o.shape == 'tiny' else shape_of(o.shape)
    except UnknownShape as e: raise SystemExit(str(e)) from None
    if shape.vision: raise SystemExit('backbones that read pictures are not measured here: the trainer takes another way with them')
    import torch
    if o.device == 'cuda' and not o.count and not torch.cuda.is_available():
        print('There is no GPU here, so nothing was measured: run this on a machine with one, or with --count or `--shape tiny --device cpu` to check the formulae.')
        return
    usual = ((o.tokens or '40,24', o.cap),) if o.shape == 'tiny' else TARGETS
    runs = [(o.tokens, o.cap)] if o.tokens else usual
    if o.device == 'cuda' and not o.count: print(on_gpu(0))
    good = []
    for tokens, cap in runs:
        try: step = planned(o, shape, tokens, cap)
        except UnknownShape as e: raise SystemExit(str(e)) from None
        if step.answers % step.micro: raise SystemExit('--micro has to divide --answers')
        if o.count: good.append(count(o.shape, shape, step)); continue
        if o.device == 'cuda' and cap: on_gpu(cap)
        good.append(compare(o.shape, shape, step, o.device, cap, o.short))
        gc.collect()
        if o.device == 'cuda': torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    what = '' if o.device == 'cuda' else ' (weights and LoRA; a processor has other kernels)'
    print('all within' if all(good) else 'not all within', f'{WITHIN:.0%}' + what*(not o.count))
    sys.exit(not all(good))


if __name__ == '__main__': main()
