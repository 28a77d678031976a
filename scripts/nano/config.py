"""What nano looks like: the numbers that `config.json` holds and training builds.

Read by `network` and `export`. Must not import torch or MLX.
"""

from dataclasses import asdict, dataclass, field

SWIGLU_LIMIT = 7.0


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN as the real models use it; `truncate` is for other readers, mlx-lm ignores it."""

    rope_type: str = "yarn"
    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """The fields of `config.json` that determine the arithmetic, named as there."""

    num_hidden_layers: int = 4
    num_local_experts: int = 4
    num_experts_per_tok: int = 2
    vocab_size: int = 1024
    rms_norm_eps: float = 1e-5
    hidden_size: int = 128
    intermediate_size: int = 128
    head_dim: int = 64
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    sliding_window: int = 128
    rope_theta: int = 150000
    max_position_embeddings: int = 131072
    rope_scaling: YarnScaling = field(default_factory=YarnScaling)

    @property
    def layer_types(self) -> list[str]:
        pair = ["sliding_attention", "full_attention"]
        return pair * (self.num_hidden_layers // 2)

    def as_json(self) -> dict[str, object]:
        """What `config.json` says, without quantisation."""
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            **asdict(self),
            "layer_types": self.layer_types,
            "swiglu_limit": SWIGLU_LIMIT,
            "hidden_act": "silu",
            "attention_bias": True,
            "tie_word_embeddings": False,
        }
