"""A GGUF file computed as llama.cpp computes it, in numpy: what the file says, read back with the `gguf` package."""

import math

import gguf
import numpy as np


class GGUF:
    """The values and the tensors of a file, matrices as (out, in)."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.values = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }
        self.kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.arch = self.values["general.architecture"]

    def __getitem__(self, key):
        """A value of the architecture."""
        return self.values[f"{self.arch}.{key}"]

    def logits(self, ids):
        """float64 (tokens, vocab)."""
        x = self.tensors["token_embd.weight"][np.asarray(ids)]
        for layer in range(self["block_count"]):
            block = f"blk.{layer}."
            x = x + self._attention(self._norm(x, block + "attn_norm"), block)
            h = self._norm(x, block + "ffn_norm")
            gate = self._linear(h, block + "ffn_gate")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * self._linear(h, block + "ffn_up"), block + "ffn_down")
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self._norm(x, "output_norm") @ head.T

    def _attention(self, x, block):
        heads, groups = self["attention.head_count"], self["attention.head_count_kv"]
        q, k, v = (
            self._linear(x, block + name).reshape(len(x), count, -1)
            for name, count in (("attn_q", heads), ("attn_k", groups), ("attn_v", groups))
        )
        if block + "attn_q_norm.weight" in self.tensors:
            q, k = self._norm(q, block + "attn_q_norm"), self._norm(k, block + "attn_k_norm")
        q, k = self._rope(q), self._rope(k)
        out = []
        for head in range(heads):
            scores = q[:, head] @ k[:, head * groups // heads].T / math.sqrt(self["attention.key_length"])
            scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            probs = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(probs / probs.sum(-1, keepdims=True) @ v[:, head * groups // heads])
        return self._linear(np.concatenate(out, -1), block + "attn_output")

    def _rope(self, x_TND):
        """llama turns neighbours (ggml's NORMAL), the qwens halves (NEOX); yarn as ggml's rope_yarn has it."""
        width = self["rope.dimension_count"]
        base, pairs = self["rope.freq_base"], np.arange(width // 2)
        frequency = base ** (-2.0 * pairs / width) / self.tensors.get("rope_freqs.weight", 1.0)
        scale = 1.0
        kind = self.values.get(f"{self.arch}.rope.scaling.type")
        if kind in ("linear", "yarn"):
            slow = frequency / self["rope.scaling.factor"]
            ramp = np.zeros(width // 2)
            if kind == "yarn":
                length = self["rope.scaling.original_context_length"]
                low, high = (
                    width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32.0, 1.0)
                )
                low, high = max(0, math.floor(low)), min(width - 1, math.ceil(high))
                ramp = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
                scale = 1 + 0.1 * math.log(self["rope.scaling.factor"])
            frequency = slow * (1 - ramp) + frequency * ramp
        angle = np.outer(np.arange(len(x_TND)), frequency)[:, None]
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        neighbours = self.arch == "llama"
        a, b = (x_TND[..., 0::2], x_TND[..., 1::2]) if neighbours else np.split(x_TND, 2, -1)
        turned = a * cos - b * sin, a * sin + b * cos
        return np.stack(turned, -1).reshape(x_TND.shape) if neighbours else np.concatenate(turned, -1)

    def _norm(self, x, name):
        eps = self["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.tensors[f"{name}.weight"]

    def _linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)
