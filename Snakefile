# The pipeline: each notebook is a rule. What a result depends on is an input: the notebook, its data, the settings, the package.
from pathlib import Path

PROFILE = config.get("profile", "cpu")
ROOT = Path(workflow.basedir)
PACKAGE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "llmi_kit").rglob("*")
                 if p.is_file() and p.suffix in {".py", ".json", ".jsonl", ".safetensors", ".css", ".html"})


SEEDS = str(config.get("seeds", "3 4 5")).split()
ABLATED = ["without-count", "without-text", "without-pictures", "reference"]    # of the first seed

wildcard_constraints:
    profile=r"[a-z0-9]+",
    run=r"seed-\d+(-without-(count|text|pictures)|-reference)?",


def same_start(wildcards):
    "The record of the run whose warm start a run takes, with the answers before: the first seed's, for all others."
    first = f"seed-{SEEDS[0]}"
    return [] if wildcards.run == first else f"results/{wildcards.profile}/grpo/{first}/run.json"


def run_of(wildcards):
    "Parameters of a GRPO run from its name: seed-3, seed-3-without-text, seed-3-reference."
    _, seed, *other = wildcards.run.split("-", 2)
    words = f"-p seed {seed}"
    if like := same_start(wildcards): words += f" -p like ../../{Path(like).parent}"
    if not other: return words
    return words + (" -p variant reference" if other[0] == "reference" else f" -p without {other[0].removeprefix('without-')}")


rule demo:
    input:
        f"results/{PROFILE}/demo/summary.txt",


rule generate:
    input:
        notebook="nbs/pipelines/generate.ipynb",
        questions="llmi_kit/assets/demo/questions.jsonl",
        settings="settings.ini",
        package=PACKAGE,
    output:
        summary="results/{profile}/demo/summary.txt",
        record="results/{profile}/demo/record.json",
        executed="results/{profile}/notebooks/generate.ipynb",
    log:
        "results/{profile}/logs/generate.log",
    shell:
        "papermill {input.notebook} {output.executed} --cwd nbs/pipelines --progress-bar --log-level WARNING"
        " -p profile {wildcards.profile} -p questions ../../{input.questions}"
        " -p out ../../results/{wildcards.profile}/demo > {log} 2>&1"
        " || {{ tail -n 30 {log} >&2; exit 1; }}"


# Hours on two cores. A run that was stopped goes on: only run.json is an output, and the folder's checkpoints stay.
rule grpo:
    input:
        like=same_start,
        notebook="nbs/pipelines/grpo.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        record="results/{profile}/grpo/{run}/run.json",
        executed="results/{profile}/notebooks/grpo-{run}.ipynb",
    log:
        "results/{profile}/logs/grpo-{run}.log",
    threads: 2
    params:
        words=run_of,
    shell:
        "papermill {input.notebook} {output.executed} --cwd nbs/pipelines --no-progress-bar --log-level WARNING"
        " -p profile {wildcards.profile} -p out ../../results/{wildcards.profile}/grpo/{wildcards.run} {params.words} > {log} 2>&1"
        " || {{ tail -n 30 {log} >&2; exit 1; }}"


rule learning:
    input:
        expand("results/{{profile}}/grpo/seed-{seed}/run.json", seed=SEEDS),
        expand("results/{{profile}}/grpo/seed-{seed}-{what}/run.json", seed=SEEDS[:1], what=ABLATED),
        notebook="nbs/pipelines/learning.ipynb",
    output:
        figures=expand("figures/{{profile}}/{name}.svg", name=["learning", "learning-held-out", "ablation"]),
        executed="results/{profile}/notebooks/learning.ipynb",
    log:
        "results/{profile}/logs/learning.log",
    threads: 2
    shell:
        "papermill {input.notebook} {output.executed} --cwd nbs/pipelines --no-progress-bar --log-level WARNING"
        " -p profile {wildcards.profile} -p seeds '{SEEDS}' -p runs ../../results/{wildcards.profile}/grpo -p out ../../figures/{wildcards.profile} > {log} 2>&1"
        " || {{ tail -n 30 {log} >&2; exit 1; }}"


rule scaling:
    input:
        notebook="nbs/pipelines/scaling.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        figures=expand("figures/{{profile}}/{name}.svg", name=["scaling", "scaling-stages"]),
        executed="results/{profile}/notebooks/scaling.ipynb",
    log:
        "results/{profile}/logs/scaling.log",
    threads: 2
    shell:
        "papermill {input.notebook} {output.executed} --cwd nbs/pipelines --no-progress-bar --log-level WARNING"
        " -p profile {wildcards.profile} -p out ../../results/{wildcards.profile}/scaling -p figures ../../figures/{wildcards.profile} > {log} 2>&1"
        " || {{ tail -n 30 {log} >&2; exit 1; }}"


rule evaluate:
    input:
        trained=f"results/{{profile}}/grpo/seed-{SEEDS[0]}/run.json",
        notebook="nbs/pipelines/evaluate.ipynb",
        settings="settings.ini",
        package=PACKAGE,
    output:
        figures=expand("figures/{{profile}}/{name}.svg", name=["systems"]),
        executed="results/{profile}/notebooks/evaluate.ipynb",
    log:
        "results/{profile}/logs/evaluate.log",
    threads: 2
    params:
        run=lambda wildcards, input: f"../../{Path(input.trained).parent}",
    shell:
        "papermill {input.notebook} {output.executed} --cwd nbs/pipelines --no-progress-bar --log-level WARNING"
        " -p profile {wildcards.profile} -p out ../../results/{wildcards.profile}/evaluate -p figures ../../figures/{wildcards.profile}"
        " -p start {params.run}/start -p trained {params.run}/adapter > {log} 2>&1"
        " || {{ tail -n 30 {log} >&2; exit 1; }}"
