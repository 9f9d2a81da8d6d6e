"Memory of GRPO training: the formulae against bytes of real tensors, proposals that fit, sentences for what is wrong."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen2_5_VLConfig
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen2_5_VLForConditionalGeneration

import llmi_kit.train_memory as tm
from llmi_kit.train_memory import (NF4, SHAPES, Live, Shape, Step, UnknownShape, at_moment, cache_bytes, estimate, lora_weights, matrices, peak_gb,
                                   propose, report, row_of, shape_of, step_from, weights)

BENCHMARK = Path(__file__).parent.parent/'benchmarks'/'gpu_memory.py'
KINDS = dict(llama=(LlamaConfig, LlamaForCausalLM), qwen2=(Qwen2Config, Qwen2ForCausalLM), qwen3=(Qwen3Config, Qwen3ForCausalLM))


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("gpu_memory", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(kind, tied=True, heads=4, kv=2, layers=3): return Shape(64, layers, heads, kv, 16, 96, 100, tied, kind)


def model(bench, shape, dtype=torch.bfloat16):
    return KINDS[shape.kind][1](bench.configured(shape)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_real_models(bench, kind, tied):
    s = small(kind, tied)
    m = model(bench, s)
    linear = sum(x.weight.numel() for n, x in m.named_modules() if isinstance(x, torch.nn.Linear) and n != "lm_head")
    assert weights(s) == (linear, sum(p.numel() for p in m.parameters()) - linear)


@pytest.mark.parametrize("name", SHAPES)
def test_the_table_against_transformers(bench, name):
    "Each published shape, built without memory, has the number of weights that the formula says."
    s = SHAPES[name]
    with torch.device("meta"):
        if s.vision:
            text = bench.configured(s).to_dict() | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]))
            vision = dict(hidden_size=s.vision.hidden, depth=s.vision.layers, intermediate_size=s.vision.inner, out_hidden_size=s.vision.out)
            m = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=s.tied))
            m.tie_weights()
        else: m = KINDS[s.kind][1](bench.configured(s))
    assert sum(weights(s)) == sum(p.numel() for p in m.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_lora_gradients_and_states(bench, kind):
    from peft import LoraConfig, get_peft_model
    s, rank = small(kind), 3
    m = get_peft_model(model(bench, s), LoraConfig(r=rank, target_modules="all-linear")).to(torch.bfloat16)
    lora = [p for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(lora)
    m(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found = {p.name: p.gb*1e9 for p in estimate(s, Step("nf4", rank))}
    assert found["LoRA"] == sum(p.nbytes for p in lora) == 2*lora_weights(s, rank)
    assert found["gradients"] == sum(p.grad.nbytes for p in lora)
    assert found["AdamW"] == sum(x.nbytes for p in lora for x in optimizer.state[p].values() if x.dim())


def test_float32_lora_where_nothing_is_quantized():
    "PEFT's default on a bfloat16 model; TRL leaves it."
    of = lambda quantization: {p.name: p.gb for p in estimate(SHAPES["Qwen/Qwen3-4B"], Step(quantization))}
    assert of("none")["AdamW"] == 2*of("nf4")["AdamW"] and of("none")["LoRA"] == 2*of("nf4")["LoRA"]


def test_nf4_with_double_quantization():
    import bitsandbytes as bnb
    layer = bnb.nn.Linear4bit(1024, 512, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.weight.quant_state
    assert layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes == NF4*1024*512/8


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_of_answers_in_progress(bench, kind):
    "The cache that `write_answers` really holds: a copy of the prompt for each answer, the prompt's own, and room to grow."
    from llmi_kit.writing import Writer
    s, rows, prompt, answer = small(kind), 3, 40, 30
    m, real = model(bench, s).eval(), []
    with torch.no_grad():
        w = Writer(m, [list(range(3, 3 + prompt))]*rows)
        w.admit(list(range(rows)))
        for _ in range(answer): w.step(torch.full((rows,), 7))
    real = sum(x.nbytes for layer in w.cache.layers for x in (layer.keys, layer.values))
    assert real == cache_bytes(s, rows, prompt + answer)
    rooms = sum(x.nbytes for cache in (w.cache, w.root_cache) for layer in cache.layers for x in layer.room)
    o = Step(answers=rows, slots=rows, prompt=prompt, answer=answer)
    said = next(p.gb for p in estimate(s, o) if p.name == "cache")*1e9
    assert real < rooms <= said < 1.5*rooms


def test_a_second_cache_while_an_answer_is_cut_out(bench):
    "If this fails with no copy, `Writer.keep` has learnt to let go of the old one: set `COPIES = False`."
    from llmi_kit.writing import Writer
    s, rows, prompt = small("llama", layers=8), 4, 60
    m = model(bench, s).eval()
    with torch.no_grad(), Live() as live:
        w = Writer(m, [list(range(3, 3 + prompt))]*rows)
        w.admit(list(range(rows)))
        for _ in range(5): w.step(torch.full((rows,), 7))
        live.peak = before = live.bytes
        w.keep([0, 1, 2])
    copied = live.peak - before
    whole = cache_bytes(s, rows - 1, prompt + 5)
    assert tm.COPIES == (copied > .9*whole), f"{copied} bytes more, {whole} in the smaller cache"


def saved(run):
    "Bytes of distinct tensors that a forward pass keeps for its backward pass, beside parameters."
    kept = {}
    def pack(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): out = run()
    return kept, out


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_kept_between_layers(bench, kind):
    "One hidden state a layer and token is what gradient checkpointing keeps: twice the layers keep twice as much."
    from llmi_kit.grpo_trainer import packed_logps
    from llmi_kit.writing import base
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head
    def kept(layers):
        s = small(kind, layers=layers)
        m = model(bench, s)
        add_fused_lm_head(m)
        m = get_peft_model(m, LoraConfig(r=2, target_modules="all-linear")).to(torch.bfloat16).train()
        m.gradient_checkpointing_enable()
        m.enable_input_require_grads()
        base(m).set_attn_implementation("packed")
        mine = {p.untyped_storage()._cdata for p in m.parameters()}
        with torch.autocast("cpu", torch.bfloat16): found, out = saved(lambda: packed_logps(m, [[5]*20]*3, [[7]*10]*3)[0])
        return sum(x.nbytes() for key, x in found.items() if key not in mine)
    s, o = small(kind, layers=4), Step(answers=3, micro=3, prompt=20, answer=10)
    assert row_of(s, o).tokens == 20 + 3*9
    said = lambda layers: layers*(20 + 27)*64*2
    assert kept(6) - kept(2) == said(4)
    assert next(p.gb for p in estimate(s, o) if p.name == "hidden states")*1e9 == pytest.approx(said(4))


@pytest.mark.parametrize("heads,kv,kind,quantization", [(4, 2, "llama", "nf4"), (4, 4, "qwen2", "nf4"), (8, 2, "qwen3", "nf4"), (4, 2, "qwen3", "none")])
def test_a_backward_pass_of_a_real_shape_counted_without_memory(bench, heads, kv, kind, quantization, capsys, monkeypatch):
    import trl.kernels.chunked_logprob as chunked
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"): monkeypatch.setattr(chunked, name, getattr(chunked, name))     # put back
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 64)    # or the logits of so small a decoder would hide its layers
    monkeypatch.setattr(tm, "TILE", (4096, 64))
    s = Shape(512, 2, heads, kv, 64, 1536, 1000, True, kind)
    assert bench.count("a shape", s, Step(quantization, 4, answers=4, micro=4, prompt=500, answer=700)), capsys.readouterr().out


def test_scores_count_only_where_heads_share_keys():
    names = lambda s: {p.name for p in estimate(s, Step())}
    assert "scores" in names(SHAPES["Qwen/Qwen3-4B"]) and "scores" not in names(SHAPES["HuggingFaceTB/SmolLM2-1.7B"])


def test_the_targets_fit():
    s = SHAPES["Qwen/Qwen3-4B"]
    for answer, gb in ((1024, 12), (4096, 24)):
        found = propose(s, gb, Step(answer=answer))
        assert (found.answer, found.answers, found.quantization, found.rank) == (answer, 8, "nf4", 16)
        assert peak_gb(estimate(s, found)) <= gb


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.floats(1, 90), st.sampled_from(["nf4", "none"]), st.integers(1, 64), st.integers(1, 16), st.integers(2, 8192))
def test_proposals_fit_and_sentences_are_true(name, gb, quantization, rank, answers, answer):
    s, asked = SHAPES[name], Step(quantization, rank, answers, answers, answers, 512, answer)
    found = propose(s, gb, asked)
    if isinstance(found, str):
        least = asked._replace(quantization="nf4", rank=min(rank, 8), micro=1, slots=1, answer=min(answer, 256))
        assert peak_gb(estimate(s, least)) > gb and f"{gb:g} GB is too little" in found
    else:
        assert peak_gb(estimate(s, found)) <= gb
        assert found.micro <= answers and found.slots <= answers and found.answer <= answer
        if peak_gb(estimate(s, asked)) <= gb: assert found == asked


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.sampled_from(["rank", "micro", "slots", "prompt", "answer"]), st.integers(1, 6))
def test_more_of_anything_takes_no_less(name, what, n):
    s, less = SHAPES[name], Step(micro=4, slots=4, answers=32)
    more = less._replace(**{what: getattr(less, what)*n})
    for m in tm.MOMENTS: assert at_moment(estimate(s, more), m) >= at_moment(estimate(s, less), m)


def test_names_folders_and_files(tmp_path, bench):
    assert shape_of("qwen3-4b-instruct-2507") == shape_of("Qwen/Qwen3-4B") == SHAPES["Qwen/Qwen3-4B"]
    assert shape_of("embedded") == SHAPES["HuggingFaceTB/SmolLM2-135M"]
    for name, s in SHAPES.items():
        if s.vision: continue
        bench.configured(s).save_pretrained(tmp_path)
        assert shape_of(str(tmp_path)) == shape_of(str(tmp_path/"config.json")) == s, name


def test_files_as_they_are_published(tmp_path):
    "Without head_dim, as Qwen2.5's; nested, as Qwen2.5-VL's newer ones."
    text = dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008, vocab_size=151936)
    file = tmp_path/"config.json"
    file.write_text(json.dumps(text | dict(model_type="qwen2", tie_word_embeddings=True)))
    assert shape_of(str(file)) == SHAPES["Qwen/Qwen2.5-3B"]
    file.write_text(json.dumps(dict(model_type="qwen2_5_vl", tie_word_embeddings=True, text_config=text, vision_config=dict(out_hidden_size=2048))))
    assert shape_of(str(file)) == SHAPES["Qwen/Qwen2.5-VL-3B"]
    file.write_text(json.dumps(dict(model_type="qwen2_5_vl", text_config=text | dict(tie_word_embeddings=True), vision_config={})))
    assert shape_of(str(file)).tied


