"""A language model that illustrates its own answers: tools, reward, training and evaluation of LLM-I."""
__version__ = "0.1.0"

# Where a processor has bfloat16, bitsandbytes says at import that it found no kernel on the model hub. It works without.
import logging
logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)
