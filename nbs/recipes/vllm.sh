# A vLLM server that writes the answers of a training. Hardware: one GPU for the server (a 4B backbone in bfloat16 is 8 GB of weights, and the rest is for answers), one or more for the training.
# The paper wrote with vLLM too, inside verl. Checked: the options against TRL's own list, not on a GPU (nbs/16_more_machines).
# 1. The server, on GPU 0:
CUDA_VISIBLE_DEVICES=0 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B-Instruct-2507 --host 127.0.0.1 --port 8000 \
    --dtype bfloat16 --max-model-len 16384 --gpu-memory-utilization 0.9 \
    --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1
# 2. The training on the other GPUs, with config = llmi_kit.more_machines.served(config, 'http://127.0.0.1:8000', model).
# Its development endpoints let anyone who reaches the port change the weights: keep it on 127.0.0.1 or in a private network.
