"""The architectures that are described, by config.json's model_type."""

from stackjax.interop.hf.bert import BERT
from stackjax.interop.hf.deepseek import DEEPSEEK_V3
from stackjax.interop.hf.experts import GPT_OSS, MIXTRAL
from stackjax.interop.hf.gemma import GEMMA2, GEMMA3
from stackjax.interop.hf.gpt2 import GPT2
from stackjax.interop.hf.llama import LLAMA, QWEN3
from stackjax.interop.hf.marian import MARIAN
from stackjax.interop.hf.t5 import T5
from stackjax.interop.hf.xlnet import XLNET

ARCHITECTURES = {
    "bert": BERT,
    "deepseek_v3": DEEPSEEK_V3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt_oss": GPT_OSS,
    "llama": LLAMA,
    "marian": MARIAN,
    "mixtral": MIXTRAL,
    "qwen3": QWEN3,
    "t5": T5,
    "xlnet": XLNET,
}
