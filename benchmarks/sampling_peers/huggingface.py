"""Hugging Face `generate` with `num_return_sequences`, on torch. Environment: OMP_NUM_THREADS sets the threads."""

import os

import torch
import transformers
from protocol import cut, serve


def prepare(folder):
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def sample(prompts, n, new, ends, seed, choice):
        torch.manual_seed(seed)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        choice = dict(do_sample=True, top_p=1.0, **choice) if choice["temperature"] else dict(do_sample=False)
        ended = dict(eos_token_id=ends, pad_token_id=ends[0]) if ends else dict(eos_token_id=None, pad_token_id=0)
        out = model.generate(ids, attention_mask=mask, num_return_sequences=n, max_new_tokens=new, **choice, **ended)
        rows = out[:, ids.shape[1] :].tolist()
        return [cut(row, set(ends)) for row in rows], {"computed": len(rows) * len(rows[0])}

    return sample


serve(prepare)