def test_the_embedded_backbone_s_own_file():
    from llmi_kit.backbone import embedded_folder
    assert shape_of(str(embedded_folder())) == SHAPES["HuggingFaceTB/SmolLM2-135M"]


@pytest.mark.parametrize("content,said", [
    ("{", "could not be read"), ("{}", "no hidden_size"), (json.dumps(dict(hidden_size=8, num_experts=4)), "mixtures"),
    (json.dumps(dict(model_type="idefics", vision_config={})), "reads pictures"), ("[]", "no hidden_size"), ("[1]", "could not be read")])
def test_files_that_are_no_decoder(tmp_path, content, said):
    (tmp_path/"config.json").write_text(content)
    with pytest.raises(UnknownShape, match=said): shape_of(str(tmp_path))


def test_unknown_names_and_settings():
    with pytest.raises(UnknownShape, match="not known here: give the folder"): shape_of("acme/large")
    for wrong in (dict(tokens="8"), dict(tokens="a,b"), dict(quantization="int8"), dict(rank=0), dict(answers=-1), dict(tokens="5,1")):
        with pytest.raises(UnknownShape): step_from(**wrong)


def test_report():
    lines = "\n".join(report("Qwen/Qwen2.5-VL-3B", step_from()))
    assert "vision tower" in lines and lines.count(" GB: ") == 4 and "at most" in lines
    assert "smaller backbone" in "\n".join(report("Qwen3-8B", step_from(), sizes=(4,)))


def test_matrices():
    assert [a*b for a, b in matrices(Shape(2, 1, 2, 1, 4, 6, 5, True))] == [16, 8, 8, 16, 12, 12, 12]


def benchmark(*args): return subprocess.run([sys.executable, str(BENCHMARK), *args], capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_that_there_is_no_gpu():
    done = benchmark()
    assert done.returncode == 0 and "no GPU here" in done.stdout and done.stdout.count("\n") == 1


def test_a_real_step_on_the_processor():
    "FastGRPOTrainer on a tiny NF4 model: what stays is what the formulae say, and every path of the benchmark runs."
    done = benchmark("--shape", "tiny", "--device", "cpu", "--short", "5", "--micro", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line[:28].strip(): line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ") and line.endswith("%")}
    assert rows["weights"] in ("+0.0%", "-0.0%") and rows["LoRA, gradients, AdamW"] in ("+0.0%", "-0.0%")


def test_the_benchmark_refuses_in_sentences():
    for args, said in ((("--shape", "acme"), "not known here"), (("--tokens", "x", "--count"), "not two numbers"), (("--shape", "Qwen2.5-VL-3B"), "pictures")):
        done = benchmark(*args)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
