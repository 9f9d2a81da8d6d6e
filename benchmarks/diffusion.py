"""The figures of the embedded text-to-image model, from the shipped folder: how often it draws what is asked, seconds a picture, bytes.

Run: python benchmarks/diffusion.py [prompts of each of six groups, 50]. About a minute on two idle cores; needs neither font nor network."""
import statistics, sys, time

import torch

from llmi_kit.config import asset
from llmi_kit.drawings import catalogue
from llmi_kit.picture_model import sample
from llmi_kit.picture_score import load_critic, score
from llmi_kit.tools.image_model import quiet_diffusers


def main(each=50):
    folder = asset('picture_model')
    if not (folder/'model_index.json').is_file():
        sys.exit(print('no model is shipped yet: nbs/tutorials/train_diffusion.ipynb trains it'))
    pipe = quiet_diffusers().AutoPipelineForText2Image.from_pretrained(folder)
    size = sum(f.stat().st_size for f in folder.rglob('*.safetensors'))/1e6
    print(f'{size:.1f} MB of weights, {len(catalogue())} names, {torch.get_num_threads()} threads')
    sample(pipe, ['warm up'])
    spent, seen = [], set()
    for _ in range(5):
        start = time.perf_counter()
        seen.add(sample(pipe, ['a red fox on a blue background'], [7])[0].tobytes())
        spent.append(time.perf_counter() - start)
    print(f'{statistics.median(spent):.2f} s a picture; five times the same prompt and seed: {len(seen)} different picture(s)')
    figures, _, _ = score(pipe, load_critic(folder/'critic.safetensors'), catalogue(), each)
    for name, row in figures.items():
        print(f'{name:19}', '  '.join(f'{key} {share:.0%} of {n}' for key, (share, n) in row.items()))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
