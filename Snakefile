# The pipeline: each notebook is a rule. What a result depends on is an input: the notebook, its data, the settings, the package.
from pathlib import Path

PROFILE = config.get("profile", "cpu")
ROOT = Path(workflow.basedir)
PACKAGE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "llmi_kit").rglob("*")
                 if p.is_file() and p.suffix in {".py", ".json", ".jsonl", ".safetensors", ".css", ".html"})


wildcard_constraints:
    profile=r"[a-z0-9]+",


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
