# The pipeline: each notebook is a rule. What a result depends on is an input: the notebook, its data, the settings, the package.
#   make figures                 everything: hours on two cores (docs/profiles.md)
#   make figures SCALE=quick     one seed, fewer steps and questions
#   make figures PROFILE=gpu24   another profile of settings.ini
# or with other trainings: snakemake ... --config scale=smoke seeds="3 4" ablations="without-text reference" -- figures
# which runs `snakemake --cores 2 --nolock --rerun-incomplete --resources gpu=1 --config profile=cpu scale=full -- figures`.
# Executed notebooks, logs and run records land in results/PLACE/, figures in figures/PLACE/. PLACE is the profile, with the scale
# behind it unless that is full: a small run never takes the place of a whole one.
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

PROFILE, SCALE = config.get("profile", "cpu"), config.get("scale", "full")
ABLATIONS = ["without-count", "without-text", "without-pictures", "reference"]    # of the first seed

# seeds and ablations, and what each notebook is told; the defaults in the notebooks are those of the full scale
SCALES = {
    "full": dict(seeds="3 4 5", ablations=ABLATIONS),
    "quick": dict(seeds="3", ablations=[], warmup=dict(steps=30, heldout=30), grpo=dict(steps=4, heldout=30),
                  scaling=dict(questions=8, calibration=8, n=8), evaluate=dict(limit=40)),
    "smoke": dict(seeds="3", ablations=[], warmup=dict(rows=80, steps=2, heldout=4, longest=48),
                  grpo=dict(start_steps=2, steps=1, prompts=5, answers=2, learned=0, max_tokens=48, heldout=5, longest=48),
                  scaling=dict(questions=2, calibration=2, n=2, keep=1), evaluate=dict(limit=3, n=2, longest=48)),
}
if SCALE not in SCALES: raise WorkflowError(f"there is no scale '{SCALE}': choose {', '.join(SCALES)}")
CORES = 1 if SCALE == "smoke" else 2    # of a rule that trains or measures: when there is this little to compute, two go side by side
SEEDS = str(config.get("seeds", SCALES[SCALE]["seeds"])).split()
WITHOUT = str(config.get("ablations", " ".join(SCALES[SCALE]["ablations"]))).split()
PLACE = PROFILE if SCALE == "full" else f"{PROFILE}-{SCALE}"
GPUS = int(config.get("gpus", PROFILE.startswith("gpu")))       # of a step that loads the profile's models
GPU = dict(gpu=GPUS, gpu_manufacturer="nvidia") if GPUS else {}
ROOT = Path(workflow.basedir)
PACKAGE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "llmi_kit").rglob("*")
                 if p.is_file() and p.suffix in {".py", ".json", ".jsonl", ".safetensors", ".css", ".html"})

wildcard_constraints:
    place=f"{re.escape(PROFILE)}|{re.escape(PLACE)}",
    run=r"seed-\d+(-without-(count|text|pictures)|-reference)?",


# One run at a time in this folder. Snakemake's own lock is a file, which a killed run leaves behind; this one ends with those who hold it. As
# standard input the notebooks hold it, too: they may outlive what began them.
onstart:
    import fcntl, os
    holder = open(".snakemake/run", "a+")
    try: fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder.seek(0)
        raise SystemExit(f"process {holder.read()}, or a notebook that it began, still works here: wait for its end or stop it, then run this again") from None
    holder.truncate(0)
    holder.write(str(os.getpid()))
    holder.flush()
    os.dup2(holder.fileno(), 0)


# A run that was stopped goes on: its folder isn't an output, and what it holds stays.
PAPERMILL = (f"papermill {{input.notebook}} {{output.executed}} --cwd nbs/pipelines --no-progress-bar --log-level WARNING -p profile {PROFILE}"
             " {params.words} > {log} 2>&1 || {{ tail -n 30 {log} >&2; exit 1; }}")


