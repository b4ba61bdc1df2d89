"""The architectures that are described, by config.json's model_type."""

from stackjax.interop.hf.bert import BERT
from stackjax.interop.hf.gemma import GEMMA2, GEMMA3
from stackjax.interop.hf.gpt2 import GPT2
from stackjax.interop.hf.llama import LLAMA, QWEN3

ARCHITECTURES = {
    "bert": BERT,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen3": QWEN3,
}
