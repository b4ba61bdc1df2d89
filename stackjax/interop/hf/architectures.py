"""The architectures that are described, by config.json's model_type."""

from stackjax.interop.hf.bert import BERT, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from stackjax.interop.hf.beside import FALCON, GPT_NEOX, GPTJ, PHI
from stackjax.interop.hf.bloom import BLOOM
from stackjax.interop.hf.clip import CLIP_TEXT
from stackjax.interop.hf.cohere import COHERE, COHERE2
from stackjax.interop.hf.deepseek import DEEPSEEK_V3, GLM4_MOE, MINICPM3
from stackjax.interop.hf.experts import GPT_OSS, MIXTRAL
from stackjax.interop.hf.fused import GLM, GLM4, PHI3
from stackjax.interop.hf.gemma import GEMMA, GEMMA2, GEMMA3
from stackjax.interop.hf.gpt import GPT_BIGCODE, GPT_NEO, MPT
from stackjax.interop.hf.gpt2 import GPT2
from stackjax.interop.hf.layer_normed import NEMOTRON, STABLELM, STARCODER2
from stackjax.interop.hf.llama import GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from stackjax.interop.hf.marian import BART, MARIAN, MBART, PEGASUS
from stackjax.interop.hf.mixture import OLMOE, QWEN2_MOE, QWEN3_MOE, QWEN3_NEXT
from stackjax.interop.hf.olmo import EXAONE4, OLMO, OLMO2, OLMO3
from stackjax.interop.hf.opt import OPT
from stackjax.interop.hf.t5 import MT5, T5, UMT5
from stackjax.interop.hf.vit import VIT
from stackjax.interop.hf.xlnet import XLNET

ARCHITECTURES = {
    "bart": BART,
    "bert": BERT,
    "bloom": BLOOM,
    "clip_text_model": CLIP_TEXT,
    "cohere": COHERE,
    "cohere2": COHERE2,
    "deepseek_v3": DEEPSEEK_V3,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "exaone4": EXAONE4,
    "falcon": FALCON,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "glm": GLM,
    "glm4": GLM4,
    "glm4_moe": GLM4_MOE,
    "gpt2": GPT2,
    "gpt_bigcode": GPT_BIGCODE,
    "gpt_neo": GPT_NEO,
    "gpt_neox": GPT_NEOX,
    "gpt_oss": GPT_OSS,
    "gptj": GPTJ,
    "granite": GRANITE,
    "llama": LLAMA,
    "marian": MARIAN,
    "mbart": MBART,
    "minicpm3": MINICPM3,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "mpt": MPT,
    "mt5": MT5,
    "nemotron": NEMOTRON,
    "olmo": OLMO,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "olmoe": OLMOE,
    "opt": OPT,
    "pegasus": PEGASUS,
    "phi": PHI,
    "phi3": PHI3,
    "qwen2": QWEN2,
    "qwen2_moe": QWEN2_MOE,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "qwen3_next": QWEN3_NEXT,
    "roberta": ROBERTA,
    "smollm3": SMOLLM3,
    "stablelm": STABLELM,
    "starcoder2": STARCODER2,
    "t5": T5,
    "umt5": UMT5,
    "vit": VIT,
    "xlm-roberta": XLM_ROBERTA,
    "xlnet": XLNET,
}