def words(notebook, **told):
    "Parameters for papermill: what a rule says, and what the scale does."
    return " ".join(f"-p {k} '{v}'" for k, v in (told | SCALES[SCALE].get(notebook, {})).items())


def same_start(wildcards):
    "The record of the run whose warm start a run takes, with the answers before: the first seed's, for all others."
    first = f"seed-{SEEDS[0]}"
    return [] if wildcards.run == first else f"results/{wildcards.place}/grpo/{first}/run.json"


def words_of_run(wildcards):
    "Of a GRPO run, by its name: seed-3, seed-3-without-text, seed-3-reference."
    _, seed, *other = wildcards.run.split("-", 2)
    told = dict(out=f"../../results/{wildcards.place}/grpo/{wildcards.run}", seed=seed)
    if like := same_start(wildcards): told["like"] = f"../../{Path(like).parent}"
    if other: told |= dict(variant="reference") if other[0] == "reference" else dict(without=other[0].removeprefix("without-"))
    return words("grpo", **told)


rule demo:
    input:
        f"results/{PROFILE}/demo/summary.txt",


FIGURES = ["data-mix", "gallery", "systems", "tools", "failures", "learning", "learning-held-out", "scaling", "scaling-stages",
           *(["ablation"] if any(a.startswith("without") for a in WITHOUT) else [])]
AVERAGED = ["mean"] if len(SEEDS) > 1 else []
RUNS = [f"seed-{s}" for s in SEEDS] + AVERAGED + [f"seed-{SEEDS[0]}-{a}" for a in WITHOUT]

STEPS = ["warmup", *(f"grpo-{run}" for run in RUNS if run not in AVERAGED), *(["average"] if AVERAGED else []), "learning", "scaling", "evaluate", "figures"]

rule figures:
    input:
        f"figures/{PLACE}/README.md",
        f"results/{PLACE}/summary.txt",


# What each step was told and took, where, with which versions, and what it cost.
rule record:
    input:
        notebooks=expand("results/{{place}}/notebooks/{step}.ipynb", step=STEPS),
        captions="figures/{place}/README.md",
    output:
        record="results/{place}/record.json",
        summary="results/{place}/summary.txt",
    run:
        import json
        from llmi_kit.provenance import run_record, took
        steps = {Path(file).stem: run_record(file) for file in input.notebooks}
        Path(output.record).write_text(json.dumps(dict(profile=PROFILE, scale=SCALE, steps=steps), indent=1) + "\n")
        Path(output.summary).write_text(f"{took(steps)}\n\nThe figures, with captions: {input.captions}. What each step was told and took: {output.record}.\n")


# Draws all figures from the records that the other rules leave.
rule draw:
    input:
        expand("figures/{{place}}/runs/{name}.json", name=["scaling", "evaluate", *(f"grpo-{run}" for run in RUNS)]),
        notebook="nbs/pipelines/figures.ipynb",
        package=PACKAGE,
    output:
        captions="figures/{place}/README.md",
        figures=expand("figures/{{place}}/{name}.svg", name=FIGURES),
        executed="results/{place}/notebooks/figures.ipynb",
    log:
        "results/{place}/logs/figures.log",
    params:
        words=lambda w: words("figures", runs=f"../../figures/{w.place}/runs", out=f"../../figures/{w.place}", scale=SCALE),
    shell:
        PAPERMILL.replace(f" -p profile {PROFILE}", "")


rule generate:
    input:
        notebook="nbs/pipelines/generate.ipynb",
        questions="llmi_kit/assets/demo/questions.jsonl",
        settings="settings.ini",
        package=PACKAGE,
    output:
        summary="results/{place}/demo/summary.txt",
        record="results/{place}/demo/record.json",
        executed="results/{place}/notebooks/generate.ipynb",
    log:
        "results/{place}/logs/generate.log",
    resources: **GPU
    params:
        words=lambda w: words("generate", questions="../../llmi_kit/assets/demo/questions.jsonl", out=f"../../results/{w.place}/demo"),
    shell:
        PAPERMILL.replace("--no-progress-bar", "--progress-bar")


