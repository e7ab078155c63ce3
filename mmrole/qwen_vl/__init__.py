"""Qwen-VL-Chat for current transformers. Importing this package registers it with the auto classes:

    import mmrole.qwen_vl
    model = AutoModelForCausalLM.from_pretrained(directory)

Code files in a checkpoint directory are never run, whatever `trust_remote_code` says.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from mmrole.qwen_vl.causal_lm import QWenLMHeadModel
from mmrole.qwen_vl.configuration import QWenConfig
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.modeling import QWenModel
from mmrole.qwen_vl.tokenization import QWenTokenizer


class _TokenizerKey(PreTrainedConfig):
    # AutoTokenizer prefers a directory's own code (under trust_remote_code=True) to a tokenizer registered for the
    # directory's configuration class, but not to a registered class that tokenizer_config.json names. So the
    # tokenizer is registered under a configuration that no checkpoint has, and found by its name.
    model_type = "qwen_vl_tokenizer"


AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
AutoModel.register(QWenConfig, QWenModel, exist_ok=True)
AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
AutoTokenizer.register(_TokenizerKey, slow_tokenizer_class=QWenTokenizer, exist_ok=True)

__all__ = ["CheckpointError", "QWenConfig", "QWenLMHeadModel", "QWenModel", "QWenTokenizer"]