# The long warm start: the adapter that ships with the kit was made by the same notebook.
rule warmup:
    input:
        notebook="nbs/pipelines/warmup.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        adapter="results/{place}/warmup/adapter_model.safetensors",
        metrics="results/{place}/warmup/metrics.json",
        executed="results/{place}/notebooks/warmup.ipynb",
    log:
        "results/{place}/logs/warmup.log",
    threads: CORES
    params:
        words=lambda w: words("warmup", out=f"../../results/{w.place}/warmup"),
    shell:
        PAPERMILL.replace(f" -p profile {PROFILE}", "")


rule grpo:
    input:
        like=same_start,
        notebook="nbs/pipelines/grpo.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        record="results/{place}/grpo/{run}/run.json",
        executed="results/{place}/notebooks/grpo-{run}.ipynb",
    log:
        "results/{place}/logs/grpo-{run}.log",
    threads: CORES
    resources: **GPU
    params:
        words=words_of_run,
    shell:
        PAPERMILL


# The mean of all seeds' adapters.
rule average:
    input:
        expand("results/{{place}}/grpo/seed-{seed}/run.json", seed=SEEDS),
        notebook="nbs/pipelines/average.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        record="results/{place}/grpo/mean/run.json",
        executed="results/{place}/notebooks/average.ipynb",
    log:
        "results/{place}/logs/average.log",
    threads: CORES
    resources: **GPU
    params:
        words=lambda w: words("average", seeds=" ".join(SEEDS), runs=f"../../results/{w.place}/grpo", out=f"../../results/{w.place}/grpo/mean"),
    shell:
        PAPERMILL


rule learning:
    input:
        expand("results/{{place}}/grpo/{run}/run.json", run=RUNS),
        notebook="nbs/pipelines/learning.ipynb",
    output:
        records=expand("figures/{{place}}/runs/grpo-{run}.json", run=RUNS),
        executed="results/{place}/notebooks/learning.ipynb",
    log:
        "results/{place}/logs/learning.log",
    threads: CORES
    params:
        words=lambda w: words("learning", seeds=" ".join(SEEDS), runs=f"../../results/{w.place}/grpo", out=f"../../figures/{w.place}", scale=SCALE,
                              mean=bool(AVERAGED), reference="reference" in WITHOUT,
                              without=" ".join(a.removeprefix("without-") for a in WITHOUT if a != "reference")),
    shell:
        PAPERMILL


rule scaling:
    input:
        notebook="nbs/pipelines/scaling.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        record="figures/{place}/runs/scaling.json",
        executed="results/{place}/notebooks/scaling.ipynb",
    log:
        "results/{place}/logs/scaling.log",
    threads: CORES
    resources: **GPU
    params:
        words=lambda w: words("scaling", out=f"../../results/{w.place}/scaling", figures=f"../../figures/{w.place}", scale=SCALE),
    shell:
        PAPERMILL


rule evaluate:
    input:
        trained=f"results/{{place}}/grpo/seed-{SEEDS[0]}/run.json",
        long="results/{place}/warmup/adapter_model.safetensors",
        notebook="nbs/pipelines/evaluate.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        record="figures/{place}/runs/evaluate.json",
        executed="results/{place}/notebooks/evaluate.ipynb",
    log:
        "results/{place}/logs/evaluate.log",
    threads: CORES
    resources: **GPU
    params:
        words=lambda w: words("evaluate", out=f"../../results/{w.place}/evaluate", figures=f"../../figures/{w.place}", scale=SCALE,
                              long=f"../../results/{w.place}/warmup", **{k: f"../../results/{w.place}/grpo/seed-{SEEDS[0]}/{v}"
                                                                         for k, v in dict(start="start", trained="adapter").items()}),
    shell:
        PAPERMILL
